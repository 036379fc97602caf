"""What the product relies on in Dramatiq works with this broker, on a real Redis."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import dramatiq
import dramatiq.errors
import dramatiq.middleware
import pytest
import redis

from shared import errors, queues
from shared.broker import redis_broker, session_client
from shared.broker.bounds import Bounds
from tests.support import worker_harness
from tests.support.worker_harness import WorkerHarness

pytestmark = pytest.mark.services

NOTHING = redis_broker.Count(waiting=0, delayed=0, in_flight=0)


@pytest.fixture
def harness(redis_url: str) -> Iterator[WorkerHarness]:
    with WorkerHarness(redis_url).working() as made:
        yield made


def fail(what: Any) -> None:
    raise ValueError(f"cannot do {what}")


def test_an_acknowledged_message_leaves_nothing_behind(harness: WorkerHarness) -> None:
    harness.send("one", group=7)
    harness.broker.join("first", timeout=5000)
    assert harness.ran == ["one"]
    assert harness.broker.count(["first", "second"]) == {"first": NOTHING, "second": NOTHING}
    left: Any = harness.broker.client.keys("*")
    assert set(left) <= {
        b"harness:sessions",
        b"harness:liveness",
        b"harness:credits",
        b"harness:tags",
        *(b"harness:queue:%s:idle" % q for q in (b"first", b"second")),
    }


def test_a_message_that_fails_is_retried_and_then_a_dead_letter(redis_url: str) -> None:
    with WorkerHarness(redis_url, delays_ms=(20, 40), for_ms=200).working() as harness:
        harness.does = fail
        harness.send("it")
        worker_harness.until(harness.dead_letters, seconds=10, what="no dead letter")
        assert 3 <= len(harness.began) <= 6
        (letter,) = harness.dead_letters()
        assert b"ValueError: cannot do it" in letter[b"reason"]
        assert b"Traceback" in letter[b"reason"]
        assert b"in fail\n" in letter[b"reason"]
        harness.broker.join("first", timeout=5000)


def test_a_message_that_fails_once_is_acknowledged_in_the_end(harness: WorkerHarness) -> None:
    def fail_once(what: Any) -> None:
        if len(harness.began) == 1:
            fail(what)

    harness.does = fail_once
    harness.send("it")
    harness.wait(1)
    harness.broker.join("first", timeout=5000)
    assert (harness.began, harness.dead_letters()) == (["it", "it"], [])


def test_a_message_whose_actor_throws_its_error_is_not_retried(harness: WorkerHarness) -> None:
    def refuse(what: Any) -> None:
        raise KeyError(what)

    harness.does = refuse
    harness.send("no")
    worker_harness.until(harness.dead_letters, seconds=5, what="no dead letter")
    assert harness.began == ["no"]
    (letter,) = harness.dead_letters()
    assert (letter[b"queue"], dramatiq.Message.decode(letter[b"body"]).args) == (b"first", ("no",))


def test_an_actor_may_choose_the_delay_of_its_retry(harness: WorkerHarness) -> None:
    def ask_for_more_time(what: Any) -> None:
        if len(harness.began) == 1:
            raise dramatiq.errors.Retry(delay=200)

    harness.does = ask_for_more_time
    harness.send("it")
    worker_harness.until(lambda: harness.broker.count(["first"])["first"].delayed == 1, seconds=5, what="not delayed")
    harness.wait(1)


class Recorder(dramatiq.Middleware):
    """Records the signals it receives, and in which order among several."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name = name
        self.notes = notes

    def _note(self, signal: str) -> None:
        self.notes.append(f"{self.name} {signal}")

    def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        self._note("before_enqueue")

    def after_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        self._note("after_enqueue")

    def before_process_message(self, broker: Any, message: Any) -> None:
        self._note("before_process_message")
        if message.args == ("skipped",):
            raise dramatiq.middleware.SkipMessage

    def after_process_message(self, broker: Any, message: Any, *, result: Any = None, exception: Any = None) -> None:
        self._note("after_process_message")

    def after_skip_message(self, broker: Any, message: Any) -> None:
        self._note("after_skip_message")

    def before_ack(self, broker: Any, message: Any) -> None:
        self._note("before_ack")

    def after_ack(self, broker: Any, message: Any) -> None:
        self._note("after_ack")

    def before_nack(self, broker: Any, message: Any) -> None:
        self._note(f"before_nack {type(message.exception).__name__}")

    def after_nack(self, broker: Any, message: Any) -> None:
        self._note("after_nack")


