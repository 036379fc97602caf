"""All that a verdict is made from, put together; nothing here asks a server."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from chaos.judge import spans
from chaos.judge.deeds import Deeds, Fault
from chaos.judge.history import History, Kind, Leg, Stay
from chaos.judge.spans import FOREVER, Span
from chaos.judge.tables import CallRow, RunRow, Tables


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What there still is at the end. `problem` says why it cannot be known."""

    channels: list[str] = field(default_factory=list)
    bridges: list[str] = field(default_factory=list)
    media_sockets: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """For how many seconds each end of a call hears the other's tone."""

    by_caller: float
    by_agent: float


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The history, the tables and the deeds of a run.

    Args:
        now: When the verdict is given, in unix seconds.
        heard: By leg, of the calls that were listened to.
        organizations: App → the organization whose calls enter it.
    """

    history: History
    tables: Tables
    deeds: Deeds
    now: float
    left: Left = Left()
    heard: Mapping[str, Heard] = field(default_factory=dict)
    waiting_seconds: float = 60
    silence_seconds: float = 20
    organizations: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def callers(self) -> list[Leg]:
        """The callers' legs that have entered an app."""
        return [leg for leg in self.history.legs.values() if leg.kind is Kind.CALLER and leg.apps]

    @cached_property
    def media(self) -> list[Leg]:
        """The media legs."""
        return [leg for leg in self.history.legs.values() if leg.kind is Kind.MEDIA]

    @cached_property
    def rows(self) -> Mapping[str, list[CallRow]]:
        """Channel → its rows in ari.calls."""
        found: dict[str, list[CallRow]] = defaultdict(list)
        for row in self.tables.calls:
            found[row.channel_id].append(row)
        return dict(found)

    @cached_property
    def runs(self) -> Mapping[int, RunRow]:
        """The runs by id."""
        return {run.id: run for run in self.tables.runs}

    def in_app(self, leg: Leg) -> list[Span]:
        """When a leg was in an app that is judged."""
        return self._clipped(stay.span for stay in leg.apps)

    def with_others(self, leg: Leg, *kinds: Kind) -> list[Span]:
        """When a leg was in a bridge with another one of these kinds, by default of any."""
        return spans.union(span for other, span in self.meetings(leg) if not kinds or other.kind in kinds)

    def meetings(self, leg: Leg) -> list[tuple[Leg, Span]]:
        """The legs that were in a bridge with a leg, and when. A media leg that still connects is not there yet."""
        return [
            (other, span)
            for stay in leg.bridges
            for other, other_stay in self._by_bridge[stay.where]
            if other is not leg
            for span in self._clipped(
                spans.intersect([stay.span], [(max(other_stay.since, _there(other)), other_stay.until)])
            )
        ]

    def bridged_at(self, leg: Leg) -> float | None:
        """When a caller was first in a bridge with an agent; None if never."""
        met = self.with_others(leg, Kind.MEDIA)
        return met[0][0] if met else None

    def setup(self, leg: Leg) -> Span | None:
        """From when until when a caller was in an app without an agent; None for one who never entered."""
        if not leg.apps:
            return None
        since, until = leg.apps[0].span
        return since, min(self.bridged_at(leg) or FOREVER, until, self.now)

    def faults(self, app: str | None, span: Span, *, after: float = 0) -> list[Fault]:
        """The faults that concern an app and overlap a span; each is said to last `after` seconds longer."""
        return [
            fault
            for fault in self.deeds.faults
            if fault.concerns(app) and spans.overlap(span, (fault.at, fault.until + after))
        ]

    def outage_seconds(self, app: str | None, span: Span) -> float:
        """For how long of a span no call of an app could be served."""
        outages = [fault.span for fault in self.faults(app, span) if fault.outage]
        return spans.seconds(spans.intersect([span], outages))

    def app_of(self, channel_id: str | None) -> str | None:
        """The app of a caller's leg, by Asterisk or by the deeds; None if neither knows."""
        leg, offer = self.history.legs.get(channel_id or ""), self.deeds.offers.get(channel_id or "")
        return (leg.app if leg else None) or (offer.app if offer else None)

    @cached_property
    def _by_bridge(self) -> Mapping[str, list[tuple[Leg, Stay]]]:
        found: dict[str, list[tuple[Leg, Stay]]] = defaultdict(list)
        for leg in self.history.legs.values():
            for stay in leg.bridges:
                found[stay.where].append((leg, stay))
        return found

    def _clipped(self, found: Iterable[Span]) -> list[Span]:
        """The same spans, those that are open ending now."""
        return spans.union((since, min(until, self.now)) for since, until in found)


def _there(leg: Leg) -> float:
    """From when on a leg can be heard: a media leg, once its agent has accepted it."""
    return leg.up_at if leg.kind is Kind.MEDIA else leg.created_at
