"""ARI events, parsed once at the edge: bounded, typed, or refused.

The peer is a tenant's PBX and is not trusted: anything may be missing, of another type, or hostile. The rest of the
system sees nothing of an event but what is read here.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, TypeGuard

from shared import errors


class EventType(StrEnum):
    """The events we ask an Asterisk for; its event filter lets only these through."""

    STASIS_START = "StasisStart"
    STASIS_END = "StasisEnd"
    CHANNEL_DESTROYED = "ChannelDestroyed"
    CHANNEL_HANGUP_REQUEST = "ChannelHangupRequest"
    DIAL = "Dial"
    APPLICATION_REPLACED = "ApplicationReplaced"


#: Asterisk's own limit is 149 characters (AST_MAX_UNIQUEID); other controllers choose ids too.
_ID_LENGTH = 150
_TEXT_LENGTH = 512
_ARGS = 64
_ARG_LENGTH = 4096
#: Of all together: what Asterisk's dialplan passes to an application (EXT_DATA_SIZE).
_ARGS_LENGTH = 8192
_EXCERPT = 200
#: What keeps a comma from separating two arguments.
_QUOTING = re.compile(r'["\\(\[]')
_CLOSES = {")": "(", "]": "["}


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """A channel as an event or a GET shows it."""

    id: str
    name: str
    state: str
    #: `creationtime`, text as Asterisk wrote it: an event and a GET give the same.
    created: str
    caller_number: str
    called_number: str
    #: The dialplan application it is in: `Stasis` for a leg that is in a Stasis app, with `app,arg1,arg2` in app_data.
    app_name: str
    app_data: str

    @property
    def stasis_app(self) -> str | None:
        """The Stasis app the channel is in, or None."""
        return _arguments(self.app_data)[0] if self.app_name == "Stasis" else None

    @property
    def stasis_args(self) -> tuple[str, ...]:
        """The arguments it entered Stasis with, as StasisStart had them."""
        return tuple(_arguments(self.app_data)[1:]) if self.app_name == "Stasis" else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One ARI event of a type we asked for."""

    type: EventType
    application: str
    #: Asterisk's own clock: compared only with other stamps of the same Asterisk.
    stamp: str
    channel: Channel | None = None
    args: tuple[str, ...] = ()
    #: Q.850. At the event's top level, not in its channel.
    cause: int | None = None
    cause_text: str = ""
    dial_status: str = ""
    #: The channel that this one replaced (masquerade, pick-up): not a new call.
    replaces: str | None = None

    @property
    def leg(self) -> Channel:
        """Its channel. Raises InvalidEvent if it has none."""
        if self.channel is None:
            raise errors.InvalidEvent(f"{self.type} without a channel")
        return self.channel


#: `type` stands anywhere: ChannelHangupRequest puts `cause` first.
_TYPE = re.compile(rb'"type"\s*:\s*"([A-Za-z]+)"')
_WANTED_TYPES = frozenset(kind.value.encode() for kind in EventType)

_OF_EVENT = tuple(field.name for field in fields(Event))
_OF_CHANNEL = tuple(field.name for field in fields(Channel))


def may_match(raw: bytes) -> bool:
    """Tell from the bytes of a message whether `parse` may have to read it: a prefilter, ten times cheaper than that.

    Returns:
        False only if the message names types, and none that we ask for. One that names no type at all is for `parse`
        to refuse.
    """
    types = _TYPE.findall(raw)
    return not types or not _WANTED_TYPES.isdisjoint(types)


def parse(raw: str | bytes) -> Event | None:
    """Parse one websocket message.

    Returns:
        The event; None if it is of a type we do not ask for.

    Raises:
        InvalidEvent: It is not JSON, not an event, or has another shape than its type.
    """
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise errors.InvalidEvent("not JSON", _excerpt(raw)) from exc
    if not isinstance(document, dict):
        raise errors.InvalidEvent("not a JSON object", _excerpt(raw))
    try:
        return _event(document)
    except errors.InvalidEvent as exc:
        exc.excerpt = _excerpt(raw)
        raise


def _event(document: dict[str, Any]) -> Event | None:
    kind = document.get("type")
    if not isinstance(kind, str):
        raise errors.InvalidEvent("no type")
    try:
        event_type = EventType(kind)
    except ValueError:
        return None
    channel = None
    if event_type is EventType.DIAL:
        channel = parse_channel(document.get("peer"))
    elif event_type is not EventType.APPLICATION_REPLACED:
        channel = parse_channel(document.get("channel"))
    replaced = document.get("replace_channel")
    return Event(
        type=event_type,
        application=_text(document, "application", required=True),
        stamp=_text(document, "timestamp"),
        channel=channel,
        args=_args(document),
        cause=_number(document, "cause"),
        cause_text=_text(document, "cause_txt"),
        dial_status=_text(document, "dialstatus"),
        replaces=_text(replaced, "id", required=True, length=_ID_LENGTH) if isinstance(replaced, dict) else None,
    )


