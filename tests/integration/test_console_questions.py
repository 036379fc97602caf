"""The ten questions of docs/troubleshooting.md each have a page of the console, which answers."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from console import changes_page
from shared import keys, queues
from shared.call.calls import Call
from shared.operator import audit
from shared.operator.audit import Action, Actor
from shared.storage import database
from shared.storage.postgres_calls import PostgresCalls
from tests.integration import test_console
from tests.integration.test_console import sign_in
from tests.support.call_rows import CONNECTIONS, make_call

pytestmark = pytest.mark.services

db = test_console.db
PAGE = Path(__file__).parents[2] / "docs/troubleshooting.md"


def pages() -> dict[str, list[str]]:
    """The questions → the addresses of the console's pages that answer them."""
    part = PAGE.read_text().partition("## Ten questions\n")[2].partition("\n## ")[0]
    sections = (section.partition("\n") for section in part.split("\n### ")[1:])
    return {heading: re.findall(r"\(`(/[^`]*)`", text.partition("Console:")[2]) for heading, _, text in sections}


@pytest.fixture(scope="module")
def call(db: database.Database) -> Call:
    """A call that waits for its admission, and a change of each kind but a process."""
    with db.connection() as connection:
        for statement in CONNECTIONS:
            connection.execute(statement)
        done = Action(name="quota set", subject="organization 3")
        audit.record(connection, Actor(who="alice@host", via="arictl"), done)
    return make_call(PostgresCalls(db, who="test", prefix="aip-"))


@pytest.fixture
def olga(db: database.Database, redis_url: str, call: Call) -> Iterator[TestClient]:
    with test_console.serving(db, redis_url=redis_url) as browser:
        made = browser()
        sign_in(made, "olga")
        yield made


def text_of(page: str) -> list[str]:
    """The rows of a page's table as text."""
    return [" ".join(re.sub("<[^>]+>", " ", row).split()) for row in re.findall(r"<tr>.*?</tr>", page, re.DOTALL)]


@pytest.mark.parametrize(("question", "paths"), pages().items(), ids=pages())
def test_each_question_has_a_page_that_answers(olga: TestClient, question: str, paths: list[str]) -> None:
    assert paths, question
    for path in paths:
        assert olga.get(path).status_code == 200, path


def test_which_step_is_slow_is_on_a_page(olga: TestClient, call: Call) -> None:
    assert pages()["Which step is slow"] == ["/steps"]
    (row,) = [row for row in text_of(olga.get("/steps").text) if str(call.call_id)[:8] in row]
    assert re.match(r"worker to .+ 1 [\d,.]+ m?s ", row), row
    assert f'href="/calls/{call.call_id}"' in olga.get("/steps").text
    assert "No calls since then." in olga.get("/steps?since=0s").text
    for path in ("/", "/calls"):
        assert 'href="/steps"' in olga.get(path).text, path


def test_what_changed_is_on_one_page(olga: TestClient) -> None:
    assert "/changes" in pages()["What changed"]
    text = olga.get("/changes").text
    rows = text_of(text)
    assert any(row.endswith("alice@host (arictl) quota set organization 3") for row in rows), rows
    assert any(row.endswith("configuration added connection 2 of organization 4") for row in rows), rows
    assert 'href="/connections/2"' in text
    assert "Nothing has changed since then." in olga.get("/changes?since=0s").text
    assert 'href="/changes"' in olga.get("/audit").text
    assert olga.get("/changes?since=2999-01-01").status_code == 400


def test_a_process_that_has_gone_is_among_the_changes(olga: TestClient, redis_url: str) -> None:
    with contextlib.closing(queues.client(redis_url)) as client:
        seconds, _ = client.time()
        client.zadd(keys.PROCESSES, {"worker/w-7": (seconds - 60) * 1000})
        assert any(row.endswith("worker gone w-7") for row in text_of(olga.get("/changes").text))


def test_without_redis_the_other_changes_are_there_and_the_page_says_so(db: database.Database, call: Call) -> None:
    with test_console.serving(db) as browser:
        made = browser()
        sign_in(made, "olga")
        text = made.get("/changes").text
    assert "Which processes have started or gone is not known" in text
    assert "configuration added" in text


def test_the_changes_are_a_page_with_a_bound(olga: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes_page, "_MOST_ROWS", 1)
    text = olga.get("/changes").text
    assert "Only the newest 1 are on this page" in text
    assert len(text_of(text)) == 2


def test_a_user_of_one_organization_sees_neither(db: database.Database, redis_url: str) -> None:
    with test_console.serving(db, redis_url=redis_url) as browser:
        tom = browser()
        sign_in(tom, "tom")
        assert [tom.get(path).status_code for path in ("/changes", "/steps")] == [403, 403]
        assert "/steps" not in tom.get("/calls").text
