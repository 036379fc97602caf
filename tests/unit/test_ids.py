"""Identity: the product's ids read back exactly, look-alikes never."""

from __future__ import annotations

from uuid import UUID

import pytest

from shared.call import ids

PREFIX = "aip-"
CALL = UUID("0c9a4e52-9c5e-5c53-8a5f-6d0a5d6a2f11")
HEX = CALL.hex


@pytest.mark.parametrize("kind", list(ids.Kind))
@pytest.mark.parametrize("attempt", [1, 2, 10, 999])
@pytest.mark.parametrize("nonce", ["", "4f2a9c01"])
def test_an_own_id_reads_back(kind: ids.Kind, attempt: int, nonce: str) -> None:
    name = ids.own_id(PREFIX, CALL, kind, attempt, nonce)
    assert ids.parse(name) == ids.OwnId(prefix=PREFIX, call_id=CALL, kind=kind, attempt=attempt, nonce=nonce)


def test_media_and_bridge_ids_look_as_documented() -> None:
    assert ids.media_id("aip-k3x9q2-", CALL, 1, "4f2a9c01") == f"aip-k3x9q2-{HEX}-4f2a9c01-m1"
    assert ids.bridge_id("aip-k3x9q2-", CALL, 2, "4f2a9c01") == f"aip-k3x9q2-{HEX}-4f2a9c01-b2"


def test_without_a_nonce_ids_are_those_of_the_release_before() -> None:
    assert ids.media_id(PREFIX, CALL, 1) == f"aip-{HEX}-m1"
    assert ids.bridge_id(PREFIX, CALL, 2) == f"aip-{HEX}-b2"
    assert [ids.has_nonces(prefix) for prefix in ("", "aip-", "aip-k3x9q2-")] == [False, False, True]


def test_no_id_of_an_attempt_begins_that_of_another_nonce() -> None:
    """Asterisk dies of a request for a media leg whose id a live channel's id begins with."""
    names = [ids.media_id(PREFIX, CALL, 1, nonce) for nonce in ("", "4f2a9c01", "4f2a9c02")]
    assert not [(one, other) for one in names for other in names if one != other and other.startswith(one)]


@pytest.mark.parametrize(
    "name",
    [
        "",
        PREFIX,
        HEX,
        f"{PREFIX}{HEX}",
        f"{PREFIX}{HEX}-m",
        f"{PREFIX}{HEX}-m0",
        f"{PREFIX}{HEX}-m01",
        f"{PREFIX}{HEX}-m1000",
        f"{PREFIX}{HEX}-m-1",
        f"{PREFIX}{HEX}-x1",
        f"{PREFIX}{HEX}-M1",
        f"{PREFIX}{HEX}-m1\n",
        f"{PREFIX}{HEX}-m1 ",
        f" {PREFIX}{HEX}-m1",
        f"{PREFIX}{HEX}-m1;2",
        f"{PREFIX}{HEX}-m1/../x",
        f"{PREFIX}{HEX}-m\u0661",
        f"{PREFIX}{HEX.upper()}-m1",
        f"{PREFIX}{CALL}-m1",
        f"{PREFIX}{HEX[:-1]}-m1",
        f"{PREFIX}{HEX}0-m1",
        f"{PREFIX}{HEX}-4f2a9c0-m1",
        f"{PREFIX}{HEX}-4f2a9c012-m1",
        f"{PREFIX}{HEX}-4F2A9C01-m1",
        f"{PREFIX}{HEX}--m1",
        f"{PREFIX}{HEX}-4f2a9c01-4f2a9c01-m1",
        f"{PREFIX}{HEX}-4f2a9c01",
        f"{HEX}-m1",
        f"{'a' * 16}-{HEX}-m1",
        f"AIP-{HEX}-m1",
        "1762000000.12",
    ],
)
def test_a_look_alike_is_no_own_id(name: str) -> None:
    assert ids.parse(name) is None


@pytest.mark.parametrize("prefix", ["aip-", "aip-k3x9q2-", "staging-", "a-"])
def test_an_id_says_with_which_prefix_it_was_made(prefix: str) -> None:
    own = ids.parse(ids.media_id(prefix, CALL, 1))
    assert own == ids.OwnId(prefix=prefix, call_id=CALL, kind=ids.Kind.MEDIA, attempt=1)
    assert ids.is_originated(ids.originated_id(prefix, 7, "request 1"))


ORIGINATED = ids.originated_id(PREFIX, 7, "request 1")


def test_the_same_request_has_the_same_channel_id() -> None:
    assert ids.originated_id(PREFIX, 7, "request 1") == ORIGINATED
    assert ids.originated_id(PREFIX, 8, "request 1") != ORIGINATED
    assert ids.originated_id(PREFIX, 7, "request 2") != ORIGINATED
    # A list is hashed, so that no request id runs into the connection's number.
    assert ids.originated_id(PREFIX, 1, "1,x") != ids.originated_id(PREFIX, 11, ",x")


def test_an_originated_leg_has_an_own_id_and_is_no_media_leg() -> None:
    assert ids.is_originated(ORIGINATED)
    assert ids.parse(ORIGINATED) is None
    assert not ids.is_originated(ids.media_id(PREFIX, CALL, 1))
    for look_alike in (ORIGINATED + ";2", ORIGINATED + "1", ORIGINATED[:-2], f"X{ORIGINATED}", ORIGINATED + "\n"):
        assert not ids.is_originated(look_alike)


def test_a_connection_version_reads_back() -> None:
    version = ids.ConnectionVersion(7, 2)
    assert str(version) == "7:2"
    assert ids.ConnectionVersion.parse("7:2") == version


@pytest.mark.parametrize("text", ["", "7", ":2", "7:", "7:2:1", "a:b"])
def test_anything_else_is_no_connection_version(text: str) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        ids.ConnectionVersion.parse(text)
