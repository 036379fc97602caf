"""The control API under `/simulator/`: calls, faults and breakpoints, and a look inside. No password: loopback only."""

import dataclasses
from typing import Any, TypeVar

import pydantic

from simulator import channels, control_requests, dialplan, errors, events
from simulator.instance import Instance
from simulator.rest import NO_CONTENT, Answer, Request, Route

_Kind = TypeVar("_Kind", bound=control_requests.ControlRequest)


def _read(kind: type[_Kind], request: Request) -> _Kind:
    try:
        return kind.model_validate(request.body or {})
    except pydantic.ValidationError as exc:
        raise errors.Refusal(400, str(exc)) from exc


async def dial(instance: Instance, request: Request) -> Answer:
    wanted = _read(control_requests.Dial, request)
    if not instance.switch.is_running:
        raise errors.Refusal(503, "Asterisk is down")
    channel = dialplan.dial(instance.switch, wanted)
    return Answer(200, {"id": channel.id})


async def hang_up(instance: Instance, request: Request) -> Answer:
    wanted = _read(control_requests.HangUp, request)
    instance.switch.hang_up(instance.switch.channel(request.names[0]), wanted.cause, soft=False)
    return NO_CONTENT


async def continue_in_dialplan(instance: Instance, request: Request) -> Answer:
    dialplan.leave_to_dialplan(instance.switch, instance.switch.channel(request.names[0]))
    return NO_CONTENT


async def reenter(instance: Instance, request: Request) -> Answer:
    wanted = _read(control_requests.Reenter, request)
    channel = instance.switch.channel(request.names[0])
    if channel.app is not None:
        raise errors.Refusal(409, "Channel is in a Stasis application")
    instance.switch.spawn(dialplan.run(instance.switch, channel, wanted.app, wanted.args, retries=True))
    return NO_CONTENT


async def pick_up(instance: Instance, request: Request) -> Answer:
    wanted = _read(control_requests.PickUp, request)
    channel = dialplan.pick_up(instance.switch, instance.switch.channel(request.names[0]), wanted)
    return Answer(200, {"id": channel.id})


async def transfer(instance: Instance, request: Request) -> Answer:
    wanted = _read(control_requests.Transfer, request)
    channel = dialplan.transfer(instance.switch, instance.switch.channel(request.names[0]), wanted)
    return Answer(200, {"id": channel.id})


async def list_channels(instance: Instance, request: Request) -> Answer:
    return Answer(200, [_inside(channel) for channel in instance.switch.channels.values()])


async def list_bridges(instance: Instance, request: Request) -> Answer:
    return Answer(200, [bridge.snapshot() for bridge in instance.switch.bridges.values()])


async def heard(instance: Instance, request: Request) -> Answer:
    found = instance.switch.heard(request.names[0])
    if found is None:
        raise errors.Refusal(404, "Channel not found")
    return Answer(200, found)


async def list_requests(instance: Instance, request: Request) -> Answer:
    return Answer(200, [dataclasses.asdict(logged) for logged in instance.log])


async def list_events(instance: Instance, request: Request) -> Answer:
    return Answer(200, list(instance.switch.applications.log))


async def status(instance: Instance, request: Request) -> Answer:
    return Answer(200, {"is_running": instance.switch.is_running, "crashes": instance.switch.crashes})


async def list_sockets(instance: Instance, request: Request) -> Answer:
    return Answer(200, instance.switch.applications.socket_snapshots(request.names[0]))


async def cut_sockets(instance: Instance, request: Request) -> Answer:
    wanted = _read(control_requests.CutSockets, request)
    return Answer(200, {"cut": instance.switch.applications.cut_sockets(wanted.app, silently=wanted.silently)})


async def drop_events(instance: Instance, request: Request) -> Answer:
    wanted = _read(control_requests.DropEvents, request)
    instance.switch.applications.drop(wanted.types, wanted.times)
    return NO_CONTENT


async def set_media(instance: Instance, request: Request) -> Answer:
    wanted = _read(control_requests.Media, request)
    if wanted.delay_seconds is not None:
        instance.switch.media.delay_seconds = wanted.delay_seconds
    if wanted.refuse is not None:
        instance.switch.media.is_refused = wanted.refuse
    return NO_CONTENT


