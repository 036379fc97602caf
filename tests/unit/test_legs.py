"""What a call has on its Asterisk: the names of its legs and bridges follow from the call alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shared.call import ids
from shared.call.legs import Naming, Role
from tests.support.calls import CALL_ID, CONNECTED, PREPARED

NAMING = Naming("aip-")
HEX = CALL_ID.hex


def test_the_legs_of_a_call_are_its_caller_and_the_newest_attempt_s_media_leg() -> None:
    call = replace(CONNECTED, attempt=2)
    assert NAMING.legs(call) == {Role.CALLER: call.channel_id, Role.MEDIA: f"aip-{HEX}-m2"}
    assert NAMING.media_id(call) == f"aip-{HEX}-m2"
    assert NAMING.bridge_id(call) == f"aip-{HEX}-b2"


def test_an_attempt_names_what_its_requests_may_have_created_and_not_the_caller() -> None:
    attempt = NAMING.attempt(replace(CONNECTED, attempt=2), 1)
    assert attempt.number == 1
    assert attempt.legs == {Role.MEDIA: f"aip-{HEX}-m1"}
    assert attempt.bridge_id == f"aip-{HEX}-b1"


def test_every_attempt_that_was_committed_may_have_left_something() -> None:
    assert list(NAMING.attempts(PREPARED)) == []
    call = replace(CONNECTED, attempt=3)
    assert [attempt.number for attempt in NAMING.attempts(call)] == [1, 2, 3]
    names = [name for attempt in NAMING.attempts(call) for name in (*attempt.legs.values(), attempt.bridge_id)]
    assert len(set(names)) == 6


def test_every_name_leads_back_to_its_call() -> None:
    for attempt in NAMING.attempts(replace(CONNECTED, attempt=2)):
        for name in (*attempt.legs.values(), attempt.bridge_id):
            own = ids.parse(name)
            assert own is not None
            assert (own.call_id, own.attempt) == (CALL_ID, attempt.number)


def test_each_attempt_has_its_own_nonce() -> None:
    # Its second attempt is of a release without nonces.
    call = replace(CONNECTED, attempt=3, attempt_nonces=("4f2a9c01", "", "0c11d2e3"))
    names = [attempt.bridge_id for attempt in NAMING.attempts(call)]
    assert names == [f"aip-{HEX}-4f2a9c01-b1", f"aip-{HEX}-b2", f"aip-{HEX}-0c11d2e3-b3"]
    assert (call.nonce, NAMING.bridge_id(call)) == ("0c11d2e3", names[2])
    assert NAMING.attempt(call, 1, "77777777").bridge_id == f"aip-{HEX}-77777777-b1"


@pytest.mark.parametrize(
    ("attempt", "nonce", "is_known"),
    [
        (1, "4f2a9c01", True),
        (2, "", True),
        (1, "0c11d2e3", False),
        (1, "", False),
        (2, "4f2a9c01", False),
        (3, "", False),
    ],
)
def test_an_id_is_known_by_number_and_nonce(attempt: int, nonce: str, *, is_known: bool) -> None:
    call = replace(CONNECTED, attempt=2, attempt_nonces=("4f2a9c01",))
    own = ids.parse(ids.media_id("aip-", CALL_ID, attempt, nonce))
    assert own is not None
    assert NAMING.is_known(call, own) is is_known


def test_another_installation_names_nothing_alike() -> None:
    ours, theirs = NAMING.attempt(CONNECTED, 1), Naming("b-").attempt(CONNECTED, 1)
    assert not {*ours.legs.values(), ours.bridge_id} & {*theirs.legs.values(), theirs.bridge_id}


def test_a_call_keeps_the_prefix_that_its_ids_were_made_with() -> None:
    call = replace(CONNECTED, id_prefix="aip-k3x9q2-")
    assert NAMING.media_id(call) == f"aip-k3x9q2-{HEX}-m1"
    assert NAMING.bridge_id(call) == f"aip-k3x9q2-{HEX}-b1"
    assert [attempt.bridge_id for attempt in NAMING.attempts(call)] == [f"aip-k3x9q2-{HEX}-b1"]
    for name, is_ours in ((NAMING.media_id(call), True), (NAMING.media_id(CONNECTED), False)):
        own = ids.parse(name)
        assert own is not None
        assert NAMING.is_of(call, own) is is_ours
