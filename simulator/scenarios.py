"""A scenario: callers who come by themselves, faults, and what happens when, from a JSON file."""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import pydantic

from simulator import channels, dialplan, errors, orders, orders_http, rest, switch

if TYPE_CHECKING:
    from simulator import server

_LOOK_SECONDS = 0.05

Seconds = Annotated[float, pydantic.Field(ge=0)]


class Callers(orders.Order):
    """Callers of one app: how often they come, and how long they stay."""

    app: str
    rate_per_second: float = pydantic.Field(gt=0)
    #: Shortest and longest time from the agent's voice (answered and bridged) to the hang-up.
    talk_seconds: tuple[Seconds, Seconds] = (3.0, 8.0)
    #: Callers who change their mind: hang up within this time of dialling. None: they wait.
    hang_up_within_ms: float | None = pydantic.Field(default=None, ge=0)
    #: How long a caller rings before he gives up.
    patience_seconds: Seconds = 30.0
    #: Whether they come only once somebody has connected to their app.
    wait_for_app: bool = False
    #: None: for ever.
    count: int | None = pydantic.Field(default=None, ge=1)
    caller_numbers: list[str] = pydantic.Field(default=["+15551234"], min_length=1)
    called: str = "100"
    args: Sequence[str] = ()


class Trouble(orders.Order):
    """One order that could come over HTTP, and when, counted from the beginning."""

    at_seconds: Seconds = 0.0
    cut_sockets: orders.CutSockets | None = None
    drop_events: orders.DropEvents | None = None
    media: orders.Media | None = None
    fault: orders.Fault | None = None
    #: Nobody opens it but `clear`: matching requests hang.
    gate: orders.Gate | None = None
    crash: orders.Crash | None = None
    restart: orders.Restart | None = None
    clear: orders.Clear | None = None

    @pydantic.model_validator(mode="after")
    def _is_one(self) -> "Trouble":
        if len(self._given()) != 1:
            raise ValueError(f"say one of {', '.join(_HANDLERS)}")
        return self

    def _given(self) -> list[str]:
        return [name for name in _HANDLERS if getattr(self, name) is not None]

    async def happen(self, running: "server.Server") -> None:
        """Gives the order."""
        (name,) = self._given()
        body = getattr(self, name).model_dump()
        await _HANDLERS[name](running, rest.Request(method="POST", query={}, body=body))


_HANDLERS = {
    "cut_sockets": orders_http.cut_sockets,
    "drop_events": orders_http.drop_events,
    "media": orders_http.set_media,
    "fault": orders_http.add_fault,
    "gate": orders_http.add_gate,
    "crash": orders_http.crash,
    "restart": orders_http.restart,
    "clear": orders_http.clear,
}


class Scenario(orders.Order):
    """All of a scenario file."""

    callers: Sequence[Callers] = ()
    #: In force from the beginning.
    faults: Sequence[orders.Fault] = ()
    #: What happens later.
    troubles: Sequence[Trouble] = ()
    #: Makes chance repeatable.
    seed: int | None = None


def load(path: Path) -> Scenario:
    """Reads a scenario file.

    Raises:
        errors.ScenarioError: it cannot be read, or says something else than a scenario.
    """
    try:
        return Scenario.model_validate_json(path.read_bytes())
    except OSError as exc:
        raise errors.ScenarioError(f"scenario {path}: {exc.strerror}") from exc
    except pydantic.ValidationError as exc:
        lines = [f"  {'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in exc.errors()]
        raise errors.ScenarioError("\n".join([f"scenario {path} is not valid:", *lines])) from exc


async def play(scenario: Scenario, running: "server.Server") -> None:
    """Puts the faults into force and lets callers and troubles come, until it is cancelled or all have come."""
    chance = random.Random(scenario.seed)  # noqa: S311 - chance in a test, no secret
    running.faults.seed(scenario.seed)
    for fault in scenario.faults:
        running.faults.add_fault(fault)
    async with asyncio.TaskGroup() as group:
        for trouble in scenario.troubles:
            group.create_task(_befall(trouble, running))
        for callers in scenario.callers:
            group.create_task(_come(callers, running.switch, chance, group))


async def _befall(trouble: Trouble, running: "server.Server") -> None:
    await asyncio.sleep(trouble.at_seconds)
    await trouble.happen(running)


async def _come(callers: Callers, owner: switch.Switch, chance: random.Random, group: asyncio.TaskGroup) -> None:
    loop = asyncio.get_running_loop()
    while callers.wait_for_app and not owner.applications.is_connected(callers.app):
        await asyncio.sleep(_LOOK_SECONDS)
    due = loop.time()
    number = 0
    while callers.count is None or number < callers.count:
        number += 1
        # Nobody gets through to an Asterisk that is down.
        if owner.is_running:
            group.create_task(_call(callers, owner, chance))
        due += 1 / callers.rate_per_second
        await asyncio.sleep(max(0.0, due - loop.time()))


async def _call(callers: Callers, owner: switch.Switch, chance: random.Random) -> None:
    hasty_ms = callers.hang_up_within_ms
    order = orders.Dial(
        app=callers.app,
        caller=chance.choice(callers.caller_numbers),
        called=callers.called,
        args=list(callers.args),
        hang_up_after=None if hasty_ms is None else chance.uniform(0, hasty_ms) / 1000,
    )
    channel = dialplan.dial(owner, order)
    if order.hang_up_after is not None:
        return
    gives_up_at = asyncio.get_running_loop().time() + callers.patience_seconds
    while owner.is_alive(channel) and not _is_connected(channel) and asyncio.get_running_loop().time() < gives_up_at:
        await asyncio.sleep(_LOOK_SECONDS)
    if _is_connected(channel):
        await asyncio.sleep(chance.uniform(*callers.talk_seconds))
    owner.hang_up(channel, 16, soft=False)


def _is_connected(channel: channels.Channel) -> bool:
    return channel.state == "Up" and channel.bridge_id is not None
