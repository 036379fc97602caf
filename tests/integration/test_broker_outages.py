"""Redis away, restarted empty or cut off in mid-answer, workers that die or stall: nothing is lost, little repeated."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dramatiq
import dramatiq.errors
import pytest
import redis

from devstack import servers, tcp_proxy
from shared.broker import redis_broker, scripts, session
from tests import stations
from tests.stations import Station
from tests.worker_process import Notes

pytestmark = pytest.mark.services

ROOT = Path(__file__).parents[2]
TIMEOUT_SECONDS = session.TIMEOUT_MS / 1000


@pytest.fixture
def mortal_redis(stack_folder: Path) -> Iterator[servers.Redis]:
    """A Redis of this test's own, to be killed."""
    with servers.Redis(stack_folder / f"redis-{uuid.uuid4().hex[:8]}") as server:
        yield server


@pytest.fixture
def wire(redis_url: str) -> Iterator[tcp_proxy.Wire]:
    with tcp_proxy.Wire(redis_url) as made:
        yield made


def is_beating(station: Station) -> bool:
    return bool(stations.members(station.broker.client))


# ── Redis is away ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seconds", [1, 6])
def test_what_is_at_work_while_redis_is_away_runs_once(wire: tcp_proxy.Wire, redis_url: str, seconds: float) -> None:
    """Whatever it is about: to be acknowledged, to be tried again, delayed, waiting. None is dead when it is back."""
    gate = stations.Gate()

    def does(what: Any) -> None:
        gate(what)
        if what == "fails once" and one.began.count(what) + other.began.count(what) == 1:
            raise ValueError(what)

    with contextlib.ExitStack() as stack:
        one, other = (stack.enter_context(Station(wire.url, threads=2, name=name).working()) for name in ("a", "b"))
        one.does = other.does = does
        outside = Station(redis_url)
        stack.callback(outside.broker.close)
        for what in ("ends", "fails once", "ends too", "ends as well"):
            outside.send(what)
        stations.until(lambda: len(one.began) + len(other.began) == 4, seconds=5, what="not begun")
        outside.send("waits")
        outside.send("is delayed", delay_ms=int(seconds * 500))
        wire.cut()
        gate.open()
        time.sleep(seconds)
        wire.mend()
        outside.broker.join("first", timeout=15_000)
        began = sorted([*one.began, *other.began])
        assert began == sorted(["ends", "fails once", "fails once", "ends too", "ends as well", "waits", "is delayed"])
        assert outside.dead() == []


def test_redis_restarted_empty_takes_with_it_what_waited_and_nothing_else(mortal_redis: servers.Redis) -> None:
    gate = stations.Gate()
    with Station(mortal_redis.url, threads=2).working() as station:

        def does(what: Any) -> None:
            gate(what)
            if what == "fails once" and station.began.count(what) == 1:
                raise ValueError(what)

        station.does = does
        station.send("ends")
        station.send("fails once")
        stations.until(lambda: len(station.began) == 2, seconds=5, what="not begun")
        station.send("waits, and is lost")
        mortal_redis.kill()
        gate.open()
        stations.until(lambda: station.ran == ["ends"], seconds=5, what="work goes on")
        mortal_redis.start()
        # Its next try was never in Redis: the worker had it.
        stations.until(lambda: "fails once" in station.ran, seconds=10, what="not tried again")
        station.send("new")
        stations.until(lambda: "new" in station.ran, seconds=5, what="not run")
        station.broker.join("first", timeout=5000)
        assert station.ran == ["ends", "fails once", "new"]


def test_a_producer_waits_for_redis_and_not_for_ever(wire: tcp_proxy.Wire, redis_url: str) -> None:
    station = Station(wire.url, patience_seconds=1.5)
    station.send("connected")
    wire.cut()
    began = time.monotonic()
    with pytest.raises(dramatiq.errors.ConnectionFailed, match="Redis does not take messages"):
        station.send("refused")
    assert 1 < time.monotonic() - began < 6
    mending = threading.Timer(0.5, wire.mend)
    mending.start()
    station.send("waits a little")
    mending.join()
    assert station.broker.count(["first"])["first"].waiting == 2
    station.broker.close()


