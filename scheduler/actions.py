"""What is to be done with one event socket, by its row and what its listeners say of it. Pure."""

from __future__ import annotations

from enum import StrEnum

from shared.assignments import Report, SocketState
from shared.storage import database

#: Said of an app that another client has.
TAKEN = "another ARI client has taken the Stasis app over"


class Verdict(StrEnum):
    """One for each tick."""

    #: All is as it should be.
    KEEP = "keep"
    #: Another version has its place, or its calls have ended: it is of no more use.
    RETIRE = "retire"
    #: The new holder has it open, or the previous has not: the previous is not needed any more.
    RELEASE_PREVIOUS = "release-previous"
    #: The new holder cannot open it: it goes back to the previous.
    REVERT = "revert"
    #: A stranger has taken the app.
    MARK_PREEMPTED = "mark-preempted"
    #: It is to be taken back, once.
    RECLAIM = "retake"
    #: It was taken again after that: no tug-of-war.
    PARK = "park"
    #: What was taken back has been ours for long.
    SETTLE = "settle"


def judge(row: database.Row, report: Report | None, previous: Report | None) -> Verdict:
    """Decides.

    Args:
        row: As `sockets.Sockets.wanted` reads it.
        report: What its holder says of it under the current epoch. A report of another epoch is none: whoever lost the
            socket under an older one lost it to us.
        previous: What the listener that held it before says of it, while it is handed over.
    """
    if row["superseded"]:
        return Verdict.RETIRE if _is_done(row) else _handed_over(row, report, previous)
    if report is not None and report.state is SocketState.REPLACED:
        if row["reclaims"]:
            return Verdict.PARK
        if not row["taken"]:
            return Verdict.MARK_PREEMPTED
        return Verdict.RECLAIM if row["may_reclaim"] else Verdict.KEEP
    if row["reclaims"] and row["settled"] and _is_open(report):
        return Verdict.SETTLE
    return _handed_over(row, report, previous)


def parked(row: database.Row) -> str:
    """Why it is parked, and what to do."""
    return (
        f"{TAKEN} twice; left to it. Stop it, or give us an app of our own;"
        f" then: arictl connection unpark --organization {row['organization_id']}"
    )


def _handed_over(row: database.Row, report: Report | None, previous: Report | None) -> Verdict:
    if row["previous_listener_id"] is None:
        return Verdict.KEEP
    if _is_open(report) or not _is_open(previous):
        return Verdict.RELEASE_PREVIOUS
    return Verdict.REVERT if row["slow"] else Verdict.KEEP


def _is_done(row: database.Row) -> bool:
    """A version in whose place another stands: its socket goes when it is of no more use.

    Of the same endpoint and app: when the successor is connected, which takes over its calls' events. Of another:
    when its calls have ended, or have had long enough.
    """
    if row["same_app_instance"]:
        return bool(row["successor_connected"])
    return not row["has_calls"] or bool(row["drained_long"])


def _is_open(report: Report | None) -> bool:
    return report is not None and report.state is SocketState.CONNECTED