def enqueuing(notes: list[str]) -> list[str]:
    return [note for note in notes if "enqueue" in note]


def working(notes: list[str]) -> list[str]:
    """Return the worker's signals; it may begin before the producer has its reply."""
    return [note for note in notes if "enqueue" not in note]


def test_middleware_is_called_in_order_before_and_in_reverse_after(redis_url: str) -> None:
    notes: list[str] = []
    with WorkerHarness(redis_url, middleware=[Recorder("a", notes), Recorder("b", notes)]).working() as harness:
        harness.send("it")
        worker_harness.until(lambda: "a after_ack" in notes, seconds=5, what="not acknowledged")
        assert enqueuing(notes) == ["a before_enqueue", "b before_enqueue", "b after_enqueue", "a after_enqueue"]
        assert working(notes) == [
            *("a before_process_message", "b before_process_message"),
            *("b after_process_message", "a after_process_message"),
            *("a before_ack", "b before_ack", "b after_ack", "a after_ack"),
        ]


def test_a_message_that_fails_permanently_is_rejected_and_not_acknowledged(redis_url: str) -> None:
    notes: list[str] = []
    with WorkerHarness(redis_url, middleware=[Recorder("a", notes)], for_ms=0).working() as harness:
        harness.does = fail
        harness.send("it")
        worker_harness.until(harness.dead_letters, seconds=5, what="no dead letter")
        assert working(notes) == [
            *("a before_process_message", "a after_process_message"),
            *("a before_nack ValueError", "a after_nack"),
        ]


def test_a_skipped_message_is_acknowledged(redis_url: str) -> None:
    notes: list[str] = []
    with WorkerHarness(redis_url, middleware=[Recorder("a", notes)]).working() as harness:
        harness.send("skipped")
        worker_harness.until(lambda: "a after_ack" in notes, seconds=5, what="not acknowledged")
        assert working(notes) == ["a before_process_message", "a after_skip_message", "a before_ack", "a after_ack"]
        assert harness.began == []


def test_a_pipeline_goes_on_with_the_next_message(redis_url: str) -> None:
    with WorkerHarness(redis_url, middleware=[dramatiq.middleware.Pipelines()]).working() as harness:
        first, second = (
            dramatiq.Message[Any](queue, f"act_{queue}", args, {}, {})
            for queue, args in (("first", (1,)), ("second", ()))
        )
        dramatiq.pipeline([first, second], broker=harness.broker).run()
        harness.wait(2)
        # The first message's result, None, is the second message's argument.
        assert harness.ran == [1, None]


def test_a_delayed_message_waits_until_it_is_due(harness: WorkerHarness) -> None:
    message = harness.send("later", delay_ms=300)
    assert harness.broker.count(["first"])["first"] == redis_broker.Count(waiting=0, delayed=1, in_flight=0)
    harness.send("now")
    harness.wait(2)
    assert harness.ran == ["now", "later"]
    assert harness.times["later"] - harness.times["now"] >= 0.25
    assert "eta" not in message.options


def test_joining_a_queue_without_a_worker_times_out(redis_url: str) -> None:
    harness = WorkerHarness(redis_url)
    harness.send()
    with pytest.raises(dramatiq.errors.QueueJoinTimeout):
        harness.broker.join("first", timeout=100)
    harness.broker.close()


