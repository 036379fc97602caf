"""Orders over HTTP, under `/simulator/`: calls, faults and gates, and a look inside. No password: loopback only."""

import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar

import pydantic

from simulator import channels, dialplan, errors, orders
from simulator.rest import NO_CONTENT, Answer, Request, Route

if TYPE_CHECKING:
    from simulator.server import Server

_Order = TypeVar("_Order", bound=orders.Order)


def _read(kind: type[_Order], request: Request) -> _Order:
    try:
        return kind.model_validate(request.body or {})
    except pydantic.ValidationError as exc:
        raise errors.Refusal(400, str(exc)) from exc


async def dial(server: "Server", request: Request) -> Answer:
    order = _read(orders.Dial, request)
    if not server.switch.is_running:
        raise errors.Refusal(503, "Asterisk is down")
    channel = dialplan.dial(server.switch, order)
    return Answer(200, {"id": channel.id})


async def hang_up(server: "Server", request: Request) -> Answer:
    order = _read(orders.HangUp, request)
    server.switch.hang_up(server.switch.channel(request.names[0]), order.cause, soft=False)
    return NO_CONTENT


async def continue_in_dialplan(server: "Server", request: Request) -> Answer:
    dialplan.leave_to_dialplan(server.switch, server.switch.channel(request.names[0]))
    return NO_CONTENT


async def reenter(server: "Server", request: Request) -> Answer:
    order = _read(orders.Reenter, request)
    channel = server.switch.channel(request.names[0])
    if channel.app is not None:
        raise errors.Refusal(409, "Channel is in a Stasis application")
    server.switch.spawn(dialplan.run(server.switch, channel, order.app, order.args, is_patient=True))
    return NO_CONTENT


async def pick_up(server: "Server", request: Request) -> Answer:
    order = _read(orders.PickUp, request)
    channel = dialplan.pick_up(server.switch, server.switch.channel(request.names[0]), order)
    return Answer(200, {"id": channel.id})


async def list_channels(server: "Server", request: Request) -> Answer:
    return Answer(200, [_inside(channel) for channel in server.switch.channels.values()])


async def list_bridges(server: "Server", request: Request) -> Answer:
    return Answer(200, [bridge.snapshot() for bridge in server.switch.bridges.values()])


async def heard(server: "Server", request: Request) -> Answer:
    found = server.switch.heard(request.names[0])
    if found is None:
        raise errors.Refusal(404, "Channel not found")
    return Answer(200, found)


async def list_requests(server: "Server", request: Request) -> Answer:
    return Answer(200, [dataclasses.asdict(logged) for logged in server.log])


async def list_events(server: "Server", request: Request) -> Answer:
    return Answer(200, list(server.switch.applications.log))


async def status(server: "Server", request: Request) -> Answer:
    return Answer(200, {"is_running": server.switch.is_running, "crashes": server.switch.crashes})


async def list_sockets(server: "Server", request: Request) -> Answer:
    return Answer(200, server.switch.applications.socket_snapshots(request.names[0]))


async def cut_sockets(server: "Server", request: Request) -> Answer:
    order = _read(orders.CutSockets, request)
    return Answer(200, {"cut": server.switch.applications.cut_sockets(order.app, silently=order.silently)})


async def drop_events(server: "Server", request: Request) -> Answer:
    order = _read(orders.DropEvents, request)
    server.switch.applications.drop(order.types, order.times)
    return NO_CONTENT


async def set_media(server: "Server", request: Request) -> Answer:
    order = _read(orders.Media, request)
    if order.delay_seconds is not None:
        server.switch.media.delay_seconds = order.delay_seconds
    if order.refuse is not None:
        server.switch.media.is_refused = order.refuse
    return NO_CONTENT


async def add_fault(server: "Server", request: Request) -> Answer:
    return Answer(200, {"id": server.faults.add_fault(_read(orders.Fault, request))})


async def get_fault(server: "Server", request: Request) -> Answer:
    fault = server.faults.faults.get(request.names[0])
    if fault is None:
        raise errors.Refusal(404, "Fault not found")
    return Answer(200, {"hits": fault.hits})


async def remove_fault(server: "Server", request: Request) -> Answer:
    server.faults.faults.pop(request.names[0], None)
    return NO_CONTENT


async def add_gate(server: "Server", request: Request) -> Answer:
    return Answer(200, {"id": server.faults.add_gate(_read(orders.Gate, request))})


async def get_gate(server: "Server", request: Request) -> Answer:
    """Waits, when asked to, until so many requests have arrived or the time is up."""
    gate = server.faults.gates.get(request.names[0])
    if gate is None:
        raise errors.Refusal(404, "Gate not found")
    await gate.wait_arrived(int(request.number("arrived", 0)), request.number("timeout", 0.0))
    return Answer(200, {"arrived": gate.arrived, "waiting": gate.waiting})


async def release_gate(server: "Server", request: Request) -> Answer:
    server.faults.release(request.names[0])
    return NO_CONTENT


async def clear(server: "Server", request: Request) -> Answer:
    """Ends all faults, gates, drops and media troubles."""
    server.faults.clear()
    server.switch.applications.drops.clear()
    server.switch.media.delay_seconds = 0.0
    server.switch.media.is_refused = False
    return NO_CONTENT


async def crash(server: "Server", request: Request) -> Answer:
    server.switch.crash()
    return NO_CONTENT


async def restart(server: "Server", request: Request) -> Answer:
    order = _read(orders.Restart, request)
    server.switch.stop_running()
    if order.down_seconds:
        server.switch.restart_later(order.down_seconds)
    else:
        server.switch.restart()
    return NO_CONTENT


def _inside(channel: channels.Channel) -> dict[str, Any]:
    return channel.snapshot() | {
        "kind": channel.kind,
        "app": channel.app,
        "bridge_id": channel.bridge_id,
        "gaps": channel.gaps,
    }


ROUTES: "list[Route[Server]]" = [
    Route("POST", "/callers", dial),
    Route("GET", "/channels", list_channels),
    Route("POST", "/channels/*/hangUp", hang_up),
    Route("POST", "/channels/*/continue", continue_in_dialplan),
    Route("POST", "/channels/*/reenter", reenter),
    Route("POST", "/channels/*/pickUp", pick_up),
    Route("GET", "/channels/*/heard", heard),
    Route("GET", "/bridges", list_bridges),
    Route("GET", "/requests", list_requests),
    Route("GET", "/events", list_events),
    Route("GET", "/status", status),
    Route("GET", "/applications/*/sockets", list_sockets),
    Route("POST", "/sockets/cut", cut_sockets),
    Route("POST", "/drops", drop_events),
    Route("PUT", "/media", set_media),
    Route("POST", "/faults", add_fault),
    Route("GET", "/faults/*", get_fault),
    Route("DELETE", "/faults/*", remove_fault),
    Route("POST", "/gates", add_gate),
    Route("GET", "/gates/*", get_gate),
    Route("DELETE", "/gates/*", release_gate),
    Route("POST", "/clear", clear),
    Route("POST", "/crash", crash),
    Route("POST", "/restart", restart),
]
