"""How a run ends: what is written into it when its call is over, as the platform writes it of its own calls.

It is written under the run's lock, and key by key: what other processes wrote stays. A run that is over stays as it is,
whichever side has ended it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from shared.call.calls import Call
from shared.call.states import Direction, Outcome
from shared.platform.dograh import json_values, outbox
from shared.storage import database

#: Of gathered_context: the legs of an attempt. They are written with the run, also for legs that are never joined.
_LEGS = ("ext_channel_id", "bridge_id")
#: The platform tells by these of a call that it has placed and that came to nothing.
_TAGS = "call_tags"
#: Why a campaign calls once more, by the run's disposition.
_RETRIES = {"busy": "busy", "no-answer": "no_answer"}

_LOCK = """
SELECT state::text AS state, is_completed, campaign_id, queued_run_id, gathered_context::text AS gathered_context,
       usage_info::text AS usage_info, logs::text AS logs
FROM workflow_runs WHERE id = %s FOR UPDATE
"""
_WRITE = """
UPDATE workflow_runs SET state = 'completed', is_completed = true, gathered_context = %s, usage_info = %s, logs = %s
WHERE id = %s
"""


def lock(connection: database.Connection, run_id: int) -> database.Row | None:
    """Return a run, locked until the end of the transaction; None for one that is gone."""
    return connection.execute(_LOCK, [run_id]).fetchone()


def end(connection: database.Connection, call: Call, media: Mapping[str, str], *, tells: bool) -> None:
    """End the run of a call within the caller's transaction; what is written goes with the commit.

    Args:
        media: The ids of the legs that were joined; empty for a call that never connected.
        tells: Whether the platform is told of a run whose call never connected: nothing of its own was in that call.
    """
    assert call.workflow_run_id is not None
    run = lock(connection, call.workflow_run_id)
    if run is None or run["is_completed"] or run["state"] == "completed":
        return
    gathered = json_values.fields(run["gathered_context"]) | json_values.encoded(media)
    logs = json_values.fields(run["logs"])
    disposition = _disposition(call)
    if call.connected_at is None:
        gathered = _never_connected(gathered, call, disposition)
        if _is_turned_away(call):
            logs |= json_values.encoded({"realtime_feedback_events": [_error_event(call)]})
    for key in ("call_disposition", "mapped_call_disposition"):
        gathered.setdefault(key, json.dumps(disposition))
    usage = json_values.fields(run["usage_info"])
    usage |= json_values.encoded({"call_duration_seconds": round(call.talk_seconds)})
    documents = [json_values.document(fields) for fields in (gathered, usage, logs)]
    connection.send(_WRITE, [*documents, call.workflow_run_id])
    # In another state the voice agent has it, and its own end tells of it.
    if tells and call.connected_at is None and run["state"] == "initialized":
        outbox.put(
            connection,
            call.workflow_run_id,
            campaign_id=run["campaign_id"],
            queued_run_id=run["queued_run_id"],
            retry_reason=_RETRIES.get(disposition),
        )


def _never_connected(gathered: Mapping[str, str], call: Call, disposition: str) -> dict[str, str]:
    ended = {key: value for key, value in gathered.items() if key not in _LEGS}
    ended |= json_values.encoded({"error": call.reason or _NEVER_CONNECTED})
    if call.direction is Direction.OUTBOUND and not _is_turned_away(call):
        found = json_values.load(gathered.get(_TAGS))
        tags = found if isinstance(found, list) else []
        tags += [tag for tag in ("not_connected", f"telephony_{disposition}") if tag not in tags]
        ended |= json_values.encoded({_TAGS: tags})
    return ended


_NEVER_CONNECTED = "never connected"


def _is_turned_away(call: Call) -> bool:
    """Return whether a call was refused that had a run of ours already: by the quota that is asked about a run."""
    is_ours = call.direction is Direction.INBOUND or call.request_id is not None
    return call.outcome is Outcome.REFUSED and is_ours


def _error_event(call: Call) -> dict[str, object]:
    """Return the error that the platform shows in the run's transcript."""
    moment = call.ending_at or call.state_since
    return {
        "type": "rtf-pipeline-error",
        "payload": {"error": call.reason or _NEVER_CONNECTED, "fatal": True, "processor": "call_start"},
        "timestamp": moment.isoformat(timespec="milliseconds"),
        "turn": 0,
    }


def _disposition(call: Call) -> str:
    match call.outcome:
        case Outcome.COMPLETED:
            return "completed"
        case Outcome.BUSY | Outcome.NO_ANSWER:
            return str(call.outcome)
        case Outcome.CANCELED | Outcome.ABANDONED:
            return "canceled"
        case Outcome.REFUSED:
            return "error" if _is_turned_away(call) else "failed"
        case Outcome.FAILED if call.direction is Direction.OUTBOUND and call.attempt == 0:
            # The far end was not reached.
            return "failed"
        case _:
            return "error"
