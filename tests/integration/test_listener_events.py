"""The events of an event socket: hostile ones are refused and counted, and disturb no other socket."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from listener import main
from shared import errors
from shared.assignments import Assignment
from shared.asterisk import events
from tests.support.listener_harness import (
    Asterisk,
    Scheduler,
    assignment,
    connected,
    listening,
    reconnects_of,
    stasis_start,
)
from tests.support.scenes import play, until

pytestmark = pytest.mark.services


def test_hostile_messages_affect_their_sender_only(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, Asterisk() as other, listening(scheduler.url) as listener:
            ours, theirs = assignment(pbx, 1), assignment(other, 2)
            await connected(scheduler, listener, ours, theirs)
            garbage: list[Any] = ["", "garbage", "[" * 100_000, "[]", '{"type":7}', '{"type":"StasisStart"}', "\x00"]
            garbage.append({**stasis_start("x" * 1000)})
            for each in garbage:
                await pbx.send(each)
            await pbx.newest.send(b"\xff\xfe\x00 binary")
            await pbx.newest.send(b"\xff invalid as text", text=True)
            # That one is refused by name: it is a caller all the same.
            await pbx.send({**stasis_start("odd"), "args": "not a list"})
            await pbx.send(stasis_start("still here"))
            await until(lambda: scheduler.callers() == ["odd", "still here"], "the socket goes on")
            await pbx.send("x" * (2**20 + 1))
            await until(lambda: len(pbx.sockets) == 2, "closed and opened again")
            assert pbx.sockets[0].close_code == 1009
            await until(lambda: reconnects_of(scheduler, listener, ours) == 1, "reported")
            report, unharmed = scheduler.report(listener.id, ours), scheduler.report(listener.id, theirs)
            assert report is not None
            assert unharmed is not None
            assert (report.unreadable, report.reconnects) == (len(garbage) + 3, 1)
            assert (unharmed.unreadable, unharmed.reconnects) == (0, 0)
            resyncs = sorted(scheduler.resyncs())
            # The second one of the closed socket takes the place of its first, which still waits.
            assert resyncs == [(1, "connected"), (2, "connected")]

    play(scene())


#: Anything JSON can hold, and what only escapes can: NUL, half a surrogate pair.
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
_messages = st.one_of(
    st.builds(
        lambda key, value: {**stasis_start("x"), key: value}, st.sampled_from(sorted(stasis_start("x"))), _values
    ),
    st.builds(
        lambda key, value: {**stasis_start("x"), "channel": {**stasis_start("x")["channel"], key: value}},
        st.sampled_from(sorted(stasis_start("x")["channel"])),
        _values,
    ),
    st.sampled_from(["[" * 50_000, '{"type":"StasisStart","a":' * 8_000]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
)


@hypothesis_settings(
    max_examples=8, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(sent=st.lists(_messages, min_size=20, max_size=60))
def test_any_message_of_an_asterisk_is_counted_or_pushed(scheduler: Scheduler, sent: list[Any]) -> None:
    texts = [each if isinstance(each, str) else json.dumps(each) for each in sent]

    async def scene() -> None:
        async with Asterisk() as pbx, listening(scheduler.url, event_bytes_per_second=10**8) as listener:
            ours = assignment(pbx, 1)
            await connected(scheduler, listener, ours)
            for text in texts:
                await pbx.send(text)
            last = f"still here {uuid.uuid4().hex}"
            await pbx.send(stasis_start(last))
            await until(lambda: last in scheduler.callers(), "the socket lives")
            refused = sum(map(is_refused, texts))
            await until(lambda: unreadable_of(scheduler, listener, ours) == refused, "each refused one was counted")
            assert len(pbx.sockets) == 1

    play(scene())


def is_refused(text: str) -> bool:
    if not events.may_match(text.encode()):
        return False
    try:
        events.parse(text)
    except errors.InvalidEvent:
        return True
    return False


def unreadable_of(scheduler: Scheduler, listener: main.Listener, of: Assignment) -> int:
    report = scheduler.report(listener.id, of)
    return report.unreadable if report else -1


def test_an_internal_error_in_one_socket_is_reported_and_survived(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def may_match(raw: bytes) -> bool:
        if raw == b"internal error":
            raise RuntimeError("an internal error")
        return True

    async def scene() -> None:
        monkeypatch.setattr(events, "may_match", may_match)
        async with Asterisk() as pbx, Asterisk() as other, listening(scheduler.url) as listener:
            ours, theirs = assignment(pbx, 1), assignment(other, 2)
            await connected(scheduler, listener, ours, theirs)
            await pbx.send("internal error")
            await until(lambda: reconnects_of(scheduler, listener, ours) == 1, "opened again")
            await other.send(stasis_start("unharmed"))
            await until(lambda: scheduler.callers() == ["unharmed"], "the other goes on")
            assert not other.closed

    play(scene())
