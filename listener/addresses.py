"""Where an event socket is opened, and with which header. Pure; a password comes in and goes nowhere but the header."""

from __future__ import annotations

import base64
from urllib.parse import quote, urlsplit

from shared import errors

_SCHEMES = {"http": "ws", "https": "wss"}
_FIRST_PRINTABLE = "!"


def socket_url(endpoint: str, app: str) -> str:
    """The URL of the app's event socket. Holds no credentials.

    Raises:
        InvalidConfiguration: The endpoint is not http(s)://host[:port][/prefix].
    """
    # urlsplit would silently drop some of these.
    if any(char < _FIRST_PRINTABLE or char == "\x7f" for char in endpoint):
        raise errors.InvalidConfiguration("the endpoint holds a blank or control character")
    try:
        parts = urlsplit(endpoint)
        host, _port = parts.hostname, parts.port
    except ValueError:
        raise errors.InvalidConfiguration("the endpoint is not a URL") from None
    scheme = _SCHEMES.get(parts.scheme)
    if scheme is None or not host:
        raise errors.InvalidConfiguration("the endpoint is not http(s)://host[:port][/prefix]")
    if parts.username is not None or parts.query or parts.fragment:
        raise errors.InvalidConfiguration("the endpoint holds more than http(s)://host[:port][/prefix]")
    return f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}/ari/events?app={quote(app, safe='')}&subscribeAll=false"


def authorization(user: str, password: str) -> str:
    """The value of the Authorization header (RFC 7617, UTF-8).

    Raises:
        InvalidConfiguration: The user cannot be sent this way.
    """
    if ":" in user:
        raise errors.InvalidConfiguration("the ARI user holds a colon")
    try:
        credentials = f"{user}:{password}".encode()
    except UnicodeEncodeError:
        # Not chained: its text would show the password.
        raise errors.InvalidConfiguration("the ARI user or password holds what is not text") from None
    return "Basic " + base64.b64encode(credentials).decode("ascii")
