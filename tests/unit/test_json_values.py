"""The platform's JSON columns: what another process wrote is read where it can be, and kept as it is."""

from __future__ import annotations

import json

import pytest

from shared.platform.dograh import json_values

DEEP = "[" * 5000 + "]" * 5000
#: Values that Postgres stores, and that Python does not read or would write as no JSON.
UNREADABLE = [
    pytest.param("1e999", id="infinite"),
    pytest.param("-1e999", id="infinite, below zero"),
    pytest.param("1" * 5000, id="too long a number"),
    pytest.param(DEEP, id="too deep"),
    pytest.param(f'{{"x": {DEEP}}}', id="too deep within"),
    pytest.param("0.1000000000000000055511151231257827", id="more digits than a float has"),
    pytest.param(r'"\ud83d"', id="half a surrogate pair"),
    pytest.param(r'"\u0000"', id="NUL"),
]


@pytest.mark.parametrize("written", UNREADABLE)
def test_a_value_is_kept_as_it_is_written(written: str) -> None:
    text = f'{{"theirs": {written},\n "call_id": "old"}}'
    fields = json_values.fields(text) | json_values.encoded({"call_id": "new"})
    assert fields == {"theirs": written, "call_id": '"new"'}
    assert json_values.document(fields) == f'{{"theirs": {written}, "call_id": "new"}}'


@pytest.mark.parametrize("written", UNREADABLE)
def test_a_member_that_cannot_be_read_harms_no_other(written: str) -> None:
    assert json_values.load_object(f'{{"theirs": {written}, "value": 5}}')["value"] == 5


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"a": 1},
        {"": None, "b": [], "c": {}},
        {"a": {"b": [1, {"c": "}"}], "d": ":,"}, "e": [[], [{}]]},
        {'"': '"', "\\": '\\"', "ü,": "{:}", "[": "]"},
        {"nested": '{"a": "b\\"c"}'},
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_an_object_is_the_same_afterwards(value: dict[str, object], indent: int | None) -> None:
    fields = json_values.fields(json.dumps(value, indent=indent))
    assert {name: json.loads(written) for name, written in fields.items()} == value
    assert json.loads(json_values.document(fields)) == value


def test_of_a_name_that_stands_twice_the_last_value_counts() -> None:
    assert json_values.fields('{"a": 1, "a": 2}') == {"a": "2"}


@pytest.mark.parametrize("text", [None, "null", "[]", '[{"a": 1}]', '"{}"', "5", DEEP])
def test_what_is_no_object_has_no_members(text: str | None) -> None:
    assert json_values.fields(text) == {}
    assert json_values.load_object(text) == {}
