"""By which terms a connection's calls are served, and what may be dialled."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import errors
from shared.call import call_settings
from shared.call.call_requests import CallRequest

VALUE: dict[str, Any] = {"ws_client_name": "media"}


def test_the_usual_terms() -> None:
    usual = call_settings.CallSettings(
        media_client="media", call_seconds=None, dial_template="PJSIP/{number}", caller_id=None
    )
    assert call_settings.parse(VALUE) == usual


def test_a_configuration_s_own_terms() -> None:
    value = VALUE | {
        "ari_max_call_seconds": 90,
        "ari_dial_template": "PJSIP/{number}@trunk",
        "from_numbers": ["", 5, "+4930 1", "+49301"],
    }
    assert call_settings.parse(value) == call_settings.CallSettings(
        media_client="media", call_seconds=90.0, dial_template="PJSIP/{number}@trunk", caller_id="+49301"
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ws_client_name": None}, "ws_client_name is missing"),
        ({"ws_client_name": ["media"]}, "ws_client_name holds what is not text"),
        *(
            ({"ari_max_call_seconds": seconds}, "ari_max_call_seconds is not a number of seconds")
            for seconds in ("90", 0, -1, True, 86401, float("nan"), [90])
        ),
        *(
            ({"ari_dial_template": template}, "ari_dial_template is not like PJSIP/")
            for template in (
                "PJSIP/100", "{number}", "PJSIP{number}", "PJSIP/{number}{number}", "PJSIP/{number}&PJSIP/9",
                "PJSIP/{number},30", "PJSIP/{number} ", "Local/{number}@a(b)", "PJSIP/{number}\n", "PJSIP/{nummer}", 5,
            )
        ),
    ],
)  # fmt: skip
def test_unusable_terms_are_named(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(errors.InvalidConfiguration, match=reason):
        call_settings.parse(VALUE | changes)


@pytest.mark.parametrize("value", [None, [], "x", 5])
def test_what_is_no_configuration_has_no_terms(value: object) -> None:
    with pytest.raises(errors.InvalidConfiguration):
        call_settings.parse(value)
    assert not call_settings.continue_in_dialplan(value)


@pytest.mark.parametrize(
    ("setting", "continue_in_dialplan"), [("continue", True), ("hangup", False), (None, False), (5, False)]
)
def test_refused_callers_go_on_only_where_it_says_so(setting: object, continue_in_dialplan: bool) -> None:
    assert call_settings.continue_in_dialplan({"ari_on_refusal": setting}) is continue_in_dialplan


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
