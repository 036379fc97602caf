"""Opens event sockets as a listener does, with the default bounds."""

from __future__ import annotations

import asyncio
import socket

from listener import main, websocket
from listener.read_turns import ReadTurns
from shared.asterisk import address_guard, name_lookups
from shared.process import settings


async def connect(
    url: str,
    header: str,
    ca_bundle: str | None,
    *,
    rule: address_guard.AddressGuard,
    resolve: name_lookups.Resolve = socket.getaddrinfo,
) -> websocket.EventStream:
    """Open a websocket."""
    values = {"redis_url": "redis://nowhere", "secret_key": "a key that nothing needs"}
    config = settings.Listener.model_validate(values)
    return await websocket.connect(
        url,
        header,
        ca_bundle,
        "1:1",
        lookups=name_lookups.NameLookups(rule, resolve=resolve),
        turns=ReadTurns(config.read_turn_ms / 1000, asyncio.get_running_loop().call_later),
        limits=main.read_limits(config),
    )
