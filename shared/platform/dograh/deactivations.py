"""Deactivating a configuration of the newest layout, in the columns by which the platform's own manager does it.

The platform shows the reason, and an owner reactivates the configuration there: then the columns are cleared.
"""

from __future__ import annotations

from shared.call.states import LIVE, State
from shared.storage import database

#: The platform's words for a configuration without the websocket client's name: media could not be set up at all.
NO_MEDIA_CLIENT = "ari-missing-ws-client-name: Set the ARI WebSocket client name in telephony configuration."
#: While its calls are set up, their media sockets ask the platform for the configuration, which has to be active.
_SET_UP = [str(state) for state in LIVE - {State.CONNECTED}]

_DEACTIVATE = """
UPDATE telephony_configurations SET inactive = true, inactive_since = clock_timestamp(),
       inactive_reason = left(%(reason)s, 255), updated_at = clock_timestamp()
WHERE id = %(row_id)s AND organization_id = %(organization_id)s AND NOT inactive
  AND NOT EXISTS (SELECT 1 FROM ari.calls k JOIN ari.connections c USING (connection_id)
                  WHERE c.source_id = %(source_id)s AND k.state = ANY(%(set_up)s))
RETURNING id
"""


def deactivate(db: database.Database, *, source_id: int, organization_id: int, reason: str) -> bool:
    """Deactivate a configuration.

    Args:
        source_id: Minus the id of its row, as in `newest`.
        reason: `code: text`, of which the platform keeps 255 characters.

    Returns:
        False if there is no such active configuration, or one of its calls is being set up: to be tried again.
    """
    values = {
        "row_id": -source_id,
        "source_id": source_id,
        "organization_id": organization_id,
        "reason": reason,
        "set_up": _SET_UP,
    }
    with db.connection() as connection:
        return connection.execute(_DEACTIVATE, values).fetchone() is not None
