"""Redis away, restarted empty or cut off in mid-reply, workers that die or stall: nothing is lost, little repeated."""

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
from shared.broker import redis_broker, scripts, session, session_client
from shared.broker.deliveries import Delivery
from tests.support import worker_harness
from tests.support.worker_harness import WorkerHarness
from tests.support.worker_process import Notes

pytestmark = pytest.mark.services

ROOT = Path(__file__).parents[2]
TIMEOUT_SECONDS = session.TIMEOUT_MS / 1000


@pytest.fixture
def mortal_redis(stack_folder: Path) -> Iterator[servers.Redis]:
    """A Redis for this test alone, to be killed."""
    with servers.Redis(stack_folder / f"redis-{uuid.uuid4().hex[:8]}") as server:
        yield server


@pytest.fixture
def proxy(redis_url: str) -> Iterator[tcp_proxy.TcpProxy]:
    with tcp_proxy.TcpProxy(redis_url) as made:
        yield made


def is_registered(harness: WorkerHarness) -> bool:
    client = harness.broker.client
    return bool(worker_harness.sessions(client)) and worker_harness.with_credit(client) > 0


# ── Redis is away ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seconds", [1, 6])
def test_a_message_in_flight_while_redis_is_away_runs_once(
    proxy: tcp_proxy.TcpProxy, redis_url: str, seconds: float
) -> None:
    """In every state: to be acknowledged or retried, delayed, waiting. No session has expired when Redis is back."""
    latch = worker_harness.Latch()

    def does(what: Any) -> None:
        latch(what)
        if what == "fails once" and one.began.count(what) + other.began.count(what) == 1:
            raise ValueError(what)

    with contextlib.ExitStack() as stack:
        one, other = (
            stack.enter_context(WorkerHarness(proxy.url, threads=2, name=name).working()) for name in ("a", "b")
        )
        one.does = other.does = does
        outside = WorkerHarness(redis_url)
        stack.callback(outside.broker.close)
        for what in ("ends", "fails once", "ends too", "ends as well"):
            outside.send(what)
        worker_harness.until(lambda: len(one.began) + len(other.began) == 4, seconds=5, what="not begun")
        outside.send("waits")
        outside.send("is delayed", delay_ms=int(seconds * 500))
        proxy.cut()
        latch.release()
        time.sleep(seconds)
        proxy.mend()
        outside.broker.join("first", timeout=15_000)
        began = sorted([*one.began, *other.began])
        assert began == sorted(["ends", "fails once", "fails once", "ends too", "ends as well", "waits", "is delayed"])
        assert outside.dead_letters() == []


def test_a_redis_restarted_empty_loses_waiting_messages_and_nothing_else(mortal_redis: servers.Redis) -> None:
    latch = worker_harness.Latch()
    with WorkerHarness(mortal_redis.url, threads=2).working() as harness:

        def does(what: Any) -> None:
            latch(what)
            if what == "fails once" and harness.began.count(what) == 1:
                raise ValueError(what)

        harness.does = does
        harness.send("ends")
        harness.send("fails once")
        worker_harness.until(lambda: len(harness.began) == 2, seconds=5, what="not begun")
        harness.send("waits, and is lost")
        mortal_redis.kill()
        latch.release()
        worker_harness.until(lambda: harness.ran == ["ends"], seconds=5, what="work did not go on")
        mortal_redis.start()
        # Its retry was never in Redis: the worker had it.
        worker_harness.until(lambda: "fails once" in harness.ran, seconds=10, what="not retried")
        harness.send("new")
        worker_harness.until(lambda: "new" in harness.ran, seconds=5, what="not run")
        harness.broker.join("first", timeout=5000)
        assert harness.ran == ["ends", "fails once", "new"]