def test_a_worker_that_stops_while_redis_is_away_ends_all_the_same(wire: tcp_proxy.Wire) -> None:
    station = Station(wire.url)
    with station.working():
        stations.until(lambda: is_beating(station), seconds=5, what="not there")
        wire.cut()
        began = time.monotonic()
    assert time.monotonic() - began < 12
    wire.mend()


def test_a_redis_that_has_forgotten_the_scripts_is_given_them(redis_url: str) -> None:
    with Station(redis_url).working() as station:
        for number in range(3):
            station.broker.client.script_flush()
            station.send(number)
            station.wait(number + 1, seconds=5)


# ── an answer is lost ────────────────────────────────────────────────────────────────────────────────────────────────


def loses_once(script: scripts.Script, *, asked: bytes = b"", answered: bytes = b"") -> Callable[[bytes, bytes], bool]:
    """Loses the first answer to this script that the two texts fit."""
    done = threading.Event()

    def loses(request: bytes, answer: bytes) -> bool:
        fits = script.digest.encode() in request and asked in request and answered in answer
        if fits and not done.is_set():
            done.set()
            return True
        return False

    return loses


@pytest.mark.parametrize(
    ("script", "asked", "answered"),
    [
        pytest.param(scripts.EXCHANGE, b"", b"act_first", id="taken"),
        pytest.param(scripts.EXCHANGE, b"\r\ndone\r\n", b"", id="settled"),
    ],
)
def test_a_message_whose_answer_was_lost_runs_once(
    wire: tcp_proxy.Wire, script: scripts.Script, asked: bytes, answered: bytes
) -> None:
    with Station(wire.url).working() as station:
        station.send("before")
        station.wait(1)
        station.broker.join("first", timeout=5000)
        wire.loses = loses_once(script, asked=asked, answered=answered)
        station.send("it")
        station.broker.join("first", timeout=10_000)
        stations.until(lambda: wire.lost == 1, seconds=5, what="no answer was lost")
        assert station.ran == ["before", "it"]


def test_a_message_that_is_enqueued_once_more_because_the_answer_was_lost_is_there_once(wire: tcp_proxy.Wire) -> None:
    gate = stations.Gate()
    with Station(wire.url).working() as station:
        station.does = gate
        wire.loses = loses_once(scripts.ENQUEUE)
        station.send("it")
        assert wire.lost == 1
        gate.open()
        station.broker.join("first", timeout=10_000)
        assert station.ran == ["it"]


def test_a_try_again_whose_answer_was_lost_is_tried_once_more_and_not_twice(wire: tcp_proxy.Wire) -> None:
    with Station(wire.url, delays_ms=(1500,)).working() as station:
        station.send("before")
        station.wait(1)

        def fail_once(what: Any) -> None:
            if station.began.count(what) == 1:
                raise ValueError(what)

        station.does = fail_once
        wire.loses = loses_once(scripts.EXCHANGE, asked=b"\r\nagain\r\n")
        station.send("it")
        station.broker.join("first", timeout=10_000)
        assert wire.lost == 1
        assert station.began == ["before", "it", "it"]


# ── a worker dies or stalls ──────────────────────────────────────────────────────────────────────────────────────────


