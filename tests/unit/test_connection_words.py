"""How a connection stands, in plain words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shared.operator import connection_words
from shared.operator.connection_list import ListedConnection
from shared.operator.connection_words import Tone
from shared.storage import app_holders

UP = ListedConnection(
    connection_id=7, organization_id=3, version=2, state="active", superseded=False, endpoint="http://a", app="voiceai",
    suspension=None, suspension_reason=None, socket_state="connected", socket_since=None, last_event_at=None,
    reconnects=0, live_calls=0, listener="listener-1", previous_listener=None, problem="", past_problem="refused",
    past_problem_at=None,
)  # fmt: skip


@pytest.mark.parametrize(
    ("listed", "tone", "words"),
    [
        (UP, Tone.GOOD, "Connected: events flow"),
        (
            replace(UP, problem="circuit breaker open in worker-1 (no answer)"), Tone.BAD,
            "Events flow, but requests do not get through: circuit breaker open in worker-1 (no answer)",
        ),
        (
            replace(UP, socket_state="connecting", problem="connection refused"), Tone.BAD,
            "Not connected: the listener tries again: connection refused",
        ),
        (replace(UP, socket_state=app_holders.OCCUPIED), Tone.BAD, "Another process has the app: no socket is opened"),
        (replace(UP, socket_state="of a later release"), Tone.BAD, "The event socket is of a later release"),
        (replace(UP, socket_state=None), Tone.BAD, "The event socket is none"),
        (
            replace(UP, suspension="drain", suspension_reason="maintenance"), Tone.FAIR,
            "Drained: it takes no new calls (maintenance)",
        ),
        (
            replace(UP, suspension="park", socket_state="parked"), Tone.FAIR,
            "Parked by an operator: no event socket is opened",
        ),
        (replace(UP, state="refused", problem="no workflow"), Tone.BAD, "Refused: no workflow"),
        (replace(UP, state="removed", suspension="drain"), Tone.FAIR, "Removed: its calls in progress go on"),
        (
            replace(UP, superseded=True), Tone.FAIR,
            "Superseded by a newer version of its configuration: its calls in progress go on",
        ),
    ],
)  # fmt: skip
def test_a_connection_stands_as_one_sentence_says(listed: ListedConnection, tone: Tone, words: str) -> None:
    assert connection_words.status(listed) == (tone, words)
