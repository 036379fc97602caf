"""The faults: what each breaks, for how long, and how it is mended."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import get_args

from chaos import network
from chaos import stage as stages
from chaos.callers import Line
from chaos.proxy import Mode
from chaos.stage import AGENT, KINDS, Stage, names
from devstack import processes

HOUR = 3600
#: How long a clock is wrong, in seconds.
_CLOCK = (6.0, 10.0)
NAMED: dict[Mode, str] = {
    "slow": "answered after 2 s",
    "error": "answered with 500",
    "hang": "without an answer",
    "unanswered": "carried out, without an answer",
}
TERMINATE = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
"""
#: What a fault has broken, empty if it was not there, and whom of the tenants it concerns; None: all.
Struck = tuple[str, list[str] | None]
Strike = Callable[[Stage, random.Random], AbstractContextManager[Struck]]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One kind of fault. Its strike is a context manager: entering breaks, leaving mends."""

    name: str
    strike: Strike
    #: How long it lasts before it is mended.
    seconds: tuple[float, float] = (0.0, 0.0)
    #: What it breaks; of the same part no two break at once.
    part: str
    #: Nothing can be done for a caller meanwhile: the time that is promised begins after it.
    is_outage: bool = False
    #: Callers may lose their calls to it: any other fault has to cost none.
    loses_calls: bool = True


def _of_process(kind: str, number: int, *, several: tuple[str, ...] = ()) -> Strike:
    @contextlib.contextmanager
    def strike(stage: Stage, chance: random.Random) -> Iterator[Struck]:
        targets = [chance.choice(names(one)) for one in (kind, *several)]
        yield _signalled(stage, number, *targets), None
        if number == signal.SIGSTOP:
            stage.supervised.signal(signal.SIGCONT, *targets)

    return strike


@contextlib.contextmanager
def _all_workers_killed(stage: Stage, _chance: random.Random) -> Iterator[Struck]:
    yield _signalled(stage, signal.SIGKILL, *names("worker")), None


def _signalled(stage: Stage, number: int, *targets: str) -> str:
    """Send a signal to processes; return their names, or nothing if one of them did not run just then."""
    reached = stage.supervised.signal(number, *targets)
    return ", ".join(reached) if len(reached) == len(targets) else ""


@contextlib.contextmanager
def _redis_restarted(stage: Stage, _chance: random.Random) -> Iterator[Struck]:
    stage.redis.kill()
    try:
        yield "Redis", None
    finally:
        stage.redis.start()


@contextlib.contextmanager
def _redis_silent(stage: Stage, _chance: random.Random) -> Iterator[Struck]:
    with stage.firewall.silence("redis", port=stage.proxy.ports[stages.REDIS]):
        yield "Redis", None


@contextlib.contextmanager
def _redis_frozen(stage: Stage, _chance: random.Random) -> Iterator[Struck]:
    stage.redis.freeze()
    try:
        yield "Redis", None
    finally:
        stage.redis.thaw()


@contextlib.contextmanager
def _redis_full(stage: Stage, _chance: random.Random) -> Iterator[Struck]:
    stage.command_redis("CONFIG", "SET", "maxmemory", "1")
    try:
        yield "Redis", None
    finally:
        stage.command_redis("CONFIG", "SET", "maxmemory", "0")


@contextlib.contextmanager
def _postgres_restarted(stage: Stage, _chance: random.Random) -> Iterator[Struck]:
    stage.postgres.kill()
    try:
        yield "Postgres", None
    finally:
        stage.postgres.start()


@contextlib.contextmanager
def _postgres_silent(stage: Stage, _chance: random.Random) -> Iterator[Struck]:
    with stage.firewall.silence("postgres", port=stage.proxy.ports[stages.POSTGRES]):
        yield "Postgres", None


@contextlib.contextmanager
def _postgres_frozen(stage: Stage, _chance: random.Random) -> Iterator[Struck]:
    stage.postgres.freeze()
    try:
        yield "Postgres", None
    finally:
        stage.postgres.thaw()


@contextlib.contextmanager
def _backends_terminated(stage: Stage, _chance: random.Random) -> Iterator[Struck]:
    stage.execute(TERMINATE)
    yield "Postgres", None


@contextlib.contextmanager
def _disk_full(stage: Stage, _chance: random.Random) -> Iterator[Struck]:
    network.fill(stage.disk)
    try:
        yield "Postgres", None
    finally:
        network.free(stage.disk)
    if not stage.postgres_answers():
        with contextlib.suppress(processes.ProcessError):
            stage.postgres.kill()
        stage.postgres.start()


@contextlib.contextmanager
def _asterisk_restarted(stage: Stage, _chance: random.Random) -> Iterator[Struck]:
    stage.asterisk.kill()
    try:
        yield "Asterisk", None
    finally:
        stage.asterisk.start()


@contextlib.contextmanager
def _events_cut(stage: Stage, chance: random.Random) -> Iterator[Struck]:
    app = _line(stage, chance).app
    stage.proxy.cut_event_socket(app)
    yield f"event socket of {app}", [app]


@contextlib.contextmanager
def _events_silent(stage: Stage, chance: random.Random) -> Iterator[Struck]:
    app = _line(stage, chance).app
    with stage.firewall.silence(f"events of {app}", address=stage.proxy.event_address(app)):
        yield f"event socket of {app}", [app]


def _rest(mode: Mode) -> Strike:
    @contextlib.contextmanager
    def strike(stage: Stage, chance: random.Random) -> Iterator[Struck]:
        app = _line(stage, chance).app
        stage.proxy.set_mode(app, mode)
        try:
            yield f"requests to the Asterisk of {app}", [app]
        finally:
            stage.proxy.set_mode(app, "normal")

    return strike


@contextlib.contextmanager
def _agent_down(stage: Stage, _chance: random.Random) -> Iterator[Struck]:
    stage.supervised.hold(AGENT)
    try:
        yield "agent", None
    finally:
        stage.supervised.release(AGENT)


@contextlib.contextmanager
def _agent_slow(stage: Stage, _chance: random.Random) -> Iterator[Struck]:
    stage.supervised.signal(signal.SIGSTOP, AGENT)
    try:
        yield "agent", None
    finally:
        stage.supervised.signal(signal.SIGCONT, AGENT)


@contextlib.contextmanager
def _agent_dies(stage: Stage, _chance: random.Random) -> Iterator[Struck]:
    stage.supervised.signal(signal.SIGKILL, AGENT)
    yield "agent", None


def _clock(kind: str, seconds: int) -> Strike:
    @contextlib.contextmanager
    def strike(stage: Stage, _chance: random.Random) -> Iterator[Struck]:
        name = names(kind)[1]
        stage.clocks[name].ahead(seconds)
        try:
            yield name, None
        finally:
            stage.clocks[name].right()

    return strike


@contextlib.contextmanager
def _configuration_removed(stage: Stage, chance: random.Random) -> Iterator[Struck]:
    line = _line(stage, chance)
    stage.execute(stages.RENAME, "REMOVED", line.organization_id)
    try:
        yield f"configuration of {line.app}", [line.app]
    finally:
        stage.execute(stages.RENAME, "TELEPHONY_CONFIGURATION", line.organization_id)


@contextlib.contextmanager
def _configuration_changed(stage: Stage, chance: random.Random) -> Iterator[Struck]:
    line = _line(stage, chance)
    stage.change_password(line)
    yield f"password of {line.app}", [line.app]


@contextlib.contextmanager
def _configuration_saved_anew(stage: Stage, _chance: random.Random) -> Iterator[Struck]:
    # Every tenant's: that of one would seldom meet a call in set-up.
    for line in stage.lines:
        stage.execute(stages.SAVE_ANEW, line.organization_id)
    yield "every configuration", None


def _line(stage: Stage, chance: random.Random) -> Line:
    """Draw a tenant. One without a call in set-up gives way to one that has such a call, so that the fault meets it."""
    drawn, apps = chance.choice(list(stage.lines)), stage.judge.in_setup().values()
    return next((line for line in (drawn, *stage.lines) if line.app in apps), drawn)


def _all() -> Iterator[Fault]:
    for kind in KINDS:
        # Calls wait in Redis for another worker, and need no scheduler. Of a listener that dies, no other one has the
        # event socket yet.
        loses = kind == "listener"
        yield Fault(name=f"{kind} killed", strike=_of_process(kind, signal.SIGKILL), part=kind, loses_calls=loses)
        # Longer than a heartbeat's time-out and than a claim; it wakes up replaced.
        yield Fault(
            name=f"{kind} frozen", strike=_of_process(kind, signal.SIGSTOP), seconds=(4.0, 12.0), part=kind,
            loses_calls=loses,
        )  # fmt: skip
        yield Fault(
            name=f"{kind} asked to stop", strike=_of_process(kind, signal.SIGTERM), part=kind, loses_calls=False
        )
        yield Fault(
            name=f"{kind}'s clock an hour ahead", strike=_clock(kind, HOUR), seconds=_CLOCK, part=kind,
            loses_calls=False,
        )  # fmt: skip
        yield Fault(
            name=f"{kind}'s clock an hour behind", strike=_clock(kind, -HOUR), seconds=_CLOCK, part=kind,
            loses_calls=False,
        )  # fmt: skip
    killed = signal.SIGKILL
    yield Fault(
        name="listener and worker killed", strike=_of_process("listener", killed, several=("worker",)), part="several"
    )
    yield Fault(
        name="one of each killed",
        strike=_of_process("listener", killed, several=("worker", "scheduler")),
        part="several",
    )
    yield Fault(name="both workers killed", strike=_all_workers_killed, part="several", loses_calls=False)
    yield Fault(name="Redis restarted empty", strike=_redis_restarted, seconds=(0.5, 2), part="Redis", is_outage=True)
    yield Fault(name="Redis unreachable", strike=_redis_silent, seconds=(10, 10), part="Redis", is_outage=True)
    yield Fault(name="Redis frozen", strike=_redis_frozen, seconds=(4, 8), part="Redis", is_outage=True)
    yield Fault(name="Redis out of memory", strike=_redis_full, seconds=(4, 8), part="Redis", is_outage=True)
    yield Fault(
        name="Postgres restarted", strike=_postgres_restarted, seconds=(0.5, 2), part="Postgres", is_outage=True
    )
    yield Fault(name="Postgres unreachable", strike=_postgres_silent, seconds=(20, 20), part="Postgres", is_outage=True)
    # Shorter than the judge waits for its own statements.
    yield Fault(name="Postgres frozen", strike=_postgres_frozen, seconds=(4, 8), part="Postgres", is_outage=True)
    yield Fault(name="Postgres connections cut", strike=_backends_terminated, part="Postgres", loses_calls=False)
    yield Fault(name="Postgres disk full", strike=_disk_full, seconds=(4, 8), part="Postgres", is_outage=True)
    yield Fault(
        name="Asterisk restarted", strike=_asterisk_restarted, seconds=(0.5, 2), part="Asterisk", is_outage=True
    )
    yield Fault(name="event socket cut", strike=_events_cut, part="events")
    yield Fault(name="event socket silent", strike=_events_silent, seconds=(8, 15), part="events", is_outage=True)
    for mode in get_args(Mode):
        if mode != "normal":
            yield Fault(
                name=f"requests {NAMED[mode]}",
                strike=_rest(mode),
                seconds=(5, 9),
                part="Asterisk",
                is_outage=mode != "slow",
            )
    yield Fault(name="agent down", strike=_agent_down, seconds=(4, 8), part="agent")
    yield Fault(name="agent slow", strike=_agent_slow, seconds=(1, 4), part="agent")
    yield Fault(name="agent dies in calls", strike=_agent_dies, part="agent")
    yield Fault(
        name="configuration removed",
        strike=_configuration_removed,
        seconds=(6, 10),
        part="configuration",
        is_outage=True,
    )
    # Until the platform's row has been read, requests have the password that Asterisk no longer takes.
    yield Fault(
        name="configuration changed",
        strike=_configuration_changed,
        seconds=(6, 6),
        part="configuration",
        is_outage=True,
    )
    # No outage: a caller is served by the organization's row, whichever that is.
    yield Fault(
        name="configuration saved anew",
        strike=_configuration_saved_anew,
        seconds=(6, 6),
        part="configuration",
        loses_calls=False,
    )


FAULTS = {fault.name: fault for fault in _all()}


def _of_second(kind: str, number: int) -> Fault:
    @contextlib.contextmanager
    def strike(stage: Stage, _chance: random.Random) -> Iterator[Struck]:
        yield _signalled(stage, number, names(kind)[1]), None

    is_kill = number == signal.SIGKILL
    return Fault(
        name=f"{kind}.2 {'killed' if is_kill else 'asked to stop'}", strike=strike, part=kind,
        loses_calls=is_kill and kind == "listener",
    )  # fmt: skip


#: Of a soak: the first process of each kind is left alone.
SOAK_FAULTS = tuple(_of_second(kind, number) for kind in KINDS for number in (signal.SIGKILL, signal.SIGTERM))


class Striker:
    """Strikes faults, each in a moment in which a call is in set-up.

    Args:
        stage: what is broken.
        chance: draws targets and lengths.
    """

    #: A fault does not wait longer for a call in set-up; the judge counts, and the run fails if none was struck.
    PATIENCE_SECONDS = 10.0

    def __init__(self, stage: Stage, chance: random.Random) -> None:
        self._stage = stage
        # Lanes play at the same time: what is drawn for a fault must not depend on which of them draws first.
        self._seed = chance.random()
        self._strikes: Counter[str] = Counter()

    def play(self, fault: Fault) -> bool:
        """Wait for a call in set-up, break, wait, mend. Returns True if there was such a call, and all was broken."""
        self._strikes[fault.name] += 1
        chance = random.Random(f"{self._seed} {fault.name} {self._strikes[fault.name]}")  # noqa: S311 - no secret
        seconds = chance.uniform(*fault.seconds)
        has_met = self._await_setup(chance.uniform(0, 0.5))
        with contextlib.ExitStack() as broken:
            # The strike is told before it happens: killing a server takes its time.
            struck_at = time.time()
            target, apps = broken.enter_context(fault.strike(self._stage, chance))
            number = self._stage.deeds.fault(
                fault.name,
                target,
                at=struck_at,
                outage=fault.is_outage,
                audio=fault.part in ("agent", "Asterisk"),
                loses=fault.loses_calls,
                apps=apps,
                seconds=seconds,
            )
            time.sleep(seconds)
        self._stage.deeds.mended(number)
        return has_met and bool(target)

    def _await_setup(self, delay_seconds: float) -> bool:
        # Not always as soon as a caller is there: the set-up is struck in any of its moments.
        until = time.monotonic() + self.PATIENCE_SECONDS
        ripe = time.monotonic() + delay_seconds
        while time.monotonic() < until:
            if self._stage.judge.in_setup() and time.monotonic() >= ripe:
                return True
            time.sleep(0.003)
        return False
