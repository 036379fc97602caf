"""From held and read assignments to what is opened and closed."""

from dataclasses import replace

from listener.assignment_changes import Changes, changes
from shared.assignments import Assignment


def assignment(number: int, *, epoch: int = 1, fingerprint: str = "f") -> Assignment:
    return Assignment(
        connection_id=number,
        version=1,
        organization_id=1,
        epoch=epoch,
        endpoint="http://pbx",
        app="app",
        user="user",
        sealed_password="sealed",
        fingerprint=fingerprint,
    )


A, B, C = assignment(1), assignment(2), assignment(3)


def compare(
    held: list[Assignment], read: list[Assignment], *, complete: bool = True, capacity: int = 10, garbled: str = ""
) -> Changes:
    found: dict[str, Assignment | None] = {each.key: each for each in read}
    if garbled:
        found[garbled] = None
    return changes({each.key: each for each in held}, found, complete=complete, capacity=capacity)


def test_new_is_opened_and_known_is_left_alone() -> None:
    assert compare([A], [A, B]) == Changes(to_open=(B,))


def test_gone_is_closed() -> None:
    assert compare([A, B], [B]) == Changes(to_close=(A.key,))


def test_nothing_is_closed_when_redis_may_have_been_emptied() -> None:
    assert compare([A, B], [C], complete=False) == Changes(to_open=(C,), to_yield=(A.key, B.key))


def test_what_another_is_to_take_over_is_kept_and_not_opened_again() -> None:
    draining = replace(A, draining=True)
    assert compare([A, B], [draining, B]) == Changes(to_yield=(A.key,))
    assert compare([draining], [draining]) == Changes(), "told once"
    assert compare([], [draining]) == Changes(), "nothing to keep, nothing to open"
    assert compare([replace(A, epoch=2)], [draining]) == Changes(), "of an older epoch"


def test_what_comes_back_to_us_is_opened_anew() -> None:
    draining, returned = replace(A, draining=True), replace(A, epoch=3)
    assert compare([draining], [returned]) == Changes(to_open=(returned,))
    assert compare([draining], [A]) == Changes(to_open=(A,))


def test_higher_epoch_is_opened_anew() -> None:
    newer = replace(A, epoch=2)
    assert compare([A], [newer]) == Changes(to_open=(newer,))


def test_changed_fingerprint_is_opened_anew() -> None:
    changed = replace(A, fingerprint="g")
    assert compare([A], [changed]) == Changes(to_open=(changed,))


def test_lower_epoch_is_ignored() -> None:
    assert compare([assignment(1, epoch=3)], [assignment(1, epoch=2, fingerprint="g")]) == Changes()


def test_unreadable_assignment_changes_nothing() -> None:
    assert compare([A], [B], garbled=A.key) == Changes(to_open=(B,))


def test_capacity_bounds_what_is_new_but_not_what_is_newer() -> None:
    newer = replace(A, epoch=2)
    assert compare([A], [newer, B, C], capacity=2) == Changes(to_open=(newer, B), beyond_capacity=(C,))
    assert compare([A], [B, C], capacity=2) == Changes(to_open=(B, C), to_close=(A.key,))
