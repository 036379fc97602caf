"""Why the voice agent may have refused a call's media socket: what can be told from the platform's rows.

Asterisk tells little. A socket that is refused by an HTTP status ends its leg with the cause 3, as if the agent were
away. One that is closed again at once ends it with 16, whatever the code of the close frame (both measured).
"""

from __future__ import annotations

from shared.call.calls import Call
from shared.platform.dograh import layouts, rules
from shared.platform.ports import NoRoute
from shared.storage import database

_RUN = "SELECT state::text AS state, is_completed, definition_id FROM workflow_runs WHERE id = %s"


class MediaRefusals:
    """Looks for what makes the voice agent refuse a call's media socket.

    Args:
        sends_token: A media token is sent, by a secret that is set.
    """

    def __init__(self, db: database.Database, *, sends_token: bool, watch: layouts.Watch | None = None) -> None:
        self._db = db
        self._sends_token = sends_token
        self._watch = watch or layouts.Watch(db, quiet=True)

    def causes(self, call: Call) -> str:
        """Return what was found, as part of a sentence; empty if nothing was."""
        layout = rules.of(self._watch.found().layout)
        with self._db.connection() as connection:
            row = connection.execute(layout.CONFIGURATION, {"connection_id": call.connection_id}).fetchone()
            run = connection.execute(_RUN, [call.workflow_run_id]).fetchone()
        found = _of_run(run, needs_definition=layout.NEEDS_DEFINITION)
        configuration = layout.configuration(row)
        if isinstance(configuration, NoRoute):
            found.append(configuration.reason)
        if layout.LAYOUT is layouts.Layout.NEWEST and not self._sends_token:
            found.append("no media token was sent")
        return ", ".join(found)


def _of_run(run: database.Row | None, *, needs_definition: bool) -> list[str]:
    if run is None:
        return ["its run is gone"]
    found = []
    if run["is_completed"] or run["state"] != "initialized":
        found.append(f"its run is {'completed' if run['is_completed'] else run['state']}")
    if needs_definition and run["definition_id"] is None:
        found.append("its run has no definition")
    return found
