"""The console's pages of dead letters on a real Redis and Postgres: what other programs could have put there."""

from __future__ import annotations

import contextlib
import html
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from starlette.testclient import TestClient

from console import app, calls_page, dead_letters_page, signing_in
from shared import errors, queues
from shared.operator import audit, dead_letter_actions, dead_letter_sets
from shared.operator.audit import Actor
from shared.operator.dead_letter_actions import Filter
from shared.storage import database
from tests.integration import test_console
from tests.integration.test_console import csrf, sign_in
from tests.integration.test_dead_letter_commands import put

pytestmark = pytest.mark.services

db = test_console.db
ME = Actor(who="alice@host", via="arictl")


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with contextlib.closing(queues.client(redis_url)) as made:
        yield made


@pytest.fixture
def olga(db: database.Database, redis_url: str) -> Iterator[TestClient]:
    with test_console.serving(db, redis_url=redis_url) as browser:
        made = browser()
        sign_in(made, "olga")
        yield made


def body_of(**fields: Any) -> bytes:
    message = {"queue_name": "teardown", "actor_name": "tear_down", "args": [], "options": {}, "message_id": "m"}
    return json.dumps(message | {"kwargs": fields}).encode()


@pytest.mark.parametrize("call_id", ["\ud800", "<script>", "x" * 10_000, None, {"a": 1}])
def test_a_call_s_id_that_is_none_hides_no_other_letter(olga: TestClient, client: redis.Redis, call_id: object) -> None:
    name = put(client, "E: \0 \u202e <script>", body=body_of(call_id=call_id))
    answer = olga.get("/dead-letters")
    assert (answer.status_code, name in answer.text) == (200, True)
    assert "/calls?call=" not in answer.text
    assert len(answer.text) < 20_000
    assert olga.get(f"/dead-letters/{name}").status_code == 200


def test_letters_whose_error_postgres_cannot_store_are_frozen(client: redis.Redis, db: database.Database) -> None:
    put(client, "E: a\0b")
    frozen = dead_letter_sets.freeze(db, client, ME, Filter())
    assert (frozen.total, frozen.groups) == (1, {"E: a\N{REPLACEMENT CHARACTER}b": 1})


def test_the_link_of_each_group_leads_to_its_letters_and_they_are_frozen(olga: TestClient, client: redis.Redis) -> None:
    cut = "E: " + "x" * 196 + " y"
    for error in ("E: \x1b[31mred", "Ends: \x85", cut, "E: a\tb\0c\x7f", "E: a+b&c=d#%00", "  E: b  "):
        put(client, error)
    for queue in ("\x01\0q\n", " two ", "q" * 600):
        put(client, queue=queue)
    links = re.findall(r'<td class="number">1</td><td><a href="([^"]+)">', olga.get("/dead-letters").text)
    assert len(links) == 9
    for link in map(html.unescape, links):
        answer = olga.get(link)
        assert (answer.status_code, "Retry or discard these 1 " in answer.text) == (200, True), link
        hidden = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', answer.text)
        form = {name: html.unescape(value) for name, value in hidden}
        path = olga.post("/dead-letters/freeze", data=form).headers["location"]
        assert "<dd>1</dd>" in olga.get(path).text, link


def test_a_page_before_the_first_letter_is_refused_and_not_redis_taken_for_away(olga: TestClient) -> None:
    assert olga.get("/dead-letters?before=0-0").status_code == 400


def test_a_set_up_to_what_is_no_letter_is_refused(client: redis.Redis) -> None:
    with pytest.raises(errors.InvalidRequest, match="no letter's id"):
        dead_letter_actions.page(client, Filter(until="now"), limit=1)


def test_the_page_has_a_bound_however_many_kinds_there_are(
    olga: TestClient, client: redis.Redis, db: database.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters_page, "_GROUPS", 3)
    for letter in "abcde":
        put(client, f"E: {letter}")
    text = olga.get("/dead-letters").text
    assert "And 2 kinds with fewer letters." in text
    assert "Retry or discard all 5" in text
    frozen = dead_letter_sets.freeze(db, client, ME, Filter())
    assert "And 2 of 2 other kinds." in olga.get(f"/dead-letter-sets/{frozen.set_id}").text


