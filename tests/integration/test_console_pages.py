"""The console's pages of calls on a real Postgres: which calls a user sees, and what of their numbers."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from starlette.testclient import TestClient

from console import app, calls_page, usage_page
from shared.call.calls import Call
from shared.operator import audit, connection_tests
from shared.storage import database
from shared.storage.postgres_calls import PostgresCalls
from tests.integration import test_console
from tests.integration.test_console import csrf, sign_in, some_path
from tests.support.call_rows import make_call

pytestmark = pytest.mark.services

NUMBER = "+4915551234567"
CALLED = "5551234"
#: The organization of the user tom, and another one.
TOMS, OTHERS = 7, 3
#: With one connection for each.
CONNECTIONS = (
    "INSERT INTO ari.connections (connection_id, source_id, organization_id, state)"
    " OVERRIDING SYSTEM VALUE VALUES (1, 1, 3, 'active'), (2, 2, 7, 'active')",
    "INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password)"
    " VALUES (1, 1, 'http://a', 'a', 'a', 'x'), (2, 1, 'http://b', 'b', 'b', 'z')",
)

db, browser = test_console.db, test_console.browser


@pytest.fixture(scope="module")
def calls(db: database.Database) -> dict[int, Call]:
    """One call of each organization, of the same caller."""
    with db.connection() as connection:
        for statement in CONNECTIONS:
            connection.execute(statement)
    store = PostgresCalls(db, who="test", prefix="aip-")
    return {
        organization: make_call(
            store, f"{organization}.1", connection_id=number, organization_id=organization,
            caller_number=NUMBER, called_number=CALLED,
        )
        for organization, number in ((OTHERS, 1), (TOMS, 2))
    }  # fmt: skip


@pytest.fixture
def olga(browser: Callable[[], TestClient]) -> TestClient:
    made = browser()
    sign_in(made, "olga")
    return made


@pytest.fixture
def tom(browser: Callable[[], TestClient]) -> TestClient:
    made = browser()
    sign_in(made, "tom")
    return made


def page_of(call: Call) -> str:
    return f"/calls/{call.call_id}"


def test_a_number_is_on_no_page_and_in_no_export(olga: TestClient, calls: dict[int, Call]) -> None:
    for path in ("/calls", page_of(calls[OTHERS]), f"{page_of(calls[OTHERS])}/export.json"):
        answer = olga.get(path)
        assert answer.status_code == 200, path
        assert NUMBER not in answer.text, path
        assert NUMBER[-2:] in answer.text, path
    exported = json.loads(olga.get(f"{page_of(calls[OTHERS])}/export.json").text)
    assert exported["history"]["call"]["call_id"] == str(calls[OTHERS].call_id)


def test_no_address_has_a_number(olga: TestClient, calls: dict[int, Call]) -> None:
    """It would be in histories, in the logs of a proxy, and in what a colleague is sent."""
    form = {"csrf": csrf(olga.get("/calls")), "number": f" {NUMBER} ", "which": "live", "call": ""}
    sent = olga.post("/calls", data=form).headers["location"]
    written = olga.get("/calls", params={"number": NUMBER, "which": "live"}).headers["location"]
    for path in (sent, written):
        assert path.startswith("/calls?")
        assert NUMBER[1:] not in path
        listed = olga.get(path)
        assert page_of(calls[OTHERS]) in listed.text
        assert NUMBER[1:] not in listed.text
    kept = re.search(r'name="kept" value="([^"]+)"', listed.text)
    assert kept is not None
    again = olga.post("/calls", data={"csrf": form["csrf"], "number": "", "kept": kept[1], "since": "1h"})
    assert page_of(calls[OTHERS]) in olga.get(again.headers["location"]).text
    answer = olga.get("/calls", params={"number": "~\N{SNOWMAN}"})
    assert (answer.status_code, "another SECRET_KEY" in answer.text) == (400, True)


def test_who_has_seen_a_number_is_in_the_audit(olga: TestClient, calls: dict[int, Call], db: database.Database) -> None:
    path = page_of(calls[OTHERS])
    answer = olga.post(f"{path}/unmask", data={"csrf": csrf(olga.get(path))})
    assert (answer.status_code, NUMBER in answer.text) == (200, True)
    (row,) = audit.page(db, action="call unmask")
    assert (row.who, row.via, row.subject) == ("olga", "console", f"call {calls[OTHERS].call_id}")


def test_a_user_who_may_look_only_sees_no_number(browser: Callable[[], TestClient], calls: dict[int, Call]) -> None:
    vera = browser()
    sign_in(vera, "vera")
    path = page_of(calls[OTHERS])
    answer = vera.post(f"{path}/unmask", data={"csrf": csrf(vera.get(path))})
    assert (answer.status_code, NUMBER in answer.text) == (403, False)


def test_a_call_links_its_trace_and_its_run_where_it_is_told_how(
    db: database.Database, olga: TestClient, calls: dict[int, Call]
) -> None:
    call = calls[TOMS]
    with db.connection() as connection:
        connection.execute("UPDATE ari.calls SET workflow_run_id = 18 WHERE call_id = %s", [call.call_id])
    told = {
        "console_trace_url": "https://jaeger.example/trace/{trace_id}?uiFind=a&b",
        "console_run_url": "https://app.example/workflow/{workflow_id}/run/{run_id}",
    }
    trace = f'href="https://jaeger.example/trace/{call.call_id.hex}?uiFind=a&amp;b"'
    with test_console.serving(db, **told) as browser:
        linking, toms = browser(), browser()
        sign_in(linking, "olga")
        sign_in(toms, "tom")
        assert "app.example" not in linking.get(page_of(call)).text, "its workflow is not known"
        with db.connection() as connection:
            connection.execute("UPDATE ari.calls SET workflow_id = 4 WHERE call_id = %s", [call.call_id])
        page, of_tom = (one.get(page_of(call)).text for one in (linking, toms))
    assert trace in page
    run = 'href="https://app.example/workflow/4/run/18"'
    assert (run in page, run in of_tom) == (True, True)
    assert "jaeger" not in of_tom, "where the operator's traces are is not for tenants"
    unlinked = olga.get(page_of(call)).text
    assert f'<span class="id">{call.call_id.hex}</span>' in unlinked
    assert 'rel="external' not in unlinked


#: Fixing a set does nothing with its letters.
NOT_RECORDED = ("Freeze",)


def test_what_a_user_may_not_do_is_in_the_audit(browser: Callable[[], TestClient], db: database.Database) -> None:
    vera = browser()
    sign_in(vera, "vera")
    proof = csrf(vera.get("/"))
    for page in app.PAGES:
        if page.act is None or page.viewers_act or page.title in NOT_RECORDED:
            continue
        newest = audit.page(db, limit=1)[0]
        assert vera.post(some_path(page), data={"csrf": "another's"}).status_code == 403
        assert audit.page(db, limit=1)[0] == newest, "the form is not of the user's session"
        assert vera.post(some_path(page), data={"csrf": proof}).status_code == 403
        row = audit.page(db, limit=1)[0]
        assert (row.who, row.action, row.outcome) == ("vera", page.action, "failed"), page.path
        assert (row.subject.partition("{")[1], "role view" in str(row.detail)) == ("", True)


def test_what_a_user_may_not_do_fills_no_audit(browser: Callable[[], TestClient], db: database.Database) -> None:
    vera = browser()
    sign_in(vera, "vera")
    form, was = {"csrf": csrf(vera.get("/"))}, len(audit.page(db, who="vera"))
    for connection_id in (1, 2, 1, 2, 1):
        assert vera.post(f"/connections/{connection_id}/park", data=form).status_code == 403
    assert len(audit.page(db, who="vera")) == was + 2


def test_what_a_user_tries_on_another_organization_s_call_is_in_the_audit(
    tom: TestClient, calls: dict[int, Call], db: database.Database
) -> None:
    others = page_of(calls[OTHERS])
    assert tom.post(f"{others}/hang-up", data={"csrf": csrf(tom.get("/calls"))}).status_code == 404
    row = audit.page(db, limit=1)[0]
    assert (row.who, row.action, row.organization_id, row.outcome) == ("tom", "hangup", TOMS, "failed")
    assert row.subject == f"call {calls[OTHERS].call_id}"


def test_a_user_of_one_organization_finds_no_call_of_another(tom: TestClient, calls: dict[int, Call]) -> None:
    """Neither by its address, nor by a filter, nor by a search, nor to act on it."""
    own, others = page_of(calls[TOMS]), page_of(calls[OTHERS])
    assert tom.get(own).status_code == 200
    token = csrf(tom.get(own))
    for answer in (tom.get(others), tom.get(f"{others}/export.json"), *(
        tom.post(f"{others}/{action}", data={"csrf": token}) for action in ("hang-up", "unmask")
    )):  # fmt: skip
        assert answer.status_code == 404
        # As it is, or masked. Its end alone may be in a token by chance.
        assert CALLED not in answer.text
        assert f"*{CALLED[-3:]}" not in answer.text
    for path in (f"/calls?organization={OTHERS}", f"/calls?number={NUMBER.replace('+', '%2B')}", "/calls"):
        text = tom.get(path, follow_redirects=True).text
        assert (own in text, others in text) == (True, False), path
    of_another, of_none = (tom.get(f"/calls?call={name}") for name in (calls[OTHERS].call_id, TOMS * "0"))
    assert (of_another.status_code, of_none.status_code) == (400, 400), "it is not told which of them is there"
    assert tom.get(f"/calls?call={calls[TOMS].call_id}").headers["location"] == own


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/calls?after=x", "no cursor"),
        ("/calls?organization=many", "organization is a number"),
        ("/calls?outcome=splendid", "outcome is one of"),
        ("/calls?since=yesterday", "since is a time such as"),
        ("/calls?call=nothing", "no call"),
        ("/usage?days=1000", "days is 92 at most"),
    ],
)
def test_what_a_url_cannot_mean_is_said(olga: TestClient, path: str, says: str) -> None:
    answer = olga.get(path)
    assert answer.status_code == 400
    assert says in answer.text
    assert "arictl" not in answer.text


@pytest.mark.parametrize(
    ("since", "is_listed"),
    [("1h", True), ("{before}", True), ("{after}", False), ("{before}+00:00", True), ("{before}-02:00", False)],
)
def test_a_time_is_utc_unless_it_names_its_zone(
    olga: TestClient, calls: dict[int, Call], since: str, is_listed: bool
) -> None:
    now = datetime.now(UTC)
    moments = {
        "before": f"{now - timedelta(minutes=30):%Y-%m-%dT%H:%M}",
        "after": f"{now + timedelta(minutes=30):%F %T}",
    }
    answer = olga.get("/calls", params={"since": since.format(**moments)})
    assert (page_of(calls[OTHERS]) in answer.text) == is_listed


def test_a_test_of_a_connection_is_in_the_audit(
    olga: TestClient, calls: dict[int, Call], db: database.Database
) -> None:
    answer = olga.post("/connections/1/test", data={"csrf": csrf(olga.get("/connections/1"))})
    assert (answer.status_code, "the platform has none for it" in answer.text) == (200, True)
    rows = audit.page(db, action="connection test", who="olga")
    assert [(row.who, row.subject, row.organization_id, row.outcome) for row in rows] == [
        ("olga", "connection 1", OTHERS, "done"), ("olga", "connection 1", OTHERS, "asked"),
    ]  # fmt: skip


def test_what_a_test_has_found_is_there_for_those_who_may_only_look_with_its_age(
    olga: TestClient, browser: Callable[[], TestClient], calls: dict[int, Call], db: database.Database
) -> None:
    vera = browser()
    sign_in(vera, "vera")
    assert "once a user of the role operate has tested it" in vera.get("/connections/2").text
    assert olga.post("/connections/2/test", data={"csrf": csrf(olga.get("/connections/2"))}).status_code == 200
    # A later one, of which nothing is kept.
    with audit.announced(db, audit.Actor(who="otto", via="console"), connection_tests.action(2, TOMS)):
        pass
    # Nor do those hide it that were refused.
    for _ in range(25):
        audit.refuse(db, audit.Actor(who="vera", via="console"), connection_tests.action(2, TOMS), "may not do this")
    text = vera.get("/connections/2").text
    assert "the platform has none for it" in text
    assert re.search(r"What the test found <span class=\"muted\">\d\.\d s ago, .*, by <bdi>olga</bdi>", text)
    tested = connection_tests.last(db, 2)
    assert tested is not None
    assert [(each.level, each.what) for each in tested.findings] == [("wrong", "configuration")]
    assert connection_tests.last(db, 999) is None
    listed = re.sub("<[^>]+>", "", vera.get("/audit?subject=connection+2").text)
    assert "findings=1 " in listed
    assert "wrong=1 " in listed


def test_a_day_of_the_usage_leads_to_its_calls(olga: TestClient, tom: TestClient, calls: dict[int, Call]) -> None:
    for user, organization in ((olga, OTHERS), (tom, TOMS)):
        (path,) = [
            html.unescape(path) for path in re.findall(r'href="(/calls\?since=[^"]+)"', user.get("/usage").text)
            if user is tom or f"organization={organization}" in path
        ]  # fmt: skip
        assert "until=" in path
        assert page_of(calls[organization]) in user.get(path).text


def test_the_usage_of_many_organizations_is_a_page_with_a_bound(
    olga: TestClient, calls: dict[int, Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_page, "_MOST_ROWS", 1)
    text = olga.get("/usage").text
    assert "Only the newest 1 of 2 rows are on this page" in text
    assert "<div><dt>Calls</dt><dd>2</dd></div>" in text, "the figures are of all"


def test_calls_of_one_moment_follow_each_other_without_a_gap(
    olga: TestClient, calls: dict[int, Call], db: database.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls_page, "_LIMIT", 1)
    with db.connection() as connection:
        connection.execute("UPDATE ari.calls SET received_at = (SELECT max(received_at) FROM ari.calls)")
    seen, path = [], "/calls?since=1h"
    while path:
        text = olga.get(path).text
        seen += re.findall(r'class="id" href="([^"]+)"', text)
        older = re.search(r'href="([^"]+)" rel="next"', text)
        path = html.unescape(older[1]) if older else ""
    assert sorted(seen) == sorted(map(page_of, calls.values()))


def test_what_is_not_there_is_not_found(olga: TestClient) -> None:
    for path in (
        "/calls/0c9a4e52-9c5e-5c53-8a5f-6d0a5d6a2f11",
        "/calls/1",
        "/connections/99",
        "/connections/99999999999",
        "/dead-letter-sets/9999999999",
    ):
        assert olga.get(path).status_code == 404, path


def test_no_number_is_too_long_to_be_answered(olga: TestClient) -> None:
    """Python reads none of 4301 digits, and a path is read before it is known who asks."""
    most = "1" * 4301
    for name in ("organization", "after"):
        answer = olga.get("/connections", params={name: most})
        assert (answer.status_code, f"{name} is a number" in answer.text) == (400, True)
    olga.cookies.clear()
    for path in (f"/connections/{most}", f"/connections/{most}/test", f"/dead-letter-sets/{most}"):
        assert olga.get(path).status_code == 404, path[:30]


def test_a_name_that_calls_of_two_organizations_have_leads_each_user_to_their_own(
    olga: TestClient, tom: TestClient, db: database.Database, calls: dict[int, Call]
) -> None:
    # The last test of this file: others count the calls.
    store = PostgresCalls(db, who="test", prefix="aip-")
    made = {
        organization: make_call(store, "both.1", connection_id=number, organization_id=organization)
        for organization, number in ((OTHERS, 1), (TOMS, 2))
    }
    assert tom.get("/calls?call=both.1").headers["location"] == page_of(made[TOMS])
    assert "ambiguous" in olga.get("/calls?call=both.1").text
