"""The requests that calls send several of at the same time, as values: `Ari.together` or `Ari.ask` sends them."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared import errors
from shared.asterisk import events
from shared.asterisk.events import Channel
from shared.asterisk.rest import Request, plain

#: A day: longer than a call.
_SILENCE_MS = 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridge:
    """A bridge and who is in it."""

    id: str
    channels: frozenset[str]


def channel(channel_id: str) -> Request[Channel | None]:
    """Ask for a channel; the result is None if there is none with that id."""
    return Request(method="GET", path=("channels", channel_id), read=_parsed_channel, outcomes={404: None})


def create_media(channel_id: str, *, app: str, client: str, parameters: Mapping[str, str], args: str) -> Request[None]:
    """Create a media leg. Success is not readiness: the leg is ready at its own StasisStart.

    The id must never have been used before: a second request with it crashes this Asterisk (measured, 22.10).

    Args:
        args: The arguments of its StasisStart.
    """
    query = {
        "app": app,
        "external_host": client,
        "format": "ulaw",
        "transport": "websocket",
        "encapsulation": "none",
        "connection_type": "client",
        "direction": "both",
        "channelId": channel_id,
        "transport_data": transport_data(parameters),
        "data": args,
    }
    return Request(method="POST", path=("channels", "externalMedia"), query=query, read=no_result)


def answer(channel_id: str) -> Request[bool]:
    """Answer a channel; twice is harmless. The result is False if the channel is gone."""
    return _unless_gone("POST", "channels", channel_id, "answer")


def set_variable(channel_id: str, name: str, value: str) -> Request[bool]:
    """Set a channel variable, for the dialplan. The result is False if the channel is gone."""
    return _unless_gone("POST", "channels", channel_id, "variable", query={"variable": name, "value": value})


def detect_talking(channel_id: str) -> Request[bool]:
    """Have Asterisk tell when a leg sends audio: by one ChannelTalkingStarted, at the first frame, silent or not.

    A party talks until so many ms of silence are over. By Asterisk's 2,500 it would send an event for each utterance.
    The result is False if the channel is gone.
    """
    return set_variable(channel_id, "TALK_DETECT(set)", str(_SILENCE_MS))


def continue_in_dialplan(channel_id: str) -> Request[bool]:
    """Let a leg continue in the dialplan, after Stasis. The result is False if it is gone, or has left Stasis."""
    path = ("channels", channel_id, "continue")
    return Request(method="POST", path=path, read=_done, outcomes={404: False, 409: False})


def hang_up(channel_id: str, cause: int | None = None) -> Request[bool]:
    """Hang up a channel. The result is False if it was gone; True if it was told to, which takes it a moment."""
    query = {"reason_code": str(cause)} if cause else None
    return _unless_gone("DELETE", "channels", channel_id, query=query)


def create_bridge(bridge_id: str) -> Request[None]:
    """Create a mixing bridge. A 409 means that we created it before: the id is ours."""
    query = {"type": "mixing", "name": bridge_id}
    return Request(method="POST", path=("bridges", bridge_id), query=query, read=no_result, outcomes={409: None})


def bridge(bridge_id: str) -> Request[Bridge | None]:
    """Ask for a bridge; the result is None if there is none with that id."""
    return Request(method="GET", path=("bridges", bridge_id), read=parsed_bridge, outcomes={404: None})


def add_legs(bridge_id: str, channel_ids: Sequence[str]) -> Request[None]:
    """Put legs into a bridge. Refused with 422 if one of them is not in Stasis; then none is added.

    A leg that is in the bridge already would leave and come back, which is audible: check first.
    """
    # In the query it would be one text, which Asterisk takes apart at commas, quotes and backslashes (measured, 22.10).
    body = {"channel": list(channel_ids)}
    return Request(method="POST", path=("bridges", bridge_id, "addChannel"), body=body, read=no_result)


def remove_bridge(bridge_id: str) -> Request[bool]:
    """Remove a bridge, but not its channels. The result is False if it was gone."""
    return _unless_gone("DELETE", "bridges", bridge_id)


def _unless_gone(method: str, *path: str, query: Mapping[str, str] | None = None) -> Request[bool]:
    return Request(method=method, path=path, query=query, read=_done, outcomes={404: False})


def transport_data(parameters: Mapping[str, str]) -> str:
    """Return `v(a=1,b=2)`, the query of the media URL. Values are encoded: a raw `)` or `,` would inject."""
    pairs = (f"{name}={urllib.parse.quote(value, safe='')}" for name, value in parameters.items())
    return f"v({','.join(pairs)})"


def no_result(_document: Any) -> None:
    """Read nothing from an answer: its status says all."""


def _done(_document: Any) -> bool:
    return True


def _parsed_channel(document: Any) -> Channel:
    try:
        return events.parse_channel(document)
    except errors.InvalidEvent as exc:
        raise errors.AnswerUnreadable(f"the answer is not a readable channel: {exc}", may_have_acted=False) from exc


def parsed_bridge(document: Any) -> Bridge:
    """Return the bridge of an answer."""
    if not isinstance(document, dict) or not isinstance(document.get("id"), str):
        raise errors.AsteriskUnreachable("the answer is not a readable bridge", may_have_acted=False)
    bridge_id = document["id"] if events.is_id(document["id"]) else plain(document["id"])
    return Bridge(id=bridge_id, channels=listed_ids(document, "channels"))


def listed_ids(document: dict[str, Any], key: str) -> frozenset[str]:
    """Return the ids in a list of an answer, as they are: they are compared and asked for. What is none is left out."""
    return frozenset(filter(events.is_id, listed(document, key)))


def listed(document: dict[str, Any], key: str) -> list[Any]:
    """Return a list of an answer; an empty one if there is none."""
    value = document.get(key) or []
    if not isinstance(value, list):
        raise errors.AsteriskUnreachable(f"the answer's {key} is not a list", may_have_acted=False)
    return value
