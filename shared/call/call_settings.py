"""How a connection's calls are served: what its configuration says beside where its Asterisk is.

Read fresh for each call: a change touches no event socket and takes effect with the next call.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from shared import errors

_PLACE = "{number}"
_DEFAULT_TEMPLATE = f"PJSIP/{_PLACE}"
#: One technology and one resource: `&` would ring a second party, a comma begins the options of Dial.
_TEMPLATE = re.compile(r"[A-Za-z0-9]{1,32}/[A-Za-z0-9@._:+*#/-]{0,180}", re.ASCII)
#: Digits, extensions and names, and nothing that means something in an endpoint: no `@`, `/`, `&`, `,`, blank.
_NUMBER = re.compile(r"[A-Za-z0-9+*#][A-Za-z0-9+*#._-]{0,63}", re.ASCII)
LONGEST_CALL_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSettings:
    """What one call of a connection goes by."""

    #: The client of websocket_client.conf that reaches the voice agent.
    media_client: str
    #: The longest a call may be connected; None for the setting's.
    call_seconds: float | None
    #: What is dialled for a number, which stands for `{number}`.
    dial_template: str
    #: Shown to whom we call, unless a request says otherwise; None for Asterisk's own choice.
    caller_id: str | None


def parse(value: object) -> CallSettings:
    """Reads the terms from a configuration's value.

    Raises:
        InvalidConfiguration: Says which field and why.
    """
    if not isinstance(value, dict):
        raise errors.InvalidConfiguration("the configuration is not a JSON object")
    return CallSettings(
        media_client=_media_client(value.get("ws_client_name")),
        call_seconds=_call_seconds(value.get("ari_max_call_seconds")),
        dial_template=dial_template(value.get("ari_dial_template")),
        caller_id=_caller_id(value.get("from_numbers")),
    )


def continue_in_dialplan(value: object) -> bool:
    """Whether a refused caller goes on in the dialplan (`ari_on_refusal: "continue"`) instead of being hung up."""
    return isinstance(value, dict) and value.get("ari_on_refusal") == "continue"


def dial_template(template: object) -> str:
    """A dial template as configured, or the usual one when there is none.

    Raises:
        InvalidConfiguration: It is not one technology, a resource, and one `{number}`.
    """
    if template in (None, ""):
        return _DEFAULT_TEMPLATE
    plain = template.replace(_PLACE, "", 1) if isinstance(template, str) else ""
    if not isinstance(template, str) or plain == template or not _TEMPLATE.fullmatch(plain):
        raise errors.InvalidConfiguration(
            f"ari_dial_template is not like PJSIP/{_PLACE}, PJSIP/{_PLACE}@trunk or Local/{_PLACE}@context"
        )
    return template


def number(text: str) -> str:
    """A number to dial, or to show, that cannot mean anything else inside an endpoint.

    Raises:
        InvalidRequest: It holds something else than letters, digits, `+ * # . _ -`, or is too long.
    """
    stripped = text.strip()
    if not _NUMBER.fullmatch(stripped):
        raise errors.InvalidRequest(
            f"{text[:80]!r} is no number: 1 to 64 letters, digits or + * # . _ - without blanks, as in +4930123456"
        )
    return stripped


def endpoint(template: str, called: str) -> str:
    """What Asterisk is to dial for a number."""
    return template.replace(_PLACE, number(called))


def _media_client(client: object) -> str:
    if not client:
        raise errors.InvalidConfiguration("ws_client_name is missing")
    if not isinstance(client, str) or not client.isprintable():
        raise errors.InvalidConfiguration("ws_client_name holds what is not text")
    return client


def _call_seconds(seconds: object) -> float | None:
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= LONGEST_CALL_SECONDS:
        raise errors.InvalidConfiguration(
            f"ari_max_call_seconds is not a number of seconds up to {LONGEST_CALL_SECONDS}"
        )
    return float(seconds)


def _caller_id(numbers: object) -> str | None:
    """The first usable of the connection's own numbers."""
    if not isinstance(numbers, list):
        return None
    usable = (entry.strip() for entry in numbers if isinstance(entry, str))
    return next((entry for entry in usable if _NUMBER.fullmatch(entry)), None)