class Workers:
    """Worker processes, and what they did."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.station = Station(url)
        self._path = folder / f"notes-{uuid.uuid4().hex[:8]}"
        self.notes = Notes(self._path)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *names: str, threads: int = 4) -> None:
        for name in names:
            command = [sys.executable, "-m", "tests.worker_process", name, str(threads), str(self._path)]
            self._processes[name] = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "REDIS_URL": self.url})
        client = self.station.broker.client
        stations.until(lambda: stations.idle(client) >= len(names), seconds=20, what="workers did not start")

    def signal(self, name: str, number: signal.Signals) -> None:
        self._processes[name].send_signal(number)

    def began(self, number: int) -> None:
        """Waits until so many were begun."""
        stations.until(lambda: len(self.notes.names("began")) >= number, seconds=10, what="not begun")

    def busiest(self) -> str:
        """Who holds something at work."""
        return self.notes.lines("began")[-1][1]

    def close(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()
        self.station.broker.close()


@pytest.fixture
def workers(redis_url: str, stack_folder: Path) -> Iterator[Workers]:
    made = Workers(redis_url, stack_folder)
    yield made
    made.close()


def test_what_a_killed_worker_held_runs_elsewhere_soon(workers: Workers) -> None:
    workers.start("a", "b")
    for number in range(8):
        workers.station.send(f"{number}:1.5")
    workers.began(8)
    held = {what for what, who, _ in workers.notes.lines("began") if who == "a"}
    assert len(held) == 4
    workers.signal("a", signal.SIGKILL)
    killed = time.monotonic()
    stations.until(lambda: len(workers.notes.names("began")) == 12, seconds=15, what="not taken over")
    # A bound for a loaded machine; bench/ has the figures.
    assert time.monotonic() - killed < TIMEOUT_SECONDS + 6
    workers.station.broker.join("first", timeout=10_000)
    ran = workers.notes.names("ran")
    assert sorted(ran) == sorted(f"{number}:1.5" for number in range(8)), "each once"
    assert {who for _, who, _ in workers.notes.lines("ran")} == {"b"}


def test_a_worker_that_stalls_for_three_seconds_is_not_taken_for_dead(workers: Workers) -> None:
    workers.start("a", "b")
    for number in range(8):
        workers.station.send(f"{number}:0.5")
    workers.began(8)
    workers.signal("a", signal.SIGSTOP)
    time.sleep(3)
    workers.signal("a", signal.SIGCONT)
    workers.station.broker.join("first", timeout=10_000)
    assert sorted(workers.notes.names("began")) == sorted(f"{number}:0.5" for number in range(8))


def test_a_worker_that_stalls_for_longer_finds_its_messages_done(workers: Workers) -> None:
    """It ends what it had begun, which is then a second time, and is a worker like any other afterwards."""
    workers.start("a", "b")
    for number in range(4):
        workers.station.send(f"{number}:0.2", group=number)
    workers.began(4)
    stalled = workers.busiest()
    workers.station.send("held:0.6")
    workers.began(5)
    stalled = workers.busiest()
    workers.signal(stalled, signal.SIGSTOP)
    workers.station.broker.join("first", timeout=20_000)
    workers.signal(stalled, signal.SIGCONT)
    stations.until(lambda: workers.notes.names("ran").count("held:0.6") == 2, seconds=10, what="did not go on")
    assert workers.station.broker.count(["first"])["first"] == redis_broker.Count(waiting=0, delayed=0, held=0)
    assert workers.station.dead() == []
    other = {"a", "b"} - {stalled}
    workers.signal(other.pop(), signal.SIGKILL)
    workers.station.send("after")
    stations.until(lambda: "after" in workers.notes.names("ran"), seconds=15, what="is no worker any more")


def test_a_worker_that_is_told_to_stop_ends_what_it_has_begun_and_is_forgotten(workers: Workers) -> None:
    workers.start("a", threads=1)
    workers.station.send("in-work:0.7")
    workers.station.send("waits")
    workers.began(1)
    workers.signal("a", signal.SIGTERM)
    client = workers.station.broker.client
    stations.until(lambda: not stations.members(client), seconds=10, what="is still a member")
    assert workers.notes.names("ran") == ["in-work:0.7"]
    assert workers.station.broker.count(["first"])["first"] == redis_broker.Count(waiting=1, delayed=0, held=0)


def test_a_member_from_the_future_dies_as_well(redis_url: str) -> None:
    """Redis's clock was set back, or another server with another clock has taken over."""
    with redis.Redis.from_url(redis_url) as client, Station(redis_url).working() as station:
        stations.until(lambda: is_beating(station), seconds=5, what="not there")
        message: stations.Message = dramatiq.Message("first", "act_first", ("it",), {}, {})
        reference = redis_broker.reference(message)
        client.hset(f"{stations.NAMESPACE}:queue:first", reference, message.encode())
        client.sadd(f"{stations.NAMESPACE}:held:ghost", f"first/{reference}")
        client.zadd(f"{stations.NAMESPACE}:members", {"ghost": (int(time.time()) + 3600) * 1000})
        station.wait(1, seconds=TIMEOUT_SECONDS * 4)
        assert b"ghost" not in stations.members(client)
