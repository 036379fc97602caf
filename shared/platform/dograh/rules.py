"""What differs between the layouts of the platform's tables: statements, and how their rows are read.

Each layout is a module; `of` returns it. A statement of a layout fails where its tables are missing, and tells by
`is_newest` when its rows are stale.
"""

from __future__ import annotations

from typing import Any, Protocol

from shared.call.calls import Call
from shared.platform.dograh import february, newest
from shared.platform.dograh.layouts import Layout
from shared.platform.ports import NoRoute, Route
from shared.storage import database


class Rules(Protocol):
    """A layout's statements and the readers of their rows."""

    LAYOUT: Layout
    #: All configurations: `source_id`, `organization_id`, and what `value` reads.
    CONFIGURATIONS: str
    #: Of a connection and a number (`connection_id`, `number`): what `inbound` reads.
    INBOUND: str
    #: Whether the workflow of that row, `found`, may serve the call.
    MAY_SERVE: str
    #: The same for JSON that Postgres cannot look into.
    INBOUND_VALUES: str
    #: Of a connection (`connection_id`): what `configuration` reads.
    CONFIGURATION: str
    #: Of a workflow (`workflow_id`): what `workflows.judge` reads.
    WORKFLOW: str
    #: A new run's definition and initial_context, of its `workflow_id`, `connection_id` and `initial`.
    RUN_DEFINITION: str
    RUN_INITIAL: str
    #: Whether a run without a definition cannot be served.
    NEEDS_DEFINITION: bool

    def value(self, row: database.Row) -> object:
        """Return the configuration of a row."""

    def number(self, called_number: str) -> str:
        """Return what calls to a number are looked up by."""

    def configuration(self, row: database.Row | None) -> dict[str, Any] | NoRoute:
        """Return a configuration's value from its row, or why there is none."""

    def inbound(self, row: database.Row | None) -> Route | NoRoute | int:
        """Return the route of an inbound call from its row; or the workflow's id, if that was not read along."""

    def media_ids(self, call: Call) -> dict[str, int | None]:
        """Return the ids of the media URL, in the order of the token."""


_FEBRUARY: Rules = february
_NEWEST: Rules = newest


def of(layout: Layout) -> Rules:
    """Return a layout's rules."""
    return _NEWEST if layout is Layout.NEWEST else _FEBRUARY