def test_threads_leave_their_settlements_to_the_poll_thread_while_redis_is_away(proxy: tcp_proxy.TcpProxy) -> None:
    """At most one waits for a reply that does not come: the others go on with what they have."""
    latch = worker_harness.Latch()
    with WorkerHarness(proxy.url).working() as harness:
        worker_harness.until(lambda: is_registered(harness), seconds=5, what="not registered")
        current = harness.broker._session
        assert current is not None
        worker_harness.until(lambda: current._is_idle, seconds=5, what="not idle")
        harness.does = latch
        for number in range(3):
            harness.send(number)
        worker_harness.until(lambda: len(harness.began) == 3, seconds=5, what="not begun")
        proxy.cut()
        latch.release()
        harness.wait(3)
        worker_harness.until(lambda: not current._is_idle, seconds=5, what="would try again itself")
        proxy.mend()
        harness.broker.join("first", timeout=10_000)
        assert sorted(harness.ran) == [0, 1, 2]


def test_a_producer_waits_for_redis_within_a_bound(proxy: tcp_proxy.TcpProxy, redis_url: str) -> None:
    harness = WorkerHarness(proxy.url, patience_seconds=1.5)
    harness.send("connected")
    proxy.cut()
    began = time.monotonic()
    with pytest.raises(dramatiq.errors.ConnectionFailed, match="message not enqueued, check Redis"):
        harness.send("refused")
    assert 1 < time.monotonic() - began < 6
    mending = threading.Timer(0.5, proxy.mend)
    mending.start()
    harness.send("waits a little")
    mending.join()
    assert harness.broker.count(["first"])["first"].waiting == 2
    harness.broker.close()


def test_a_worker_that_stops_while_redis_is_away_ends_all_the_same(proxy: tcp_proxy.TcpProxy) -> None:
    harness = WorkerHarness(proxy.url)
    with harness.working():
        worker_harness.until(lambda: is_registered(harness), seconds=5, what="not registered")
        proxy.cut()
        began = time.monotonic()
    assert time.monotonic() - began < 12
    proxy.mend()


def test_a_redis_without_the_scripts_gets_them(redis_url: str) -> None:
    with WorkerHarness(redis_url).working() as harness:
        for number in range(3):
            harness.broker.client.script_flush()
            harness.send(number)
            harness.wait(number + 1, seconds=5)


# ── a reply is lost ──────────────────────────────────────────────────────────────────────────────────────────────────


def loses_once(
    script: scripts.Script, *, request_has: bytes = b"", reply_has: bytes = b""
) -> Callable[[bytes, bytes], bool]:
    """Lose the first reply to this script whose request and reply contain these texts."""
    done = threading.Event()

    def loses(request: bytes, reply: bytes) -> bool:
        fits = script.digest.encode() in request and request_has in request and reply_has in reply
        if fits and not done.is_set():
            done.set()
            return True
        return False

    return loses


@pytest.mark.parametrize(
    ("script", "request_has", "reply_has"),
    [
        pytest.param(scripts.POLL, b"", b"act_first", id="fetched"),
        pytest.param(scripts.POLL, b"\r\nack\r\n", b"", id="settled by a poll"),
        pytest.param(scripts.ACK, b"", b"", id="acknowledged"),
    ],
)
def test_a_message_whose_reply_was_lost_runs_once(
    proxy: tcp_proxy.TcpProxy, redis_url: str, script: scripts.Script, request_has: bytes, reply_has: bytes
) -> None:
    # One thread: a worker that was full settles by a poll.
    threads = 1 if request_has else 4
    with WorkerHarness(proxy.url, threads=threads).working() as harness, redis.Redis.from_url(redis_url) as client:
        harness.send("before")
        harness.wait(1)
        harness.broker.join("first", timeout=5000)
        proxy.loses = loses_once(script, request_has=request_has, reply_has=reply_has)
        if script is scripts.POLL:
            worker_harness.add_waiting(client, "it")
        else:
            harness.send("it")
        harness.broker.join("first", timeout=10_000)
        worker_harness.until(lambda: proxy.lost == 1, seconds=5, what="no reply was lost")
        assert harness.ran == ["before", "it"]


