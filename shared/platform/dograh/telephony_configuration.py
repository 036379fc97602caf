"""A tenant's telephony configuration, read from the platform's JSON: canonical, or refused with the field and why."""

from __future__ import annotations

import base64
import binascii
import re
import urllib.parse
from dataclasses import dataclass, field

from shared import errors

_PORTS = {"http": 80, "https": 443}
_LENGTH = 1024
#: Room for some eight certificates. A bundle goes to Redis with its assignment: the system's whole list would not do.
_BUNDLE_LENGTH = 16 * 1024
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]*)-----END CERTIFICATE-----")
_DER_SEQUENCE = 0x30


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What an event socket and a request need: one version of a connection."""

    #: Canonical: lower-case scheme and host, no default port, no trailing slash.
    endpoint: str
    app: str
    user: str
    password: str = field(repr=False)
    #: Certificates in PEM, canonical: whom to trust for this endpoint, and nobody else. None: the system's authorities.
    ca_bundle: str | None = None


def is_ari(value: object) -> bool:
    """Whether a configuration row's value is for us."""
    return isinstance(value, dict) and value.get("provider") == "ari"


def parse(value: object) -> Configuration:
    """Reads `{provider:"ari", ari_endpoint, app_name, app_password, …}`; `app_name` is both ARI user and Stasis app.

    `ari_ca_bundle` may be missing. Its certificates are only taken apart here: `authorities.context` reads them.

    Raises:
        InvalidConfiguration: Says which field and why; never shows the password.
    """
    if not isinstance(value, dict):
        raise errors.InvalidConfiguration("the configuration is not a JSON object")
    name = _text(value, "app_name")
    endpoint, ca_bundle = canonical_endpoint(_text(value, "ari_endpoint")), canonical_bundle(value.get("ari_ca_bundle"))
    if ca_bundle is not None and not endpoint.startswith("https:"):
        raise errors.InvalidConfiguration("ari_ca_bundle is of no use to http://: use https:// or remove it")
    return Configuration(
        endpoint=endpoint,
        app=name,
        user=name,
        password=_text(value, "app_password"),
        ca_bundle=ca_bundle,
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


def canonical_bundle(bundle: object) -> str | None:
    """One spelling of a CA bundle: its certificates in PEM, without what stands between them; None when it is empty.

    Raises:
        InvalidConfiguration: It holds no certificate, something else than certificates, or too much.
    """
    if bundle is None or bundle == "":
        return None
    if not isinstance(bundle, str):
        raise errors.InvalidConfiguration("ari_ca_bundle is not text: give the certificates in PEM")
    if len(bundle) > _BUNDLE_LENGTH:
        raise errors.InvalidConfiguration(
            f"ari_ca_bundle is longer than {_BUNDLE_LENGTH} characters: give only the authority that signed the"
            " certificate of this Asterisk"
        )
    if "PRIVATE KEY-----" in bundle:
        # It is public data to us, stored and shown unsealed.
        raise errors.InvalidConfiguration("ari_ca_bundle holds a private key: replace that key, give certificates only")
    certificates = [_der(match[1]) for match in _CERTIFICATE.finditer(bundle)]
    if not certificates or bundle.count("-----BEGIN ") != len(certificates):
        raise errors.InvalidConfiguration(
            "ari_ca_bundle holds something else than whole certificates in PEM, each from -----BEGIN CERTIFICATE-----"
            " to -----END CERTIFICATE-----"
        )
    return "".join(map(_pem, certificates))


def _der(text: str) -> bytes:
    try:
        der = base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error:
        der = b""
    if not _is_whole(der):
        raise errors.InvalidConfiguration("ari_ca_bundle holds a certificate that is damaged: copy it once more")
    return der


def _is_whole(der: bytes) -> bool:
    """Whether it is one DER sequence, from its first byte to its last; what is in it is for OpenSSL to judge."""
    if len(der) < 2 or der[0] != _DER_SEQUENCE:
        return False
    size = der[1] & 0x7F if der[1] & 0x80 else 0
    length = int.from_bytes(der[2 : 2 + size]) if size else der[1]
    return len(der) == 2 + size + length


def _pem(der: bytes) -> str:
    text = base64.b64encode(der).decode("ascii")
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return "\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""])


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
