"""What the broker's Lua scripts do with messages: enqueue, fetch, settle, delay, count.

A test file has a subclass of `MessageScripts` and a fixture `client`.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis

from shared.broker.deliveries import Disposition
from shared.broker.fairness import Fairness
from tests.support.script_runner import NS, Scripts


class MessageScripts:
    """The tests. `client` is a fixture of the file that subclasses this."""

    @pytest.fixture
    def lua(self, client: redis.Redis) -> Scripts:
        return Scripts(client)

    # ── enqueue and fetch ────────────────────────────────────────────────────────────────────────────────────────────

    def test_an_enqueued_message_is_fetched_once(self, lua: Scripts) -> None:
        lua.enqueue("7/a", body="text")
        assert lua.count() == [1, 0, 0]
        reply = lua.poll("a")
        assert reply.messages == {"7/a": ("q", "text")}
        assert (reply.in_flight, reply.due_ms) == (1, -1)
        assert lua.poll("b").fetched == []
        assert lua.count() == [0, 0, 1]

    def test_a_poll_returns_redis_s_time(self, lua: Scripts) -> None:
        before = lua.now()
        assert before <= lua.poll().now <= lua.now()

    @pytest.mark.parametrize("state", ["waiting", "delayed", "in flight"])
    def test_a_message_enqueued_again_is_skipped_in_every_state(self, lua: Scripts, state: str) -> None:
        lua.enqueue("7/a", body="first", delay_ms=60_000 if state == "delayed" else 0)
        if state == "in flight":
            lua.poll()
        counted = lua.count()
        lua.enqueue("7/a", body="second")
        assert lua.count() == counted
        assert lua.client.hget(f"{NS}:queue:q", "7/a") == b"first"

    def test_a_batch_is_enqueued_in_order(self, lua: Scripts) -> None:
        lua.enqueue("7/a", "7/b", "7/c")
        assert lua.poll().fetched == ["7/a", "7/b", "7/c"]

    def test_a_poll_fetches_no_more_than_the_free_capacity(self, lua: Scripts) -> None:
        lua.enqueue("7/a", "7/b", "7/c")
        assert lua.poll(free=2).fetched == ["7/a", "7/b"]
        assert lua.poll(free=0).fetched == []
        assert lua.count() == [1, 0, 2]

    def test_the_oldest_message_is_that_which_was_due_first(self, lua: Scripts) -> None:
        now = lua.now()
        for message_key, age_ms in (("7/a", 2_000), ("7/b", 9_000), ("8/c", 5_000)):
            lua.enqueue(message_key, body=f'{{"kwargs":{{}},"message_timestamp":{now - age_ms}}}')
        # Of a text that says so it is not believed, of an earlier release it is not known, and this one is not due.
        lua.enqueue("9/d", body='{"kwargs":{"a":"\\"message_timestamp\\":1"},"message_timestamp":0}')
        lua.enqueue("6/e", body='{"message_timestamp":1}', delay_ms=60_000)
        # Of a group the next message is looked at: a later one comes after it.
        found, empty = lua.oldest("q", "other")
        assert 5_000 <= found < 9_000
        assert empty == 0

    def test_queues_are_fetched_in_order_of_priority(self, lua: Scripts) -> None:
        lua.enqueue("7/low", queue="low")
        lua.enqueue("7/high", queue="high")
        assert lua.poll(queues=("high", "low")).fetched == ["7/high", "7/low"]

    def test_a_queue_that_is_not_served_keeps_its_messages(self, lua: Scripts) -> None:
        lua.enqueue("7/a", queue="other")
        assert lua.poll().fetched == []
        assert lua.count("q", "other") == [0, 0, 0, 1, 0, 0]

    def test_a_key_without_its_message_is_passed_over(self, lua: Scripts) -> None:
        lua.enqueue("7/a", "7/b")
        lua.client.hdel(f"{NS}:queue:q", "7/a")
        assert lua.poll().fetched == ["7/b"]

    # ── settlements ──────────────────────────────────────────────────────────────────────────────────────────────────

    def test_an_acknowledged_message_is_gone(self, lua: Scripts) -> None:
        lua.enqueue("7/a")
        lua.poll()
        reply = lua.poll("a", (Disposition.ACK, "7/a", ""))
        assert (reply.fetched, reply.in_flight, lua.count()) == ([], 0, [0, 0, 0])
        assert set(lua.client.keys("*")) == {
            f"{NS}:{key}".encode() for key in ("sessions", "liveness", "credits", "queue:q:idle")
        }

    def test_a_retried_message_has_its_new_body_and_waits_for_its_delay(self, lua: Scripts) -> None:
        lua.enqueue("7/a")
        lua.poll()
        reply = lua.poll("a", (Disposition.RETRY, "7/a", "60000"))
        assert (reply.fetched, reply.in_flight, lua.count()) == ([], 0, [0, 1, 0])
        assert 59_000 < reply.due_ms <= 60_000
        assert lua.client.hget(f"{NS}:queue:q", "7/a") == b"settled"

    def test_a_message_retried_without_a_delay_comes_after_the_others_of_its_group(self, lua: Scripts) -> None:
        lua.enqueue("7/a", "7/b")
        lua.poll(free=1)
        assert lua.poll("a", (Disposition.RETRY, "7/a", "0")).fetched == ["7/b", "7/a"]

    def test_a_requeued_message_comes_first(self, lua: Scripts) -> None:
        lua.enqueue("7/a", "8/x", "7/b")
        lua.poll(free=1)
        assert lua.poll("a", (Disposition.REQUEUE, "7/a", "")).fetched[:2] == ["8/x", "7/a"]
        lua.enqueue("9/only", "8/y")
        lua.poll(free=1)
        assert lua.poll("a", (Disposition.REQUEUE, "9/only", "")).fetched == ["9/only", "8/y"]

    def test_a_dead_letter_has_its_bytes_and_the_reason(self, lua: Scripts) -> None:
        lua.enqueue("7/a")
        lua.poll()
        lua.poll("a", (Disposition.DEAD_LETTER, "7/a", "ValueError: no"))
        assert lua.count() == [0, 0, 0]
        letter = {"queue": "q", "message_key": "7/a", "body": "settled", "reason": "ValueError: no"}
        assert lua.dead_letters() == [letter]
        assert 6 * 24 * 3600 < lua.client.ttl(f"{NS}:dead-letters") <= 7 * 24 * 3600

    @pytest.mark.parametrize("disposition", list(Disposition))
    def test_a_settlement_reported_again_changes_nothing(self, lua: Scripts, disposition: Disposition) -> None:
        """The reply to the first report was lost, and another session has the message by now."""
        detail = "0" if disposition is Disposition.RETRY else ""
        lua.enqueue("7/a")
        lua.poll("a")
        lua.poll("a", (disposition, "7/a", detail), free=0)
        lua.enqueue("7/a")
        assert lua.poll("b").fetched == ["7/a"]
        assert lua.poll("a", (disposition, "7/a", detail)).fetched == []
        assert lua.count() == [0, 0, 1]
        assert len(lua.dead_letters()) == (1 if disposition is Disposition.DEAD_LETTER else 0)

    @pytest.mark.parametrize("disposition", [Disposition.RETRY, Disposition.REQUEUE, Disposition.DEAD_LETTER])
    def test_a_message_that_redis_has_lost_is_restored_by_its_settlement(
        self, lua: Scripts, disposition: Disposition
    ) -> None:
        lua.poll("a", (disposition, "7/a", "0"), free=0)
        lost = disposition is Disposition.DEAD_LETTER
        assert (lua.count(), len(lua.dead_letters())) == ([0, 0, 0] if lost else [1, 0, 0], int(lost))

    def test_a_dead_letter_keeps_the_beginnings_of_its_body_and_its_reason(self, lua: Scripts) -> None:
        lua.enqueue("7/a")
        lua.poll()
        lua.poll("a", (Disposition.DEAD_LETTER, "7/a", "r" * 999), body="b" * 999, letters=(1000, 256))
        (letter,) = lua.dead_letters()
        assert (letter["body"], letter["reason"]) == ("b" * 256, "r" * 256)

    def test_the_oldest_dead_letters_are_dropped_first_and_counted(self, lua: Scripts) -> None:
        settled = [(Disposition.DEAD_LETTER, f"7/{number}", "no") for number in range(7)]
        lua.poll("a", *settled, letters=(3, 4096))
        assert [letter["message_key"] for letter in lua.dead_letters()] == ["7/4", "7/5", "7/6"]
        assert lua.client.get(f"{NS}:dead-letters-dropped") == b"4"
        assert 6 * 24 * 3600 < lua.client.ttl(f"{NS}:dead-letters-dropped") <= 7 * 24 * 3600

    def test_a_dead_letter_is_dropped_after_seven_days_though_others_follow(self, lua: Scripts) -> None:
        lua.client.xadd(f"{NS}:dead-letters", {"body": "x"}, id=str(lua.now() - 7 * 24 * 3600 * 1000 - 1))
        lua.poll("a", (Disposition.DEAD_LETTER, "7/a", "no"))
        assert [letter["message_key"] for letter in lua.dead_letters()] == ["7/a"]

    # ── the bounds of a group ────────────────────────────────────────────────────────────────────────────────────────

    def test_a_group_has_a_number_of_bounded_messages_in_all_queues_and_states(self, lua: Scripts) -> None:
        assert lua.enqueue("7/a", "7/b", bounds=(4, 1000)) == []
        assert lua.enqueue("7/c", queue="other", bounds=(4, 1000)) == []
        assert lua.enqueue("7/d", delay_ms=60_000, bounds=(4, 1000)) == []
        lua.poll(free=1)
        assert lua.enqueue("7/e", "8/x", bounds=(4, 1000)) == ["7/e"]
        assert lua.count("q", "other") == [2, 1, 1, 1, 0, 0]

    def test_a_group_has_a_number_of_bytes_of_bounded_messages(self, lua: Scripts) -> None:
        assert lua.enqueue("7/a", "7/b", body="x" * 40, bounds=(100, 100)) == []
        assert lua.enqueue("7/c", body="x" * 21, bounds=(100, 100)) == ["7/c"]
        assert lua.enqueue("7/d", body="x" * 20, bounds=(100, 100)) == []
        assert lua.bounded("7") == {"q/7/a": 40, "q/7/b": 40, "q/7/d": 20, "bytes": 100}

    def test_a_message_larger_than_the_bound_leaves_no_count_behind(self, lua: Scripts) -> None:
        assert lua.enqueue("7/a", body="x" * 101, bounds=(100, 100)) == ["7/a"]
        assert lua.client.keys("*") == []

    def test_what_is_not_bounded_is_never_refused_and_does_not_count(self, lua: Scripts) -> None:
        """The product's own commands: a flood of events must not hold up the calls it is made of."""
        lua.enqueue("7/a", bounds=(1, 1000))
        assert lua.enqueue("7/b", bounds=(1, 1000)) == ["7/b"]
        assert lua.enqueue("7/c") == []
        assert lua.bounded("7") == {"q/7/a": 4, "bytes": 4}

    def test_a_bounded_message_that_is_there_is_accepted_again(self, lua: Scripts) -> None:
        lua.enqueue("7/a", bounds=(1, 1000))
        assert lua.enqueue("7/a", bounds=(1, 1000)) == []

    @pytest.mark.parametrize("end", ["poll", "ack", "dead letter", "flush"])
    def test_a_message_that_is_over_makes_room(self, lua: Scripts, end: str) -> None:
        lua.enqueue("7/a", bounds=(1, 1000))
        lua.poll()
        if end == "poll":
            lua.poll("a", (Disposition.ACK, "7/a", ""))
        elif end == "ack":
            lua.ack("a", "7/a")
        elif end == "flush":
            lua.flush("q")
        else:
            lua.poll("a", (Disposition.DEAD_LETTER, "7/a", ""))
        assert lua.client.exists(f"{NS}:bounded:7") == 0
        assert lua.enqueue("7/b", bounds=(1, 1000)) == []

    @pytest.mark.parametrize("disposition", [Disposition.RETRY, Disposition.REQUEUE])
    def test_a_message_that_is_tried_again_still_counts(self, lua: Scripts, disposition: Disposition) -> None:
        lua.enqueue("7/a", bounds=(1, 1000))
        lua.poll()
        lua.poll("a", (disposition, "7/a", "60000"), free=0)
        assert lua.enqueue("7/b", bounds=(1, 1000)) == ["7/b"]

    def test_what_a_worker_of_the_release_before_has_deleted_makes_room(self, lua: Scripts) -> None:
        """It knows no bounds. The count is compared with the queues once a second while the group seems to be full."""
        lua.enqueue("7/a", "7/b", bounds=(2, 1000))
        lua.client.hdel(f"{NS}:queue:q", "7/a")
        assert lua.enqueue("7/c", bounds=(2, 1000)) == ["7/c"], "compared just now"
        lua.client.hset(f"{NS}:bounded:7", "checked", str(lua.now() - 1100))
        assert lua.enqueue("7/c", "7/d", bounds=(2, 1000)) == ["7/d"]
        assert lua.bounded("7") == {"q/7/b": 4, "q/7/c": 4, "bytes": 8}

    def test_a_count_is_compared_with_the_queues_every_minute(self, lua: Scripts) -> None:
        """Beside workers of the release before it would grow up to the bound, for each group."""
        lua.enqueue("7/a", "7/b", bounds=(100, 1000))
        lua.client.hdel(f"{NS}:queue:q", "7/a")
        lua.client.hset(f"{NS}:bounded:7", "checked", str(lua.now() - 61_000))
        lua.enqueue("7/c", bounds=(100, 1000))
        assert lua.bounded("7") == {"q/7/b": 4, "q/7/c": 4, "bytes": 8}

    # ── unique messages ──────────────────────────────────────────────────────────────────────────────────────────────

    def test_of_one_unique_name_one_message_waits(self, lua: Scripts) -> None:
        lua.enqueue("7/a", unique="1")
        lua.enqueue("7/b", unique="1")
        lua.enqueue("7/c", unique="2")
        lua.enqueue("8/x", unique="1")
        lua.enqueue("7/d", queue="other", unique="1")
        assert lua.poll(queues=("q", "other")).fetched == ["7/a", "8/x", "7/c", "7/d"]

    def test_a_unique_message_waits_beside_one_that_is_in_work(self, lua: Scripts) -> None:
        """That one may have looked before the moment for which this one is sent."""
        lua.enqueue("7/a", unique="1")
        lua.poll()
        lua.enqueue("7/b", unique="1")
        lua.enqueue("7/c", unique="1")
        assert lua.count() == [1, 0, 1]
        lua.poll("a", (Disposition.ACK, "7/a", ""), free=0)
        assert lua.poll("a").fetched == ["7/b"]

    def test_a_message_that_supersedes_takes_the_place_of_one_that_waits(self, lua: Scripts) -> None:
        """Not a place at the end: a connection that flaps would never have its turn."""
        lua.enqueue("7/a", unique="1")
        lua.enqueue("8/x")
        lua.enqueue("7/b", unique="1", supersedes=True)
        lua.enqueue("7/c", unique="1", supersedes=True, body="newest")
        lua.enqueue("7/d", unique="1")
        reply = lua.poll()
        assert (reply.fetched, reply.messages["7/c"]) == (["7/c", "8/x"], ("q", "newest"))
        assert lua.count() == [0, 0, 2]

    @pytest.mark.parametrize(("delay_ms", "due_ms"), [(0, 0), (10_000, 10_000), (90_000, 30_000)])
    def test_a_message_that_supersedes_a_delayed_one_is_due_when_the_earlier_of_both_is(
        self, lua: Scripts, delay_ms: int, due_ms: int
    ) -> None:
        lua.enqueue("7/a", unique="1", delay_ms=30_000)
        lua.enqueue("7/b", unique="1", delay_ms=delay_ms)
        assert lua.count() == [0, 1, 0]
        lua.enqueue("7/c", unique="1", supersedes=True, delay_ms=delay_ms)
        reply = lua.poll()
        assert reply.fetched == ([] if due_ms else ["7/c"])
        assert lua.client.hkeys(f"{NS}:queue:q") == [b"7/c"]
        assert not due_ms or due_ms - 1000 < reply.due_ms <= due_ms

    def test_a_unique_message_that_is_repeated_is_skipped(self, lua: Scripts) -> None:
        lua.enqueue("7/a", unique="1", supersedes=True)
        lua.enqueue("7/a", unique="1", supersedes=True)
        assert lua.count() == [1, 0, 0]
        lua.poll()
        lua.enqueue("7/a", unique="1", supersedes=True)
        assert lua.count() == [0, 0, 1]

    def test_a_unique_name_is_forgotten_when_it_is_not_used(self, lua: Scripts) -> None:
        lua.enqueue("7/a", unique="1")
        assert 0 < lua.client.ttl(f"{NS}:unique:q/7/1") <= 600

    # ── round robin and fairness ─────────────────────────────────────────────────────────────────────────────────────

    def test_groups_are_fetched_round_robin(self, lua: Scripts) -> None:
        lua.enqueue("7/a", "7/b", "7/c", "8/x", "8/y", "9/z")
        assert lua.rotation() == ["7", "8", "9"]
        assert lua.poll(free=4).fetched == ["7/a", "8/x", "9/z", "7/b"]
        assert lua.rotation() == ["8", "7"]
        assert lua.poll().fetched == ["8/y", "7/c"]
        assert lua.rotation() == []

    def test_the_rotation_goes_on_across_sessions(self, lua: Scripts) -> None:
        lua.enqueue("7/a", "7/b", "8/x", "8/y")
        assert [lua.poll(name, free=1).fetched for name in "abab"] == [["7/a"], ["8/x"], ["7/b"], ["8/y"]]

    def test_a_group_at_its_limit_is_skipped_and_stays_first(self, lua: Scripts) -> None:
        lua.enqueue("7/a", "7/b", "8/x")
        assert lua.poll(fairness=(2, 2, 1, b"7", 1, 0)).fetched == ["7/a", "8/x"]
        lua.enqueue("9/z")
        assert lua.rotation() == ["7", "9"]
        assert lua.poll("b").fetched == ["7/b", "9/z"]

    def test_a_group_skipped_in_one_queue_is_not_in_the_rotation_of_another(self, lua: Scripts) -> None:
        lua.enqueue("7/a", queue="one")
        lua.enqueue("8/x", queue="two")
        assert lua.poll(queues=("one", "two"), fairness=(1, 1, 1, b"7", 1, 0)).fetched == ["8/x"]
        assert (lua.rotation("one"), lua.rotation("two")) == (["7"], [])

    def test_the_limit_counts_what_the_poll_itself_fetches(self, lua: Scripts) -> None:
        lua.enqueue(*(f"7/{number}" for number in range(5)), "8/x")
        assert lua.poll(fairness=(2, 2, 0)).fetched == ["7/0", "8/x", "7/1"]

    def test_slow_groups_share_one_limit(self, lua: Scripts) -> None:
        lua.enqueue("7/a", "8/x", "9/z", "7/b", "9/y")
        fetched = lua.poll(fairness=(3, 1, 2, b"7", 0, 1, b"8", 1, 1)).fetched
        assert fetched == ["7/a", "9/z", "9/y"]
        assert (lua.rotation(), lua.aside(), lua.count()) == ([], ["8", "7"], [2, 0, 3])

    def test_slow_groups_that_wait_are_not_looked_at_again(self, lua: Scripts) -> None:
        """However many they are: each poll once walked all of them."""
        lua.enqueue(*(f"slow{number}/a" for number in range(150)))
        told = [part for number in range(150) for part in (b"slow%d" % number, 0, 60_000)]
        assert lua.poll(fairness=(3, 0, 150, *told)).fetched == []
        assert (lua.rotation(), len(lua.aside())) == ([], 150)
        lua.enqueue("quick/x")
        assert lua.rotation() == ["quick"], "before all of them"
        assert lua.poll(fairness=(3, 0, 0)).fetched == ["quick/x"]

    def test_a_poll_that_sets_many_groups_aside_is_followed_by_another_at_once(self, lua: Scripts) -> None:
        lua.enqueue(*(f"slow{number}/a" for number in range(250)), "quick/x")
        told = [part for number in range(250) for part in (b"slow%d" % number, 0, 60_000)]
        reply = lua.poll(fairness=(3, 0, 250, *told))
        assert (reply.fetched, reply.due_ms, len(lua.aside())) == ([], 0, 200)
        assert lua.poll(fairness=(3, 0, 0)).fetched == ["quick/x"]

    def test_groups_set_aside_are_the_first_when_slow_ones_have_room(self, lua: Scripts) -> None:
        lua.enqueue("7/a", "7/b", "8/x")
        assert lua.poll(fairness=(9, 0, 2, b"7", 0, 60_000, b"8", 0, 60_000)).fetched == []
        lua.enqueue("9/z")
        assert lua.poll("b", free=2, fairness=(9, 2, 0)).fetched == ["7/a", "8/x"]
        assert (lua.rotation(), lua.aside()) == (["9", "7"], [])

    def test_a_group_that_is_slow_no_more_returns_to_the_rotation(self, lua: Scripts) -> None:
        lua.enqueue("7/a", "8/x")
        lua.poll(fairness=(9, 0, 2, b"7", 0, 60_000, b"8", 0, 60_000))
        lua.client.zadd(f"{NS}:queue:q:slow", {"7": 1})
        assert lua.poll(fairness=(9, 0, 0)).fetched == ["7/a"]
        assert lua.aside() == ["8"]

    def test_a_message_of_a_group_set_aside_waits_behind_those_of_its_group(self, lua: Scripts) -> None:
        lua.enqueue("7/a")
        lua.poll(fairness=(9, 0, 1, b"7", 0, 60_000))
        lua.enqueue("7/b")
        assert (lua.rotation(), lua.aside()) == ([], ["7"])
        assert lua.poll(fairness=(9, 9, 0)).fetched == ["7/a", "7/b"]

    def test_beside_a_worker_of_the_release_before_no_group_is_set_aside(self, lua: Scripts) -> None:
        """It looks at the rotation only."""
        lua.enqueue("7/a", "8/x")
        lua.poll(fairness=(9, 0, 1, b"7", 0, 60_000), free=1)
        assert lua.aside() == ["7"]
        lua.client.zadd(f"{NS}:sessions", {"before": lua.now()})
        assert lua.poll(fairness=(9, 0, 0)).fetched == []
        assert (lua.rotation(), lua.aside()) == (["7"], [])

    def test_a_session_that_ends_puts_back_what_was_set_aside(self, lua: Scripts) -> None:
        lua.enqueue("7/a", "8/x")
        lua.poll(fairness=(9, 0, 2, b"7", 0, 60_000, b"8", 0, 60_000))
        lua.deregister("a", "q")
        assert (lua.rotation(), lua.aside()) == (["7", "8"], [])

    def test_what_is_set_aside_is_counted_polled_for_and_flushed(self, lua: Scripts) -> None:
        lua.enqueue("7/a")
        reply = lua.poll(fairness=(9, 0, 1, b"7", 0, 60_000))
        assert (reply.is_idle, lua.count(), lua.ack("a")) == (False, [1, 0, 0], True)
        lua.flush("q")
        assert (lua.count(), lua.aside(), lua.ack("a")) == ([0, 0, 0], [], False)

    def test_messages_without_a_group_have_no_limit(self, lua: Scripts) -> None:
        lua.enqueue("/a", "/b", "/c")
        assert lua.poll(fairness=(1, 0, 0)).fetched == ["/a", "/b", "/c"]

    def test_the_limits_of_fairness_are_kept(self, lua: Scripts) -> None:
        """The Python side and the script, together: of 8, a group alone has 6, and beside another one 4."""
        fairness = Fairness(8)
        lua.enqueue(*(f"7/{number}" for number in range(10)))
        first = lua.poll(free=8, fairness=tuple(fairness.arguments(0.0))).fetched
        assert len(first) == 6
        for message_key in first[:3]:
            fairness.delivered(message_key.encode(), b"7", 0.0)
        lua.enqueue(*(f"8/{number}" for number in range(10)))
        fairness.delivered(b"8/x", b"8", 0.0)
        assert lua.poll(free=4, fairness=tuple(fairness.arguments(0.0))).fetched == ["7/6", "8/0", "8/1", "8/2"]

    # ── delayed messages ─────────────────────────────────────────────────────────────────────────────────────────────

    def test_a_delayed_message_is_fetched_when_it_is_due(self, lua: Scripts) -> None:
        lua.enqueue("7/a", delay_ms=30)
        assert lua.count() == [0, 1, 0]
        reply = lua.poll()
        assert reply.fetched == []
        assert 0 <= reply.due_ms <= 30
        due_at, ends_at = reply.now + reply.due_ms, time.monotonic() + 5
        while not reply.fetched and time.monotonic() < ends_at:
            time.sleep(0.002)
            reply = lua.poll()
        assert (reply.fetched, reply.due_ms) == (["7/a"], -1)
        assert reply.now >= due_at

    def test_the_earliest_due_message_of_all_queues_is_reported(self, lua: Scripts) -> None:
        lua.enqueue("7/late", queue="one", delay_ms=60_000)
        lua.enqueue("7/soon", queue="two", delay_ms=30_000)
        assert 29_000 < lua.poll(queues=("one", "two")).due_ms <= 30_000

    def test_messages_due_are_fetched_in_the_order_of_their_times(self, lua: Scripts) -> None:
        for delay_ms in (50_000, 30_000, 40_000):
            lua.enqueue(f"7/{delay_ms}", delay_ms=delay_ms)
        self._make_due(lua)
        assert lua.poll().fetched == ["7/30000", "7/40000", "7/50000"]

    def test_a_poll_makes_at_most_a_hundred_messages_of_a_queue_waiting(self, lua: Scripts) -> None:
        lua.enqueue(*(f"7/{number}" for number in range(130)), delay_ms=60_000)
        self._make_due(lua)
        reply = lua.poll(free=1)
        assert (reply.due_ms, lua.count()) == (0, [99, 30, 1])

    @staticmethod
    def _make_due(lua: Scripts) -> None:
        found: Any = lua.client.zrange(f"{NS}:queue:q:delayed", 0, -1, withscores=True)
        lua.client.zadd(f"{NS}:queue:q:delayed", {name: at - 100_000 for name, at in found})

    # ── count and flush ──────────────────────────────────────────────────────────────────────────────────────────────

    def test_messages_are_counted_by_queue_and_state(self, lua: Scripts) -> None:
        lua.enqueue("7/a", "8/x", "7/b", queue="one")
        lua.enqueue("7/c", queue="one", delay_ms=60_000)
        lua.enqueue("7/d", queue="two")
        lua.poll(free=1, queues=("one",))
        assert lua.count("one", "two", "three") == [2, 1, 1, 1, 0, 0, 0, 0, 0]

    def test_a_flushed_queue_is_empty_and_the_others_are_not(self, lua: Scripts) -> None:
        lua.enqueue("7/a", "8/x")
        lua.enqueue("7/later", delay_ms=60_000)
        lua.enqueue("7/other", queue="other")
        lua.flush("q")
        assert lua.count("q", "other") == [0, 0, 0, 1, 0, 0]
        assert (lua.rotation(), lua.poll().fetched) == ([], [])
        lua.enqueue("7/a")
        assert lua.poll().fetched == ["7/a"]

    def test_an_acknowledgement_after_a_flush_changes_nothing(self, lua: Scripts) -> None:
        lua.enqueue("7/a")
        lua.poll("a")
        lua.flush("q")
        lua.poll("a", (Disposition.ACK, "7/a", ""))
        assert lua.count() == [0, 0, 0]
