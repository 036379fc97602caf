"""Sealed secrets: any of our keys opens, the first seals."""

from __future__ import annotations

import pytest

from shared import errors
from shared.process import sealing

OLD, NEW, OTHER = "an old key of ours", "a new key of ours!", "another party's key"
SECRET = "p@ss wörd & # % + :"


def test_a_secret_comes_back() -> None:
    sealer = sealing.Sealer((NEW,))
    assert sealer.open(sealer.seal(SECRET)) == SECRET
    assert sealer.open(sealer.seal("")) == ""


def test_a_sealed_secret_does_not_show_it() -> None:
    sealer = sealing.Sealer((NEW,))
    one, two = sealer.seal(SECRET), sealer.seal(SECRET)
    assert SECRET not in one
    assert one != two
    assert one.isascii()


def test_an_old_key_still_opens_after_a_rotation() -> None:
    sealed = sealing.Sealer((OLD,)).seal(SECRET)
    assert sealing.Sealer((NEW, OLD)).open(sealed) == SECRET


def test_the_first_key_seals() -> None:
    sealed = sealing.Sealer((NEW, OLD)).seal(SECRET)
    assert sealing.Sealer((NEW,)).open(sealed) == SECRET
    with pytest.raises(errors.SealBroken):
        sealing.Sealer((OLD,)).open(sealed)


def altered(sealed: str) -> str:
    middle = len(sealed) // 2
    return sealed[:middle] + ("A" if sealed[middle] != "A" else "B") + sealed[middle + 1 :]


@pytest.mark.parametrize(
    "sealed",
    ["", "x", "ü", SECRET, altered(sealing.Sealer((NEW,)).seal(SECRET)), sealing.Sealer((OTHER,)).seal(SECRET)],
)
def test_what_we_did_not_seal_does_not_open(sealed: str) -> None:  # fmt: skip
    with pytest.raises(errors.SealBroken, match="none of the SECRET_KEYs") as caught:
        sealing.Sealer((NEW, OLD)).open(sealed)
    assert not sealed or sealed == "x" or sealed not in str(caught.value)


def test_the_media_secret_is_the_key_s_own_and_not_the_key() -> None:
    assert sealing.media_secret(NEW) == sealing.media_secret(NEW)
    assert sealing.media_secret(NEW) != sealing.media_secret(OLD)
    assert NEW not in sealing.media_secret(NEW)
