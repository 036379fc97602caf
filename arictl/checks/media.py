"""Where media legs go: the websocket client an Asterisk connects by, and the voice agent's port."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator

from arictl.checks.findings import Finding, ok, warning, wrong
from shared import errors
from shared.asterisk import address_guard, ari, tcp_connector

_CONNECT_SECONDS = 2.0


def check(there: ari.Ari, name: str | None) -> Iterator[Finding]:
    """Whether the Asterisk knows the client by name, and what it says of it. Raises as a request does."""
    what = "websocket client"
    if not name:
        return  # The route says so.
    try:
        client = there.websocket_client(name)
    except errors.AsteriskUnreachable as exc:
        yield warning(
            what,
            f"cannot be told: {exc}",
            f"see that websocket_client.conf has [{name}], and that res_websocket_client.so runs",
        )
        return
    if client is None:
        yield wrong(
            what,
            f"websocket_client.conf has no [{name}]",
            "add it, or correct ws_client_name: arictl doctor --dialplan ORG prints it; then: asterisk -rx"
            " 'module reload res_websocket_client.so'",
        )
        return
    for key, value, wanted in (
        ("protocols", client.protocols, "media"), ("connection_type", client.connection_type, "per_call_config")
    ):  # fmt: skip
        if wanted not in value:
            yield wrong(what, f"[{name}] {key}={value or '(nothing)'}", f"set {key}={wanted} in websocket_client.conf")
    yield ok(what, f"[{name}] is known")
    yield reach(client.uri)


def reach(uri: str) -> Finding:
    """Whether the voice agent's port answers this machine; the Asterisk may see it otherwise. Sends nothing."""
    by_hand = "try from the Asterisk's machine: curl -i -N -H 'Connection: Upgrade' -H 'Upgrade: websocket' URI"
    try:
        parts = urllib.parse.urlsplit(uri)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "wss" else 80)
        usable = parts.scheme in ("ws", "wss")
    except ValueError:
        usable = False
    if not usable or not host:
        return wrong("media URL", "the uri of the websocket client is not ws:// or wss://", "correct it: uri=wss://…")
    # Neither path nor query, which may hold a token.
    place = f"{parts.scheme}://{host}:{port}"
    try:
        # The agent is ours and may be anywhere of ours, but the PBX owner wrote this address: never a metadata service.
        with tcp_connector.TcpConnector(address_guard.AddressGuard()).connect(host, port, seconds=_CONNECT_SECONDS):
            return ok(
                "media URL",
                f"{place}: the port answers this machine; whether it does the Asterisk, and speaks"
                " `media`, only a call shows",
            )
    except errors.AsteriskUnreachable as exc:
        return warning(
            "media URL",
            f"{place}: no connection from this machine: {exc}",
            f"is the voice agent up? Where only the Asterisk can reach it, {by_hand}",
        )
