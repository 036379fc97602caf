"""The prefilter: a cheap look at a message before it is parsed."""

import json

import pytest

from shared.asterisk import events
from shared.call import dialling


@pytest.mark.parametrize("kind", list(events.EventType))
@pytest.mark.parametrize("indent", [None, 2])
def test_wanted_types_pass_wherever_the_type_stands(kind: events.EventType, indent: int | None) -> None:
    assert events.may_match(json.dumps({"type": kind, "channel": {}}, indent=indent).encode())
    assert events.may_match(json.dumps({"cause": 16, "channel": {"type": "x"}, "type": kind}, indent=indent).encode())


@pytest.mark.parametrize(
    "raw", [b'{"type":"ChannelVarset","value":"StasisStart"}', b'{"a":1,"type" : "DeviceStateChanged"}']
)
def test_other_types_do_not_pass(raw: bytes) -> None:
    assert not events.may_match(raw)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(("status", "passes"), [("", False), ("RINGING", False), ("ANSWER", False), ("BUSY", True)])
def test_a_dial_event_passes_if_its_leg_was_not_answered(status: str, passes: bool, indent: int | None) -> None:
    dial = {"type": "Dial", "dialstatus": status, "peer": {"caller": {"name": '"dialstatus":"CANCEL"'}}}
    assert events.may_match(json.dumps(dial, indent=indent).encode()) is passes


@pytest.mark.parametrize("status", sorted(dialling.UNANSWERED_STATUSES))
def test_what_ends_a_dialling_passes(status: str) -> None:
    assert events.may_match(json.dumps({"dialstatus": status, "type": "Dial"}).encode())


@pytest.mark.parametrize("raw", [b"", b"garbage", b"\xff\xfe", b"[]", b'{"type":7}', b'{"a":1}'])
def test_a_message_without_a_type_is_left_to_the_parser(raw: bytes) -> None:
    assert events.may_match(raw)
