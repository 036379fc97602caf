"""REST requests about bridges."""

from simulator import bridges, errors
from simulator.rest import NO_CONTENT, Answer, Request, Route, new_id
from simulator.switch import Switch


async def list_bridges(switch: Switch, request: Request) -> Answer:
    return Answer(200, [bridge.snapshot() for bridge in switch.bridges.values()])


async def get_bridge(switch: Switch, request: Request) -> Answer:
    return Answer(200, switch.bridge(request.names[0]).snapshot())


async def create_bridge(switch: Switch, request: Request) -> Answer:
    bridge_id = (request.names[0] if request.names else request.text("bridgeId")) or new_id()
    bridge = bridges.Bridge(id=bridge_id, type=request.text("type", "mixing"), name=request.text("name"))
    switch.create_bridge(bridge)
    return Answer(200, bridge.snapshot())


async def delete_bridge(switch: Switch, request: Request) -> Answer:
    switch.destroy_bridge(switch.bridge(request.names[0]))
    return NO_CONTENT


async def add_channel(switch: Switch, request: Request) -> Answer:
    switch.add_to_bridge(switch.bridge(request.names[0]), _channel_ids(request))
    return NO_CONTENT


async def remove_channel(switch: Switch, request: Request) -> Answer:
    switch.remove_from_bridge(switch.bridge(request.names[0]), _channel_ids(request))
    return NO_CONTENT


def _channel_ids(request: Request) -> list[str]:
    channel_ids = request.items("channel")
    if not channel_ids:
        raise errors.Refusal(400, "Missing parameter: channel")
    return channel_ids


ROUTES = [
    Route("GET", "/bridges", list_bridges),
    Route("POST", "/bridges", create_bridge),
    Route("GET", "/bridges/*", get_bridge),
    Route("POST", "/bridges/*", create_bridge),
    Route("DELETE", "/bridges/*", delete_bridge),
    Route("POST", "/bridges/*/addChannel", add_channel),
    Route("POST", "/bridges/*/removeChannel", remove_channel),
]
