"""REST requests about Asterisk itself: its version, its modules, its websocket clients."""

from typing import Any

from simulator import errors, events
from simulator.rest import Answer, Request, Route
from simulator.switch import Switch


async def ping(switch: Switch, request: Request) -> Answer:
    return Answer(
        200,
        {"ping": "pong", "timestamp": events.timestamp(), "asterisk_id": switch.settings.asterisk_id},
    )


async def info(switch: Switch, request: Request) -> Answer:
    return Answer(
        200,
        {
            "build": {"os": "Linux", "kernel": "simulated", "machine": "x86_64", "options": "", "date": "", "user": ""},
            "system": {"version": switch.settings.version, "entity_id": switch.settings.asterisk_id},
            "config": {"name": "", "default_language": "en"},
            "status": {"startup_time": events.timestamp(), "last_reload_time": events.timestamp()},
        },
    )


async def list_modules(switch: Switch, request: Request) -> Answer:
    return Answer(200, [_module(name) for name in sorted(switch.settings.modules)])


async def get_module(switch: Switch, request: Request) -> Answer:
    name = request.names[0].removesuffix(".so")
    if name not in switch.settings.modules:
        raise errors.Refusal(404, "Module could not be found in running modules")
    return Answer(200, _module(name))


async def get_websocket_client(switch: Switch, request: Request) -> Answer:
    """Answers with the configuration of a websocket client, as ARI's list of attributes."""
    name = request.names[0]
    if name not in switch.settings.media_urls:
        raise errors.Refusal(404, f"Object with id '{name}' not found")
    seconds = switch.settings.media_connection_timeout_seconds
    attributes = {
        "uri": switch.settings.media_urls[name],
        "protocols": "media",
        "connection_type": "per_call_config",
        "connection_timeout": f"{seconds * 1000:.0f}",
        "reconnect_interval": f"{seconds * 1000:.0f}",
        "reconnect_attempts": str(switch.settings.media_connection_attempts),
        "username": "",
        "password": "",
    }
    return Answer(200, [{"attribute": key, "value": value} for key, value in attributes.items()])


def _module(name: str) -> dict[str, Any]:
    return {
        "name": f"{name}.so",
        "description": "Simulated",
        "use_count": 0,
        "status": "Running",
        "support_level": "core",
    }


ROUTES = [
    Route("GET", "/asterisk/ping", ping),
    Route("GET", "/asterisk/info", info),
    Route("GET", "/asterisk/modules", list_modules),
    Route("GET", "/asterisk/modules/*", get_module),
    Route("GET", "/asterisk/config/dynamic/res_websocket_client/websocket_client/*", get_websocket_client),
]