def test_a_message_whose_push_was_lost_runs_once(proxy: tcp_proxy.TcpProxy, redis_url: str) -> None:
    """It is in flight in the session, whose subscription was cut while the message was on its way."""
    with WorkerHarness(proxy.url).working() as harness:
        harness.send("before")
        harness.wait(1)
        proxy.loses = lambda request, reply: b"act_first" in reply and proxy.lost == 0
        harness.send("it")
        harness.broker.join("first", timeout=5000)
        assert proxy.lost == 1
        assert harness.ran == ["before", "it"]
        harness.send("after")
        harness.wait(3, seconds=session.POLL_SECONDS)


def test_a_message_that_is_pushed_late_runs_once(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session has redelivered it, processed it and forgotten it by then."""
    late = threading.Event()
    listen = session_client.SessionClient.listen

    def slow(requests: session_client.SessionClient, *given: Any) -> Iterator[Delivery | None]:
        for pushed in listen(requests, *given):
            if pushed is not None and pushed.args == ("it",):
                assert late.wait(5)
            yield pushed

    monkeypatch.setattr(session_client.SessionClient, "listen", slow)
    with WorkerHarness(redis_url).working() as harness:
        worker_harness.until(lambda: is_registered(harness), seconds=5, what="not registered")
        message = harness.send("it")
        harness.broker.join("first", timeout=5000)
        assert harness.ran == ["it"], "redelivered"
        late.set()
        harness.send("after")
        harness.wait(2)
        assert harness.ran == ["it", "after"]
        harness.broker.enqueue(message)
        harness.wait(3)


def test_a_message_on_its_way_is_not_redelivered(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A poll says that it is in flight before it arrives. Only what is missing for a while is redelivered."""
    redeliver, listen = session_client.SessionClient.redeliver, session_client.SessionClient.listen
    found: list[int] = []
    began_before: list[Any] = []

    def noted(requests: session_client.SessionClient, known: Any) -> session_client.Difference:
        difference = redeliver(requests, known)
        found.append(len(difference.lost))
        return difference

    def slow(requests: session_client.SessionClient, *given: Any) -> Iterator[Delivery | None]:
        for pushed in listen(requests, *given):
            if pushed is not None:
                current = harness.broker._session
                assert current is not None
                for number in (1, 2):
                    current._poll_now()
                    worker_harness.until(lambda n=number: len(found) >= n, seconds=5, what="not looked for")  # type: ignore[misc]
                began_before.extend(harness.began)
            yield pushed

    monkeypatch.setattr(session, "_LOST_SECONDS", 5.0)
    monkeypatch.setattr(session_client.SessionClient, "redeliver", noted)
    monkeypatch.setattr(session_client.SessionClient, "listen", slow)
    with WorkerHarness(redis_url).working() as harness:
        worker_harness.until(lambda: is_registered(harness), seconds=5, what="not registered")
        harness.send("it")
        harness.broker.join("first", timeout=5000)
        assert (found[:2], began_before, harness.ran) == ([1, 1], [], ["it"])


def test_a_redis_emptied_between_push_and_acknowledgement_loses_nothing_in_work(redis_url: str) -> None:
    latch = worker_harness.Latch()
    with WorkerHarness(redis_url).working() as harness:
        worker_harness.until(lambda: is_registered(harness), seconds=5, what="not registered")
        harness.does = latch
        for number in range(2):
            harness.send(number)
        worker_harness.until(lambda: len(harness.began) == 2, seconds=5, what="not begun")
        harness.broker.client.flushall()
        latch.release()
        harness.wait(2)
        worker_harness.until(lambda: is_registered(harness), seconds=5, what="not registered again")
        assert harness.broker.client.hget(f"{worker_harness.NAMESPACE}:liveness", "grace_until") is not None
        harness.send("after")
        harness.wait(3)
        harness.broker.join("first", timeout=5000)
    assert sorted(map(str, harness.ran)) == ["0", "1", "after"]


def test_a_push_lost_after_redis_was_emptied_is_found_beside_what_is_in_work(proxy: tcp_proxy.TcpProxy) -> None:
    """Redis has forgotten the one and the worker does not know of the other: their numbers are equal."""
    latch = worker_harness.Latch()
    with WorkerHarness(proxy.url).working() as harness:
        worker_harness.until(lambda: is_registered(harness), seconds=5, what="not registered")
        harness.does = lambda what: latch(what) if what == "long" else None
        harness.send("long")
        worker_harness.until(lambda: harness.began, seconds=5, what="not begun")
        client = harness.broker.client
        client.flushall()
        worker_harness.until(
            lambda: client.hvals(f"{worker_harness.NAMESPACE}:credits") == [b"3"], seconds=5, what="no credit"
        )
        proxy.loses = lambda request, reply: b"act_first" in reply and proxy.lost == 0
        harness.send("short")
        harness.wait(1, seconds=session.POLL_SECONDS * 4)
        assert (harness.ran, proxy.lost) == (["short"], 1)
        latch.release()
        harness.broker.join("first", timeout=5000)
    assert harness.ran == ["short", "long"]


def test_a_message_enqueued_again_after_a_lost_reply_is_in_the_queue_once(proxy: tcp_proxy.TcpProxy) -> None:
    latch = worker_harness.Latch()
    with WorkerHarness(proxy.url).working() as harness:
        harness.does = latch
        proxy.loses = loses_once(scripts.ENQUEUE)
        harness.send("it")
        assert proxy.lost == 1
        latch.release()
        harness.broker.join("first", timeout=10_000)
        assert harness.ran == ["it"]


def test_a_retry_whose_reply_was_lost_runs_once(proxy: tcp_proxy.TcpProxy) -> None:
    with WorkerHarness(proxy.url, delays_ms=(1500,)).working() as harness:
        harness.send("before")
        harness.wait(1)

        def fail_once(what: Any) -> None:
            if harness.began.count(what) == 1:
                raise ValueError(what)

        harness.does = fail_once
        proxy.loses = loses_once(scripts.POLL, request_has=b"\r\nretry\r\n")
        harness.send("it")
        harness.broker.join("first", timeout=10_000)
        assert proxy.lost == 1
        assert harness.began == ["before", "it", "it"]


# ── a worker dies or stalls ──────────────────────────────────────────────────────────────────────────────────────────


class Workers:
    """Worker processes, and a record of what they did."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.harness = WorkerHarness(url)
        self._path = folder / f"notes-{uuid.uuid4().hex[:8]}"
        self.notes = Notes(self._path)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *names: str, threads: int = 4) -> None:
        for name in names:
            command = [sys.executable, "-m", "tests.support.worker_process", name, str(threads), str(self._path)]
            self._processes[name] = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "REDIS_URL": self.url})
        client = self.harness.broker.client
        worker_harness.until(
            lambda: worker_harness.idle(client) >= len(names), seconds=20, what="workers did not start"
        )

    def signal(self, name: str, number: signal.Signals) -> None:
        self._processes[name].send_signal(number)

    def began(self, number: int) -> None:
        """Wait until so many messages were begun."""
        worker_harness.until(lambda: len(self.notes.names("began")) >= number, seconds=10, what="not begun")

    def last_begun_by(self) -> str:
        """Return the worker that began the last message."""
        return self.notes.lines("began")[-1][1]

    def close(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()
        self.harness.broker.close()


@pytest.fixture
def workers(redis_url: str, stack_folder: Path) -> Iterator[Workers]:
    made = Workers(redis_url, stack_folder)
    yield made
    made.close()


def test_a_killed_worker_s_messages_run_elsewhere_soon(workers: Workers) -> None:
    workers.start("a", "b")
    for number in range(8):
        workers.harness.send(f"{number}:1.5")
    workers.began(8)
    in_flight = {what for what, worker, _ in workers.notes.lines("began") if worker == "a"}
    assert len(in_flight) == 4
    workers.signal("a", signal.SIGKILL)
    killed = time.monotonic()
    worker_harness.until(lambda: len(workers.notes.names("began")) == 12, seconds=15, what="not requeued")
    # A bound for a loaded machine; bench/ has the figures.
    assert time.monotonic() - killed < TIMEOUT_SECONDS + 6
    workers.harness.broker.join("first", timeout=10_000)
    ran = workers.notes.names("ran")
    assert sorted(ran) == sorted(f"{number}:1.5" for number in range(8)), "each once"
    assert {worker for _, worker, _ in workers.notes.lines("ran")} == {"b"}


def test_the_session_of_a_worker_that_stalls_for_three_seconds_does_not_expire(workers: Workers) -> None:
    workers.start("a", "b")
    for number in range(8):
        workers.harness.send(f"{number}:0.5")
    workers.began(8)
    workers.signal("a", signal.SIGSTOP)
    time.sleep(3)
    workers.signal("a", signal.SIGCONT)
    workers.harness.broker.join("first", timeout=10_000)
    assert sorted(workers.notes.names("began")) == sorted(f"{number}:0.5" for number in range(8))


def test_a_worker_that_stalls_for_longer_finds_its_messages_settled(workers: Workers) -> None:
    """It finishes what it had begun, for the second time, and afterwards works like any other."""
    workers.start("a", "b")
    for number in range(4):
        workers.harness.send(f"{number}:0.2", group=number)
    workers.began(4)
    stalled = workers.last_begun_by()
    workers.harness.send("stalled:0.6")
    workers.began(5)
    stalled = workers.last_begun_by()
    workers.signal(stalled, signal.SIGSTOP)
    workers.harness.broker.join("first", timeout=20_000)
    workers.signal(stalled, signal.SIGCONT)
    worker_harness.until(lambda: workers.notes.names("ran").count("stalled:0.6") == 2, seconds=10, what="did not go on")
    assert workers.harness.broker.count(["first"])["first"] == redis_broker.Count(waiting=0, delayed=0, in_flight=0)
    assert workers.harness.dead_letters() == []
    other = {"a", "b"} - {stalled}
    workers.signal(other.pop(), signal.SIGKILL)
    workers.harness.send("after")
    worker_harness.until(lambda: "after" in workers.notes.names("ran"), seconds=15, what="works no more")


def test_a_worker_that_is_told_to_stop_ends_what_it_has_begun_and_is_forgotten(workers: Workers) -> None:
    workers.start("a", threads=1)
    workers.harness.send("in-work:0.7")
    workers.harness.send("waits")
    workers.began(1)
    workers.signal("a", signal.SIGTERM)
    client = workers.harness.broker.client
    worker_harness.until(lambda: not worker_harness.sessions(client), seconds=10, what="still registered")
    assert workers.notes.names("ran") == ["in-work:0.7"]
    assert workers.harness.broker.count(["first"])["first"] == redis_broker.Count(waiting=1, delayed=0, in_flight=0)


def test_a_session_whose_last_poll_lies_in_the_future_expires_as_well(redis_url: str) -> None:
    """Redis's clock was set back, or a server with another clock has taken over."""
    with redis.Redis.from_url(redis_url) as client, WorkerHarness(redis_url).working() as harness:
        worker_harness.until(lambda: is_registered(harness), seconds=5, what="not registered")
        message: worker_harness.Message = dramatiq.Message("first", "act_first", ("it",), {}, {})
        message_key = redis_broker.message_key(message)
        client.hset(f"{worker_harness.NAMESPACE}:queue:first", message_key, message.encode())
        client.sadd(f"{worker_harness.NAMESPACE}:in-flight:ghost", f"first/{message_key}")
        client.zadd(f"{worker_harness.NAMESPACE}:sessions", {"ghost": (int(time.time()) + 3600) * 1000})
        harness.wait(1, seconds=TIMEOUT_SECONDS * 4)
        assert b"ghost" not in worker_harness.sessions(client)
