"""What we rely on of Dramatiq holds on our broker, on a real Redis."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import dramatiq
import dramatiq.errors
import dramatiq.middleware
import pytest
import redis

from shared.broker import redis_broker
from tests import stations
from tests.stations import Station

pytestmark = pytest.mark.services

NOTHING = redis_broker.Count(waiting=0, delayed=0, held=0)


@pytest.fixture
def station(redis_url: str) -> Iterator[Station]:
    with Station(redis_url).working() as made:
        yield made


def fail(what: Any) -> None:
    raise ValueError(f"cannot do {what}")


def test_a_message_that_was_done_leaves_nothing(station: Station) -> None:
    station.send("one", group=7)
    station.broker.join("first", timeout=5000)
    assert station.ran == ["one"]
    assert station.broker.count(["first", "second"]) == {"first": NOTHING, "second": NOTHING}
    left: Any = station.broker.client.keys("*")
    assert set(left) <= {
        b"station:members",
        b"station:watch",
        *(b"station:queue:%s:idle" % q for q in (b"first", b"second")),
    }


def test_what_fails_is_tried_again_and_then_dead(redis_url: str) -> None:
    with Station(redis_url, delays_ms=(20, 40), for_ms=200).working() as station:
        station.does = fail
        station.send("it")
        stations.until(station.dead, seconds=10, what="no dead letter")
        assert 3 <= len(station.began) <= 6
        (letter,) = station.dead()
        assert b"ValueError: cannot do it" in letter[b"reason"]
        assert b"Traceback" in letter[b"reason"]
        assert b"in fail\n" in letter[b"reason"]
        station.broker.join("first", timeout=5000)


def test_what_fails_once_is_done_in_the_end(station: Station) -> None:
    def fail_once(what: Any) -> None:
        if len(station.began) == 1:
            fail(what)

    station.does = fail_once
    station.send("it")
    station.wait(1)
    station.broker.join("first", timeout=5000)
    assert (station.began, station.dead()) == (["it", "it"], [])


def test_an_error_that_the_actor_throws_is_not_tried_again(station: Station) -> None:
    def refuse(what: Any) -> None:
        raise KeyError(what)

    station.does = refuse
    station.send("no")
    stations.until(station.dead, seconds=5, what="no dead letter")
    assert station.began == ["no"]
    (letter,) = station.dead()
    assert (letter[b"queue"], dramatiq.Message.decode(letter[b"body"]).args) == (b"first", ("no",))


def test_an_actor_may_say_itself_when_it_is_to_be_tried_again(station: Station) -> None:
    def ask_for_more_time(what: Any) -> None:
        if len(station.began) == 1:
            raise dramatiq.errors.Retry(delay=200)

    station.does = ask_for_more_time
    station.send("it")
    stations.until(lambda: station.broker.count(["first"])["first"].delayed == 1, seconds=5, what="not delayed")
    station.wait(1)


class Told(dramatiq.Middleware):
    """Notes what it is told, and in which order among several."""

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
    """What the worker noted; it may begin before the enqueuer knows that the message is there."""
    return [note for note in notes if "enqueue" not in note]


def test_middleware_is_told_in_order_going_in_and_in_reverse_coming_out(redis_url: str) -> None:
    notes: list[str] = []
    with Station(redis_url, middleware=[Told("a", notes), Told("b", notes)]).working() as station:
        station.send("it")
        station.broker.join("first", timeout=5000)
        assert enqueuing(notes) == ["a before_enqueue", "b before_enqueue", "b after_enqueue", "a after_enqueue"]
        assert working(notes) == [
            *("a before_process_message", "b before_process_message"),
            *("b after_process_message", "a after_process_message"),
            *("a before_ack", "b before_ack", "b after_ack", "a after_ack"),
        ]


def test_a_message_that_fails_for_good_is_rejected_and_not_acknowledged(redis_url: str) -> None:
    notes: list[str] = []
    with Station(redis_url, middleware=[Told("a", notes)], for_ms=0).working() as station:
        station.does = fail
        station.send("it")
        stations.until(station.dead, seconds=5, what="no dead letter")
        assert working(notes) == [
            *("a before_process_message", "a after_process_message"),
            *("a before_nack ValueError", "a after_nack"),
        ]


def test_a_skipped_message_is_acknowledged(redis_url: str) -> None:
    notes: list[str] = []
    with Station(redis_url, middleware=[Told("a", notes)]).working() as station:
        station.send("skipped")
        station.broker.join("first", timeout=5000)
        assert working(notes) == ["a before_process_message", "a after_skip_message", "a before_ack", "a after_ack"]
        assert station.began == []


def test_a_pipeline_goes_on_with_the_next_message(redis_url: str) -> None:
    with Station(redis_url, middleware=[dramatiq.middleware.Pipelines()]).working() as station:
        first, second = (
            dramatiq.Message[Any](queue, f"act_{queue}", args, {}, {})
            for queue, args in (("first", (1,)), ("second", ()))
        )
        dramatiq.pipeline([first, second], broker=station.broker).run()
        station.wait(2)
        # The first one's result, which is none, is the second one's argument.
        assert station.ran == [1, None]


def test_a_delayed_message_waits_its_time(station: Station) -> None:
    message = station.send("later", delay_ms=300)
    assert station.broker.count(["first"])["first"] == redis_broker.Count(waiting=0, delayed=1, held=0)
    station.send("now")
    station.wait(2)
    assert station.ran == ["now", "later"]
    assert station.times["later"] - station.times["now"] >= 0.25
    assert "eta" not in message.options


def test_joining_a_queue_that_is_not_worked_on_times_out(redis_url: str) -> None:
    station = Station(redis_url)
    station.send()
    with pytest.raises(dramatiq.errors.QueueJoinTimeout):
        station.broker.join("first", timeout=100)
    station.broker.close()


def test_among_what_a_worker_holds_an_actor_s_priority_decides(redis_url: str) -> None:
    station = Station(redis_url, threads=3)
    station.broker.actors["act_first"].priority = 10
    station.broker.actors["act_second"].priority = 1
    # It holds more than it has threads for: what is in hand is sorted.
    station.worker = dramatiq.Worker(station.broker, worker_threads=1, worker_timeout=50)
    gate = stations.Gate()
    station.does = gate
    with station.working():
        station.send("held")
        stations.until(lambda: station.began, seconds=5, what="not begun")
        station.send("low", queue="first")
        stations.until(lambda: station.worker.work_queue.qsize() == 1, seconds=5, what="not in hand")
        station.send("high", queue="second")
        stations.until(lambda: station.worker.work_queue.qsize() == 2, seconds=5, what="not in hand")
        gate.open()
        station.wait(3)
    assert station.ran == ["held", "high", "low"]


def test_a_paused_worker_goes_on_when_it_is_resumed(station: Station) -> None:
    station.worker.pause()
    station.send("while paused")
    station.worker.resume()
    station.wait(1, seconds=15)


def test_a_worker_that_stops_gives_back_what_it_has_not_begun(redis_url: str) -> None:
    station = Station(redis_url, threads=3)
    station.worker = dramatiq.Worker(station.broker, worker_threads=1, worker_timeout=50)
    gate = stations.Gate()
    station.does = gate
    station.worker.start()
    for number in range(3):
        station.send(number)
    stations.until(lambda: station.worker.work_queue.qsize() == 2, seconds=5, what="not in hand")
    stopping = threading.Thread(target=station.worker.stop)
    stopping.start()
    try:
        # At once, and not when the one in work has ended.
        counted = redis_broker.Count(waiting=2, delayed=0, held=1)
        stations.until(lambda: station.broker.count(["first"])["first"] == counted, seconds=2, what="not given back")
        assert station.began == [0]
    finally:
        gate.open()
        stopping.join()
    assert station.ran == [0]
    assert station.broker.count(["first"])["first"] == redis_broker.Count(waiting=2, delayed=0, held=0)
    assert stations.members(station.broker.client) == []
    station.broker.close()


def test_a_worker_serves_only_the_queues_it_is_given(redis_url: str) -> None:
    station = Station(redis_url)
    station.worker = station.new_worker("second")
    with station.working():
        station.send("for nobody", queue="first")
        station.send("for us", queue="second")
        station.wait(1)
        assert station.broker.count(["first"])["first"].waiting == 1
    assert station.ran == ["for us"]


def test_a_queue_declared_while_a_worker_runs_is_served(station: Station) -> None:
    ran = threading.Event()
    dramatiq.actor(actor_name="late", queue_name="third", broker=station.broker)(ran.set)
    station.broker.enqueue(dramatiq.Message("third", "late", (), {}, {}))
    assert ran.wait(5)


def test_flushing_forgets_what_waits_and_what_is_delayed(redis_url: str) -> None:
    station = Station(redis_url)
    station.send("waits", group=1)
    station.send("is delayed", delay_ms=100)
    station.broker.flush_all()
    assert station.broker.count(["first"])["first"] == NOTHING
    assert station.broker.client.keys("*") == []
    station.broker.close()


def test_a_queue_nobody_declared_takes_nothing(station: Station) -> None:
    with pytest.raises(dramatiq.errors.QueueNotFound):
        station.broker.enqueue(dramatiq.Message("third", "act_first", (), {}, {}))
    with pytest.raises(dramatiq.errors.QueueNotFound):
        station.broker.consume("third")
    with pytest.raises(ValueError, match="slash"):
        station.broker.declare_queue("a/b")


def test_a_message_enqueued_twice_is_there_once(redis_url: str) -> None:
    station = Station(redis_url)
    message = station.send("it")
    station.broker.enqueue(message)
    assert station.broker.count(["first"])["first"].waiting == 1
    with station.working():
        station.broker.join("first", timeout=5000)
        assert station.ran == ["it"]
        # Done, its id is free again.
        station.broker.enqueue(message)
        station.wait(2)


def test_a_message_that_its_own_actor_enqueues_again_runs_again(station: Station) -> None:
    sent: list[stations.Message] = []

    def enqueue_once(what: Any) -> None:
        if len(station.began) == 1:
            station.broker.enqueue(sent[0].copy(args=("again",)))

    station.does = enqueue_once
    message: stations.Message = dramatiq.Message("first", "act_first", ("it",), {}, {})
    sent.append(message)
    station.broker.enqueue(message)
    station.wait(2)
    assert station.ran == ["it", "again"]
    station.broker.join("first", timeout=5000)


# ── what cannot be worked on ─────────────────────────────────────────────────────────────────────────────────────────

GOOD = {"queue_name": "first", "actor_name": "act_first", "args": [1], "kwargs": {}, "options": {}}
DECODED = dramatiq.Message[Any](**GOOD, message_id="x", message_timestamp=1)  # type: ignore[arg-type]


def changed(**fields: Any) -> bytes:
    return DECODED.copy(**fields).encode()


POISON = [
    pytest.param(b"", id="empty"),
    pytest.param(b"\xff\x00\xfe", id="binary"),
    pytest.param(b'{"queue_name": "first"', id="cut off"),
    pytest.param(b"null", id="null"),
    pytest.param(b"[" * 100_000, id="deep"),
    pytest.param(b'{"surprise": 1}', id="another shape"),
    pytest.param(changed(actor_name=["act_first"]), id="an actor that is a list"),
    pytest.param(changed(actor_name="no_such_actor"), id="an unknown actor"),
    pytest.param(changed(kwargs=[1]), id="arguments that are a list"),
    pytest.param(changed(queue_name="second"), id="another queue's"),
    pytest.param(changed(message_id=5), id="an id that is a number"),
]


@pytest.mark.parametrize("body", POISON)
def test_poison_goes_to_the_dead_letters_with_its_bytes_and_the_queue_goes_on(
    station: Station, redis_url: str, body: bytes
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        pipe = client.pipeline()
        pipe.hset(f"{stations.NAMESPACE}:queue:first", "g/poison", body)
        pipe.rpush(f"{stations.NAMESPACE}:queue:first:group:g", "g/poison")
        pipe.rpush(f"{stations.NAMESPACE}:queue:first:turns", "g")
        pipe.execute()
    station.send("good", group="g")
    station.wait(1)
    stations.until(station.dead, seconds=5, what="no dead letter")
    (letter,) = station.dead()
    assert (letter[b"body"], letter[b"queue"], letter[b"reference"]) == (body, b"first", b"g/poison")
    assert letter[b"reason"]
    station.broker.join("first", timeout=5000)
    assert all(thread.is_alive() for thread in station.worker.workers)
    assert all(thread.is_alive() for thread in station.worker.consumers.values())
    assert station.ran == ["good"]


@pytest.mark.parametrize("options", [{"eta": 10**15}, {"eta": "soon"}, {"eta": None}])
def test_a_worker_keeps_no_message_back_whatever_its_options_say(station: Station, options: dict[str, Any]) -> None:
    station.send("it", **options)
    station.wait(1)
    station.broker.join("first", timeout=5000)
