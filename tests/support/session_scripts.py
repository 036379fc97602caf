"""What the broker's Lua scripts do with sessions: wake-ups, expiry, replies that are lost.

A test file has a subclass of `SessionScripts` and a fixture `client`.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis

from shared.broker import scripts
from shared.broker.deliveries import Disposition
from tests.support.script_runner import CONFIRMED_MS, LATE_MS, NS, TIMEOUT_MS, Reply, Scripts


class SessionScripts:
    """The tests. `client` is a fixture of the file that subclasses this."""

    @pytest.fixture
    def lua(self, client: redis.Redis) -> Scripts:
        return Scripts(client)

    # ── wake-ups ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def test_a_session_with_free_capacity_is_idle_and_a_full_one_is_not(self, lua: Scripts) -> None:
        lua.poll("a", free=1)
        lua.poll("b", free=0)
        assert lua.idle() == ["a"]
        lua.poll("a", free=0)
        assert lua.idle() == []

    def test_each_poll_says_how_many_sessions_there_are(self, lua: Scripts) -> None:
        assert [lua.poll(name).sessions for name in ("a", "b", "a", "c", "b")] == [1, 2, 2, 3, 3]
        scripts.DEREGISTER.run(lua.client, NS, "a", "q")
        assert lua.poll("b").sessions == 2

    def test_each_poll_says_since_when_the_session_has_had_its_oldest_message(self, lua: Scripts) -> None:
        reply = lua.poll("a", oldest_ms=1500)
        lua.poll("b", oldest_ms=0)
        since = lua.client.hgetall(f"{NS}:oldest")
        assert int(since[b"a"]) == reply.now - 1500
        lua.poll("a")
        lua.deregister("b")
        assert lua.client.hgetall(f"{NS}:oldest") == {}

    def test_the_session_that_has_been_idle_longest_is_woken(self, lua: Scripts) -> None:
        lua.client.zadd(f"{NS}:queue:q:idle", {"b": 2, "a": 1})
        with lua.client.pubsub() as subscription:  # type: ignore[no-untyped-call]  # redis-py's
            subscription.subscribe(*(f"{NS}:wake:{name}" for name in "ab"))
            for _ in "ab":
                self._message(subscription, type_="subscribe")
            lua.enqueue("7/a")
            woken = self._message(subscription)
        assert (woken["channel"], woken["data"]) == (f"{NS}:wake:a".encode(), b"q")
        assert lua.idle() == ["b"]

    def test_a_session_without_a_subscription_is_passed_over(self, lua: Scripts) -> None:
        lua.client.zadd(f"{NS}:queue:q:idle", {"gone": 1, "a": 2, "b": 3})
        with lua.client.pubsub() as subscription:  # type: ignore[no-untyped-call]  # redis-py's
            subscription.subscribe(f"{NS}:wake:a")
            self._message(subscription, type_="subscribe")
            lua.enqueue("7/a")
            assert self._message(subscription)["data"] == b"q"
        assert lua.idle() == ["b"]

    def test_a_full_session_wakes_another_for_what_it_leaves(self, lua: Scripts) -> None:
        lua.enqueue("7/a", "7/b")
        lua.client.zadd(f"{NS}:queue:q:idle", {"b": 1})
        assert lua.poll("a", free=1).fetched == ["7/a"]
        assert lua.idle() == [], "woken, or gone"

    def test_only_an_earlier_delayed_message_wakes(self, lua: Scripts) -> None:
        lua.enqueue("7/a", delay_ms=30_000)
        lua.client.zadd(f"{NS}:queue:q:idle", {"b": 1})
        lua.enqueue("7/later", delay_ms=60_000)
        assert lua.idle() == ["b"]
        lua.enqueue("7/sooner", delay_ms=10_000)
        assert lua.idle() == []

    @staticmethod
    def _message(subscription: Any, *, type_: str = "message") -> Any:
        """Return the next message published."""
        ends_at = time.monotonic() + 2
        while time.monotonic() < ends_at:
            found = subscription.get_message(timeout=0.1)
            if found is not None:
                assert found["type"] == type_
                return found
        pytest.fail("no wake-up")

    # ── sessions that end or expire ──────────────────────────────────────────────────────────────────────────────────

    def test_each_poll_is_a_heartbeat(self, lua: Scripts) -> None:
        reply = lua.poll("a")
        assert lua.sessions() == {"a": reply.now}
        assert lua.client.hget(f"{NS}:liveness", "last_poll") == str(reply.now).encode()

    def test_a_session_that_deregisters_requeues_its_messages(self, lua: Scripts) -> None:
        lua.enqueue("7/a", "8/x")
        lua.poll("a", free=1)
        lua.deregister("a", "q")
        assert (lua.count(), lua.sessions()) == ([2, 0, 0], {})
        assert lua.poll("b").fetched == ["7/a", "8/x"]

    def test_a_session_that_deregisters_is_not_idle_and_its_wake_up_thread_is_woken(self, lua: Scripts) -> None:
        lua.poll("a")
        with lua.client.pubsub() as subscription:  # type: ignore[no-untyped-call]  # redis-py's
            subscription.subscribe(f"{NS}:wake:a")
            self._message(subscription, type_="subscribe")
            lua.deregister("a", "q")
            assert self._message(subscription)["data"] == b""
        assert lua.idle() == []

    def test_a_silent_session_expires_and_its_messages_are_requeued_first(self, lua: Scripts) -> None:
        lua.enqueue("7/a", "7/b")
        lua.poll("dead", free=1)
        lua.silence("dead", TIMEOUT_MS + 1)
        reply = lua.poll("a")
        assert reply.fetched == ["7/a", "7/b"]
        assert lua.sessions() == {"a": reply.now}
        assert lua.poll("dead", (Disposition.ACK, "7/a", "")).in_flight == 0
        assert lua.count() == [0, 0, 2], "an expired session settles nothing"

    def test_a_session_within_the_time_out_does_not_expire(self, lua: Scripts) -> None:
        lua.enqueue("7/a")
        lua.poll("stalled")
        lua.silence("stalled", TIMEOUT_MS - 1000)
        assert lua.poll("a").fetched == []
        assert set(lua.sessions()) == {"stalled", "a"}

    def test_a_late_session_without_a_subscription_expires_when_it_has_none_a_while_later(self, lua: Scripts) -> None:
        """The process was killed: its sockets are closed."""
        lua.enqueue("7/a")
        lua.poll("dead")
        lua.silence("dead", LATE_MS + CONFIRMED_MS)
        self._look(lua)
        assert set(lua.sessions()) == {"dead", "a"}
        lua.client.hincrby(f"{NS}:gone", "dead", 200 - CONFIRMED_MS)
        self._look(lua)
        assert set(lua.sessions()) == {"dead", "a"}
        lua.client.hincrby(f"{NS}:gone", "dead", -200)
        assert self._look(lua).fetched == ["7/a"]
        assert set(lua.sessions()) == {"a"}
        assert lua.client.hlen(f"{NS}:gone") == 0

    def test_a_session_that_is_in_time_is_not_looked_at(self, lua: Scripts) -> None:
        lua.poll("b")
        lua.silence("b", LATE_MS - 200)
        self._look(lua)
        assert lua.client.hlen(f"{NS}:gone") == 0

    def test_a_late_session_with_a_subscription_does_not_expire(self, lua: Scripts) -> None:
        """The process stalls: its sockets are open."""
        lua.poll("stalled")
        lua.silence("stalled", TIMEOUT_MS - 1000)
        lua.client.hset(f"{NS}:gone", "stalled", lua.now() - CONFIRMED_MS)
        with lua.client.pubsub() as subscription:  # type: ignore[no-untyped-call]  # redis-py's
            subscription.subscribe(f"{NS}:wake:stalled")
            self._message(subscription, type_="subscribe")
            self._look(lua)
            assert subscription.get_message(timeout=0.05) is None, "nor is it woken: it polls by itself"
        assert set(lua.sessions()) == {"stalled", "a"}

    def test_a_session_that_has_polled_since_it_had_no_subscription_is_late_anew(self, lua: Scripts) -> None:
        """Its connections were cut, and it is late once more."""
        lua.poll("b")
        lua.silence("b", LATE_MS)
        lua.client.hset(f"{NS}:gone", "b", lua.now() - LATE_MS - 200)
        self._look(lua)
        assert set(lua.sessions()) == {"b", "a"}
        since: Any = lua.client.hget(f"{NS}:gone", "b")
        assert int(since) > lua.now() - CONFIRMED_MS

    def test_after_a_moment_in_which_none_was_heard_the_gone_are_looked_for_anew(self, lua: Scripts) -> None:
        """Redis was away for a moment, and cut the connections: who lives may not have polled again."""
        lua.poll("b")
        lua.silence("b", 2 * LATE_MS)
        lua.client.hset(f"{NS}:gone", "b", lua.now() - CONFIRMED_MS)
        self._look(lua, silence=CONFIRMED_MS)
        assert set(lua.sessions()) == {"b", "a"}
        lua.client.hset(f"{NS}:gone", "b", lua.now() - CONFIRMED_MS)
        self._look(lua, silence=CONFIRMED_MS - 200)
        assert set(lua.sessions()) == {"a"}

    def _look(self, lua: Scripts, *, silence: int = 0) -> Reply:
        """Poll as a session that looks for the dead, after none was heard for so many ms."""
        lua.liveness(last_search=0, grace_until=0, last_poll=lua.now() - silence)
        return lua.poll("a")

    # ── who looks without a session ──────────────────────────────────────────────────────────────────────────────────

    def test_a_look_expires_the_silent_and_tells_who_lives(self, lua: Scripts) -> None:
        lua.enqueue("7/a")
        lua.poll("dead")
        lua.poll("b")
        lua.silence("dead", TIMEOUT_MS + 1)
        lua.liveness(last_search=0, grace_until=0)
        assert lua.live_sessions() == {"b"}
        assert lua.count() == [1, 0, 0]
        assert "a" not in lua.sessions(), "a look makes no session"

    def test_who_lives_is_not_known_after_redis_was_away_or_emptied(self, lua: Scripts) -> None:
        assert lua.live_sessions() is None
        lua.poll("b")
        assert lua.live_sessions() is None
        lua.liveness(grace_until=0)
        assert lua.live_sessions() == {"b"}
        lua.liveness(last_poll=lua.now() - TIMEOUT_MS)
        assert lua.live_sessions() is None

    def test_while_the_scheduler_looks_redis_is_not_away(self, lua: Scripts) -> None:
        """No worker lives any more: the next one gets the messages of the dead without a grace period."""
        lua.enqueue("7/a")
        lua.poll("dead")
        lua.silence("dead", TIMEOUT_MS + 1)
        lua.liveness(last_poll=lua.now() - TIMEOUT_MS // 3, last_search=lua.now(), grace_until=0)
        lua.live_sessions()
        assert set(lua.sessions()) == {"dead"}
        lua.liveness(last_search=0)
        assert lua.poll("a").fetched == ["7/a"]

    def test_an_expired_session_that_polls_again_is_registered_again(self, lua: Scripts) -> None:
        lua.poll("stalled")
        lua.silence("stalled", TIMEOUT_MS + 1)
        lua.poll("a")
        lua.poll("stalled")
        assert set(lua.sessions()) == {"stalled", "a"}

    def test_messages_acknowledged_elsewhere_are_not_requeued(self, lua: Scripts) -> None:
        lua.enqueue("7/a")
        lua.poll("dead")
        lua.client.hdel(f"{NS}:queue:q", "7/a")
        lua.silence("dead", TIMEOUT_MS + 1)
        assert lua.poll("a", free=0).fetched == []
        assert lua.client.exists(f"{NS}:in-flight:dead") == 0
        assert lua.rotation() == []

    def test_no_session_expires_while_none_could_poll(self, lua: Scripts) -> None:
        """Redis was away: the first poll begins a grace period of one time-out."""
        lua.enqueue("7/a")
        lua.poll("other")
        lua.silence("other", TIMEOUT_MS * 10)
        lua.liveness(last_poll=lua.now() - TIMEOUT_MS)
        reply = lua.poll("a")
        assert reply.fetched == []
        assert lua.client.hget(f"{NS}:liveness", "grace_until") == str(reply.now + TIMEOUT_MS).encode()
        lua.liveness(grace_until=lua.now() - 1)
        assert lua.poll("a").fetched == ["7/a"], "the grace period is over"

    def test_a_new_redis_begins_with_a_grace_period(self, lua: Scripts) -> None:
        reply = lua.poll()
        assert lua.client.hget(f"{NS}:liveness", "grace_until") == str(reply.now + TIMEOUT_MS).encode()

    def test_a_clock_that_is_set_back_begins_a_grace_period(self, lua: Scripts) -> None:
        lua.poll()
        lua.liveness(last_poll=lua.now() + 60_000, grace_until=0)
        reply = lua.poll()
        assert lua.client.hget(f"{NS}:liveness", "grace_until") == str(reply.now + TIMEOUT_MS).encode()

    def test_a_session_whose_last_poll_lies_in_the_future_counts_from_now(self, lua: Scripts) -> None:
        lua.poll("future")
        lua.silence("future", -3_600_000)
        reply = lua.poll("a")
        assert lua.sessions() == {"future": reply.now, "a": reply.now}

    def test_expired_sessions_are_searched_for_four_times_a_second_at_most(self, lua: Scripts) -> None:
        lua.poll("dead")
        lua.silence("dead", TIMEOUT_MS + 1)
        lua.liveness(last_search=lua.now())
        lua.poll("a")
        assert set(lua.sessions()) == {"dead", "a"}
        lua.liveness(last_search=lua.now() - 250)
        lua.poll("a")
        assert set(lua.sessions()) == {"a"}

    # ── lost replies ─────────────────────────────────────────────────────────────────────────────────────────────────

    def test_the_messages_of_a_lost_reply_are_redelivered(self, lua: Scripts) -> None:
        lua.enqueue("7/a", "7/b")
        lua.poll("a", free=1)
        lua.poll("a", free=1)
        assert lua.poll("a").in_flight == 2, "more than the session knows"
        assert lua.redeliver("a", "q/7/a") == ["7/b"]
        assert lua.redeliver("a", "q/7/a", "q/7/b") == []
        assert lua.redeliver("b") == []

    def test_what_is_not_in_flight_any_more_is_told_from_what_is(self, lua: Scripts) -> None:
        """After Redis was emptied the numbers alone could be equal, with another message lost on its way."""
        lua.enqueue("7/a", "7/b")
        lua.poll("a")
        assert lua.forgotten("a", "q/7/a", "q/7/b", "q/7/c") == ["q/7/c"]
        lua.client.flushall()
        assert lua.forgotten("a", "q/7/a", "q/7/b") == ["q/7/a", "q/7/b"]

    def test_a_deleted_message_is_not_redelivered(self, lua: Scripts) -> None:
        lua.enqueue("7/a")
        lua.poll("a")
        lua.flush("q")
        assert lua.redeliver("a") == []
        assert lua.poll("a").in_flight == 0
