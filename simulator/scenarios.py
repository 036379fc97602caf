"""Scenarios: callers, faults and scheduled troubles, from a JSON file."""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pydantic

from simulator import channels, control_api, control_requests, dialplan, errors, rest, switch
from simulator.instance import Instance

_POLL_SECONDS = 0.05

Seconds = Annotated[float, pydantic.Field(ge=0)]


class Callers(control_requests.ControlRequest):
    """Callers of one app: their rate, and how long they stay."""

    app: str
    rate_per_second: float = pydantic.Field(gt=0)
    #: Shortest and longest time from the connection (answered and bridged) to the hang-up.
    talk_seconds: tuple[Seconds, Seconds] = (3.0, 8.0)
    #: Impatient callers hang up within this time of dialling. None: they wait.
    hang_up_within_ms: float | None = pydantic.Field(default=None, ge=0)
    #: How long a caller rings before giving up.
    patience_seconds: Seconds = 30.0
    #: True: the first call comes when their app has an event socket.
    wait_for_app: bool = False
    #: None: no limit.
    count: int | None = pydantic.Field(default=None, ge=1)
    caller_numbers: list[str] = pydantic.Field(default=["+15551234"], min_length=1)
    called: str = "100"
    args: Sequence[str] = ()


class Trouble(control_requests.ControlRequest):
    """One control request, and when it is made, in seconds from the start."""

    at_seconds: Seconds = 0.0
    cut_sockets: control_requests.CutSockets | None = None
    drop_events: control_requests.DropEvents | None = None
    media: control_requests.Media | None = None
    clock: control_requests.Clock | None = None
    fault: control_requests.Fault | None = None
    #: Released by `clear` alone: until then matching requests hang.
    breakpoint: control_requests.Breakpoint | None = None
    crash: control_requests.Crash | None = None
    restart: control_requests.Restart | None = None
    clear: control_requests.Clear | None = None

    @pydantic.model_validator(mode="after")
    def _is_one(self) -> "Trouble":
        if len(self._given()) != 1:
            raise ValueError(f"say one of {', '.join(_HANDLERS)}")
        return self

    def _given(self) -> list[str]:
        return [name for name in _HANDLERS if getattr(self, name) is not None]

    async def strike(self, running: Instance) -> None:
        """Makes the request."""
        (name,) = self._given()
        body = getattr(self, name).model_dump()
        await _HANDLERS[name](running, rest.Request(method="POST", query={}, body=body))


_HANDLERS = {
    "cut_sockets": control_api.cut_sockets,
    "drop_events": control_api.drop_events,
    "media": control_api.set_media,
    "clock": control_api.set_clock,
    "fault": control_api.add_fault,
    "breakpoint": control_api.add_breakpoint,
    "crash": control_api.crash,
    "restart": control_api.restart,
    "clear": control_api.clear,
}


class Scenario(control_requests.ControlRequest):
    """The content of a scenario file."""

    callers: Sequence[Callers] = ()
    #: In force from the start.
    faults: Sequence[control_requests.Fault] = ()
    #: Made later.
    troubles: Sequence[Trouble] = ()
    #: Seeds the random numbers, so that a scenario is repeatable.
    seed: int | None = None


def load(path: Path) -> Scenario:
    """Reads a scenario file.

    Raises:
        errors.ScenarioError: it cannot be read, or is no valid scenario.
    """
    try:
        return Scenario.model_validate_json(path.read_bytes())
    except OSError as exc:
        raise errors.ScenarioError(f"scenario {path}: {exc.strerror}") from exc
    except pydantic.ValidationError as exc:
        lines = [f"  {'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in exc.errors()]
        raise errors.ScenarioError("\n".join([f"scenario {path} is not valid:", *lines])) from exc


async def play(scenario: Scenario, running: Instance) -> None:
    """Puts the faults into force, then runs callers and troubles until all are done or it is cancelled."""
    randomness = random.Random(scenario.seed)  # noqa: S311 - for tests, no secret
    running.faults.seed(scenario.seed)
    for fault in scenario.faults:
        running.faults.add_fault(fault)
    async with asyncio.TaskGroup() as group:
        for trouble in scenario.troubles:
            group.create_task(_strike_later(trouble, running))
        for callers in scenario.callers:
            group.create_task(_dial_all(callers, running.switch, randomness, group))


async def _strike_later(trouble: Trouble, running: Instance) -> None:
    await asyncio.sleep(trouble.at_seconds)
    await trouble.strike(running)


async def _dial_all(
    callers: Callers, owner: switch.Switch, randomness: random.Random, group: asyncio.TaskGroup
) -> None:
    loop = asyncio.get_running_loop()
    while callers.wait_for_app and not owner.applications.is_connected(callers.app):
        await asyncio.sleep(_POLL_SECONDS)
    due = loop.time()
    number = 0
    while callers.count is None or number < callers.count:
        number += 1
        # No call reaches an Asterisk that is down.
        if owner.is_running:
            group.create_task(_serve_caller(callers, owner, randomness))
        due += 1 / callers.rate_per_second
        await asyncio.sleep(max(0.0, due - loop.time()))


async def _serve_caller(callers: Callers, owner: switch.Switch, randomness: random.Random) -> None:
    hasty_ms = callers.hang_up_within_ms
    call = control_requests.Dial(
        app=callers.app,
        caller=randomness.choice(callers.caller_numbers),
        called=callers.called,
        args=list(callers.args),
        hang_up_after=None if hasty_ms is None else randomness.uniform(0, hasty_ms) / 1000,
    )
    channel = dialplan.dial(owner, call)
    if call.hang_up_after is not None:
        return
    gives_up_at = asyncio.get_running_loop().time() + callers.patience_seconds
    while owner.is_alive(channel) and not _is_connected(channel) and asyncio.get_running_loop().time() < gives_up_at:
        await asyncio.sleep(_POLL_SECONDS)
    if _is_connected(channel):
        await asyncio.sleep(randomness.uniform(*callers.talk_seconds))
    owner.hang_up(channel, 16, soft=False)


def _is_connected(channel: channels.Channel) -> bool:
    return channel.state == "Up" and channel.bridge_id is not None
