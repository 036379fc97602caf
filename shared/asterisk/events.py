"""ARI events, parsed once at the edge: bounded, typed, or refused.

The peer is a tenant's PBX and is not trusted: anything may be missing, of another type, or hostile. The rest of the
system sees nothing of an event but what is read here.

An event is refused only if it cannot be told what it is about. Text that is shown and decides nothing is cut; a leg
whose deciding text is too long is read so that `unusable` tells, and its call is refused with the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, TypeGuard

from shared import errors


class EventType(StrEnum):
    """The events we ask an Asterisk for; its event filter lets only these through (`wanted`)."""

    STASIS_START = "StasisStart"
    STASIS_END = "StasisEnd"
    CHANNEL_DESTROYED = "ChannelDestroyed"
    CHANNEL_HANGUP_REQUEST = "ChannelHangupRequest"
    DIAL = "Dial"
    APPLICATION_REPLACED = "ApplicationReplaced"
    #: Of a leg with the function TALK_DETECT.
    CHANNEL_TALKING_STARTED = "ChannelTalkingStarted"


def wanted(*, with_talking: bool) -> frozenset[str]:
    """Return the types that the filter of our app lets through."""
    return frozenset(map(str, EventType)) - (frozenset() if with_talking else {EventType.CHANNEL_TALKING_STARTED})


#: Asterisk's own limit is 149 characters (AST_MAX_UNIQUEID); other controllers choose ids too.
_ID_LENGTH = 150
#: Longer text that is only shown is cut there, and ends with "…".
_TEXT_LENGTH = 512
#: A word of Asterisk's own, such as a state.
_WORD_LENGTH = 32
#: Of all arguments together, each with its comma, in UTF-8: what Asterisk's dialplan passes to an application
#: (EXT_DATA_SIZE). However many there are.
ARGS_BYTES = 8192
#: Codes of websockets have four digits, of SIP three.
_LARGEST_TECH_CAUSE = 9999
_EXCERPT = 200
#: The dialplan applications that a channel is in while it is in an app.
_STASIS = frozenset({"Stasis", "StasisBroadcast"})
#: The states of a leg that Asterisk dials, or is to dial, and that has not been answered. Some technologies reserve a
#: line for it first, and dial digits on it.
_UNANSWERED = frozenset({"Down", "Rsrvd", "Dialing", "Dialing Offhook", "Ringing", "Busy"})
#: Ids that are paths of ARI's own below /channels: what is asked for such a channel goes there (measured, 22.10).
_PATHS = frozenset({"create", "externalMedia"})
#: In the place of what is no text.
_NO_TEXT = "\N{REPLACEMENT CHARACTER}"
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
    def is_unanswered(self) -> bool:
        """True for a leg that goes out and has not been answered. One that comes in rings in the state `Ring`."""
        return self.state in _UNANSWERED

    @property
    def is_in_stasis(self) -> bool:
        """True for a channel in some app. In which one, the lists of the apps say: it may have been moved."""
        return self.app_name in _STASIS

    @property
    def stasis_app(self) -> str | None:
        """The app that the channel entered by Stasis(), or None. If it was moved to another one, this one still."""
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
    #: What the channel's technology told, such as the code of SIP. An Asterisk before 22.7 sends none.
    tech_cause: int | None = None
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
_DIAL = [EventType.DIAL.value.encode()]
_DIAL_STATUS = re.compile(rb'"dialstatus"\s*:\s*"([A-Z]*)"')
#: Of a leg that rings, or was answered.
_GOING_WELL = frozenset({b"", b"PROCEEDING", b"PROGRESS", b"RINGING", b"ANSWER"})

#: A process of v0.1.0-rc1 reads no other field: `tech_cause` is beside the event in the message.
_OF_EVENT = tuple(field.name for field in fields(Event) if field.name != "tech_cause")
_OF_CHANNEL = tuple(field.name for field in fields(Channel))


def may_match(raw: bytes) -> bool:
    """Tell from the bytes of a message whether `parse` may have to read it: a prefilter, ten times cheaper than that.

    Returns:
        False only if the message names types, and none that we ask for; or if it is a Dial event of a leg that rings or
        was answered: two of these come with each media leg, just before its StasisStart. One that names no type at all
        is for `parse` to refuse.
    """
    types = _TYPE.findall(raw)
    if types == _DIAL:
        statuses = _DIAL_STATUS.findall(raw)
        return not statuses or not _GOING_WELL.issuperset(statuses)
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
        application=_shown(document, "application"),
        stamp=_shown(document, "timestamp"),
        channel=channel,
        args=_args(document),
        cause=_cause(document, "cause"),
        tech_cause=_cause(document, "tech_cause", most=_LARGEST_TECH_CAUSE),
        cause_text=_shown(document, "cause_txt"),
        dial_status=_shown(document, "dialstatus"),
        replaces=_replaced(replaced) if isinstance(replaced, dict) else None,
    )


def _replaced(document: dict[str, Any]) -> str:
    """Return the id of the channel that was replaced. One that cannot be read is none that we know."""
    value = document.get("id")
    return value if is_id(value) else _NO_TEXT


def parse_channel(document: object) -> Channel:
    """Parse the channel object of an event or of a REST answer.

    Raises:
        InvalidEvent: It has no id, or another shape.
    """
    if not isinstance(document, dict):
        raise errors.InvalidEvent("no channel")
    caller, dialplan = document.get("caller"), document.get("dialplan")
    return Channel(
        id=_identity(document, "id"),
        name=_shown(document, "name"),
        state=_shown(document, "state", length=_WORD_LENGTH),
        created=_identity(document, "creationtime", length=_TEXT_LENGTH),
        caller_number=_shown(caller, "number") if isinstance(caller, dict) else "",
        called_number=_shown(dialplan, "exten") if isinstance(dialplan, dict) else "",
        app_name=_shown(dialplan, "app_name") if isinstance(dialplan, dict) else "",
        # Long enough for the app and too many arguments.
        app_data=_shown(dialplan, "app_data", length=2 * ARGS_BYTES) if isinstance(dialplan, dict) else "",
    )


def unusable(leg: Channel, args: tuple[str, ...]) -> str:
    """Return why a leg cannot be served though it was read; an empty text if it can.

    What decides about it was cut, or is no text; or no request can name it.
    """
    if leg.id in _PATHS:
        return f"no request can name a channel of the id {leg.id}"
    if len(leg.called_number) > _TEXT_LENGTH:
        return f"the called number is longer than {_TEXT_LENGTH} characters"
    if _bytes_of(args) > ARGS_BYTES:
        return f"the arguments of Stasis() are longer than {ARGS_BYTES} bytes together"
    if any(_NO_TEXT in arg for arg in args):
        return "the arguments of Stasis() are not text alone"
    return ""


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
        channel=None if channel is None else replace(channel, app_name="", app_data=""),
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
    """Return the arguments, so that `unusable` tells of what is no text, and of too many: then some are left out."""
    args = document.get("args") or []
    kept: list[str] = []
    left = ARGS_BYTES
    for arg in args if isinstance(args, list) else [args]:
        if left < 0:
            break
        text = arg if isinstance(arg, str) and _is_text(arg) else _NO_TEXT
        kept.append(text[: ARGS_BYTES + 1])
        left -= _bytes_of(kept[-1:])
    return tuple(kept)


def _bytes_of(args: Iterable[str]) -> int:
    return sum(len(arg.encode()) + 1 for arg in args)


def _cause(document: dict[str, Any], key: str, *, most: int = 999) -> int | None:
    """Return a cause; None for one that is none: the event tells all else as well."""
    value = document.get(key)
    return value if type(value) is int and 0 <= value <= most else None


def _identity(document: dict[str, Any], key: str, *, length: int = _ID_LENGTH) -> str:
    """Return a text that tells one channel from all others: as it is, or not at all."""
    text = _checked(document.get(key), key)
    if not text:
        raise errors.InvalidEvent(f"{key} is empty")
    if len(text) > length:
        raise errors.InvalidEvent(f"{key} is longer than {length} characters")
    return text


def _shown(document: dict[str, Any], key: str, *, length: int = _TEXT_LENGTH) -> str:
    """Return a text that makes no event unreadable: cut where it is too long, without what is no text."""
    value = document.get(key)
    if not isinstance(value, str):
        return ""
    if len(value) > length:
        value = f"{value[:length]}…"
    return value if _is_text(value) else "".join(char if _is_text(char) else _NO_TEXT for char in value)


def _checked(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise errors.InvalidEvent(f"{key} is not text")
    if not _is_text(value):
        raise errors.InvalidEvent(f"{key} contains a character that is not text")
    return value


def _is_text(value: str) -> bool:
    # Neither NUL nor half a surrogate pair can be stored in Postgres, and no Asterisk sends them.
    if "\x00" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _excerpt(raw: str | bytes) -> str:
    """Return the start of the message, safe to log."""
    text = raw[:_EXCERPT].decode("utf-8", "replace") if isinstance(raw, bytes) else raw[:_EXCERPT]
    return text.encode("ascii", "backslashreplace").decode("ascii")
