"""A tenant's telephony configuration, read from the platform's JSON: canonical, or refused with the field and why."""

from __future__ import annotations

import urllib.parse
from dataclasses import dataclass, field

from shared import errors

_PORTS = {"http": 80, "https": 443}
_LENGTH = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What an event socket and a request need: one version of a connection."""

    #: Canonical: lower-case scheme and host, no default port, no trailing slash.
    endpoint: str
    app: str
    user: str
    password: str = field(repr=False)


def is_ari(value: object) -> bool:
    """Whether a configuration row's value is for us."""
    return isinstance(value, dict) and value.get("provider") == "ari"


def parse(value: object) -> Configuration:
    """Reads `{provider:"ari", ari_endpoint, app_name, app_password, …}`; `app_name` is both ARI user and Stasis app.

    Raises:
        InvalidConfiguration: Says which field and why; never shows the password.
    """
    if not isinstance(value, dict):
        raise errors.InvalidConfiguration("the configuration is not a JSON object")
    name = _text(value, "app_name")
    return Configuration(
        endpoint=canonical_endpoint(_text(value, "ari_endpoint")),
        app=name,
        user=name,
        password=_text(value, "app_password"),
    )


def canonical_endpoint(text: str) -> str:
    """One spelling of an endpoint: `HTTP://Pbx.Example:80/asterisk/` → `http://pbx.example/asterisk`.

    Raises:
        InvalidConfiguration: It is not http(s)://host[:port][/prefix], or has credentials, query or fragment.
    """
    try:
        parts = urllib.parse.urlsplit(text.strip())
        port = parts.port
    except ValueError as exc:
        raise errors.InvalidConfiguration("ari_endpoint is not a URL") from exc
    scheme, host = parts.scheme.lower(), (parts.hostname or "").rstrip(".")
    if scheme not in _PORTS:
        raise errors.InvalidConfiguration("ari_endpoint must begin with http:// or https://")
    if not host or any(char.isspace() for char in text.strip()):
        raise errors.InvalidConfiguration("ari_endpoint has no host, or a space in it")
    if parts.username is not None or parts.password is not None:
        raise errors.InvalidConfiguration("ari_endpoint must not hold credentials: use app_name and app_password")
    if parts.query or parts.fragment:
        raise errors.InvalidConfiguration("ari_endpoint must have no ? and no #")
    address = f"[{host}]" if ":" in host else host
    if port not in (None, _PORTS[scheme]):
        address = f"{address}:{port}"
    path = parts.path.rstrip("/").removesuffix("/ari").rstrip("/")
    return f"{scheme}://{address}{path}"


def _text(value: dict[str, object], name: str) -> str:
    text = value.get(name)
    if text is None or text == "":
        raise errors.InvalidConfiguration(f"{name} is missing")
    if not isinstance(text, str):
        raise errors.InvalidConfiguration(f"{name} is not text")
    if len(text) > _LENGTH or any(char < " " or char == "\x7f" for char in text):
        raise errors.InvalidConfiguration(f"{name} is too long or holds control characters")
    if any("\ud800" <= char <= "\udfff" for char in text):
        # JSON can say them, neither Postgres nor a header can hold them.
        raise errors.InvalidConfiguration(f"{name} holds a character that is not text")
    return text
