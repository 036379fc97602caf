"""The actors: each reads its message and calls one function of its step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dramatiq

from shared import errors, messages
from shared.core import events
from workers import bridge, media, quota, runs, teardown
from workers.resync import resync_connection
from workers.steps import Tools

_Body = dict[str, Any]


def declare(broker: dramatiq.Broker, tools: Tools) -> None:
    """Makes the broker's actors known to it."""
    actors: dict[str, Callable[[_Body], None]] = {
        "receive_caller": lambda body: quota.receive_caller(
            tools, **_connection(body), at_ms=int(body["at_ms"]), event=_event(body)
        ),
        "decide_admission": lambda body: quota.decide_admission(tools, call_id=_call_id(body)),
        "create_run": lambda body: runs.create_run(tools, call_id=_call_id(body)),
        "start_media": lambda body: media.start_media(tools, **_attempt(body)),
        "note_media_ready": lambda body: bridge.note_media_ready(
            tools, connection_id=_connection(body)["connection_id"], event=_event(body)
        ),
        "check_media": lambda body: bridge.check_media(tools, **_attempt(body)),
        "join_legs": lambda body: bridge.join_legs(tools, **_attempt(body)),
        "note_leg_ended": lambda body: teardown.note_leg_ended(tools, **_connection(body), event=_event(body)),
        "tear_down": lambda body: teardown.tear_down(tools, call_id=_call_id(body)),
        "remove_attempt": lambda body: media.remove_attempt(tools, **_attempt(body)),
        "resync_connection": lambda body: resync_connection(tools, **_connection(body), full=bool(body["full"])),
    }
    for name, work in actors.items():
        _declare(broker, name, work)


def _declare(broker: dramatiq.Broker, name: str, work: Callable[[_Body], None]) -> None:
    def act(**body: Any) -> None:
        messages.check_version(body.get("v"))
        try:
            work(body)
        except (KeyError, TypeError) as exc:
            raise errors.InvalidMessage(f"{name}: unreadable message: {exc!r}") from exc

    queue = messages.ACTORS[name]
    dramatiq.actor(actor_name=name, queue_name=queue, broker=broker, throws=errors.PermanentError)(act)


def _connection(body: _Body) -> dict[str, int]:
    return {"connection_id": int(body["connection_id"]), "version": int(body["connection_version"])}


def _attempt(body: _Body) -> dict[str, Any]:
    return {"call_id": _call_id(body), "attempt": int(body["attempt"])}


def _call_id(body: _Body) -> Any:
    return messages.call_id(body["call_id"])


def _event(body: _Body) -> events.Event:
    return events.decode(body["event"])
