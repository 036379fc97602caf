"""Calls as they come and end, looked for again and again: for a list of them that is watched."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

from shared.call.states import State
from shared.operator import call_queries
from shared.operator.call_queries import Filter, ListedCall
from shared.storage import database

#: So many calls are watched at the same time. Of more, the oldest are dropped: their end is not told.
MOST_WATCHED = 10_000
#: A call may be committed so long after its `received_at`: what was received since then is read again.
_LATE = timedelta(seconds=10)


class Following:
    """Tells the calls that are wanted: as soon as they are, and when they end.

    Each look reads by indexes: the calls received lately, and by their ids those that had not ended.
    """

    def __init__(self, db: database.Database, wanted: Filter) -> None:
        self._db = db
        self._wanted = wanted
        # What changes of a call is looked at here.
        self._lasting = replace(wanted, is_live=None, state=None, outcome=None, fault=None)
        self._begun_at: datetime | None = None
        #: When the newest call was received.
        self._newest_at: datetime | None = None
        #: The calls that have not ended, in the order in which they came, and whether they were told.
        self._watched: dict[UUID, bool] = {}
        #: The calls that were received lately.
        self._recent: set[UUID] = set()

    def look(self) -> list[ListedCall]:
        """Return what has come or ended since the last look, the oldest first. The first look returns nothing."""
        if self._begun_at is None:
            self._begun_at = call_queries.now(self._db)
            live = call_queries.list_calls(self._db, replace(self._lasting, is_live=True), limit=MOST_WATCHED).calls
            self._watched = {call.call_id: True for call in reversed(live)}
            return []
        changed = call_queries.of_ids(self._db, self._watched) if self._watched else []
        told = self._told([*changed, *self._new(self._begun_at)])
        return sorted(told, key=lambda call: call.cursor)

    def _new(self, begun_at: datetime) -> list[ListedCall]:
        """Return the calls that were not there at the last look, the oldest first."""
        since = max(begun_at, (self._newest_at or begun_at) - _LATE)
        came = call_queries.list_calls(self._db, replace(self._lasting, since=since), limit=MOST_WATCHED).calls
        known = self._recent.union(self._watched)
        self._recent = {call.call_id for call in came}
        self._newest_at = came[0].received_at if came else self._newest_at
        return [call for call in reversed(came) if call.call_id not in known]

    def _told(self, calls: Collection[ListedCall]) -> Iterator[ListedCall]:
        for call in calls:
            is_over, is_wanted = call.state == State.ENDED, self._is_wanted(call)
            was_told = self._watched.pop(call.call_id, False) if is_over else self._watched.get(call.call_id, False)
            if not is_over:
                self._watched[call.call_id] = was_told or is_wanted
            if is_wanted and (is_over or not was_told):
                yield call
        for call_id in list(self._watched)[:-MOST_WATCHED]:
            del self._watched[call_id]

    def _is_wanted(self, call: ListedCall) -> bool:
        wanted = self._wanted
        return (
            wanted.is_live in (None, call.state != State.ENDED)
            and wanted.state in (None, call.state)
            and wanted.outcome in (None, call.outcome)
            and wanted.fault in (None, call.fault)
        )