def test_a_set_is_found_again_by_those_who_have_left_its_page(
    olga: TestClient, client: redis.Redis, db: database.Database
) -> None:
    put(client)
    form = {"csrf": csrf(olga.get("/dead-letters")), "reason": "fixed"}
    path = olga.post("/dead-letters/freeze", data=form).headers["location"]
    assert path in olga.get("/dead-letters").text
    olga.post(f"{path}/order", data={"csrf": form["csrf"], "order": "retry"})
    dead_letter_sets.work(db, client)
    assert path in olga.get("/dead-letters").text, "when no letter is left, too"
    assert path in olga.get("/audit").text
    subject = f"dead letter set {path.rpartition('/')[2]}"
    assert [row.outcome for row in audit.page(db, subject=subject)] == ["done", "asked"]


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/calls", ["call", *calls_page.FILTERS, "after"]),
        ("/connections", ["organization", "after"]),
        ("/dead-letters", ["error", "queue", "group", "before"]),
        ("/usage", ["days", "organization"]),
        ("/steps", ["since"]),
        ("/changes", ["since"]),
        ("/audit", ["subject", "action", "who", "organization", "before"]),
    ],
)
def test_a_control_character_in_a_filter_is_refused_with_a_sentence(
    olga: TestClient, path: str, names: list[str]
) -> None:
    for name in names:
        for value, code in (("a\0b", "U+0000"), ("7\x1b[0m", "U+001B")):
            answer = olga.get(path, params={name: value})
            said = f"{name} has a control character, {code}"
            assert (answer.status_code, said in answer.text) == (400, True), name
    assert olga.get(f"{path}/%00").status_code in (400, 404)


def test_a_control_character_in_a_form_is_refused_and_nothing_done(
    olga: TestClient, client: redis.Redis, db: database.Database
) -> None:
    name = put(client)
    was = len(audit.page(db))
    proof = csrf(olga.get("/dead-letters"))
    for page in app.PAGES:
        if page.act is None or page is signing_in.SIGN_OUT:
            continue
        for field in ("reason", "error", "until", "order", "number", "kept", "call", "since", "theme", "next", "x"):
            answer = olga.post(test_console.some_path(page), data={"csrf": proof, field: "a\0b"})
            said = f"{field} has a control character, U+0000"
            assert (answer.status_code, said in answer.text) == (400, True), (page.path, field)
    assert len(audit.page(db)) == was
    assert olga.get(f"/dead-letters/{name}").status_code == 200


def test_a_control_character_in_a_password_is_a_wrong_password(olga: TestClient) -> None:
    olga.cookies.clear()
    for given in ({"password": "a\0b"}, {"name": "o\x1blga"}, {"next": "/\0"}, {"csrf": "\0"}):
        form = {"csrf": csrf(olga.get("/sign-in")), "name": "vera", "password": "wrong password", **given}
        assert olga.post("/sign-in", data=form).status_code in (401, 403), given


def test_what_is_asked_for_twice_is_done_once(olga: TestClient, client: redis.Redis) -> None:
    name = put(client)
    said = []
    for _ in range(2):
        form = {"csrf": csrf(olga.get("/dead-letters"))}
        assert olga.post(f"/dead-letters/{name}/retry", data=form).status_code == 303
        said.append("gone already" in olga.get("/dead-letters").text)
    assert said == [False, True]


def test_a_double_click_freezes_one_set_and_orders_it_once(
    olga: TestClient, client: redis.Redis, db: database.Database
) -> None:
    put(client)
    before = len(dead_letter_sets.recent(db))
    form = {"csrf": csrf(olga.get("/dead-letters")), "reason": "fixed"}
    (path,) = {olga.post("/dead-letters/freeze", data=form).headers["location"] for _ in range(2)}
    assert len(dead_letter_sets.recent(db)) == before + 1
    again = {"csrf": csrf(olga.get("/dead-letters")), "reason": "fixed"}
    assert olga.post("/dead-letters/freeze", data=again).headers["location"] != path, "another page, another set"
    ordered = {"csrf": csrf(olga.get(path)), "order": "discard"}
    for _ in range(2):
        assert olga.post(f"{path}/order", data=ordered).status_code == 303
