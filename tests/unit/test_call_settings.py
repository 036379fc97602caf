"""Numbers, dial templates and call requests: what may be dialled."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import errors
from shared.call import call_settings
from shared.call.call_requests import CallRequest


@pytest.mark.parametrize("number", ["+4930123456", "100", "*97", "#1", "alice", "a.b_c-d", " 100 "])
def test_numbers_that_can_be_dialled(number: str) -> None:
    assert call_settings.endpoint("PJSIP/{number}@trunk", number) == f"PJSIP/{number.strip()}@trunk"


@pytest.mark.parametrize(
    "number",
    ["", " ", "1 2", "1@trunk", "1/2", "1&PJSIP/2", "1,30", "1(2)", "1;2", "1\n2", "1\x00", "{number}", "\u0661",
     "é", "-1", ".1", "1" * 65, "${EXTEN}", "%31", "sip:1@x", "\"x\" <1>"],
)  # fmt: skip
def test_what_could_mean_something_else_is_not_dialled(number: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="is no number"):
        call_settings.endpoint("PJSIP/{number}@trunk", number)


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(st.text(max_size=80))
def test_an_endpoint_is_the_template_with_one_plain_word_in_it(number: str) -> None:
    try:
        endpoint = call_settings.endpoint("PJSIP/{number}@trunk", number)
    except errors.InvalidRequest:
        return
    technology, _, rest = endpoint.partition("/")
    dialled, _, trunk = rest.partition("@")
    assert (technology, trunk) == ("PJSIP", "trunk")
    assert not set(dialled) & set("/@&,;:()[]{}<>\"'\\$%?= \t\r\n\x00")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"request_id": ""}, "request id"),
        ({"request_id": "x" * 201}, "request id"),
        ({"request_id": "a\x00"}, "request id"),
        ({"ring_seconds": 0.5}, "ring time"),
        ({"ring_seconds": 601}, "ring time"),
        ({"workflow_id": None}, "neither a workflow"),
        ({"caller_id": "x <1>"}, "is no number"),
        ({"number": "1@2"}, "is no number"),
    ],
)
def test_a_request_that_cannot_be_placed_says_why(changes: dict[str, Any], reason: str) -> None:
    asked: dict[str, Any] = {"organization_id": 1, "number": "100", "request_id": "r", "workflow_id": 7}
    assert CallRequest(**asked).checked() == CallRequest(**asked)
    with pytest.raises(errors.InvalidRequest, match=reason):
        CallRequest(**(asked | changes)).checked()
