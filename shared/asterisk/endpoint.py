"""Where an Asterisk is and how to log in there: one canonical spelling of an endpoint and of a CA bundle.

Pure. A rule that is broken raises InvalidConfiguration and names the field as the platform names it.
"""

from __future__ import annotations

import base64
import binascii
import re
import urllib.parse
from dataclasses import dataclass, field

from shared import errors

_PORTS = {"http": 80, "https": 443}
#: Room for some eight certificates. A bundle goes to Redis with its assignment: the system's whole list would not do.
_BUNDLE_LENGTH = 16 * 1024
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]*)-----END CERTIFICATE-----")
_DER_SEQUENCE = 0x30


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What an event socket and a request need: the content of one version of a connection."""

    #: Canonical: lower-case scheme and host, no default port, no trailing slash.
    endpoint: str
    app: str
    user: str
    password: str = field(repr=False)
    #: Certificates in PEM, canonical: the only ones trusted for this endpoint. None: the system's authorities.
    ca_bundle: str | None = None


def canonical_endpoint(text: str, *, name: str = "the endpoint") -> str:
    """Return the one spelling of an endpoint: `HTTP://Pbx.Example:80/asterisk/` → `http://pbx.example/asterisk`.

    Args:
        name: The field's name, for the error.

    Raises:
        InvalidConfiguration: It is not http(s)://host[:port][/prefix], or has credentials, query or fragment.
    """
    try:
        parts = urllib.parse.urlsplit(text.strip())
        port = parts.port
    except ValueError as exc:
        raise errors.InvalidConfiguration(f"{name} is not a URL") from exc
    scheme, host = parts.scheme.lower(), (parts.hostname or "").rstrip(".")
    if scheme not in _PORTS:
        raise errors.InvalidConfiguration(f"{name} must begin with http:// or https://")
    if not host or any(char.isspace() for char in text.strip()):
        raise errors.InvalidConfiguration(f"{name} has no host, or contains a space")
    if port == 0:
        raise errors.InvalidConfiguration(f"{name} names the port 0, which no server has")
    if parts.username is not None or parts.password is not None:
        raise errors.InvalidConfiguration(f"{name} must not contain credentials: use the fields for user and password")
    if parts.query or parts.fragment:
        raise errors.InvalidConfiguration(f"{name} must have no ? and no #")
    address = f"[{host}]" if ":" in host else host
    if port not in (None, _PORTS[scheme]):
        address = f"{address}:{port}"
    path = parts.path.rstrip("/").removesuffix("/ari").rstrip("/")
    return f"{scheme}://{address}{path}"


def address(endpoint: str) -> tuple[str, int]:
    """Return host and port of a canonical endpoint: those of one Asterisk, whatever its prefixes are."""
    parts = urllib.parse.urlsplit(endpoint)
    return parts.hostname or "", parts.port or _PORTS[parts.scheme]


def canonical_bundle(bundle: object, *, name: str = "the CA bundle") -> str | None:
    """Return the one spelling of a CA bundle: its certificates in PEM, without text between them; None if it is empty.

    The certificates are only taken apart here; `tls.context` lets OpenSSL read them.

    Args:
        name: The field's name, for the error.

    Raises:
        InvalidConfiguration: It has no certificate, contains other text than certificates, or is too long.
    """
    if bundle is None or bundle == "":
        return None
    if not isinstance(bundle, str):
        raise errors.InvalidConfiguration(f"{name} is not text: give the certificates in PEM")
    if len(bundle) > _BUNDLE_LENGTH:
        raise errors.InvalidConfiguration(
            f"{name} is longer than {_BUNDLE_LENGTH} characters: give only the authority that signed the"
            " certificate of this Asterisk"
        )
    if "PRIVATE KEY-----" in bundle:
        # A bundle is treated as public data: stored and shown unsealed.
        raise errors.InvalidConfiguration(
            f"{name} contains a private key: replace that key, and give certificates only"
        )
    certificates = [_der(match[1], name) for match in _CERTIFICATE.finditer(bundle)]
    if not certificates or bundle.count("-----BEGIN ") != len(certificates):
        raise errors.InvalidConfiguration(
            f"{name} contains something else than whole certificates in PEM, each from -----BEGIN CERTIFICATE-----"
            " to -----END CERTIFICATE-----"
        )
    return "".join(map(_pem, certificates))


def _der(text: str, name: str) -> bytes:
    try:
        der = base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error:
        der = b""
    if not _is_whole(der):
        raise errors.InvalidConfiguration(f"{name} contains a damaged certificate: copy it again")
    return der


def _is_whole(der: bytes) -> bool:
    """Whether it is one DER sequence, from its first byte to its last; its content is for OpenSSL to judge."""
    if len(der) < 2 or der[0] != _DER_SEQUENCE:
        return False
    size = der[1] & 0x7F if der[1] & 0x80 else 0
    length = int.from_bytes(der[2 : 2 + size]) if size else der[1]
    return len(der) == 2 + size + length


def _pem(der: bytes) -> str:
    text = base64.b64encode(der).decode("ascii")
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return "\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""])
