"""From the pool's assignments and those read from Redis to the sockets to open, drain and close."""

from dataclasses import replace

from listener.socket_pool import Changes, diff
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
    assigned: list[Assignment], read: list[Assignment], *, complete: bool = True, capacity: int = 10, garbled: str = ""
) -> Changes:
    found: dict[str, Assignment | None] = {each.key: each for each in read}
    if garbled:
        found[garbled] = None
    return diff({each.key: each for each in assigned}, found, complete=complete, capacity=capacity)


def test_a_new_assignment_is_opened_and_a_known_one_left_alone() -> None:
    assert compare([A], [A, B]) == Changes(to_open=(B,))


def test_a_revoked_assignment_is_closed() -> None:
    assert compare([A, B], [B]) == Changes(to_close=(A.key,))


def test_nothing_is_closed_when_redis_may_have_been_emptied() -> None:
    assert compare([A, B], [C], complete=False) == Changes(to_open=(C,), to_drain=(A.key, B.key))


def test_a_draining_socket_is_kept_and_not_opened_again() -> None:
    draining = replace(A, draining=True)
    assert compare([A, B], [draining, B]) == Changes(to_drain=(A.key,))
    assert compare([draining], [draining]) == Changes(), "drained once"
    assert compare([], [draining]) == Changes(), "nothing to keep, nothing to open"
    assert compare([replace(A, epoch=2)], [draining]) == Changes(), "of an older epoch"


def test_an_assignment_that_no_longer_drains_is_opened_again() -> None:
    draining, returned = replace(A, draining=True), replace(A, epoch=3)
    assert compare([draining], [returned]) == Changes(to_open=(returned,))
    assert compare([draining], [A]) == Changes(to_open=(A,))


def test_a_higher_epoch_is_opened_again() -> None:
    newer = replace(A, epoch=2)
    assert compare([A], [newer]) == Changes(to_open=(newer,))


def test_a_changed_fingerprint_is_opened_again() -> None:
    changed = replace(A, fingerprint="g")
    assert compare([A], [changed]) == Changes(to_open=(changed,))


def test_a_lower_epoch_is_ignored() -> None:
    assert compare([assignment(1, epoch=3)], [assignment(1, epoch=2, fingerprint="g")]) == Changes()


def test_an_unreadable_assignment_changes_nothing() -> None:
    assert compare([A], [B], garbled=A.key) == Changes(to_open=(B,))


def test_capacity_bounds_new_assignments_but_not_newer_ones() -> None:
    newer = replace(A, epoch=2)
    assert compare([A], [newer, B, C], capacity=2) == Changes(to_open=(newer, B), beyond_capacity=(C,))
    assert compare([A], [B, C], capacity=2) == Changes(to_open=(B, C), to_close=(A.key,))
