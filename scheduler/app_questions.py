"""Asks the workers who has the apps that were never ours, before their first event sockets are opened.

A question that is lost, with Redis or with a worker, is asked again. Without a worker none is answered, and no such
socket is opened: it would take callers away from another process, and there is nothing to serve them.
"""

from __future__ import annotations

from scheduler.resyncs import ResyncQueue
from shared import messages
from shared.call.ids import ConnectionVersion
from shared.storage import database

#: A question that was not answered is asked again after this.
_AGAIN_SECONDS = 5.0
#: So many are asked at once.
_BATCH = 2000

#: An occupied app is asked for until it is gone there. The clock of Postgres may have been set back since.
_ASK = """
UPDATE ari.connection_versions SET asked_at = clock_timestamp()
WHERE (connection_id, version) IN (
    SELECT connection_id, version FROM ari.connection_versions
    WHERE asked_at IS NOT NULL AND retired_at IS NULL AND superseded_at IS NULL
      AND clock_timestamp() - asked_at NOT BETWEEN interval '0' AND make_interval(
          secs => CASE WHEN parked_at IS NULL THEN %(again)s::float8 ELSE %(occupied)s::float8 END)
    ORDER BY asked_at LIMIT %(batch)s)
RETURNING connection_id, version
"""


class AppQuestions:
    """Enqueues the questions.

    Args:
        occupied_seconds: How often it is asked whether another process still has an app.
    """

    def __init__(self, db: database.Database, commands: ResyncQueue, *, occupied_seconds: float) -> None:
        self._db = db
        self._commands = commands
        self._bounds = {"again": _AGAIN_SECONDS, "occupied": occupied_seconds, "batch": _BATCH}

    def ask(self) -> None:
        """Ask what is due. Raises QueueUnavailable, DatabaseUnavailable: it is asked again then."""
        while due := self._due():
            self._commands.send_all(map(messages.of_app_question, due))

    def _due(self) -> list[ConnectionVersion]:
        with self._db.connection() as connection:
            rows = connection.execute(_ASK, self._bounds).fetchall()
        return [ConnectionVersion(row["connection_id"], row["version"]) for row in rows]
