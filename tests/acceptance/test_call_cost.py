"""What one call costs, from its StasisStart to its end: docs/call-setup.md has the table, and this test makes it.

`UPDATE_DOCS=1` writes it anew. Counted from outside: by a proxy in front of Postgres, by Redis's MONITOR, by the
simulator's log of requests.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from devstack.pipeline import Pipeline, wait_until
from devstack.tenants import Tenant
from shared.broker import scripts
from shared.inbound_lookup import ASSUMED_SECONDS
from simulator.testing import SimulatedAsterisk
from tests.support import postgres_wire
from tests.support.postgres_wire import PostgresWire

pytestmark = pytest.mark.services

PAGE = Path(__file__).parents[2] / "docs" / "call-setup.md"
BEGIN, END = "<!-- begin: cost -->\n", "<!-- end: cost -->"
NEWEST_BEGIN, NEWEST_END = "<!-- begin: newest cost -->\n", "<!-- end: newest cost -->"
NUMBER = "5551234"
#: The platform's, on the same server.
PLATFORM_REDIS_DATABASE = 1
#: Calls before the one that is counted: statements are prepared by then, connections open, looks remembered.
WARM_UP_CALLS = 12
#: The cheapest of so many calls counts: a worker looks the credentials of an Asterisk up every 10 s, and on a busy
#: machine a media leg may come later than it is waited for.
COUNTED_CALLS = 5
#: Longer than anything of a call still takes once it is connected, or ended.
QUIET_SECONDS = 0.4
_SCRIPTS = {scripts.ENQUEUE.digest: "enqueue", scripts.ACK.digest: "ack", scripts.POLL.digest: "poll"}


class RedisScripts:
    """The scripts that Redis runs, as MONITOR shows them."""

    def __init__(self, url: str) -> None:
        # Processes that start say nothing for a while.
        self._client = redis.Redis.from_url(url, socket_timeout=None)
        self.names: list[str] = []
        #: How many were run in the platform's database.
        self.platform_s = 0
        self._is_over = False

    @contextlib.contextmanager
    def recorded(self) -> Iterator[RedisScripts]:
        with self._client.monitor() as monitor:  # type: ignore[no-untyped-call]
            reading = threading.Thread(target=self._read, args=(monitor,), daemon=True)
            reading.start()
            yield self
            self._is_over = True
            self._client.echo("over")
            reading.join(5)
        self._client.close()

    def _read(self, monitor: Any) -> None:
        while not self._is_over:
            said = monitor.next_command()
            words = said["command"].split(" ", 2)
            if said["db"] == PLATFORM_REDIS_DATABASE:
                self.platform_s += words[0].upper() == "EVALSHA"
            elif words[0].upper() == "EVALSHA" and words[1] in _SCRIPTS:
                self.names.append(_SCRIPTS[words[1]])


class Cost:
    """What one part of a call took."""

    def __init__(
        self, round_trips: list[tuple[str, ...]], names: list[str], requests: list[str], platform_s: int
    ) -> None:
        self.platform_s = platform_s
        self.round_trips = round_trips
        self.enqueues = names.count("enqueue")
        self.acks = names.count("ack")
        self.requests = requests

    @property
    def statements(self) -> list[str]:
        return [text for trip in self.round_trips for text in trip if not postgres_wire.is_bracket(text)]

    @property
    def commits(self) -> int:
        return postgres_wire.commits(self.round_trips)


class Meter:
    """Tells what was said since it was last asked."""

    def __init__(self, wire: PostgresWire, seen: RedisScripts, simulated: SimulatedAsterisk) -> None:
        self._wire = wire
        self._seen = seen
        self._simulated = simulated
        self._marks = (0, 0, 0, 0)

    def read(self) -> Cost:
        time.sleep(QUIET_SECONDS)
        said, names, asked, platform_s = self._marks
        requests = [f"{request.method} {request.path}" for request in self._simulated.control.requests()]
        of_platform = self._seen.platform_s
        cost = Cost(self._wire.round_trips[said:], self._seen.names[names:], requests[asked:], of_platform - platform_s)
        self._marks = (said + len(cost.round_trips), len(self._seen.names), len(requests), of_platform)
        return cost


@pytest.fixture
def costs(pipeline: Pipeline, tenant: Tenant, simulated: SimulatedAsterisk, layout: str) -> Iterator[tuple[Cost, Cost]]:
    """The cost of the set-up and of the end of one call, on processes that have served calls before."""
    # The agent neither completes runs, as the platform's would, nor knows another secret.
    newest = {
        "PLATFORM_REDIS_URL": pipeline.redis_url.removesuffix("/0") + f"/{PLATFORM_REDIS_DATABASE}",
        "MEDIA_TOKEN_SECRET": pipeline.media_secret, "RUN_COMPLETION": "ours",
    }  # fmt: skip
    tenant.configure(simulated.url, numbers=[NUMBER])
    with PostgresWire(pipeline.database_url) as wire, RedisScripts(pipeline.redis_url).recorded() as seen:
        pipeline.start("listener", "scheduler")
        pipeline.start("worker", DATABASE_URL=wire.url, **(newest if layout == "newest" else {}))
        pipeline.wait_connected()
        meter = Meter(wire, seen, simulated)

        def reaches(leg: str, state: str) -> None:
            wait_until(lambda: pipeline.state(leg) == state, seconds=10)

        def measured() -> tuple[Cost, Cost]:
            meter.read()
            leg = simulated.control.dial("voiceai", called=NUMBER)
            reaches(leg, "connected")
            set_up = meter.read()
            simulated.control.hang_up(leg)
            reaches(leg, "ended")
            return set_up, meter.read()

        for _ in range(WARM_UP_CALLS):
            measured()
        counted = []
        for _ in range(COUNTED_CALLS):
            # Where a lone caller goes is looked up.
            time.sleep(ASSUMED_SECONDS)
            counted.append(measured())
        yield min(counted, key=lambda cost: sum(len(part.round_trips) for part in cost))


def test_what_a_call_costs_is_in_the_table(costs: tuple[Cost, Cost]) -> None:
    _is_written("\n" + _tables(*costs) + "\n", BEGIN, END)
    whole = costs[0].round_trips + costs[1].round_trips
    assert len(costs[0].statements + costs[1].statements) <= 16
    assert postgres_wire.commits(whole) <= 6


@pytest.mark.parametrize("layout", ["newest"], indirect=True)
def test_what_a_set_up_costs_beside_the_newest_layout_is_in_the_table(costs: tuple[Cost, Cost]) -> None:
    set_up, _end = costs
    heads = (*_HEADS[1:], "Requests to the platform's Redis")
    trips = [("; ".join(map(postgres_wire.name, trip)),) for trip in set_up.round_trips]
    made = (
        _table(heads, [(*_counts(set_up), set_up.platform_s)]) + "\n" + _table(("One round trip to Postgres",), trips)
    )
    _is_written(f"\n{made}\n", NEWEST_BEGIN, NEWEST_END)
    assert (len(set_up.statements), set_up.commits, set_up.platform_s) == (5, 2, 2)


def _is_written(made: str, begin: str, end: str) -> None:
    before, found, rest = PAGE.read_text().partition(begin)
    table, closed, after = rest.partition(end)
    assert found
    assert closed
    if os.environ.get("UPDATE_DOCS") and table != made:
        PAGE.write_text(before + begin + made + end + after)
        table = made
    assert table == made, f"docs/call-setup.md is out of date: run this test with UPDATE_DOCS=1\n{made}"


_HEADS = ("Part", "Round trips to Postgres", "Statements", "Commits", "Messages", "Acks", "Requests to Asterisk")


def _counts(cost: Cost) -> tuple[int, ...]:
    return (
        len(cost.round_trips), len(cost.statements), cost.commits, cost.enqueues, cost.acks, len(cost.requests)
    )  # fmt: skip


def _tables(set_up: Cost, end: Cost) -> str:
    rows = [(part, *_counts(cost)) for part, cost in (("set-up", set_up), ("end", end))]
    trips = [("set-up", trip) for trip in set_up.round_trips] + [("end", trip) for trip in end.round_trips]
    requests = [("set-up", request) for request in sorted(map(_shown, set_up.requests))]
    requests += [("end", request) for request in sorted(map(_shown, end.requests))]
    return "\n".join([
        _table(_HEADS, rows),
        _table(("Part", "One round trip to Postgres"), [(p, "; ".join(map(postgres_wire.name, t))) for p, t in trips]),
        _table(("Part", "Request to Asterisk"), requests),
    ])  # fmt: skip


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _shown(request: str) -> str:
    """Return a request without the ids of this call."""
    method, path = request.split(" ", 1)
    words = ["caller" if word.replace(".", "").isdigit() else word for word in path.split("/")]
    kinds = {"m": "media leg", "b": "bridge"}
    ours = [re.fullmatch(r"aip-.*-([mb])\d+", word) for word in words]
    return f"{method} {'/'.join(kinds[own[1]] if own else word for own, word in zip(ours, words, strict=True))}"
