"""The ladder and the waterfall of a call, as what their templates draw: SVG by attributes, no style within. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from shared.operator import stories, waterfall
from shared.operator.call_queries import TimelineRow
from shared.operator.ladder import LANES, Kind, Rung
from shared.operator.stories import duration
from shared.operator.waits import Part
from shared.operator.waterfall import Bar

#: The width of the lanes of a ladder, and of one lane. Its lines stand in the middle.
WIDTH = 400
_LANE = WIDTH // len(LANES)
#: The height of a rung; that of gaps is to scale, between these.
HEIGHT = 24
_LOWEST_GAP, _HIGHEST_GAP = 28, 180
#: The width of a waterfall's bars.
_BARS = 1000

#: A longer text is cut before its numbers are looked for: less of it is shown.
_LONGEST = 1000

Text = Callable[[str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnRung:
    """One line of the ladder."""

    kind: str
    offset: str
    text: str
    height: int
    #: Where the arrow begins and ends; the same for what stays on one lane.
    begins: int
    ends: int
    is_bad: bool
    is_evidence: bool
    #: The first of its time: only there the time is told.
    is_later: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnBar:
    """One bar of a waterfall, in thousandths of its width."""

    depth: int
    text: str
    took: str
    offset: str
    begins: float
    width: float
    is_bad: bool


LANE_LINES = tuple(_LANE * number + _LANE // 2 for number in range(len(LANES)))
LANE_NAMES = tuple(str(lane) for lane in LANES)


def drawn_ladder(
    rungs: Iterable[Rung], *, begun_at: datetime, evidence: Iterable[TimelineRow], text: Text
) -> list[DrawnRung]:
    """Return the lines of a ladder.

    Args:
        text: Masks and shortens what is shown.
    """
    shown = list(rungs)
    longest = max((rung.seconds for rung in shown if rung.kind is Kind.GAP), default=0.0)
    shows = {id(row) for row in evidence}
    drawn: list[DrawnRung] = []
    for rung in shown:
        offset = _offset(rung.at, begun_at)
        drawn.append(DrawnRung(
            kind=str(rung.kind),
            offset=offset,
            text=text(rung.text[:_LONGEST]),
            height=_gap_height(rung.seconds, longest) if rung.kind is Kind.GAP else HEIGHT,
            begins=_x(rung.source),
            ends=_x(rung.target),
            is_bad=rung.is_bad,
            is_evidence=id(rung.row) in shows,
            is_later=not drawn or drawn[-1].offset != offset,
            detail=_detail(rung, text),
        ))  # fmt: skip
    return drawn


def _detail(rung: Rung, text: Text) -> str:
    if rung.row is None or rung.kind not in (Kind.EVENT, Kind.FACT) or stories.message_begun(rung.row) is not None:
        return ""
    return text(rung.row.detail.partition("\n")[0][:_LONGEST])


def _x(part: Part) -> int:
    return LANE_LINES[LANES.index(part)]


def _gap_height(seconds: float, longest: float) -> int:
    return round(_LOWEST_GAP + (_HIGHEST_GAP - _LOWEST_GAP) * (seconds / longest if longest > 1 else 0.0))


def _offset(at: datetime, begun_at: datetime) -> str:
    seconds = (at - begun_at).total_seconds()
    return f"{seconds * 1000:,.0f} ms" if seconds < 10 else f"{seconds:,.1f} s"


def drawn_waterfall(bars: tuple[Bar, ...], *, begun_at: datetime, text: Text) -> list[DrawnBar]:
    """Return the bars of one part of a waterfall, to its scale."""
    first = min(bar.begun_at for bar in bars)
    span = max((bar.ended_at - first).total_seconds() for bar in bars) or 1.0
    return [
        DrawnBar(
            depth=bar.depth,
            text=text(bar.text[:_LONGEST]),
            took=duration(bar.seconds),
            offset=_offset(bar.begun_at, begun_at),
            begins=round((bar.begun_at - first).total_seconds() / span * _BARS, 1),
            # What took no time is seen, too.
            width=max(2.0, round(bar.seconds / span * _BARS, 1)),
            is_bad=bar.is_bad,
        )
        for bar in bars
    ]


#: Names of the depths of a waterfall, for its stylesheet.
DEPTHS = {waterfall.STATE: "step-state", waterfall.ATTEMPT: "step-attempt", waterfall.REQUEST: "step-request"}