async def set_clock(instance: Instance, request: Request) -> Answer:
    events.ahead_seconds = _read(control_requests.Clock, request).ahead_seconds
    return NO_CONTENT


async def add_fault(instance: Instance, request: Request) -> Answer:
    return Answer(200, {"id": instance.faults.add_fault(_read(control_requests.Fault, request))})


async def get_fault(instance: Instance, request: Request) -> Answer:
    fault = instance.faults.faults.get(request.names[0])
    if fault is None:
        raise errors.Refusal(404, "Fault not found")
    return Answer(200, {"hits": fault.hits})


async def remove_fault(instance: Instance, request: Request) -> Answer:
    instance.faults.faults.pop(request.names[0], None)
    return NO_CONTENT


async def add_breakpoint(instance: Instance, request: Request) -> Answer:
    return Answer(200, {"id": instance.faults.add_breakpoint(_read(control_requests.Breakpoint, request))})


async def get_breakpoint(instance: Instance, request: Request) -> Answer:
    """Waits until `arrived` requests have come, `timeout` seconds at most."""
    point = instance.faults.breakpoints.get(request.names[0])
    if point is None:
        raise errors.Refusal(404, "Breakpoint not found")
    await point.wait_arrived(int(request.number("arrived", 0)), request.number("timeout", 0.0))
    return Answer(200, {"arrived": point.arrived, "waiting": point.waiting})


async def release_breakpoint(instance: Instance, request: Request) -> Answer:
    instance.faults.release(request.names[0])
    return NO_CONTENT


async def clear(instance: Instance, request: Request) -> Answer:
    """Ends all faults, breakpoints, drops and media faults, and sets the clock right."""
    instance.faults.clear()
    instance.switch.applications.drops.clear()
    instance.switch.media.delay_seconds = 0.0
    instance.switch.media.is_refused = False
    events.ahead_seconds = 0.0
    return NO_CONTENT


async def crash(instance: Instance, request: Request) -> Answer:
    instance.switch.crash()
    return NO_CONTENT


async def restart(instance: Instance, request: Request) -> Answer:
    wanted = _read(control_requests.Restart, request)
    instance.switch.stop_running()
    if wanted.down_seconds:
        instance.switch.restart_later(wanted.down_seconds)
    else:
        instance.switch.restart()
    return NO_CONTENT


def _inside(channel: channels.Channel) -> dict[str, Any]:
    return channel.snapshot() | {
        "kind": channel.kind,
        "app": channel.app,
        "bridge_id": channel.bridge_id,
        "gaps": channel.gaps,
    }


ROUTES: list[Route[Instance]] = [
    Route("POST", "/callers", dial),
    Route("GET", "/channels", list_channels),
    Route("POST", "/channels/*/hangUp", hang_up),
    Route("POST", "/channels/*/continue", continue_in_dialplan),
    Route("POST", "/channels/*/reenter", reenter),
    Route("POST", "/channels/*/pickUp", pick_up),
    Route("POST", "/channels/*/transfer", transfer),
    Route("GET", "/channels/*/heard", heard),
    Route("GET", "/bridges", list_bridges),
    Route("GET", "/requests", list_requests),
    Route("GET", "/events", list_events),
    Route("GET", "/status", status),
    Route("GET", "/applications/*/sockets", list_sockets),
    Route("POST", "/sockets/cut", cut_sockets),
    Route("POST", "/drops", drop_events),
    Route("PUT", "/media", set_media),
    Route("PUT", "/clock", set_clock),
    Route("POST", "/faults", add_fault),
    Route("GET", "/faults/*", get_fault),
    Route("DELETE", "/faults/*", remove_fault),
    Route("POST", "/breakpoints", add_breakpoint),
    Route("GET", "/breakpoints/*", get_breakpoint),
    Route("DELETE", "/breakpoints/*", release_breakpoint),
    Route("POST", "/clear", clear),
    Route("POST", "/crash", crash),
    Route("POST", "/restart", restart),
]
