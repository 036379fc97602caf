"""The cheap look at a message before it is parsed."""

import json

import pytest

from listener import sieve
from shared.asterisk import events


@pytest.mark.parametrize("kind", list(events.EventType))
@pytest.mark.parametrize("indent", [None, 2])
def test_wanted_types_pass_wherever_the_type_stands(kind: events.EventType, indent: int | None) -> None:
    assert sieve.may_be_wanted(json.dumps({"type": kind, "channel": {}}, indent=indent).encode())
    assert sieve.may_be_wanted(
        json.dumps({"cause": 16, "channel": {"type": "x"}, "type": kind}, indent=indent).encode()
    )


@pytest.mark.parametrize(
    "raw", [b'{"type":"ChannelVarset","value":"StasisStart"}', b'{"a":1,"type" : "DeviceStateChanged"}']
)
def test_other_types_do_not(raw: bytes) -> None:
    assert not sieve.may_be_wanted(raw)


@pytest.mark.parametrize("raw", [b"", b"garbage", b"\xff\xfe", b"[]", b'{"type":7}', b'{"a":1}'])
def test_what_names_no_type_is_left_to_the_parser(raw: bytes) -> None:
    assert sieve.may_be_wanted(raw)
