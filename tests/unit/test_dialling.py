"""How the dialling of an unanswered leg came out, by dial status and hang-up cause; and Asterisk's causes."""

from __future__ import annotations

import pytest

from shared.call import dialling
from shared.call.dialling import Doubt
from shared.call.states import Cause, Outcome


@pytest.mark.parametrize(
    ("status", "cause", "expected"),
    [
        ("BUSY", None, (Outcome.BUSY, "busy", 17)),
        ("BUSY", 0, (Outcome.BUSY, "busy", 17)),
        ("BUSY", 16, (Outcome.BUSY, "busy", 16)),
        ("NOANSWER", None, (Outcome.NO_ANSWER, "not answered", 19)),
        ("CANCEL", 0, (Outcome.NO_ANSWER, "not answered", 19)),
        ("CONGESTION", 0, (Outcome.FAILED, "congestion", 42)),
        # A rejected leg has the status NOANSWER, too (measured, 22.10).
        ("NOANSWER", 21, (Outcome.FAILED, "rejected", 21)),
        ("NOANSWER", 17, (Outcome.BUSY, "busy", 17)),
        ("NOANSWER", 1, (Outcome.FAILED, "unallocated number", 1)),
        ("CANCEL", 21, (Outcome.NO_ANSWER, "not answered", 21)),
        ("NOANSWER", 16, (Outcome.NO_ANSWER, "not answered", 16)),
        ("CHANUNAVAIL", None, (Outcome.FAILED, "not reached", None)),
        ("CHANUNAVAIL", 20, (Outcome.FAILED, "not reached, cause 20", 20)),
        (None, 0, (Outcome.FAILED, "not reached", None)),
        (None, 1, (Outcome.FAILED, "unallocated number", 1)),
        (None, 17, (Outcome.BUSY, "busy", 17)),
        (None, 18, (Outcome.NO_ANSWER, "not answered", 18)),
        (None, 19, (Outcome.NO_ANSWER, "not answered", 19)),
        (None, 34, (Outcome.FAILED, "congestion", 34)),
        (None, 42, (Outcome.FAILED, "congestion", 42)),
    ],
)
def test_the_dial_status_counts_first_the_cause_second(
    status: str | None, cause: int | None, expected: tuple[Outcome, str, int | None]
) -> None:
    assert dialling.dial_outcome(status, cause) == expected


@pytest.mark.parametrize(
    ("status", "cause", "doubt"),
    [
        ("BUSY", None, Doubt.NONE),
        ("CONGESTION", None, Doubt.NONE),
        ("NOANSWER", 21, Doubt.NONE),
        (None, 17, Doubt.NONE),
        ("NOANSWER", None, Doubt.REASON),
        ("NOANSWER", 0, Doubt.REASON),
        ("CANCEL", 16, Doubt.REASON),
        ("CHANUNAVAIL", None, Doubt.ALL),
        (None, 16, Doubt.ALL),
        (None, None, Doubt.ALL),
    ],
)
def test_some_answers_tell_it_all(status: str | None, cause: int | None, doubt: Doubt) -> None:
    assert dialling.doubt(status, cause) is doubt


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(17, 16, 17), (16, 17, 17), (17, 21, 17), (0, 16, 16), (16, 0, 16), (16, 31, 16), (None, 19, 19), (0, None, 0)],
)
def test_of_two_causes_the_one_that_tells_how_the_dialling_came_out_counts(
    first: int | None, second: int | None, expected: int | None
) -> None:
    assert dialling.clearer(first, second) == expected


def test_the_causes_are_those_of_asterisk_and_one_that_it_gives_to_no_media_leg_by_itself() -> None:
    """By its causes.h, where each is named AST_CAUSE_…. The one of Q.850 is not among them."""
    assert {cause.name: cause.value for cause in Cause} == {
        "CALL_CLEARED": 86,
        "UNALLOCATED": 1,
        "NO_ROUTE_DESTINATION": 3,
        "NORMAL": 16,
        "BUSY": 17,
        "NO_RESPONSE": 18,
        "NO_ANSWER": 19,
        "REJECTED": 21,
        "NO_CIRCUIT": 34,
        "NETWORK_OUT_OF_ORDER": 38,
        "TEMPORARY_FAILURE": 41,
        "CONGESTION": 42,
        "NOT_ALLOWED": 57,
        "RECOVERY_ON_TIMER": 102,
    }
