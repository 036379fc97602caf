"""Calls as their operator reads them, from few words: what the timeline of a real Asterisk has, shortened."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from shared.operator.call_queries import Attempt, CallHistory, ListedCall, TimelineRow
from shared.operator.stories import CallStory, SocketSeen

BEGUN = datetime(2026, 11, 23, 13, 33, 34, tzinfo=UTC)
MEDIA = "POST /channels/externalMedia"
BRIDGE = "POST /bridges/aip-x-b1"
JOIN = ("POST /channels/1.1/answer", "POST /bridges/aip-x-b1/addChannel")


def at(seconds: float) -> datetime:
    """Return a moment of the call."""
    return BEGUN + timedelta(seconds=seconds)


def row(seconds: float, name: str, detail: str = "", *, to: str = "", **more: Any) -> TimelineRow:
    """Return a fact, or a transition if it leads `to` a state: `prepared→joining`."""
    before, arrow, after = to.partition("→")
    states = {"state_from": before or None, "state_to": after if arrow else None}
    values = {"kind": "transition" if arrow else "fact", "attempt": None, "took_ms": None, "who": "worker-1"}
    return TimelineRow(at=at(seconds), name=name, detail=detail, **(values | states | more))


def asked(seconds: float, name: str, answer: str = "200", *, took: float = 0.001) -> TimelineRow:
    """Return a request."""
    return row(seconds, name, answer, kind="request", took_ms=took * 1000)


def note(seconds: float, name: str, detail: str = "") -> TimelineRow:
    """Return a note."""
    return row(seconds, name, detail, kind="note", who="scheduler-1")


ARRIVED = (
    row(0, "CallReceived", "+491 → 5551234, channel 1.1", to="→received"),
    row(0.003, "Admitted", to="received→admitted"),
    row(0.003, "RunCreated", "workflow_run_id=18", to="admitted→prepared"),
    row(0.003, "AttemptBegun", attempt=1),
)
ASKED = (asked(0.004, BRIDGE), asked(0.004, MEDIA))


def joined(seconds: float, *, attempt: int = 1) -> tuple[TimelineRow, ...]:
    """Return the rows of a join that began then."""
    return (
        *(asked(seconds, name, "204") for name in JOIN),
        asked(seconds + 0.002, "GET /bridges/aip-x-b1"),
        row(seconds + 0.004, "LegsCreated", attempt=attempt),
        row(seconds + 0.004, "MediaReady", to="prepared→joining", attempt=attempt),
        row(seconds + 0.004, "Joined", to="joining→connected", attempt=attempt),
    )


def story(*rows: TimelineRow, notes: tuple[TimelineRow, ...] = (), socket: SocketSeen | None = None,
          stamp: str | None = "stamp", unverified: bool = False, **call: Any) -> CallStory:  # fmt: skip
    """Return a story. When it was connected, was ending and had ended is read from its rows."""
    ordered = tuple(sorted(rows, key=lambda each: each.at))
    entered = {each.state_to: each.at for each in ordered if each.state_to}
    begun = [each for each in ordered if each.name == "AttemptBegun"]
    values: dict[str, Any] = {
        "call_id": uuid.UUID("0c9a4e52-9c5e-5c53-8a5f-6d0a5d6a2f11"), "organization_id": 3, "connection_id": 7,
        "direction": "inbound", "fault": None,
        "state": next(iter(reversed(entered)), "received"), "outcome": None, "reason": None,
        "caller_number": "+4915550001", "called_number": "5551234", "workflow_run_id": 18, "received_at": BEGUN,
        "connected_at": entered.get("connected"), "ending_at": entered.get("ending"),
        "ended_at": entered.get("ended"), "read_at": ordered[-1].at + timedelta(seconds=5),
    } | call  # fmt: skip
    attempts = tuple(
        Attempt(attempt=number, media_id=f"m{number}", bridge_id=f"b{number}", begun_at=each.at, outcome="created",
                outcome_at=each.at)
        for number, each in enumerate(begun, 1)
    )  # fmt: skip
    history = CallHistory(
        call=_listed(values), workflow_id=4, connection_version=1, channel_id="1.1", replacements=(), hangup_cause=16,
        tech_cause=None, dial_status=None, entered_stamp=stamp, unverified=unverified, attempts=attempts,
        timeline=ordered,
    )  # fmt: skip
    return CallStory(history=history, notes=notes, socket=socket or SocketSeen())


def _listed(values: dict[str, Any]) -> ListedCall:
    return ListedCall(**values)


def later(rows: tuple[TimelineRow, ...], seconds: float) -> tuple[TimelineRow, ...]:
    """Return rows as if they had come later."""
    return tuple(replace(each, at=each.at + timedelta(seconds=seconds)) for each in rows)


def ended(seconds: float, by: str, detail: str = "", *, out_of: str = "connected") -> tuple[TimelineRow, ...]:
    """Return the rows of an end."""
    return (
        row(seconds, by, detail, to=f"{out_of}→ending"),
        asked(seconds + 0.01, "DELETE /channels/m1", "204"),
        row(seconds + 0.02, "LegsRemoved", to="ending→ended"),
    )
