"""The JSON of a tenant's telephony configuration: read into our own types, or refused with the field and the reason.

Nothing else knows its fields. No error shows a password.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shared import errors
from shared.asterisk import endpoint as endpoints
from shared.asterisk import tls
from shared.asterisk.endpoint import Configuration
from shared.call import call_settings
from shared.call.call_settings import CallSettings

_LENGTH = 1024
#: It goes into the request for each media leg, whose line is bounded at Asterisk and at every proxy.
_CLIENT_LENGTH = 256
#: As long as the platform's column.
_NUMBER_LENGTH = 255


def is_ari(value: object) -> bool:
    """Whether a configuration is for an Asterisk."""
    return isinstance(value, dict) and value.get("provider") == "ari"


def parse(value: object) -> Configuration:
    """Read `{provider: "ari", ari_endpoint, app_name, app_password, …}`.

    `app_name` is the ARI user and, without a `stasis_app_name`, the Stasis app. `ari_ca_bundle` may be missing.

    Raises:
        InvalidConfiguration: Names the field and the reason; never shows the password.
    """
    fields = _fields(value)
    user = _app_name(fields, "app_name")
    app = _app_name(fields, "stasis_app_name") if fields.get("stasis_app_name") else user
    endpoint = endpoints.canonical_endpoint(_text(fields, "ari_endpoint"), name="ari_endpoint")
    ca_bundle = endpoints.canonical_bundle(fields.get("ari_ca_bundle"), name="ari_ca_bundle")
    if ca_bundle is not None and not endpoint.startswith("https:"):
        raise errors.InvalidConfiguration("ari_ca_bundle has no effect with http://: use https:// or remove it")
    if fields.get("external_pbx"):
        raise errors.InvalidConfiguration("external_pbx is not served: no data of callers is read from another PBX")
    return Configuration(
        endpoint=endpoint, app=app, user=user, password=_text(fields, "app_password"), ca_bundle=ca_bundle
    )


def read(value: object) -> Configuration:
    """As `parse`, and let OpenSSL read the certificates: what this returns can be connected with."""
    configuration = parse(value)
    tls.check(configuration.ca_bundle, name="ari_ca_bundle")
    return configuration


def parse_call_settings(value: object) -> CallSettings:
    """Read the per-call settings.

    Raises:
        InvalidConfiguration: Names the field and the reason.
    """
    fields = _fields(value)
    return CallSettings(
        media_client=_media_client(fields.get("ws_client_name")),
        call_seconds=_call_seconds(fields.get("ari_max_call_seconds")),
        dial_template=_dial_template(fields),
        caller_id=_caller_id(fields.get("from_numbers")),
    )


def media_client(value: object) -> str | None:
    """Return the websocket client that a configuration names; None if it names none."""
    name = value.get("ws_client_name") if isinstance(value, dict) else None
    return name if isinstance(name, str) else None


def continue_in_dialplan(value: object) -> bool:
    """Whether a refused caller continues in the dialplan (`ari_on_refusal: "continue"`) instead of being hung up."""
    return isinstance(value, dict) and value.get("ari_on_refusal") == "continue"


def write(
    *,
    endpoint: str,
    app: str,
    password: str,
    media_client: str,
    inbound_workflow_id: int | None,
    stasis_app: str | None = None,
    caller_ids: Sequence[str] = (),
    ca_bundle: str | None = None,
    continue_in_dialplan: bool | None = None,
    dial_template: str | None = None,
    call_seconds: float | None = None,
) -> dict[str, Any]:
    """Return the JSON of a configuration. A parameter that is None is left out of it, except the workflow.

    Raises:
        InvalidConfiguration: `read` or `parse_call_settings` would refuse it.
    """
    value: dict[str, Any] = {
        "provider": "ari",
        "ari_endpoint": endpoint,
        "app_name": app,
        "app_password": password,
        "ws_client_name": media_client,
        "inbound_workflow_id": inbound_workflow_id,
        "from_numbers": list(caller_ids),
    }
    if stasis_app is not None:
        value["stasis_app_name"] = stasis_app
        # In a row of the platform's an empty one is none.
        _app_name(value, "stasis_app_name")
    if ca_bundle is not None:
        value["ari_ca_bundle"] = ca_bundle
    if continue_in_dialplan is not None:
        value["ari_on_refusal"] = "continue" if continue_in_dialplan else "hangup"
    if dial_template is not None:
        value["ari_dial_template"] = dial_template
    if call_seconds is not None:
        value["ari_max_call_seconds"] = call_seconds
    read(value)
    parse_call_settings(value)
    check_text(media_client, "ws_client_name", longest=_CLIENT_LENGTH)
    for number in caller_ids:
        check_text(number, "a number", longest=_NUMBER_LENGTH)
    return value


def check_text(text: str, what: str, *, longest: int) -> None:
    """Raise InvalidConfiguration for a text that is empty, too long, not printable, or has blanks around it."""
    if not text.strip():
        raise errors.InvalidConfiguration(f"{what} is empty")
    if len(text) > longest:
        raise errors.InvalidConfiguration(f"{what} is longer than {longest} characters")
    if text != text.strip() or not text.isprintable():
        raise errors.InvalidConfiguration(f"{what} begins or ends with a blank, or contains control characters")


def _fields(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise errors.InvalidConfiguration("the configuration is not a JSON object")
    return value


def _text(fields: dict[str, Any], name: str) -> str:
    text = fields.get(name)
    if text is None or text == "":
        raise errors.InvalidConfiguration(f"{name} is missing")
    if not isinstance(text, str):
        raise errors.InvalidConfiguration(f"{name} is not text")
    if len(text) > _LENGTH or any(char < " " or char == "\x7f" for char in text):
        raise errors.InvalidConfiguration(f"{name} is too long or contains control characters")
    if any("\ud800" <= char <= "\udfff" for char in text):
        # JSON can express lone surrogates; neither Postgres nor an HTTP header can hold them.
        raise errors.InvalidConfiguration(f"{name} contains a character that is not text")
    return text


def _app_name(fields: dict[str, Any], field: str) -> str:
    """Return the name of an ARI user or of a Stasis app.

    A colon ends the user in an HTTP header, a comma the app in the event socket's URL and in Stasis(), and Asterisk
    reads its files without the blanks around a name.
    """
    name = _text(fields, field)
    if set(name) & set(":,") or name != name.strip():
        raise errors.InvalidConfiguration(f"{field} contains a colon, a comma, or a blank at its beginning or end")
    return name


def _dial_template(fields: dict[str, Any]) -> str:
    """Return the dial template: ours or, without it, the platform's."""
    name = "ari_dial_template" if fields.get("ari_dial_template") else "dial_string_template"
    return call_settings.dial_template(fields.get(name), name=name)


def _media_client(client: object) -> str:
    if not client:
        raise errors.InvalidConfiguration("ws_client_name is missing")
    if not isinstance(client, str) or not client.isprintable():
        raise errors.InvalidConfiguration("ws_client_name is not printable text")
    if len(client) > _CLIENT_LENGTH:
        raise errors.InvalidConfiguration(f"ws_client_name is longer than {_CLIENT_LENGTH} characters")
    return client


def _call_seconds(seconds: object) -> float | None:
    if seconds is None:
        return None
    longest = call_settings.LONGEST_CALL_SECONDS
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= longest:
        raise errors.InvalidConfiguration(f"ari_max_call_seconds is not a number of seconds up to {longest}")
    return float(seconds)


def _caller_id(numbers: object) -> str | None:
    """Return the first usable of the connection's numbers."""
    if not isinstance(numbers, list):
        return None
    usable = (entry.strip() for entry in numbers if isinstance(entry, str))
    return next((entry for entry in usable if call_settings.is_number(entry)), None)
