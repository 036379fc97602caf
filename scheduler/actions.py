"""The next action for one event socket, from its row and what its listeners report. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from scheduler.socket_rows import EventSocket
from shared.assignments import Report, SocketState

#: The error of a socket whose app a competing client has.
PREEMPTED = "another ARI client has taken the Stasis app over"


class Action(StrEnum):
    """What the assigner does with a socket in one tick."""

    #: Nothing: the socket is as it should be.
    KEEP = "keep"
    #: Drop the socket: its successor has taken over, or its calls have ended.
    RETIRE = "retire"
    #: End the hand-off: the new listener has opened the socket, or the previous one has lost it.
    RELEASE_PREVIOUS = "release-previous"
    #: Give the socket back to the previous listener: the new one cannot open it.
    REVERT = "revert"
    #: Write that a competing client has the app.
    MARK_PREEMPTED = "mark-preempted"
    #: Take the app back from the competing client. Done once.
    RECLAIM = "reclaim"
    #: Take the app back from another socket of ours.
    REOPEN = "reopen"
    #: Leave the app to the competing client, which has taken it again after the reclaim: no tug-of-war.
    PARK = "park"
    #: Let a socket be assigned again that has been in quarantine for long enough.
    END_QUARANTINE = "end-quarantine"
    #: Count the next preemption as the first: the reclaimed app has been ours for long enough.
    CLEAR_RECLAIMS = "clear-reclaims"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedSocket:
    """An event socket, the report on its current assignment, and the action that follows from both."""

    socket: EventSocket
    report: Report | None
    action: Action

    @property
    def is_connected(self) -> bool:
        """True if the assigned listener has the socket open."""
        return _is_open(self.report)


def next_action(
    socket: EventSocket,
    report: Report | None,
    previous: Report | None,
    *,
    may_be_incomplete: bool = False,
    replaced_by_ours: bool = False,
) -> Action:
    """Choose the next action for a socket.

    Args:
        socket: As read from Postgres.
        report: The assigned listener's report under the current epoch. A report under an older epoch must be left out:
            that socket was replaced by ours.
        previous: During a hand-off, the previous listener's report under its own epoch.
        may_be_incomplete: Redis was away: a report that is missing may be on its way, and ends no hand-off.
        replaced_by_ours: Another socket of ours has the app, one that gives way to this one.
    """
    if may_be_incomplete and previous is None and not _is_open(report) and socket.previous_listener_id is not None:
        return Action.KEEP
    if socket.superseded:
        return Action.RETIRE if _can_retire(socket) else _hand_off_action(socket, report, previous)
    if socket.quarantine_over:
        return Action.END_QUARANTINE
    if report is not None and report.state is SocketState.REPLACED:
        return _replaced_action(socket, by_ours=replaced_by_ours)
    if socket.reclaims and socket.stable and _is_open(report):
        return Action.CLEAR_RECLAIMS
    return _hand_off_action(socket, report, previous)


def parked_reason(socket: EventSocket) -> str:
    """Return the error of a parked socket: what happened, and what to do."""
    return (
        f"{PREEMPTED} twice: parked. Stop that client, or configure another app for us,"
        f" then: arictl connection unpark --organization {socket.organization_id}"
    )


def _replaced_action(socket: EventSocket, *, by_ours: bool) -> Action:
    """Choose what to do with a socket whose app another client, or another socket of ours, has."""
    if socket.waits:
        return Action.KEEP
    if by_ours:
        return Action.REOPEN
    if socket.reclaims:
        return Action.PARK
    if not socket.preempted:
        return Action.MARK_PREEMPTED
    return Action.RECLAIM if socket.may_reclaim else Action.KEEP


def _hand_off_action(socket: EventSocket, report: Report | None, previous: Report | None) -> Action:
    if socket.previous_listener_id is None:
        return Action.KEEP
    if _is_open(report) or not _is_open(previous):
        return Action.RELEASE_PREVIOUS
    return Action.REVERT if socket.hand_off_overdue else Action.KEEP


def _can_retire(socket: EventSocket) -> bool:
    """True if a superseded version does not need its socket any more.

    If the successor has the same app instance, it takes over the events of this version's calls once it is connected.
    Otherwise the socket stays until the calls have ended, or have had long enough to.
    """
    if socket.same_app_instance:
        return socket.successor_connected
    return not socket.has_calls or socket.drain_overdue


def _is_open(report: Report | None) -> bool:
    return report is not None and report.state is SocketState.CONNECTED
