"""The waterfall of a call: its states, the attempts in them, and the requests of these, as bars over time. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from shared.call.states import State
from shared.operator import stories
from shared.operator.call_queries import TimelineRow
from shared.operator.stories import CallStory

#: How deep a bar is nested.
STATE, ATTEMPT, REQUEST = range(3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """Something that took time."""

    depth: int
    text: str
    begun_at: datetime
    ended_at: datetime
    is_bad: bool = False

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.ended_at - self.begun_at).total_seconds()


def bars(story: CallStory) -> tuple[Bar, ...]:
    """Return the bars, each state before its attempts, and these before their requests."""
    found = [*_states(story), *_attempts(story), *_requests(story)]
    return tuple(sorted(found, key=lambda bar: (bar.begun_at, bar.depth)))


def parts(story: CallStory) -> tuple[tuple[Bar, ...], ...]:
    """Return the bars of the set-up and those of the end, without the talk between them: each has its own scale."""
    all_bars = bars(story)
    connected = story.call.connected_at
    if connected is None:
        return (all_bars,) if all_bars else ()
    ended = story.call.ending_at or story.until
    setup = tuple(bar for bar in all_bars if bar.begun_at < connected)
    end = tuple(bar for bar in all_bars if bar.begun_at >= ended)
    return tuple(part for part in (setup, end) if part)


def _states(story: CallStory) -> Iterator[Bar]:
    moves = [row for row in story.rows if row.state_to is not None]
    for number, row in enumerate(moves):
        end = moves[number + 1].at if number + 1 < len(moves) else story.until
        if row.state_to not in (State.CONNECTED, State.ENDED):
            yield Bar(depth=STATE, text=str(row.state_to), begun_at=row.at, ended_at=max(row.at, end))


def _attempts(story: CallStory) -> Iterator[Bar]:
    begun = [row for row in story.rows if row.name == "AttemptBegun"]
    until = story.call.connected_at or story.call.ending_at or story.until
    for number, row in enumerate(begun):
        after = begun[number + 1].at if number + 1 < len(begun) else until
        failed = next((gone for gone in story.rows if gone.name in _FAILED and row.at <= gone.at <= after), None)
        end = failed.at if failed is not None else after
        text = f"attempt {row.attempt or number + 1}{f': {failed.name}' if failed is not None else ''}"
        yield Bar(depth=ATTEMPT, text=text, begun_at=row.at, ended_at=max(row.at, end), is_bad=failed is not None)


_FAILED = ("MediaGone", "LegsUnknown", "LegsRefused", "WorkerDied")


def _requests(story: CallStory) -> Iterator[Bar]:
    for row in story.rows:
        if row.kind == "request":
            yield Bar(depth=REQUEST, text=_short(row), begun_at=row.at, ended_at=stories.ends_at(row),
                      is_bad=not stories.is_done(row) and not row.detail.startswith("404"))  # fmt: skip


def _short(row: TimelineRow) -> str:
    return f"{row.name} {row.detail.partition(chr(10))[0]}"
