"""Pages stay short, and no two product files have one name."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

from tests.checks import checkout

WORDS = {"README.md": 1800, "docs/architecture.md": 2500}
GLOSSARY_ROWS = 60
#: Names that every package has one of.
OF_EACH_PACKAGE = {"__init__.py", "main.py"}


@pytest.mark.parametrize("page", WORDS)
def test_a_page_is_short(page: str) -> None:
    count = len(checkout.text(page).split())
    assert count <= WORDS[page], f"{page}: {count} words, {count - WORDS[page]} too many"


def test_the_glossary_explains_only_words_that_need_it() -> None:
    lines = checkout.text("docs/glossary.md").splitlines()
    rows = [line for line in lines if line.startswith("|") and not re.match(r"\| *(?:Word|---)", line)]
    assert len(rows) <= GLOSSARY_ROWS, f"{len(rows)} rows, {len(rows) - GLOSSARY_ROWS} too many"


def test_no_two_product_files_have_one_name() -> None:
    by_name: dict[str, list[str]] = defaultdict(list)
    for path in checkout.product_files(".py", ".lua"):
        by_name[path.rpartition("/")[2]].append(path)
    twice = {name: paths for name, paths in by_name.items() if len(paths) > 1 and name not in OF_EACH_PACKAGE}
    assert twice == {}, "\n".join(f"{name}: {', '.join(paths)}" for name, paths in twice.items())
