"""The mutants that are said to change nothing are still mutants of a line that exists."""

from __future__ import annotations

import pytest

from tests.checks import checkout
from tests.mutation import equivalents
from tests.mutation.equivalents import Equivalent

ALL = equivalents.every()


@pytest.mark.parametrize("one", ALL, ids=[f"{one.module}: {one.becomes or one.line}" for one in ALL])
def test_a_mutant_that_changes_nothing_changes_a_line_that_exists(one: Equivalent) -> None:
    text = checkout.text(one.module)
    lines = {line.strip() for line in text.splitlines()}
    assert one.line in lines, "remove it from tests/mutation/equivalents.toml, or correct it"
    assert f"def {one.function}(" in text or not one.function
    assert one.becomes != one.line
    assert len(one.reason) > 20


def test_none_is_listed_twice() -> None:
    keys = [one.key for one in ALL]
    assert len(keys) == len(set(keys))
