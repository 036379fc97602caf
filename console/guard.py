"""What every request passes first, and every answer last: who asks, for which host, with which headers."""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.asterisk import address_guard
from shared.process import settings

_log = logging.getLogger(__name__)

_LOOPBACK = address_guard.parse_networks("127.0.0.0/8,::1")
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
#: A page runs and shows what comes from here, and nothing that stands in it.
POLICY = "; ".join([
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "form-action 'self'",
    "base-uri 'none'",
    "frame-ancestors 'none'",
])  # fmt: skip
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
#: Pages show calls: no copy of them is kept.
_NO_STORE = "no-store"
#: A year, once a browser was here over TLS.
_TLS_ONLY = "max-age=31536000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """How browsers reach the console."""

    #: Networks of the proxies in front.
    proxies: tuple[address_guard.Network, ...] = ()
    #: Host and port as browsers name them; empty for any port of a loopback name.
    host: str = ""
    #: From where a container's published port is forwarded: besides loopback it answers these. Empty without one.
    forwarders: tuple[address_guard.Network, ...] = ()

    @classmethod
    def of(cls, config: settings.Web) -> Front:
        """Return what the settings say."""
        networks, url = address_guard.parse_networks(config.console_proxies), urlsplit(config.console_url)
        if url.scheme == "http":
            # A browser of this host, through a published port: what forwards it adds no header that could be believed.
            return cls(forwarders=networks)
        return cls(proxies=networks, host=url.netloc)

    @property
    def needs_tls(self) -> bool:
        """Whether browsers come over TLS."""
        return bool(self.host)

    def serves(self, host: str) -> bool:
        """Return whether a Host header names the console: another one comes by a name that leads here, too."""
        if self.host:
            return host.lower() == self.host.lower()
        name, colon, port = host.rpartition(":")
        return (name if colon and port.isdigit() else host).lower() in _LOOPBACK_NAMES

    def admits(self, peer: str) -> bool:
        """Return whether a peer may ask for anything at all."""
        return not self.forwarders or _among(peer, (*self.forwarders, *_LOOPBACK))

    def is_proxy(self, address: str) -> bool:
        """Return whether an address is that of a proxy in front."""
        return _among(address, self.proxies)

    def client(self, peer: str, forwarded: Iterable[str]) -> str:
        """Return the address that asks: the last one that no proxy of ours has, of those that they have told."""
        address = peer
        for told in reversed([part.strip() for header in forwarded for part in header.split(",")]):
            named = _address(told)
            if not self.is_proxy(address) or not named:
                break
            address = named
        return address


def _among(address: str, networks: Iterable[address_guard.Network]) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in networks)


#: An address, as some proxies tell it: with the client's port, and of IPv6 in brackets then.
_TOLD = re.compile(r"(?P<v4>[0-9.]+)(:[0-9]{1,5})?|\[(?P<v6>[0-9A-Fa-f:.]+)\](:[0-9]{1,5})?|(?P<bare>[0-9A-Fa-f:.]+)")


def _address(told: str) -> str:
    """Return the address of an entry of X-Forwarded-For, in its one spelling; empty if it is none."""
    match = _TOLD.fullmatch(told)
    try:
        return str(ipaddress.ip_address(match["v4"] or match["v6"] or match["bare"])) if match is not None else ""
    except ValueError:
        return ""


class Guard:
    """Refuses requests that are not for the console, and adds the security headers to what is answered."""

    def __init__(self, app: ASGIApp, front: Front) -> None:
        self._app = app
        self._front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        peer = (scope.get("client") or ("", 0))[0]
        is_secure = False
        if self._front.is_proxy(peer):
            is_secure = headers.get("x-forwarded-proto", "").lower() == "https"
        scope = {**scope, "client": (self._front.client(peer, headers.getlist("x-forwarded-for")), 0)}
        scope["scheme"] = "https" if is_secure else "http"

        has_begun = False

        async def send_guarded(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                answered = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    answered[name] = value
                answered.setdefault("cache-control", _NO_STORE)
                if is_secure:
                    answered["strict-transport-security"] = _TLS_ONLY
            await send(message)

        app = self._app
        if not self._front.serves(headers.get("host", "")):
            app = PlainTextResponse("this is not the console's address: see CONSOLE_URL", status_code=421)
        elif not self._front.admits(peer):
            app = PlainTextResponse("the console is reached from its own host alone: see CONSOLE_URL", status_code=403)
        elif self._front.needs_tls and not is_secure:
            app = PlainTextResponse("the console is reached over TLS alone: see CONSOLE_PROXIES", status_code=403)
        try:
            await app(scope, receive, send_guarded)
        except ClientDisconnect:
            pass
        except Exception:  # noqa: BLE001 - the server would answer it without these headers, and log nothing
            _log.exception("request failed", extra={"path": scope["path"]})
            if not has_begun:
                failed = PlainTextResponse("This failed. The error is in the log of the process web.", status_code=500)
                await failed(scope, receive, send_guarded)
