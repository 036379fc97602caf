"""What callers notice of killed processes: `python -m bench.kills [--kills 20] [--rate 20] [--minutes 0]`.

Two listeners, two workers and two schedulers with the settings of production, on one real Asterisk with the dialplan of
the README. Callers come at an even rate, talk for some seconds and hang up. A listener and a worker are killed in the
same moment, and started again at once, as by a supervisor; twice within ten seconds, then again when all is calm.

For each caller who waits for something at that moment, or in the five seconds after it (an agent, or the end of the
call after a hang-up), it takes the time from the kill, or from when he began to wait, until the next transition of his
call, and until he no longer waits. `--kills 0 --minutes 30` only looks for workers that count as dead although they
live.

Prints Markdown tables; ends with status 1 if a caller was lost, or if a live worker or listener counted as dead.
docs/bench.md has a result.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import random
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import redis

from bench import asterisk_client, bridgings
from bench.asterisk_client import Asterisk, Refused
from bench.setup import guarded
from devstack import asterisk, asterisk_config, asterisk_root, endpoint, folders, processes, servers
from devstack.pipeline import Pipeline
from devstack.tenants import PASSWORD, closing_tenant
from shared import keys
from shared.storage import migrations

APP, MEDIA_CLIENT = "voiceai", "media"
CALLERS, CALLERS_PASSWORD = "callers", "callers"
PROCESSES = tuple(f"{kind}.{number}" for kind in ("listener", "worker", "scheduler") for number in (1, 2))
#: While a media leg connects, others of the same Asterisk wait: at 20 calls/s an agent has to be quick.
ACCEPT_SECONDS = 0.01
#: How long callers talk.
TALK_SECONDS = (0.5, 8.0)
#: A caller who has no agent by then gives up.
PATIENCE_SECONDS = 20.0
#: Between the two kills of a pair, and from one pair to the next.
AGAIN_SECONDS = (3.0, 9.0)
CALM_SECONDS = 6.0
#: A caller who begins to wait this long after a kill has felt it still.
AFTER_SECONDS = 5.0
#: A call is over by then.
OVER_SECONDS = 30.0
#: How often it is looked which workers count as alive.
LOOK_SECONDS = 0.25


#: All of a call is gone, and its row stays open: a request of unknown outcome may still take effect, and is looked for.
REMOVED = "removed"


@dataclass(slots=True)
class Caller:
    """A caller, and when he did what, in seconds since the epoch."""

    leg: str
    dialled: float
    hung_up: float | None = None
    #: Of his call: when it entered which state.
    entered: list[tuple[float, str]] = field(default_factory=list)

    def waits(self) -> Iterator[tuple[float, float]]:
        """Yield from when to when he has waited: for an agent, and for the end of the call."""
        connected = next((at for at, state in self.entered if state == "connected"), None)
        over = next((at for at, state in self.entered if state in ("ended", REMOVED)), float("inf"))
        given_up = self.hung_up if connected is None and self.hung_up is not None else float("inf")
        yield self.dialled, min(connected or over, over, given_up)
        if self.hung_up is not None:
            yield self.hung_up, over

    def state_at(self, moment: float) -> str:
        """Return the state of his call at a moment."""
        before = [state for at, state in self.entered if at <= moment]
        return before[-1] if before else "no call yet"

    def next_step(self, moment: float) -> float:
        """Return when his call entered its next state."""
        return next((at for at, _ in self.entered if at > moment), float("inf"))


@dataclass(frozen=True, slots=True)
class Felt:
    """What a caller has felt of a kill."""

    leg: str
    state: str
    until_step: float
    until_served: float


class Watch:
    """Looks which workers count as alive, and keeps those that vanish although they were not killed."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)
        self._killed: set[str] = set()
        self._alive: set[str] = set()
        self.false_deaths: list[str] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch")

    def lives(self, name: str) -> set[str]:
        """Return the sessions of a process."""
        return {each for each in self._sessions() if each.startswith(f"{name}/")}

    def killed(self, sessions: set[str]) -> None:
        """Expect the end of these sessions."""
        self._killed |= sessions

    def _sessions(self) -> set[str]:
        found = self._client.zrange(f"{keys.NAMESPACE}:sessions", 0, -1)
        return {each.decode() for each in found}  # type: ignore[union-attr]

    def _look(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            now = self._sessions()
            self.false_deaths += sorted(self._alive - now - self._killed)
            self._alive = now

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._client.close()


@contextlib.contextmanager
def running(folder: Path) -> Iterator[tuple[Pipeline, str, str]]:
    """Start everything; yield the pipeline, the URL of the Asterisk and that of Redis."""
    logs = folders.make(folder / "logs", mode=0o700)
    with contextlib.ExitStack() as stack:
        postgres = stack.enter_context(servers.Postgres(folder / "postgres"))
        cache = stack.enter_context(servers.Redis(folder / "redis"))
        port = processes.free_port()
        words = ("--port", str(port), "--accept-delay", str(ACCEPT_SECONDS))
        stack.enter_context(guarded("devstack.agent", *words, log=folder / "agent.log", ready="listens"))
        configuration = asterisk_config.Configuration(
            contexts={"inbound": APP},
            users={APP: PASSWORD, CALLERS: CALLERS_PASSWORD},
            clients={MEDIA_CLIENT: asterisk_config.Client(uri=f"ws://127.0.0.1:{port}{endpoint.PATH}")},
            session_limit=400,
        )
        switch = stack.enter_context(asterisk.RealAsterisk(asterisk_root.find(), folder / "asterisk", configuration))
        url = servers.create_database(postgres.url, "kills")
        migrations.upgrade(url)
        tenant = stack.enter_context(closing_tenant(url))
        tenant.configure(switch.url, app=APP, ws_client_name=MEDIA_CLIENT)
        pipeline = stack.enter_context(Pipeline(database_url=url, redis_url=cache.url, logs=logs))
        pipeline.start(*PROCESSES)
        pipeline.wait_connected(seconds=30)
        yield pipeline, switch.url, cache.url


class Callers:
    """Callers at an even rate, until they are stopped."""

    def __init__(self, url: str, *, rate: float, chance: random.Random) -> None:
        self._url, self._rate, self._chance = url, rate, chance
        self._stopping = threading.Event()
        self.all: list[Caller] = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="callers")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Let no more come, and wait until the last one has hung up."""
        self._stopping.set()
        self._thread.join()

    async def _run(self) -> None:
        async with asterisk_client.connected(self._url, CALLERS, CALLERS_PASSWORD, requests_at_once=40) as ari:
            loop, calling = asyncio.get_running_loop(), set()
            began = loop.time()
            for number in itertools.count():
                await asyncio.sleep(max(0.0, began + number / self._rate - loop.time()))
                if self._stopping.is_set():
                    break
                task = asyncio.create_task(self._call(ari, f"call-{number:06d}"))
                calling.add(task)
                task.add_done_callback(calling.discard)
            await asyncio.gather(*calling)

    async def _call(self, ari: Asterisk, leg: str) -> None:
        far, talk_seconds = asterisk.FAR_PREFIX + leg, self._chance.uniform(*TALK_SECONDS)
        caller = Caller(leg, time.time())
        self.all.append(caller)
        await ari.ask("POST", "/channels", {
            "endpoint": "Local/5551234@inbound", "context": "far", "extension": "wait", "priority": "1",
            "callerId": "4915550001", "formats": "ulaw", "channelId": far, "otherChannelId": leg,
        })  # fmt: skip
        await self._answered(ari, leg)
        await asyncio.sleep(talk_seconds)
        with contextlib.suppress(Refused):
            await ari.ask("DELETE", f"/channels/{far}")
            caller.hung_up = time.time()

    async def _answered(self, ari: Asterisk, leg: str) -> None:
        """Wait until the leg is answered, which it is together with the join; or is gone; or the caller gives up."""
        ends_at = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < ends_at:
            await asyncio.sleep(1.0)
            try:
                found = await ari.ask("GET", f"/channels/{leg}")
            except Refused:
                return
            if found["state"] == "Up":
                return


def kill(pipeline: Pipeline, watch: Watch, chance: random.Random) -> float:
    """Kill the listener that has the socket, and a worker, in the same moment, and start them again; return when."""
    holder = pipeline.value("SELECT listener_id FROM ari.connection_versions WHERE retired_at IS NULL")
    names = [str(holder).rpartition("-")[0], f"worker.{chance.randint(1, 2)}"]
    sys.stderr.write(f"{datetime.now(UTC):%H:%M:%S.%f} kill {names}\n")
    lives = watch.lives(names[1])
    watch.killed(lives)
    moment = time.time()
    for name in names:
        pipeline.kill(name)
    # A worker that is killed as it starts has had no session yet.
    watch.killed(watch.lives(names[1]))
    pipeline.start(*names)
    return moment


def read(database_url: str, callers: Sequence[Caller]) -> None:
    """Read from the timeline when the calls of these callers entered which state, or were all gone."""
    by_leg = {caller.leg: caller for caller in callers}
    query = """
        SELECT c.channel_id, t.at, t.state_to FROM ari.timeline t JOIN ari.calls c USING (call_id)
        WHERE t.kind = 'transition' OR t.name = 'RemovalPending' AND t.detail LIKE '%not_before=%' ORDER BY t.id
    """
    with psycopg.connect(database_url) as connection:
        for leg, at, state in connection.execute(query):
            assert isinstance(at, datetime)
            by_leg[leg].entered.append((at.timestamp(), state or REMOVED))


def felt(callers: Sequence[Caller], kills: Sequence[float]) -> list[Felt]:
    """Return what callers have felt of the kills; of two in a row each counts by itself."""
    found = []
    for moment, caller in itertools.product(kills, callers):
        for since, until in caller.waits():
            if since > moment + AFTER_SECONDS or until <= moment:
                continue
            begin = max(moment, since)
            state = caller.state_at(begin) if since <= moment else "came or hung up after it"
            # He may have given up, or been hung up.
            step = min(caller.next_step(begin), until)
            found.append(Felt(caller.leg, state, step - begin, until - begin))
    return found


def report(found: Sequence[Felt]) -> None:
    """Print a row for each state, and one for all."""
    row("at the kill", "callers", "next step: p50 s", "p95 s", "worst s", "served or ended: p50 s", "p95 s", "worst s")
    row(*["---"] * 8)
    by_state: dict[str, list[Felt]] = defaultdict(list)
    for each in found:
        by_state[each.state].append(each)
    for state, those in [*sorted(by_state.items()), ("all", list(found))]:
        steps, served = [one.until_step for one in those], [one.until_served for one in those]
        row(state, len(those), *quantiles(steps), *quantiles(served))


def quantiles(values: Sequence[float]) -> list[str]:
    """Return the median, the 95th percentile and the largest."""
    return [f"{value:.2f}" for value in (*(bridgings.quantile(values, part) for part in (0.5, 0.95)), max(values))]


def row(*cells: object) -> None:
    """Print a row of a table."""
    sys.stdout.write("| " + " | ".join(map(str, cells)) + " |\n")
    sys.stdout.flush()


def main() -> int:
    """Run the benchmark; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--minutes", type=float, default=0.0, help="without kills, at the beginning")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chance = random.Random(options.seed)  # noqa: S311 - no secret
    kills: list[float] = []
    with folders.temporary() as folder, running(folder) as (pipeline, url, redis_url), Watch(redis_url) as watch:
        callers = Callers(url, rate=options.rate, chance=chance)
        callers.start()
        try:
            time.sleep(CALM_SECONDS + options.minutes * 60)
            for number in range(options.kills):
                kills.append(kill(pipeline, watch, chance))
                time.sleep(chance.uniform(*AGAIN_SECONDS) if number % 2 == 0 else CALM_SECONDS + AGAIN_SECONDS[1])
        finally:
            callers.stop()
        ends_at = time.monotonic() + OVER_SECONDS
        open_calls = "SELECT count(*) FROM ari.calls WHERE state <> 'ended'"
        while pipeline.value(open_calls) and time.monotonic() < ends_at:
            time.sleep(0.2)
        left = pipeline.value(open_calls)
        died = pipeline.value("SELECT count(*) FROM ari.timeline WHERE name = 'claim broken'")
        read(pipeline.database_url, callers.all)
        false_deaths = list(watch.false_deaths)
        logs = [log.read_text(errors="replace") for log in pipeline.logs.glob("scheduler*")]
        lost_listeners = sum(log.count("listener lost") for log in logs)
        lost = [one for one in callers.all if not any(state == "connected" for _, state in one.entered)]
        found = felt(callers.all, kills)
        if found:
            report(found)
        told = dict.fromkeys([one.leg for one in lost] + [one.leg for one in found if one.until_served > AFTER_SECONDS])
        for leg in told:
            sys.stderr.write(f"{leg}\n{pipeline.story(leg)}\n")
    sys.stdout.write(
        f"\n{len(callers.all)} callers, {len(lost)} without an agent, {left} calls not over; {len(kills)} kills, claims"
        f" of the dead: {died}; listeners that counted as lost: {lost_listeners}; live workers that counted as dead:"
        f" {len(false_deaths)} {' '.join(false_deaths)}\n"
    )
    return 1 if lost or left or false_deaths or lost_listeners > len(kills) else 0


if __name__ == "__main__":
    sys.exit(main())
