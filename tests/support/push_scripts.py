"""What the broker's Lua scripts push to idle sessions, within which credit, and how such messages are acknowledged.

A test file has a subclass of `PushScripts` and a fixture `client`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from shared.broker.deliveries import Disposition
from tests.support.script_runner import NS, TIMEOUT_MS, Scripts

#: Sessions, as their ids begin and end: the tag is in the middle.
A, B, C = (f"{name}/{name * 8}-{name * 8}" for name in "abc")
TAG_A, TAG_B = "a" * 8, "b" * 8


class Channels:
    """What is published to sessions."""

    def __init__(self, subscription: Any, silence_seconds: float) -> None:
        self._subscription = subscription
        self._silence_seconds = silence_seconds

    def next(self) -> tuple[str, bytes] | None:
        """Return the session and what was published to it; None if nothing was."""
        while (found := self._subscription.get_message(timeout=self._silence_seconds)) is not None:
            if found["type"] == "message":
                return found["channel"].decode().removeprefix(f"{NS}:wake:"), found["data"]
        return None

    def all(self) -> list[tuple[str, bytes]]:
        return list(iter(self.next, None))


class PushScripts:
    """The tests. `client` is a fixture of the file that subclasses this."""

    #: What has not come after so long was not published.
    SILENCE_SECONDS = 0.05

    @pytest.fixture
    def lua(self, client: redis.Redis) -> Scripts:
        return Scripts(client)

    @contextlib.contextmanager
    def listening(self, lua: Scripts, *sessions: str) -> Iterator[Channels]:
        """Subscribe as these sessions do."""
        with lua.client.pubsub() as subscription:  # type: ignore[no-untyped-call]  # redis-py's
            subscription.subscribe(*(f"{NS}:wake:{session}" for session in sessions))
            channels = Channels(subscription, self.SILENCE_SECONDS)
            assert channels.all() == []
            yield channels

    # ── push ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def test_a_message_is_pushed_to_an_idle_session_and_is_in_flight_there(self, lua: Scripts) -> None:
        lua.poll(A, credit=2)
        with self.listening(lua, A) as channels:
            lua.enqueue("7/a/b", body="te/xt")
            assert channels.all() == [(A, b"q/5/7/a/bte/xt")]
        assert (lua.count(), lua.in_flight(A), lua.idle()) == ([0, 0, 1], {"q/7/a/b"}, [A])
        assert lua.credits() == {A: 1}
        assert lua.poll(A, (Disposition.ACK, "7/a/b", "")).in_flight == 0
        assert lua.count() == [0, 0, 0]

    def test_a_message_pushed_is_not_stored_twice(self, lua: Scripts) -> None:
        lua.poll(A, credit=2)
        with self.listening(lua, A) as channels:
            lua.enqueue("7/a")
            lua.enqueue("7/a")
            assert len(channels.all()) == 1
        assert lua.count() == [0, 0, 1]

    def test_without_a_credit_a_message_waits_and_a_session_is_woken(self, lua: Scripts) -> None:
        """So is a session of v0.1.0-rc1, which publishes none."""
        lua.poll(A, credit=0)
        lua.client.hdel(f"{NS}:credits", A)
        with self.listening(lua, A) as channels:
            lua.enqueue("7/a")
            assert channels.all() == [(A, b"q")]
        assert (lua.count(), lua.idle()) == ([1, 0, 0], [])

    def test_no_more_is_pushed_than_the_credit(self, lua: Scripts) -> None:
        lua.poll(A, credit=2)
        with self.listening(lua, A) as channels:
            lua.enqueue("7/a", "7/b", "7/c")
            assert channels.all() == [(A, b"q/3/7/abody"), (A, b"q/3/7/bbody"), (A, b"q")]
        assert (lua.count(), lua.in_flight(A)) == ([1, 0, 2], {"q/7/a", "q/7/b"})

    def test_a_session_without_a_subscription_gets_nothing(self, lua: Scripts) -> None:
        lua.poll(A, credit=2)
        lua.poll(B, credit=2)
        lua.client.zadd(f"{NS}:queue:q:idle", {A: 1})
        with self.listening(lua, B) as channels:
            lua.enqueue("7/a")
            assert channels.all() == [(B, b"q/3/7/abody")]
        assert (lua.in_flight(A), lua.in_flight(B), lua.idle()) == (set(), {"q/7/a"}, [B])
        assert lua.credits() == {B: 1}
        lua.enqueue("7/b")
        assert lua.count() == [1, 0, 1], "waiting: no session is left"
        assert lua.poll(C).fetched == ["7/b"]

    def test_sessions_take_turns(self, lua: Scripts) -> None:
        for session in (A, B, C):
            lua.poll(session, credit=2)
        lua.client.zadd(f"{NS}:queue:q:idle", {C: 1, A: 2, B: 3})
        with self.listening(lua, A, B, C) as channels:
            lua.enqueue(*(f"7/{number}" for number in range(6)))
            assert [session for session, _ in channels.all()] == [C, A, B, C, A, B]

    def test_no_message_overtakes_one_that_waits(self, lua: Scripts) -> None:
        lua.enqueue("7/a")
        lua.client.zadd(f"{NS}:sessions", {A: lua.now()})
        lua.client.hset(f"{NS}:credits", A, "2")
        lua.client.zadd(f"{NS}:queue:q:idle", {A: 1})
        with self.listening(lua, A) as channels:
            lua.enqueue("7/b")
            lua.enqueue("7/c", queue="other")
            assert channels.all() == [(A, b"q")]
        assert lua.poll(A).fetched == ["7/a", "7/b"]

    def test_past_slow_groups_that_were_set_aside_only_those_that_are_quick_are_pushed(self, lua: Scripts) -> None:
        lua.enqueue("7/a")
        lua.poll(A, credit=2, fairness=(9, 0, 2, b"7", 0, 60_000, b"8", 0, 60_000))
        with self.listening(lua, A) as channels:
            lua.enqueue("9/x")
            assert channels.all() == [(A, b"q/3/9/xbody")]
            lua.enqueue("8/y", "7/b")
            assert channels.all() == [(A, b"q")]
        assert lua.poll(A).fetched == ["7/a", "8/y", "7/b"]

    def test_a_message_overtakes_none_of_its_own_group(self, lua: Scripts) -> None:
        """The group counts as slow no more, and no poll has put it back yet."""
        lua.enqueue("7/a")
        lua.poll(A, credit=2, fairness=(9, 0, 1, b"7", 0, 60_000))
        lua.client.delete(f"{NS}:queue:q:slow")
        with self.listening(lua, A) as channels:
            lua.enqueue("7/b")
            assert channels.all() == [(A, b"q")]

    def test_a_session_that_sets_a_group_aside_wakes_another(self, lua: Scripts) -> None:
        lua.enqueue("7/a")
        lua.poll(B, credit=2, free=2, queues=("other",))
        lua.client.zadd(f"{NS}:queue:q:idle", {B: 1})
        with self.listening(lua, A, B) as channels:
            lua.poll(A, credit=2, fairness=(9, 0, 1, b"7", 0, 60_000))
            assert channels.all() == [(B, b"q")]

    def test_a_delayed_message_is_not_pushed(self, lua: Scripts) -> None:
        lua.poll(A, credit=2)
        with self.listening(lua, A) as channels:
            lua.enqueue("7/a", delay_ms=60_000)
            assert channels.all() == [(A, b"q")]
        assert lua.count() == [0, 1, 0]

    def test_a_session_that_has_not_polled_for_two_seconds_gets_nothing(self, lua: Scripts) -> None:
        """It may be frozen: another one finds a waiting message sooner than it would expire."""
        lua.poll(A, credit=2)
        lua.silence(A, 2100)
        with self.listening(lua, A) as channels:
            lua.enqueue("7/a")
            assert channels.all() == [(A, b"q")]
        assert lua.count() == [1, 0, 0]

    def test_a_session_that_is_not_registered_gets_nothing(self, lua: Scripts) -> None:
        """Expired by a worker of v0.1.0-rc1, which leaves its credit: what is pushed to it would never be requeued."""
        lua.poll(A, credit=2)
        lua.client.zrem(f"{NS}:sessions", A)
        with self.listening(lua, A):
            lua.enqueue("7/a")
        assert lua.count() == [1, 0, 0]

    def test_what_was_pushed_to_a_session_that_expires_is_requeued(self, lua: Scripts) -> None:
        lua.poll(A, credit=2)
        with self.listening(lua, A):
            lua.enqueue("7/a")
        lua.silence(A, TIMEOUT_MS + 1)
        assert lua.poll(B).fetched == ["7/a"]
        assert (lua.credits(), lua.tags()) == ({B: 0}, {TAG_B: B})

    def test_what_a_session_leaves_that_the_release_before_has_expired_is_removed(self, lua: Scripts) -> None:
        """It knows neither credits nor tags."""
        for session in (A, B):
            lua.poll(session, credit=2)
        lua.client.zrem(f"{NS}:sessions", A)
        lua.liveness(grace_until=0, last_search=0)
        lua.poll(B, credit=2)
        assert (lua.credits(), lua.tags()) == ({B: 2}, {TAG_B: B})

    def test_a_session_that_deregisters_has_no_credit_and_no_tag(self, lua: Scripts) -> None:
        lua.poll(A, credit=2)
        lua.deregister(A, "q")
        assert (lua.credits(), lua.tags()) == ({}, {})

    # ── what is on its way ───────────────────────────────────────────────────────────────────────────────────────────

    def test_a_lost_push_is_redelivered(self, lua: Scripts) -> None:
        lua.poll(A, credit=2)
        with self.listening(lua, A):
            lua.enqueue("7/a")
        assert lua.poll(A, known=0).in_flight == 1, "more than the session knows"
        assert lua.redeliver(A) == ["7/a"]

    def test_a_message_on_its_way_counts_against_the_capacity(self, lua: Scripts) -> None:
        lua.poll(A, credit=2)
        with self.listening(lua, A):
            lua.enqueue("7/a")
        lua.client.hdel(f"{NS}:credits", A)
        lua.enqueue("7/b", "8/x")
        reply = lua.poll(A, known=0, free=2, credit=2)
        assert (reply.fetched, lua.credits()) == (["7/b"], {A: 0})
        assert not reply.is_idle, "full"

    def test_a_message_on_its_way_counts_for_every_group(self, lua: Scripts) -> None:
        lua.poll(A, credit=2)
        with self.listening(lua, A):
            lua.enqueue("7/a")
        lua.client.hdel(f"{NS}:credits", A)
        lua.enqueue("7/b", "7/c")
        assert lua.poll(A, known=0, fairness=(2, 2, 0)).fetched == ["7/b"]
        assert lua.poll(A, known=2, fairness=(3, 3, 1, b"7", 2, 0)).fetched == ["7/c"]

    def test_what_a_poll_fetches_is_taken_off_the_credit(self, lua: Scripts) -> None:
        lua.enqueue("7/a", "7/b")
        lua.poll(A, known=0, free=8, credit=6)
        assert lua.credits() == {A: 4}

    def test_a_poll_says_whether_it_left_the_session_idle_and_nothing_waiting(self, lua: Scripts) -> None:
        assert lua.poll(A).is_idle
        lua.enqueue("7/a", "7/b")
        assert not lua.poll(A, free=2).is_idle, "full"
        lua.enqueue("7/c")
        assert not lua.poll(A, fairness=(2, 2, 1, b"7", 2, 0)).is_idle, "a message of a group at its limit waits"
        assert lua.poll(A).is_idle

    # ── ack ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def test_an_acknowledgement_deletes_and_publishes_the_credit(self, lua: Scripts) -> None:
        lua.poll(A, credit=2)
        with self.listening(lua, A):
            lua.enqueue("7/a", "7/b")
        assert lua.credits() == {A: 0}
        assert lua.ack(A, "7/a", known=1, credit=1) is False
        assert (lua.count(), lua.in_flight(A), lua.credits()) == ([0, 0, 1], {"q/7/b"}, {A: 1})

    def test_an_acknowledgement_takes_what_is_on_its_way_off_the_credit(self, lua: Scripts) -> None:
        lua.poll(A, credit=2)
        with self.listening(lua, A):
            lua.enqueue("7/a", "7/b")
        lua.ack(A, "7/a", known=0, credit=2)
        assert lua.credits() == {A: 1}

    def test_an_acknowledgement_is_no_heartbeat(self, lua: Scripts) -> None:
        """Else it would end the grace period after a Redis that was emptied, and keep a session that never polls."""
        lua.poll(A, credit=2)
        with self.listening(lua, A):
            lua.enqueue("7/a")
        lua.silence(A, 1000)
        keys = [f"{NS}:liveness", f"{NS}:sessions"]
        before = [lua.client.dump(key) for key in keys]
        lua.ack(A, "7/a")
        assert [lua.client.dump(key) for key in keys] == before
        lua.client.flushall()
        lua.ack(A, "7/a", credit=2)
        assert lua.client.keys("*") == [], "not registered: no credit, and no liveness"

    def test_only_the_session_that_has_a_message_acknowledges_it(self, lua: Scripts) -> None:
        lua.enqueue("7/a")
        lua.poll(B)
        lua.ack(A, "7/a")
        assert lua.count() == [0, 0, 1]

    def test_an_acknowledgement_says_whether_a_message_waits(self, lua: Scripts) -> None:
        lua.enqueue("7/a", queue="two")
        assert lua.ack(A, queues=("one", "two")) is True
        assert lua.ack(A, queues=("one",)) is False

    # ── affinity ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def test_a_message_goes_to_the_session_of_its_tag_past_the_turn_of_others(self, lua: Scripts) -> None:
        for session in (A, B):
            lua.poll(session, credit=2)
        with self.listening(lua, A, B) as channels:
            lua.enqueue("7/a", affinity=TAG_B)
            lua.enqueue("7/b", affinity=TAG_B)
            assert [session for session, _ in channels.all()] == [B, B]

    @pytest.mark.parametrize("case", ["no such tag", "full", "does not serve the queue", "gone", "silent"])
    @pytest.mark.parametrize("is_waiting", [False, True])
    def test_a_message_whose_session_cannot_take_it_goes_to_another(
        self, lua: Scripts, case: str, is_waiting: bool
    ) -> None:
        lua.poll(B, credit=2, free=0 if case == "full" else 10, queues=("other" if "serve" in case else "q",))
        lua.poll(A, credit=2)
        if is_waiting:
            lua.leave_waiting("7/w")
        if case == "no such tag":
            lua.deregister(B, "q")
        if case == "silent":
            lua.client.zadd(f"{NS}:sessions", {B: lua.now() - 2100})
            lua.client.zadd(f"{NS}:queue:q:idle", {A: 1})
        with self.listening(lua, A, *([] if case == "gone" else [B])) as channels:
            lua.enqueue("7/a", affinity=TAG_B)
            assert [session for session, _ in channels.all()] == [A]
        assert lua.in_flight(B) == set()

    def test_without_a_credit_the_session_of_the_tag_is_woken_before_others_get_the_message(self, lua: Scripts) -> None:
        """Its credit is none as soon as one group is at its limit, and the message may be of another."""
        lua.poll(A, credit=2)
        lua.poll(B, credit=0)
        with self.listening(lua, A, B) as channels:
            lua.enqueue("7/a", affinity=TAG_B)
            assert channels.all() == [(B, b"q")]
        assert (lua.count(), lua.idle()) == ([1, 0, 0], [A])

    def test_while_others_wait_the_session_of_the_tag_is_woken(self, lua: Scripts) -> None:
        for session in (A, B):
            lua.poll(session, credit=2)
        lua.leave_waiting("7/w")
        with self.listening(lua, A, B) as channels:
            lua.enqueue("7/a", affinity=TAG_B)
            assert channels.all() == [(B, b"q")]
        assert (lua.count(), lua.idle()) == ([2, 0, 0], [A])

    def test_a_message_with_an_affinity_overtakes_none_that_waits(self, lua: Scripts) -> None:
        lua.enqueue("7/a")
        lua.poll(B, credit=2, free=0)
        lua.enqueue("7/b", affinity=TAG_B)
        assert lua.count() == [2, 0, 0]

    def test_the_tag_of_a_later_session_outlives_the_earlier_one(self, lua: Scripts) -> None:
        """A worker that was restarted within its process, or one that drew the same."""
        later = f"a/{TAG_A}-{'f' * 8}"
        lua.poll(A)
        lua.poll(later)
        lua.deregister(A, "q")
        assert lua.tags() == {TAG_A: later}
        lua.deregister(later, "q")
        assert lua.tags() == {}
