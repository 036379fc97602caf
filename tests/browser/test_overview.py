"""The overview as an operator sees it: current, small, steady under the eye, and one sample for all who look."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime

from playwright.sync_api import Locator, Page, Route, expect

from devstack.pipeline import wait_until
from shared import keys
from tests.browser.conftest import HIDE, Site, Watched, accessibility_findings, sign_in


def figure(page: Page, name: str) -> str:
    return (
        page.locator("dl.figures > div").filter(has=page.get_by_text(name, exact=True)).locator("dd").first.inner_text()
    )


def test_it_follows_the_calls(olga: Page, site: Site) -> None:
    expect(olga.get_by_text("Connections up")).to_be_visible()
    assert figure(olga, "Live calls") == "0"
    legs = site.env.connect(2)
    wait_until(lambda: figure(olga, "Live calls") == "2", seconds=5, what="two live calls are shown")
    assert figure(olga, "Connections up").startswith("1 of 1")
    for leg in legs:
        site.env.end_one(leg)
    wait_until(lambda: figure(olga, "Live calls") == "0", seconds=5, what="none is shown")
    expect(olga.get_by_role("row", name=re.compile("^completed 2"))).to_be_visible()


def test_it_names_every_process_and_which_one_leads(olga: Page, site: Site) -> None:
    rows = olga.get_by_role("group", name="Processes").get_by_role("row")
    for name in ("listener", "scheduler", "web", "worker"):
        expect(rows.filter(has_text=name)).to_contain_text("leads" if name == "scheduler" else "up", timeout=8000)
        expect(rows.filter(has_text=name)).to_contain_text("within 5 s", timeout=8000)


def test_the_whole_page_is_small_and_has_no_barrier(page: Page, watched: Watched) -> None:
    sign_in(page, "vera")
    expect(page.locator("#setup-chart canvas")).to_be_visible()
    page.wait_for_timeout(500)
    assert watched.bytes <= 100_000, watched.bytes
    assert accessibility_findings(page) == []


def test_a_refresh_moves_nothing_that_is_read(olga: Page, site: Site) -> None:
    """What is selected, focused or scrolled stays, in the same elements at the same place, while calls come and go."""
    olga.evaluate("""() => {
      const cell = document.querySelector("#main td");
      getSelection().selectAllChildren(cell);
      document.querySelector("[aria-label='Processes']").focus();
      window.kept = [cell, ...document.querySelectorAll("section, dl, table")];
      window.places = () => kept.map(each => {
        const at = each.getBoundingClientRect();
        return [each.isConnected, at.x, at.y];
      });
      window.before = JSON.stringify(places());
    }""")
    (leg,) = site.env.connect()
    wait_until(lambda: figure(olga, "Live calls") == "1", seconds=5, what="the call is shown")
    assert olga.evaluate("JSON.stringify(places()) === before")
    assert olga.evaluate("getSelection().toString()") != ""
    assert olga.evaluate("document.activeElement.getAttribute('aria-label')") == "Processes"
    site.env.end_one(leg)


def test_what_is_read_stays_in_its_place_when_a_part_above_it_grows_or_shrinks(olga: Page) -> None:
    read = olga.locator("[sse-swap=errors]")
    read.hover()
    place = top(read)
    for count in (40, 10):
        rows = "".join(f'<tr data-key="{number}"><td>{number}</td></tr>' for number in range(count))
        body = f"event: outcomes\ndata: <table><tbody>{rows}</tbody></table>\n\nevent: tick\ndata: {{}}\n\n"
        olga.route("**/live*", events_of(body))
        olga.evaluate(HIDE, True)
        olga.evaluate(HIDE, False)
        expect(olga.locator("[sse-swap=outcomes] tr")).to_have_count(count)
        assert abs(top(read) - place) < 1, "a window is scrolled by whole pixels"


def top(shown: Locator) -> float:
    """Return where in the window something is, in pixels."""
    place = shown.bounding_box()
    assert place is not None
    return place["y"]


def events_of(body: str) -> Callable[[Route], None]:
    """Return an answer with these events."""
    headers = {"content-type": "text/event-stream"}
    return lambda route: route.fulfill(status=200, headers=headers, body=f"retry: 300\n\n{body}")


def test_new_rows_wait_while_a_list_is_read_and_numbers_do_not(olga: Page, site: Site) -> None:
    errors = olga.get_by_role("group", name="Last errors")
    write_error(site, "the first failure")
    expect(errors).to_contain_text("the first failure", timeout=5000)
    errors.hover()
    write_error(site, "the second failure")
    expect(olga.get_by_text("changed rows wait while you read").last).to_be_visible(timeout=5000)
    expect(errors).not_to_contain_text("the second failure")
    olga.mouse.move(5, 5)
    expect(errors).to_contain_text("the second failure", timeout=3000)
    # What is read by a screen reader, or seen when the mouse has gone: the newest first, and nothing waits.
    assert errors.inner_text().index("the second") < errors.inner_text().index("the first")
    expect(olga.get_by_text("changed rows wait while you read").last).to_be_hidden()


def write_error(site: Site, event: str) -> None:
    """Have a process fail at something: write what its registry would."""
    with site.deployment.queue() as client:
        entry = {"timestamp": datetime.now(UTC).isoformat(), "severity_text": "ERROR", "event_name": event}
        client.rpush(keys.errors("worker/worker"), json.dumps(entry))


def test_a_hidden_tab_has_no_stream_and_one_that_is_seen_again_has(olga: Page) -> None:
    expect(olga.locator("#age")).to_have_text(re.compile("Data is [01] s old"))
    with olga.expect_event("requestfailed", lambda request: "/live" in request.url):
        olga.evaluate(HIDE, True)
    expect(olga.locator("#age")).to_have_text("Data is 4 s old", timeout=8000)
    expect(olga.locator("#lost")).to_be_hidden()
    with olga.expect_response(lambda response: "/live" in response.url):
        olga.evaluate(HIDE, False)
    expect(olga.locator("#age")).to_have_text(re.compile("Data is [01] s old"), timeout=4000)


def test_what_cannot_be_read_any_more_is_said_with_the_age_of_what_is_shown(page: Page) -> None:
    tick = 'event: tick\ndata: {"age": 5000, "problem": "Postgres: <b>it is away</b>"}\n\n'
    page.route("**/live*", events_of(tick))
    sign_in(page, "vera")
    expect(page.get_by_role("alert")).to_have_text("No newer data: Postgres: <b>it is away</b>")
    expect(page.locator("#age")).to_have_text(re.compile("Data is [56] s old"))
