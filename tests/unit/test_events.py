"""Events of an Asterisk: read as recorded, refused when hostile, the same after a broker."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import errors
from shared.asterisk import events
from shared.asterisk.events import EventType

CHANNEL: dict[str, Any] = {
    "id": "1762000000.12",
    "name": "PJSIP/trunk-0000000c",
    "state": "Ring",
    "protocol_id": "a84b4c76e66710",
    "caller": {"name": "", "number": "+4915112345678"},
    "connected": {"name": "", "number": ""},
    "accountcode": "",
    "dialplan": {
        "context": "inbound",
        "exten": "5551234",
        "priority": 4,
        "app_name": "Stasis",
        "app_data": "voiceai,a=1,b=2",
    },
    "creationtime": "2026-05-01T12:00:00.123+0000",
    "language": "en",
}
START: dict[str, Any] = {
    "type": "StasisStart",
    "timestamp": "2026-05-01T12:00:00.125+0000",
    "args": ["a=1", "b=2"],
    "channel": CHANNEL,
    "asterisk_id": "02:42:ac:11:00:02",
    "application": "voiceai",
}
#: As Asterisk 22.10 sends them: the cause first and at the top level, never in the channel.
RECORDED: dict[str, dict[str, Any]] = {
    "ChannelTalkingStarted": {
        "type": "ChannelTalkingStarted",
        "timestamp": "2026-05-01T12:00:01.001+0000",
        "channel": CHANNEL,
        "asterisk_id": "02:42:ac:11:00:02",
        "application": "voiceai",
    },
    "StasisStart": START,
    "StasisEnd": {
        "type": "StasisEnd",
        "timestamp": "2026-05-01T12:00:09.001+0000",
        "channel": CHANNEL,
        "asterisk_id": "02:42:ac:11:00:02",
        "application": "voiceai",
    },
    "ChannelDestroyed": {
        "type": "ChannelDestroyed",
        "timestamp": "2026-05-01T12:00:09.002+0000",
        "cause": 16,
        "cause_txt": "Normal Clearing",
        "channel": CHANNEL,
        "asterisk_id": "02:42:ac:11:00:02",
        "application": "voiceai",
    },
    "ChannelHangupRequest": {
        "cause": 16,
        "type": "ChannelHangupRequest",
        "timestamp": "2026-05-01T12:00:09.000+0000",
        "channel": CHANNEL,
        "asterisk_id": "02:42:ac:11:00:02",
        "application": "voiceai",
    },
    "Dial": {
        "type": "Dial",
        "timestamp": "2026-05-01T12:00:03.000+0000",
        "dialstatus": "BUSY",
        "forward": "",
        "dialstring": "5551234@inbound",
        "peer": CHANNEL | {"id": "peer"},
        "asterisk_id": "02:42:ac:11:00:02",
        "application": "voiceai",
    },
    "ApplicationReplaced": {
        "type": "ApplicationReplaced",
        "timestamp": "2026-05-01T12:00:03.000+0000",
        "asterisk_id": "02:42:ac:11:00:02",
        "application": "voiceai",
    },
}


def parsed(document: object) -> events.Event:
    event = events.parse(json.dumps(document))
    assert event is not None
    return event


def test_every_type_we_ask_for_is_recorded() -> None:
    assert set(RECORDED) == set(EventType)


def test_a_start_is_read_whole() -> None:
    assert parsed(START) == events.Event(
        type=EventType.STASIS_START,
        application="voiceai",
        stamp="2026-05-01T12:00:00.125+0000",
        args=("a=1", "b=2"),
        channel=events.Channel(
            id="1762000000.12",
            name="PJSIP/trunk-0000000c",
            state="Ring",
            created="2026-05-01T12:00:00.123+0000",
            caller_number="+4915112345678",
            called_number="5551234",
            app_name="Stasis",
            app_data="voiceai,a=1,b=2",
        ),
    )


@pytest.mark.parametrize(
    ("name", "cause", "text"),
    [("ChannelDestroyed", 16, "Normal Clearing"), ("ChannelHangupRequest", 16, ""), ("StasisEnd", None, "")],
)
def test_the_cause_is_read_from_the_top_level(name: str, cause: int | None, text: str) -> None:
    event = parsed(RECORDED[name])
    assert (event.cause, event.cause_text, event.leg.id) == (cause, text, CHANNEL["id"])


def test_a_cause_within_the_channel_is_not_the_cause() -> None:
    assert parsed(RECORDED["StasisEnd"] | {"channel": CHANNEL | {"cause": 17}}).cause is None


@pytest.mark.parametrize(
    ("value", "read"),
    [(486, 486), (1001, 1001), (0, 0), (None, None), ("486", None), (True, None), (-1, None), (10**9, None)],
)
def test_the_cause_of_the_technology_is_read_where_it_is_one(value: object, read: int | None) -> None:
    """SIP's code, or a websocket's, from Asterisk 22.7 on."""
    assert parsed(RECORDED["ChannelDestroyed"] | {"tech_cause": value}).tech_cause == read
    assert parsed(RECORDED["ChannelHangupRequest"]).tech_cause is None


def test_a_dial_is_about_its_peer() -> None:
    event = parsed(RECORDED["Dial"] | {"channel": CHANNEL})
    assert (event.leg.id, event.dial_status) == ("peer", "BUSY")


def test_a_replaced_application_has_no_leg() -> None:
    event = parsed(RECORDED["ApplicationReplaced"])
    assert (event.application, event.channel) == ("voiceai", None)
    with pytest.raises(errors.InvalidEvent, match="without a channel"):
        _ = event.leg


def test_a_replaced_channel_is_named() -> None:
    assert parsed(START | {"replace_channel": CHANNEL | {"id": "old.1"}}).replaces == "old.1"
    assert parsed(START | {"replace_channel": None}).replaces is None


@pytest.mark.parametrize("args", [[], ["one"], ["workflow_run_id=1,workflow_id=2"], ["a=1", "", "ü, ) & %"]])
def test_args_are_kept_as_sent(args: list[str]) -> None:
    assert parsed(START | {"args": args}).args == tuple(args)


@pytest.mark.parametrize("caller", [None, {}, {"number": ""}, {"number": None}, {"name": "x"}, "text", 5])
def test_a_missing_caller_is_empty(caller: object) -> None:
    assert parsed(START | {"channel": CHANNEL | {"caller": caller}}).leg.caller_number == ""


def test_a_missing_dialplan_is_empty() -> None:
    leg = parsed(START | {"channel": {key: value for key, value in CHANNEL.items() if key != "dialplan"}}).leg
    assert (leg.called_number, leg.stasis_app, leg.stasis_args) == ("", None, ())


@pytest.mark.parametrize(
    ("app_name", "app_data", "app", "args"),
    [
        ("Stasis", "voiceai", "voiceai", ()),
        ("Stasis", "voiceai,a=1,b=2", "voiceai", ("a=1", "b=2")),
        ("Stasis", "voiceai2,voiceai", "voiceai2", ("voiceai",)),
        ("Stasis", 'voiceai,"a=1,b=2",c', "voiceai", ("a=1,b=2", "c")),
        ("Stasis", "voiceai,a=1\\,b=2,c", "voiceai", ("a=1,b=2", "c")),
        ("Stasis", "voiceai,(a=1,b=2),[c,d]", "voiceai", ("(a=1,b=2)", "[c,d]")),
        ("Stasis", '"voiceai",a\\"b,c)],d', "voiceai", ('a"b', "c)]", "d")),
        ("Stasis", "voiceai,a\\", "voiceai", ("a",)),
        ("Wait", "voiceai", None, ()),
        ("", "", None, ()),
    ],
)
def test_where_a_leg_is(app_name: str, app_data: str, app: str | None, args: tuple[str, ...]) -> None:
    dialplan = CHANNEL["dialplan"] | {"app_name": app_name, "app_data": app_data}
    leg = events.parse_channel(CHANNEL | {"dialplan": dialplan})
    assert (leg.stasis_app, leg.stasis_args) == (app, args)


# ── text that decides nothing, and text that decides ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (("channel", "caller", "number"), "caller_number"),
        (("channel", "name"), "name"),
        (("channel", "dialplan", "app_name"), "app_name"),
        (("cause_txt",), "cause_text"),
        (("timestamp",), "stamp"),
        (("application",), "application"),
        (("dialstatus",), "dial_status"),
    ],
)
def test_what_is_only_shown_makes_no_event_unreadable(path: tuple[str, ...], field: str) -> None:
    for value, shown in (
        ("9" * 512, "9" * 512),
        ("9" * 600, "9" * 512 + "…"),
        ("ü" * 100_000, "ü" * 512 + "…"),
        ("+49\x00\ud800", "+49\ufffd\ufffd"),
        (None, ""),
        (4915112345678, ""),
        (["9"], ""),
    ):
        document = json.loads(json.dumps(RECORDED["ChannelDestroyed"]))
        place = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        event = parsed(document)
        assert getattr(event if len(path) == 1 else event.leg, field) == shown
        assert (event.leg.id, event.cause) == (CHANNEL["id"], 16), shown
        assert events.unusable(event.leg, event.args) == "", shown


@pytest.mark.parametrize("cause", ["16", True, -1, 1000, 2**31, float("nan"), [16], None])
def test_a_cause_that_is_none_hides_no_end(cause: object) -> None:
    event = parsed(RECORDED["ChannelDestroyed"] | {"cause": cause})
    assert (event.leg.id, event.cause) == (CHANNEL["id"], None)


@pytest.mark.parametrize(
    ("args", "is_usable"),
    [
        ([f"a{number}=1" for number in range(70)], True),
        (["x"] * 4096, True),
        (["x"] * 4097, False),
        ([""] * 8193, False),
        (["x" * 8191], True),
        (["x" * 8192], False),
        (["ü" * 4095], True),
        (["ü" * 4096], False),
        (["x" * 3000] * 3, False),
        (["x" * 500_000], False),
    ],
)
def test_arguments_are_bounded_in_bytes_and_not_in_number(args: list[str], *, is_usable: bool) -> None:
    event = parsed(START | {"args": args})
    why = "" if is_usable else "the arguments of Stasis() are longer than 8192 bytes together"
    assert events.unusable(event.leg, event.args) == why
    assert event.args == tuple(args) or not is_usable
    assert sum(len(arg) + 1 for arg in event.args) <= 2 * 8192 + 2, "what is too long goes no further"
    found = events.parse_channel(CHANNEL | {"dialplan": CHANNEL["dialplan"] | {"app_data": ",".join(["app", *args])}})
    assert events.unusable(found, found.stasis_args) == why, "a resync says the same"


@pytest.mark.parametrize("args", [5, {"a": "1"}, ["a", 1], [["a"]], ["a\x00"], ["\udfff"], ["a", None]])
def test_arguments_that_are_not_text_refuse_the_leg_by_name(args: object) -> None:
    event = parsed(START | {"args": args})
    assert event.leg.id == CHANNEL["id"]
    assert events.unusable(event.leg, event.args) == "the arguments of Stasis() are not text alone"


@pytest.mark.parametrize("args", [None, [], ""])
def test_a_leg_may_bring_no_arguments(args: object) -> None:
    event = parsed(START | {"args": args})
    assert (event.args, events.unusable(event.leg, event.args)) == ((), "")


@pytest.mark.parametrize("replaced", [{}, {"id": None}, {"id": 5}, {"id": ""}, {"id": "x" * 151}, {"id": "a\x00"}])
def test_a_replaced_channel_that_cannot_be_read_is_none_that_we_know(replaced: object) -> None:
    event = parsed(START | {"replace_channel": replaced})
    assert (event.leg.id, event.replaces) == (CHANNEL["id"], "\ufffd")
    assert events.decode(events.encode(event)).replaces == "\ufffd"


@pytest.mark.parametrize("name", ["create", "externalMedia"])
def test_a_channel_that_no_request_can_name_is_refused(name: str) -> None:
    leg = parsed(START | {"channel": CHANNEL | {"id": name}}).leg
    assert events.unusable(leg, ()) == f"no request can name a channel of the id {name}"
    assert not events.unusable(parsed(START | {"channel": CHANNEL | {"id": f"{name}-1"}}).leg, ())


def test_a_called_number_that_was_cut_is_refused_by_name() -> None:
    dialled = parsed(START | {"channel": CHANNEL | {"dialplan": {"exten": "5" * 513}}}).leg
    assert events.unusable(dialled, ()) == "the called number is longer than 512 characters"
    assert not events.unusable(parsed(START | {"channel": CHANNEL | {"dialplan": {"exten": "5" * 512}}}).leg, ())


@pytest.mark.parametrize("kind", ["ChannelVarset", "stasisstart", "", "BridgeDestroyed"])
def test_other_types_are_nothing(kind: str) -> None:
    assert events.parse(json.dumps(START | {"type": kind})) is None


def hostile() -> dict[str, str | bytes]:
    def without(key: str) -> str:
        return json.dumps({name: value for name, value in START.items() if name != key})

    def channel(**fields: object) -> str:
        return json.dumps(START | {"channel": CHANNEL | fields})

    return {
        "nothing": "",
        "no JSON": "{",
        "not UTF-8": b"\xff\xfe\xfa{",
        "a list": "[]",
        "a string": '"StasisStart"',
        "a number too long to read": '{"type":' + "9" * 5000 + "}",
        "deep lists": "[" * 100_000,
        "deep objects": '{"a":' * 100_000,
        "deep inside an event": json.dumps(START)[:-1] + ',"x":' + "[" * 50_000 + "]" * 50_000 + "}",
        "no type": without("type"),
        "type null": json.dumps(START | {"type": None}),
        "type a list": json.dumps(START | {"type": ["StasisStart"]}),
        "no channel": without("channel"),
        "channel a string": json.dumps(START | {"channel": "1762000000.12"}),
        "channel a list": json.dumps(START | {"channel": [CHANNEL]}),
        "no channel id": channel(id=None),
        "channel id empty": channel(id=""),
        "channel id a number": channel(id=1762000000.12),
        "channel id an object": channel(id={"a": 1}),
        "channel id too long": channel(id="x" * 151),
        "no creationtime": channel(creationtime=None),
        "NUL in an id": channel(id="a\x00b"),
        "lone low surrogate": channel(id="\udfff"),
        "an id of 10 MB": channel(id="x" * 10_000_000),
        "a Dial without a peer": json.dumps(
            {key: value for key, value in RECORDED["Dial"].items() if key != "peer"} | {"channel": CHANNEL}
        ),
    }


HOSTILE = hostile()


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_what_is_no_event_is_refused(name: str) -> None:
    raw = HOSTILE[name]
    with pytest.raises(errors.InvalidEvent) as caught:
        events.parse(raw)
    assert len(caught.value.excerpt) <= 2000
    assert caught.value.excerpt.isascii()
    assert bool(caught.value.excerpt) == bool(raw)


def test_both_text_and_bytes_are_read() -> None:
    text = json.dumps(START)
    assert events.parse(text.encode()) == events.parse(text)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
_places = st.sampled_from([
    ("type",), ("application",), ("timestamp",), ("args",), ("cause",), ("cause_txt",), ("dialstatus",), ("peer",),
    ("replace_channel",), ("channel",), ("channel", "id"), ("channel", "creationtime"), ("channel", "caller"),
    ("channel", "caller", "number"), ("channel", "dialplan"), ("channel", "dialplan", "app_data"),
])  # fmt: skip


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    base=st.sampled_from(sorted(RECORDED)),
    changes=st.lists(st.tuples(_places, _json), max_size=3),
)
def test_an_event_is_read_or_refused_never_anything_else(
    base: str, changes: list[tuple[tuple[str, ...], object]]
) -> None:
    document = json.loads(json.dumps(RECORDED[base]))
    for path, value in changes:
        place = document
        for key in path[:-1]:
            place = place[key] if isinstance(place.get(key), dict) else place.setdefault(f"no {key}", {})
        place[path[-1]] = value
    try:
        event = events.parse(json.dumps(document))
    except errors.InvalidEvent:
        return
    if event is not None:
        # All that is read can be stored and sent on.
        assert "\x00" not in repr(event)
        assert events.decode(json.loads(json.dumps(events.encode(event)).encode())) == events.carried(event)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(raw=st.binary(max_size=40) | st.text(max_size=40) | _json.map(json.dumps))
def test_whatever_comes_in_is_read_or_refused(raw: str | bytes) -> None:
    with contextlib.suppress(errors.InvalidEvent):
        events.parse(raw)


# ── through the broker ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_an_event_comes_back_from_its_message(name: str) -> None:
    event = parsed(RECORDED[name] | {"replace_channel": CHANNEL})
    assert events.decode(json.loads(json.dumps(events.encode(event)))) == events.carried(event)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"type": "StasisStart"},
        {"type": "Other", "application": "a"},
        {"type": ["StasisStart"], "application": "a"},
        {"type": "StasisStart", "application": "a", "channel": {"id": "x"}},
        {"type": "StasisStart", "application": "a", "channel": "x"},
        {"type": "StasisStart", "application": "a", "args": 5},
        {"type": "StasisStart", "application": "a", "unknown": 5},
    ],
)
def test_what_is_no_encoded_event_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidEvent, match="not an encoded event"):
        events.decode(document)
