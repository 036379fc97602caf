"""The way of media legs: the websocket client in the Asterisk, and the voice agent's port."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator

from shared import errors
from shared.asterisk import address_guard, ari, tcp_connector
from shared.operator.checks.findings import Finding, ok, warning, wrong

_CONNECT_SECONDS = 2.0


def check(there: ari.Ari, name: str | None) -> Iterator[Finding]:
    """Check whether the Asterisk has a client of this name, and how it is configured. Raises as a request does."""
    what = "websocket client"
    if not name:
        return  # A finding of the route.
    try:
        client = there.websocket_client(name)
    except errors.AsteriskUnreachable as exc:
        yield warning(
            what,
            f"cannot be checked: {exc}",
            f"check that websocket_client.conf has [{name}], and that res_websocket_client.so is loaded",
        )
        return
    if client is None:
        yield wrong(
            what,
            f"websocket_client.conf has no [{name}]",
            "add it (arictl doctor --dialplan ORG prints it), or correct the configuration; then: asterisk -rx"
            " 'module reload res_websocket_client.so'",
        )
        return
    for key, value, wanted in (
        ("protocols", client.protocols, "media"), ("connection_type", client.connection_type, "per_call_config")
    ):  # fmt: skip
        if wanted not in value:
            yield wrong(what, f"[{name}] {key}={value or '(nothing)'}", f"set {key}={wanted} in websocket_client.conf")
    yield ok(what, f"[{name}] exists")
    yield reach(client.uri)


def reach(uri: str) -> Finding:
    """Check whether the voice agent's port can be reached from this machine. Sends nothing.

    The Asterisk, in another network, may see it otherwise.
    """
    by_hand = "try on the Asterisk's machine: curl -i -N -H 'Connection: Upgrade' -H 'Upgrade: websocket' URI"
    try:
        parts = urllib.parse.urlsplit(uri)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "wss" else 80)
        usable = parts.scheme in ("ws", "wss")
    except ValueError:
        usable = False
    if not usable or not host:
        return wrong("media URL", "the uri of the websocket client is not ws:// or wss://", "correct it: uri=wss://…")
    # Neither path nor query, which may hold a token.
    address = f"{parts.scheme}://{host}:{port}"
    try:
        # The agent may be in our own network, but the PBX owner wrote this address: never a metadata service.
        with tcp_connector.TcpConnector(address_guard.AddressGuard()).connect(host, port, seconds=_CONNECT_SECONDS):
            return ok(
                "media URL",
                f"{address}: reachable from this machine; only a call shows whether it is from the Asterisk,"
                " and whether it speaks `media`",
            )
    except errors.AsteriskUnreachable as exc:
        return warning(
            "media URL",
            f"{address}: no connection from this machine: {exc}",
            f"is the voice agent running? If only the Asterisk can reach it, {by_hand}",
        )
