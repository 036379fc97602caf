"""The console on a real Postgres: who gets in, what a user may see and do, and when a session ends."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
from starlette.responses import Response
from starlette.testclient import TestClient

from console import app, main, signing_in, tokens
from console.pages import Page, Visit
from console.submissions import Submissions
from devstack import platform_tables, servers
from shared import errors
from shared.operator import passwords, users
from shared.operator.users import Role, Users
from shared.process import settings
from shared.storage import database
from tests import databases
from tests.support import log_records
from tests.support.cheap_passwords import hashed_cheaply

pytestmark = pytest.mark.services

PASSWORD = "correct horse battery"
LOCAL = "http://127.0.0.1:8090"
DONE: list[str] = []


def act(visit: Visit) -> Response:
    DONE.append(visit.user.name)
    return visit.see("/done", "It was done: <b>all</b> of it.")


def show(visit: Visit) -> Response:
    return visit.render("problem.html", text=visit.parameter("q"), problem_title="Shown")


def fail(visit: Visit) -> Response:
    raise RuntimeError("this page is broken")


PAGES = (
    *app.PAGES,
    Page(path="/act", title="Act", act=act),
    Page(path="/done", title="Done", show=show, navigation="Done", for_organizations=True),
    Page(path="/broken", title="Broken", show=fail),
)


@pytest.fixture(scope="module")
def db(
    postgres_server: servers.Postgres, database_templates: Callable[[platform_tables.Layout], str]
) -> Iterator[database.Database]:
    with databases.borrowed(postgres_server.url, database_templates("stand-alone")) as url:
        made = database.Database(url, size=4)
        made.open()
        with hashed_cheaply():
            for name, role, organization in ADDED:
                Users(made).add(name, PASSWORD, role, organization)
            yield made
        made.close()


ADDED: tuple[tuple[str, Role, int | None], ...] = (
    ("olga", "operate", None), ("vera", "view", None), ("tom", "operate", 7),
)  # fmt: skip


def config(**given: Any) -> settings.Web:
    required = {
        "redis_url": "redis://none",
        "database_url": "postgresql://none",
        "secret_key": "a key for these tests",
    }
    return settings.Web.model_validate(required | given)


@contextlib.contextmanager
def serving(
    db: database.Database, *, url: str = LOCAL, peer: str = "127.0.0.1", **given: Any
) -> Iterator[Callable[[], TestClient]]:
    """The console, and a function that returns a new browser."""
    application = app.Application(config(**given), db, PAGES, platform=main.platform(config(**given), db))
    yield lambda: TestClient(application.asgi, base_url=url, client=(peer, 1), follow_redirects=False)


@pytest.fixture
def browser(db: database.Database) -> Iterator[Callable[[], TestClient]]:
    with serving(db) as made:
        yield made


def csrf(answer: Any) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', answer.text)
    assert found is not None, answer.text
    return found[1]


def sign_in(browser: TestClient, name: str, password: str = PASSWORD, *, to: str = "/", **headers: str) -> Any:
    form = {"csrf": csrf(browser.get("/sign-in", headers=headers)), "name": name, "password": password, "next": to}
    return browser.post("/sign-in", data=form, headers=headers)


def some_path(page: Page) -> str:
    """Return a path of a page, with something for each of its parameters."""
    path = re.sub(r"\{\w+:uuid\}", "0c9a4e52-9c5e-5c53-8a5f-6d0a5d6a2f11", page.path)
    return re.sub(r"\{\w+\}", "1-0", re.sub(r"\{\w+:id\}", "1", path))


# ── getting in ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_a_session_every_page_leads_to_the_sign_in_page_and_back(browser: Callable[[], TestClient]) -> None:
    made = browser()
    for page in PAGES:
        path = some_path(page)
        if page.show is not None:
            answer = made.get(path)
            assert answer.status_code == 303, page
            assert answer.headers["location"].startswith("/sign-in?next=%2F")
        if page.act is not None:
            assert made.post(path, data={"csrf": ""}).headers["location"] == "/sign-in"
    assert made.get("/", headers={"hx-request": "true"}).headers["hx-redirect"] == "/sign-in?next=%2F"
    assert made.get("/live").status_code == 401
    assert made.get("/live", headers={"sec-fetch-site": "same-site"}).status_code == 403
    assert DONE == []
    answer = sign_in(made, "olga", to="/done?q=x")
    assert (answer.status_code, answer.headers["location"]) == (303, "/done?q=x")
    assert "olga" in made.get("/done?q=x").text


def test_the_session_s_cookie_is_out_of_reach_of_scripts_and_other_sites(browser: Callable[[], TestClient]) -> None:
    cookie = sign_in(browser(), "olga").headers["set-cookie"].lower()
    assert cookie.startswith("ari-session=")
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "path=/" in cookie


def test_over_tls_the_cookie_is_secure_and_bound_to_the_host(db: database.Database) -> None:
    given = {"console_url": "https://console.example", "console_proxies": "10.0.0.0/24", "console_host": "0.0.0.0"}
    with serving(db, url="https://console.example", peer="10.0.0.5", **given) as browser:
        answer = sign_in(browser(), "olga", **{"x-forwarded-proto": "https"})
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("__Host-ari-session=")
        assert "Secure" in cookie


@pytest.mark.parametrize("name", ["olga", "no-such-user", "", "olga\0", "x" * 5000])
def test_what_does_not_fit_is_told_alike_whoever_it_names(browser: Callable[[], TestClient], name: str) -> None:
    answer = sign_in(browser(), name, "wrong password")
    assert answer.status_code == 401
    assert "Name and password do not fit." in answer.text
    assert "ari-session" not in answer.headers.get("set-cookie", "")


def test_a_password_in_the_wrong_field_is_in_no_log(browser: Callable[[], TestClient]) -> None:
    with log_records.kept() as logged:
        for name in (PASSWORD, "olga"):
            sign_in(browser(), name, "wrong password")
    refused = [vars(record)["user"] for record in logged.records if record.getMessage() == "sign-in refused"]
    assert refused == ["unknown", "olga"]


def test_wrong_passwords_lock_the_name_and_no_other(browser: Callable[[], TestClient]) -> None:
    made = browser()
    for _ in range(5):
        assert sign_in(made, "olga", "wrong password").status_code == 401
    answer = sign_in(made, "olga")
    assert answer.status_code == 429
    assert "Try again in 5 min" in answer.text
    assert sign_in(made, "vera").status_code == 303


def test_a_name_that_others_have_locked_is_not_locked_where_its_user_was_before(
    browser: Callable[[], TestClient],
) -> None:
    """Five requests in five minutes would keep an operator out for ever."""
    olga, other = browser(), browser()
    sign_in(olga, "olga")
    sign_in(other, "vera")
    for _ in range(6):
        answer = sign_in(other, "olga", "wrong password")
    assert answer.status_code == 429
    assert sign_in(other, "olga").status_code == 429
    assert sign_in(browser(), "olga").status_code == 429
    for _ in range(5):
        assert sign_in(olga, "olga", "wrong password").status_code == 401
    assert sign_in(olga, "olga").status_code == 429, "there it is locked as well, by what was tried there"


def test_a_name_is_not_spelled_in_other_ways_to_escape_its_lock(browser: Callable[[], TestClient]) -> None:
    made = browser()
    for _ in range(5):
        sign_in(made, "olga", "wrong password")
    for name in ("olga\0", "o\0lga", " OLGA "):
        assert sign_in(made, name).status_code in (401, 429), name


def test_wrong_passwords_lock_the_network_of_an_ipv6_address(db: database.Database) -> None:
    """A host has all addresses of it to ask from."""
    for peers, last in ((("2001:db8::1", "2001:db8::ffff:2"), 429), (("2001:db8::1", "2001:db8:0:1::1"), 401),
                        (("::ffff:192.0.2.1", "::ffff:192.0.2.2"), 401)):  # fmt: skip
        with serving(db, console_sign_in_attempts=1) as browser:
            made = browser()
            for number, peer in enumerate((*[peers[0]] * 4, peers[1])):
                made._transport.client = (peer, 1)  # type: ignore[attr-defined]
                answer = sign_in(made, f"name{number}", "wrong password")
            assert answer.status_code == last, peers


def test_wrong_passwords_of_many_names_lock_the_address(db: database.Database) -> None:
    with serving(db, console_sign_in_attempts=1) as browser:
        made = browser()
        answers = [sign_in(made, f"name{number}", "wrong password").status_code for number in range(5)]
        assert answers == [401, 401, 401, 401, 429]
        assert sign_in(made, "olga").status_code == 429


def test_signing_in_leads_nowhere_else(browser: Callable[[], TestClient]) -> None:
    for to in ("https://evil.example/", "//evil.example", "/\\evil.example", "", "evil", "/\n/evil.example"):
        assert sign_in(browser(), "vera", to=to).headers["location"] == "/", to


def test_the_sign_in_form_is_one_of_ours(browser: Callable[[], TestClient]) -> None:
    made = browser()
    given = {"name": "olga", "password": PASSWORD, "next": "/"}
    assert made.post("/sign-in", data=given).status_code == 403
    another = csrf(browser().get("/sign-in"))
    assert made.post("/sign-in", data=given | {"csrf": another}).status_code == 403
    form = given | {"csrf": csrf(made.get("/sign-in"))}
    assert made.post("/sign-in", data=form, headers={"sec-fetch-site": "cross-site"}).status_code == 403


# ── what a user may see and do ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def done() -> Iterator[list[str]]:
    DONE.clear()
    yield DONE
    DONE.clear()


def test_an_action_needs_the_role_and_the_session_s_own_form(
    browser: Callable[[], TestClient], done: list[str]
) -> None:
    olga, vera = browser(), browser()
    sign_in(olga, "olga")
    sign_in(vera, "vera")
    proof = csrf(olga.get("/done"))
    assert olga.post("/act", data={"csrf": ""}).status_code == 403
    assert olga.post("/act", data={"csrf": csrf(vera.get("/done"))}).status_code == 403
    assert olga.post("/act", data={"csrf": proof}, headers={"sec-fetch-site": "same-site"}).status_code == 403
    assert olga.get("/act").status_code == 405
    refused = vera.post("/act", data={"csrf": csrf(vera.get("/done"))})
    assert (refused.status_code, "has the role view" in refused.text) == (403, True)
    assert done == []
    answer = olga.post("/act", data={"csrf": proof})
    assert (answer.status_code, done) == (303, ["olga"])
    assert "It was done: &lt;b&gt;all&lt;/b&gt; of it." in olga.get("/done").text
    assert "It was done" not in olga.get("/done").text, "told once"


def test_a_user_of_one_organization_sees_no_page_of_all(browser: Callable[[], TestClient], done: list[str]) -> None:
    tom = browser()
    sign_in(tom, "tom")
    assert tom.get("/").headers["location"] == "/calls"
    answer = tom.get("/broken")
    assert (answer.status_code, "organization 7 alone" in answer.text) == (403, True)
    shown = tom.get("/done")
    assert shown.status_code == 200
    assert ">Overview<" not in shown.text
    assert tom.post("/act", data={"csrf": csrf(shown)}).status_code == 403
    assert done == []


def test_a_page_is_never_kept_and_runs_nothing_that_stands_in_it(browser: Callable[[], TestClient]) -> None:
    made = browser()
    sign_in(made, "olga")
    answer = made.get("/done", params={"q": "<script>alert(1)</script>\u202e" + "x" * 10_240})
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert "&lt;script&gt;alert(1)" in answer.text
    assert len(answer.text) < 6_000
    overview = made.get("/").text
    assert "Redis is away" in overview, "what is away says so, and the rest is shown"
    for text in (answer.text, overview, browser().get("/sign-in").text):
        assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", text)


def test_forms_are_bounded(browser: Callable[[], TestClient], done: list[str]) -> None:
    made = browser()
    sign_in(made, "olga")
    assert made.post("/act", data={"csrf": "x" * 70_000}).status_code == 413
    assert made.post("/act", content="&".join(f"a{n}=1" for n in range(600)), headers=FORM).status_code == 400
    assert made.post("/act", json={"csrf": "x"}).status_code == 415
    assert done == []


FORM = {"content-type": "application/x-www-form-urlencoded"}


def test_a_page_that_fails_tells_no_more_than_that(browser: Callable[[], TestClient]) -> None:
    made = browser()
    sign_in(made, "olga")
    answer = made.get("/broken")
    assert answer.status_code == 500
    assert "this page is broken" not in answer.text
    assert answer.headers["content-security-policy"]
    assert made.get("/nothing-here").status_code == 404


def test_what_is_refused_before_a_page_is_asked_is_a_page_too(browser: Callable[[], TestClient]) -> None:
    """With a title and a language: a browser shows a bare text, which an operator takes for a fault."""
    made = browser()
    for answer, status in (
        (made.get("/nothing-here"), 404),
        (made.get("/calls/0c9a4e52-9c5e-5c53-8a5f-6d0a5d6a2f11/hang-up"), 405),
        (made.post("/act", data={"csrf": "x" * 70_000}), 413),
    ):
        assert answer.status_code == status
        assert '<html lang="en"' in answer.text
        assert "<title>" in answer.text


def test_a_fault_outside_of_any_page_is_logged_and_has_the_headers(
    browser: Callable[[], TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing_in, "_local", lambda _path: 1 / 0)
    with log_records.kept() as logged:
        answer = browser().get("/sign-in")
    assert answer.status_code == 500
    assert answer.headers["content-security-policy"]
    assert "division" not in answer.text
    assert "request failed" in logged.messages


def test_while_it_is_not_known_who_asks_a_page_says_so(
    browser: Callable[[], TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = browser()
    sign_in(made, "olga")
    monkeypatch.setattr(users, "_FIND", "SELECT %(token_hash)s, %(idle)s, %(absolute)s, pg_sleep(3)")
    answer = made.get("/done")
    assert (answer.status_code, "Postgres does not answer" in answer.text) == (503, True)
    assert "<title>" in answer.text
    assert made.get("/live").status_code == 503


def test_without_the_tables_of_this_release_signing_in_says_so(
    browser: Callable[[], TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users, "_WITH_PASSWORD", "SELECT %s::text AS name FROM ari.none_such")
    answer = sign_in(browser(), "olga")
    assert (answer.status_code, "arictl db upgrade" in answer.text) == (503, True)


def test_the_theme_is_chosen_without_a_script(browser: Callable[[], TestClient]) -> None:
    made = browser()
    sign_in(made, "vera")
    assert "data-theme" not in made.get("/done").text
    form = {"csrf": csrf(made.get("/done")), "theme": "dark", "next": "/done"}
    assert made.post("/theme", data=form).headers["location"] == "/done"
    form = {"csrf": form["csrf"], "next": "/act"}
    assert 'name="next" value="/"' in made.post("/act", data=form).text, "what a form is sent to answers no GET"
    assert '<html lang="en" data-theme="dark">' in made.get("/done").text


def test_who_signed_in_is_in_the_audit_and_who_was_refused_is_not(
    browser: Callable[[], TestClient], db: database.Database
) -> None:
    """What is refused could fill a table that is kept for a year."""
    query = "SELECT who, via, action, detail::text AS detail, outcome FROM ari.audit WHERE id > %s ORDER BY id"
    with db.connection() as connection:
        row = connection.execute("SELECT coalesce(max(id), 0) AS last FROM ari.audit").fetchone()
        assert row is not None
        sign_in(browser(), "vera", "wrong password")
        sign_in(browser(), "vera")
        found = [tuple(each.values()) for each in connection.execute(query, [row["last"]]).fetchall()]
    assert found == [("vera", "console", "sign in", '{"address": "127.0.0.1"}', "done")]


def test_a_sign_in_that_is_sent_twice_begins_one_session_and_is_one_failure(
    browser: Callable[[], TestClient], db: database.Database
) -> None:
    made = browser()
    form = {"csrf": csrf(made.get("/sign-in")), "name": "vera", "password": PASSWORD}
    assert len({made.post("/sign-in", data=form).headers["set-cookie"] for _ in range(2)}) == 1
    wrong = {"csrf": csrf(made.get("/sign-in")), "name": "tom", "password": "wrong password"}
    assert {made.post("/sign-in", data=wrong).status_code for _ in range(9)} == {401}


def test_a_sign_in_that_is_under_way_already_is_told_so(browser: Callable[[], TestClient]) -> None:
    with mock.patch.object(Submissions, "once", side_effect=errors.TransientError("it is not done yet")):
        answer = sign_in(browser(), "vera")
    assert (answer.status_code, "Not now: it is not done yet." in answer.text) == (503, True)


def test_a_flood_of_passwords_leaves_threads_for_others(
    browser: Callable[[], TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "_turns", threading.BoundedSemaphore(1))
    monkeypatch.setattr(passwords, "_WAIT_SECONDS", 0.01)
    with passwords._turns:
        answer = sign_in(browser(), "olga")
    assert (answer.status_code, "Try again in a moment" in answer.text) == (503, True)
    assert sign_in(browser(), "olga").status_code == 303, "it was not counted as wrong"


# ── the end of a session ─────────────────────────────────────────────────────────────────────────────────────────────


def is_in(browser: TestClient) -> bool:
    return browser.get("/done").status_code == 200


def test_signing_out_ends_the_session_and_not_only_the_cookie(browser: Callable[[], TestClient]) -> None:
    made, thief = browser(), browser()
    sign_in(made, "olga")
    thief.cookies = made.cookies
    assert is_in(thief)
    made.post("/sign-out", data={"csrf": csrf(made.get("/done"))})
    assert not is_in(made)
    assert not is_in(thief)


def test_a_new_password_and_a_removal_end_the_user_s_sessions(
    browser: Callable[[], TestClient], db: database.Database
) -> None:
    all_users = Users(db)
    all_users.add("temp", PASSWORD, "view")
    made = browser()
    sign_in(made, "temp")
    all_users.change_password("temp", "another password")
    assert not is_in(made)
    assert sign_in(made, "temp").status_code == 401
    assert sign_in(made, "temp", "another password").status_code == 303
    all_users.remove("temp")
    assert not is_in(made)
    assert sign_in(made, "temp", "another password").status_code == 401


@pytest.mark.parametrize(("column", "seconds"), [("seen_at", 3_601), ("created_at", 43_201), ("seen_at", -120)])
def test_a_session_ends_when_it_is_idle_or_old(
    browser: Callable[[], TestClient], db: database.Database, column: str, seconds: int
) -> None:
    """The last: its time lies ahead, as after Postgres's clock was set back."""
    made = browser()
    sign_in(made, "olga")
    assert is_in(made)
    with db.connection() as connection:
        connection.execute(
            f"UPDATE ari.console_sessions SET {column} = clock_timestamp() - make_interval(secs => %s)",
            [float(seconds)],
        )
    assert not is_in(made)


def test_a_session_that_is_used_is_not_idle(browser: Callable[[], TestClient], db: database.Database) -> None:
    made = browser()
    sign_in(made, "olga")
    with db.connection() as connection:
        connection.execute("UPDATE ari.console_sessions SET seen_at = clock_timestamp() - interval '3000 seconds'")
        assert is_in(made)
        row = connection.execute("SELECT max(clock_timestamp() - seen_at) AS age FROM ari.console_sessions").fetchone()
    assert row is not None
    assert row["age"].total_seconds() < 60


def test_sessions_of_a_user_are_bounded_and_no_token_is_stored(
    browser: Callable[[], TestClient], db: database.Database
) -> None:
    first = browser()
    sign_in(first, "vera")
    token = tokens.session(mock.Mock(cookies=dict(first.cookies), url=mock.Mock(scheme="http")))
    for _ in range(20):
        sign_in(browser(), "vera")
    assert not is_in(first)
    with db.connection() as connection:
        rows = connection.execute("SELECT token_hash FROM ari.console_sessions WHERE user_name = 'vera'").fetchall()
    assert len(rows) == 20
    assert token.encode() not in {bytes(row["token_hash"]) for row in rows}