def parse_channel(document: object) -> Channel:
    """Parse the channel object of an event or of a REST answer.

    Raises:
        InvalidEvent: It has no id, or another shape.
    """
    if not isinstance(document, dict):
        raise errors.InvalidEvent("no channel")
    caller, dialplan = document.get("caller"), document.get("dialplan")
    return Channel(
        id=_text(document, "id", required=True, length=_ID_LENGTH),
        name=_text(document, "name"),
        state=_text(document, "state"),
        created=_text(document, "creationtime", required=True),
        caller_number=_text(caller, "number") if isinstance(caller, dict) else "",
        called_number=_text(dialplan, "exten") if isinstance(dialplan, dict) else "",
        app_name=_text(dialplan, "app_name") if isinstance(dialplan, dict) else "",
        app_data=_text(dialplan, "app_data", length=_ARGS * _ARG_LENGTH) if isinstance(dialplan, dict) else "",
    )


def is_id(value: object) -> TypeGuard[str]:
    """Whether it is the id of a channel or bridge: one that an event may name and Postgres can store."""
    return isinstance(value, str) and 0 < len(value) <= _ID_LENGTH and "\x00" not in value and _is_text(value)


def _arguments(app_data: str) -> list[str]:
    """Take the arguments of a dialplan application apart as Asterisk does (measured, 22.10): its event has them so.

    A comma within quotes, parentheses or brackets, or after a backslash, separates nothing; quotes and backslashes go.
    """
    if not _QUOTING.search(app_data):
        return app_data.split(",")
    arguments, depths, is_quoted, characters = [""], {"(": 0, "[": 0}, False, iter(app_data)
    for character in characters:
        if character == "\\":
            arguments[-1] += next(characters, "")
        elif character == '"':
            is_quoted = not is_quoted
        elif character == "," and not (is_quoted or any(depths.values())):
            arguments.append("")
        else:
            arguments[-1] += character
            if character in depths:
                depths[character] += 1
            elif (opening := _CLOSES.get(character)) is not None:
                depths[opening] = max(0, depths[opening] - 1)
    return arguments


def carried(event: Event) -> Event:
    """Return the event without what no step reads: where a leg is, is asked.

    Arguments are of those who come or leave. Asterisk gives a StasisEnd none: who sends it on puts them there.
    """
    channel = event.channel
    return replace(
        event,
        application="",
        channel=None if channel is None else replace(channel, state="", app_name="", app_data=""),
        args=event.args if event.type in (EventType.STASIS_START, EventType.STASIS_END) else (),
    )


def encode(event: Event) -> dict[str, Any]:
    """Return the event as plain JSON values, for a broker message: what `carried` leaves of it."""
    event = carried(event)
    values = {name: value for name in _OF_EVENT if (value := getattr(event, name)) not in (None, "", ())}
    # v0.1.0-rc1 wants each of these to be there.
    values["application"] = ""
    if event.channel is not None:
        values["channel"] = {name: getattr(event.channel, name) for name in _OF_CHANNEL}
    return values


def decode(document: dict[str, Any]) -> Event:
    """Return what is carried of the event that `encode` made these values of.

    Raises:
        InvalidEvent: They have another shape.
    """
    try:
        values = dict(document)
        channel = values.pop("channel", None)
        values["type"] = EventType(values["type"])
        values["args"] = tuple(values.get("args", ()))
        values.setdefault("stamp", "")
        return Event(channel=Channel(**channel) if channel is not None else None, **values)
    except (KeyError, TypeError, ValueError) as exc:
        raise errors.InvalidEvent("not an encoded event", _excerpt(repr(document))) from exc


def _args(document: dict[str, Any]) -> tuple[str, ...]:
    args = document.get("args", [])
    if not isinstance(args, list) or len(args) > _ARGS:
        raise errors.InvalidEvent("args is not a short list")
    checked = tuple(_checked(arg, "args", _ARG_LENGTH) for arg in args)
    if sum(map(len, checked)) > _ARGS_LENGTH:
        raise errors.InvalidEvent(f"args are longer than {_ARGS_LENGTH} characters together")
    return checked


def _number(document: dict[str, Any], key: str) -> int | None:
    value = document.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1000:
        raise errors.InvalidEvent(f"{key} is not a small number")
    return value


def _text(document: dict[str, Any], key: str, *, required: bool = False, length: int = _TEXT_LENGTH) -> str:
    value = document.get(key)
    if value is None and not required:
        return ""
    text = _checked(value, key, length)
    if required and not text:
        raise errors.InvalidEvent(f"{key} is empty")
    return text


def _checked(value: object, key: str, length: int) -> str:
    if not isinstance(value, str):
        raise errors.InvalidEvent(f"{key} is not text")
    if len(value) > length:
        raise errors.InvalidEvent(f"{key} is longer than {length} characters")
    # Neither NUL nor half a surrogate pair can be stored in Postgres, and no Asterisk sends them.
    if "\x00" in value or not _is_text(value):
        raise errors.InvalidEvent(f"{key} contains a character that is not text")
    return value


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _excerpt(raw: str | bytes) -> str:
    """Return the start of the message, safe to log."""
    text = raw[:_EXCERPT].decode("utf-8", "replace") if isinstance(raw, bytes) else raw[:_EXCERPT]
    return text.encode("ascii", "backslashreplace").decode("ascii")
