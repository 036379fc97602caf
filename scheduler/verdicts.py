"""What is to be done with one event socket, by its row and what its listeners say of it. Pure."""

from __future__ import annotations

from enum import StrEnum

from shared import database
from shared.core.assignments import Report, SocketState

#: Said of an app that another client has.
TAKEN = "another ARI client has taken the Stasis app over"


class Verdict(StrEnum):
    """One for each tick."""

    #: All is as it should be.
    KEEP = "keep"
    #: Another version has its place, or its calls have ended: it is of no more use.
    RETIRE = "retire"
    #: The new holder has it open, or the elder has not: the elder is not needed any more.
    LET_GO = "let-go"
    #: The new holder cannot open it: it goes back to the elder.
    GIVE_BACK = "give-back"
    #: A stranger has taken the app.
    NOTE_TAKEN = "note-taken"
    #: It is to be taken back, once.
    RETAKE = "retake"
    #: It was taken again after that: no tug-of-war.
    PARK = "park"
    #: What was taken back has been ours for long.
    SETTLE = "settle"


def judge(row: database.Row, report: Report | None, elder: Report | None) -> Verdict:
    """Decides.

    Args:
        row: As `sockets.Sockets.wanted` reads it.
        report: What its holder says of it under the current epoch. A report of another epoch is none: whoever lost the
            socket under an older one lost it to us.
        elder: What the listener that held it before says of it, while it is handed over.
    """
    if row["superseded"]:
        return Verdict.RETIRE if _is_done(row) else _handed_over(row, report, elder)
    if report is not None and report.state is SocketState.REPLACED:
        if row["retakes"]:
            return Verdict.PARK
        if not row["taken"]:
            return Verdict.NOTE_TAKEN
        return Verdict.RETAKE if row["may_retake"] else Verdict.KEEP
    if row["retakes"] and row["settled"] and _is_open(report):
        return Verdict.SETTLE
    return _handed_over(row, report, elder)


def parked(row: database.Row) -> str:
    """Why it is parked, and what to do."""
    return (
        f"{TAKEN} twice; left to it. Stop it, or give us an app of our own;"
        f" then: arictl connection unpark --organization {row['organization_id']}"
    )


def _handed_over(row: database.Row, report: Report | None, elder: Report | None) -> Verdict:
    if row["elder_id"] is None:
        return Verdict.KEEP
    if _is_open(report) or not _is_open(elder):
        return Verdict.LET_GO
    return Verdict.GIVE_BACK if row["slow"] else Verdict.KEEP


def _is_done(row: database.Row) -> bool:
    """A version in whose place another stands: its socket goes when it is of no more use.

    Of the same endpoint and app: when the successor is connected, which takes over its calls' events. Of another:
    when its calls have ended, or have had long enough.
    """
    if row["same_place"]:
        return bool(row["successor_connected"])
    return not row["has_calls"] or bool(row["drained_long"])


def _is_open(report: Report | None) -> bool:
    return report is not None and report.state is SocketState.CONNECTED
