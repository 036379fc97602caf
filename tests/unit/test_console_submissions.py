"""A form that is sent twice acts once, also while the first time is under way; what failed is tried again."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

import pytest
from starlette.responses import Response

from console import submissions, tokens
from console.submissions import Submissions
from shared import errors

FORM = {"csrf": "of this page", "reason": "x"}


class Act:
    """Counts how often it is called, and takes its time."""

    def __init__(self, *, fails: int = 0, status: int = 303) -> None:
        self.called = 0
        self.fails = fails
        self.status = status
        self.may_end = threading.Event()

    def __call__(self) -> Response:
        self.called += 1
        assert self.may_end.wait(5)
        if self.called <= self.fails:
            raise errors.TransientError("Postgres is away")
        return Response(str(self.called), self.status)


@pytest.mark.parametrize("status", [200, 303])
def test_two_at_once_act_once_and_are_answered_alike(status: int) -> None:
    made, act = Submissions(), Act(status=status)
    with ThreadPoolExecutor(2) as threads:
        sent = [threads.submit(made.once, "/a", dict(FORM), act) for _ in range(2)]
        until = time.monotonic() + 5
        while not any(each.is_awaited for each in list(made._answers.values())) and time.monotonic() < until:
            time.sleep(0.001)
        act.may_end.set()
        assert {one.result(5).body for one in sent} == {b"1"}
    assert act.called == 1


def test_one_form_holds_two_threads_however_often_it_is_sent() -> None:
    """One acts, and one waits for its answer: further ones would take the threads that answer all pages."""
    made, act = Submissions(), Act()
    with ThreadPoolExecutor(12) as threads:
        sent = [threads.submit(made.once, "/a", dict(FORM), act) for _ in range(12)]
        told = as_completed(sent, timeout=4)
        for _ in range(10):
            with pytest.raises(errors.TransientError, match="look again in a moment"):
                next(told).result()
        act.may_end.set()
        assert [one.result().body for one in told] == [b"1", b"1"]


@pytest.mark.parametrize(("status", "called"), [(303, 1), (401, 1), (200, 2), (503, 2), (429, 2)])
def test_only_what_has_acted_and_a_wrong_password_are_answered_from_memory(status: int, called: int) -> None:
    """A page that was reloaded shows what is so now; a sign-in that failed without Postgres is tried again with it."""
    made, act = Submissions(), Act(status=status)
    act.may_end.set()
    assert [made.once("/a", FORM, act).body for _ in range(2)] == [b"1", str(called).encode()]


def test_other_forms_act_by_themselves() -> None:
    made, act = Submissions(), Act()
    act.may_end.set()
    for path, form in (
        ("/a", FORM),
        ("/b", FORM),
        ("/a", FORM | {"csrf": "of another"}),
        ("/a", FORM | {"reason": ""}),
    ):
        made.once(path, form, act)
    assert act.called == 4


def test_what_failed_is_tried_again() -> None:
    made, act = Submissions(), Act(fails=1)
    act.may_end.set()
    with pytest.raises(errors.TransientError):
        made.once("/a", FORM, act)
    assert made.once("/a", FORM, act).body == b"2"


def test_answers_are_kept_for_a_time_and_in_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submissions, "MOST", 3)
    made, act = Submissions(), Act()
    act.may_end.set()
    for number in range(9):
        made.once(f"/{number}", FORM, act)
        assert len(made._answers) <= 3
    monkeypatch.setattr(submissions, "KEPT_SECONDS", -1.0)
    made.once("/8", FORM, act)
    assert (act.called, len(made._answers)) == (10, 1)


def test_each_page_s_forms_are_proved_apart() -> None:
    one, other = tokens.proof("token"), tokens.proof("token")
    assert one != other
    assert tokens.proves(one, "token")
    assert tokens.proves(other, "token")
    assert not tokens.proves(one[:-1] + ("0" if one[-1] != "0" else "1"), "token")
    assert not tokens.proves(other[:16] + one[16:], "token"), "it is of its page"
    assert not tokens.proves(one, "another")
    assert not tokens.proves("", "token")