@pytest.fixture
def nothing_is_pushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is pushed waits for no thread."""
    monkeypatch.setattr(session_client.SessionClient, "is_subscribed", lambda _: False)


@pytest.mark.usefixtures("nothing_is_pushed")
def test_among_the_messages_in_flight_an_actor_s_priority_decides(redis_url: str) -> None:
    harness = WorkerHarness(redis_url, threads=3)
    harness.broker.actors["act_first"].priority = 10
    harness.broker.actors["act_second"].priority = 1
    # More messages are in flight than the worker has threads: Dramatiq sorts them.
    harness.worker = dramatiq.Worker(harness.broker, worker_threads=1, worker_timeout=50)
    latch = worker_harness.Latch()
    harness.does = latch
    with harness.working():
        harness.send("blocked")
        worker_harness.until(lambda: harness.began, seconds=5, what="not begun")
        harness.send("low", queue="first")
        worker_harness.until(lambda: harness.worker.work_queue.qsize() == 1, seconds=5, what="not in flight")
        harness.send("high", queue="second")
        worker_harness.until(lambda: harness.worker.work_queue.qsize() == 2, seconds=5, what="not in flight")
        latch.release()
        harness.wait(3)
    assert harness.ran == ["blocked", "high", "low"]


def test_a_paused_worker_goes_on_when_it_is_resumed(harness: WorkerHarness) -> None:
    harness.worker.pause()
    harness.send("while paused")
    harness.worker.resume()
    harness.wait(1, seconds=15)


@pytest.mark.usefixtures("nothing_is_pushed")
def test_a_worker_that_stops_requeues_what_it_has_not_begun(redis_url: str) -> None:
    harness = WorkerHarness(redis_url, threads=3)
    harness.worker = dramatiq.Worker(harness.broker, worker_threads=1, worker_timeout=50)
    latch = worker_harness.Latch()
    harness.does = latch
    harness.worker.start()
    for number in range(3):
        harness.send(number)
    worker_harness.until(lambda: harness.worker.work_queue.qsize() == 2, seconds=5, what="not in flight")
    stopping = threading.Thread(target=harness.worker.stop)
    stopping.start()
    try:
        # At once, not when the running message has ended.
        counted = redis_broker.Count(waiting=2, delayed=0, in_flight=1)
        worker_harness.until(
            lambda: harness.broker.count(["first"])["first"] == counted, seconds=2, what="not requeued"
        )
        assert harness.began == [0]
    finally:
        latch.release()
        stopping.join()
    assert harness.ran == [0]
    assert harness.broker.count(["first"])["first"] == redis_broker.Count(waiting=2, delayed=0, in_flight=0)
    assert worker_harness.sessions(harness.broker.client) == []
    harness.broker.close()


def test_a_worker_serves_only_the_queues_it_is_given(redis_url: str) -> None:
    harness = WorkerHarness(redis_url)
    harness.worker = harness.new_worker("second")
    with harness.working():
        harness.send("for another worker", queue="first")
        harness.send("for this worker", queue="second")
        harness.wait(1)
        assert harness.broker.count(["first"])["first"].waiting == 1
    assert harness.ran == ["for this worker"]


def test_a_queue_declared_while_a_worker_runs_is_served(harness: WorkerHarness) -> None:
    ran = threading.Event()
    dramatiq.actor(actor_name="late", queue_name="third", broker=harness.broker)(ran.set)
    harness.broker.enqueue(dramatiq.Message("third", "late", (), {}, {}))
    assert ran.wait(5)


def test_flushing_deletes_waiting_and_delayed_messages(redis_url: str) -> None:
    harness = WorkerHarness(redis_url)
    harness.send("waits", group=1)
    harness.send("is delayed", delay_ms=100)
    harness.broker.flush_all()
    assert harness.broker.count(["first"])["first"] == NOTHING
    assert harness.broker.client.keys("*") == []
    harness.broker.close()


def test_an_undeclared_queue_is_refused(harness: WorkerHarness) -> None:
    with pytest.raises(dramatiq.errors.QueueNotFound):
        harness.broker.enqueue(dramatiq.Message("third", "act_first", (), {}, {}))
    with pytest.raises(dramatiq.errors.QueueNotFound):
        harness.broker.consume("third")
    with pytest.raises(ValueError, match="slash"):
        harness.broker.declare_queue("a/b")


def test_a_message_enqueued_twice_is_in_the_queue_once(redis_url: str) -> None:
    harness = WorkerHarness(redis_url)
    message = harness.send("it")
    harness.broker.enqueue(message)
    assert harness.broker.count(["first"])["first"].waiting == 1
    with harness.working():
        harness.broker.join("first", timeout=5000)
        assert harness.ran == ["it"]
        # Once acknowledged, its id is free again.
        harness.broker.enqueue(message)
        harness.wait(2)


def test_a_message_that_its_own_actor_enqueues_again_runs_again(harness: WorkerHarness) -> None:
    sent: list[worker_harness.Message] = []

    def enqueue_once(what: Any) -> None:
        if len(harness.began) == 1:
            harness.broker.enqueue(sent[0].copy(args=("again",)))

    harness.does = enqueue_once
    message: worker_harness.Message = dramatiq.Message("first", "act_first", ("it",), {}, {})
    sent.append(message)
    harness.broker.enqueue(message)
    harness.wait(2)
    assert harness.ran == ["it", "again"]
    harness.broker.join("first", timeout=5000)


# ── unreadable messages ──────────────────────────────────────────────────────────────────────────────────────────────

GOOD = {"queue_name": "first", "actor_name": "act_first", "args": [1], "kwargs": {}, "options": {}}
DECODED = dramatiq.Message[Any](**GOOD, message_id="x", message_timestamp=1)  # type: ignore[arg-type]


def changed(**fields: Any) -> bytes:
    return DECODED.copy(**fields).encode()


UNREADABLE = [
    pytest.param(b"", id="empty"),
    pytest.param(b"\xff\x00\xfe", id="binary"),
    pytest.param(b'{"queue_name": "first"', id="cut off"),
    pytest.param(b"null", id="null"),
    pytest.param(b"[" * 100_000, id="deep"),
    pytest.param(b'{"surprise": 1}', id="another shape"),
    pytest.param(changed(actor_name=["act_first"]), id="an actor that is a list"),
    pytest.param(changed(actor_name="no_such_actor"), id="an unknown actor"),
    pytest.param(changed(kwargs=[1]), id="arguments that are a list"),
    pytest.param(changed(queue_name="second"), id="of another queue"),
    pytest.param(changed(message_id=5), id="an id that is a number"),
]


@pytest.mark.parametrize("body", UNREADABLE)
def test_an_unreadable_message_is_a_dead_letter_with_its_bytes_and_the_queue_continues(
    harness: WorkerHarness, redis_url: str, body: bytes
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        pipe = client.pipeline()
        pipe.hset(f"{worker_harness.NAMESPACE}:queue:first", "g/unreadable", body)
        pipe.rpush(f"{worker_harness.NAMESPACE}:queue:first:group:g", "g/unreadable")
        pipe.rpush(f"{worker_harness.NAMESPACE}:queue:first:rotation", "g")
        pipe.execute()
    harness.send("good", group="g")
    harness.wait(1)
    worker_harness.until(harness.dead_letters, seconds=5, what="no dead letter")
    (letter,) = harness.dead_letters()
    beginning = body[: Bounds().dead_letter_bytes]
    assert (letter[b"body"], letter[b"queue"], letter[b"message_key"]) == (beginning, b"first", b"g/unreadable")
    assert letter[b"reason"]
    harness.broker.join("first", timeout=5000)
    assert all(thread.is_alive() for thread in harness.worker.workers)
    assert all(thread.is_alive() for thread in harness.worker.consumers.values())
    assert harness.ran == ["good"]


@pytest.mark.parametrize("options", [{"eta": 10**15}, {"eta": "soon"}, {"eta": None}])
def test_a_worker_keeps_no_message_back_for_its_options(harness: WorkerHarness, options: dict[str, Any]) -> None:
    harness.send("it", **options)
    harness.wait(1)
    harness.broker.join("first", timeout=5000)


def test_a_bounded_message_whose_group_is_full_is_refused_and_its_sender_told(redis_url: str) -> None:
    harness = WorkerHarness(redis_url, bounds=Bounds(group_messages=2))
    for number in range(2):
        harness.send(number, group=7, bounded=True)
    with pytest.raises(redis_broker.GroupFull, match="too many"):
        harness.send(2, group=7, bounded=True)
    harness.send(3, group=7)
    harness.send(4, group=8, bounded=True)
    with harness.working():
        harness.wait(4)
        harness.broker.join("first", timeout=5000)
        harness.send(5, group=7, bounded=True)
        harness.wait(5)
    assert sorted(harness.ran) == [0, 1, 3, 4, 5]


def test_who_sends_to_a_full_group_tries_again(redis_url: str) -> None:
    """A worker that looks again for a leg: its own message is retried, and counts as long."""
    made = queues.broker(redis_url, bounds=Bounds(group_messages=0))
    message: worker_harness.Message = dramatiq.Message("originate", "x", (), {}, {"group": 7, "bounded": True})
    with pytest.raises(errors.QueueUnavailable, match="too many"):
        queues.BrokerCommandQueue(made).send(message)
    made.close()
