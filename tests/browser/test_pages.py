"""The pages behind the overview: seen, worked by keyboard, fed hostile texts."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from devstack.pipeline import wait_until
from tests.browser import seeded as seeding
from tests.browser.conftest import Site, Watched, accessibility_findings, sign_in
from tests.browser.seeded import NUMBER, Seeded


@pytest.fixture(scope="module")
def seeded(site: Site) -> Iterator[Seeded]:
    made = seeding.seed(site)
    yield made
    seeding.clean(made)


#: What makes a page wider than its window.
WIDER = """() => document.documentElement.scrollWidth <= innerWidth ? [] : [...document.querySelectorAll("body *")]
  .filter(each => each.getBoundingClientRect().right > innerWidth && !each.closest(".scroll"))
  .map(each => `${each.tagName} ${each.className} ${each.textContent.slice(0, 40)}`)"""


def paths(seeded: Seeded) -> list[str]:
    calls = [f"/calls/{seeded.calls[name]}" for name in ("good", "hostile")]
    lists = ["/calls", "/connections", "/dead-letters", "/usage", "/steps", "/changes", "/audit"]
    return ["/", *lists, *calls, f"/connections/{seeded.connection_id}", "/calls?number=nothing&which=ended&since=1h"]


def test_no_page_has_an_accessibility_finding_or_is_wider_than_a_narrow_window(seeded: Seeded, olga: Page) -> None:
    olga.set_viewport_size({"width": 800, "height": 900})
    for path in paths(seeded):
        answer = olga.goto(path)
        assert answer is not None
        assert answer.status == 200, path
        assert accessibility_findings(olga) == [], path
        # With scripts and styles, which are kept: 100 kB.
        assert answer.request.sizes()["responseBodySize"] <= 40_000, path
        for width in (320, 800):
            olga.set_viewport_size({"width": width, "height": 900})
            # A chart is drawn again with the next frame.
            olga.wait_for_timeout(100)
            assert olga.evaluate(WIDER) == [], (path, width)


def test_hostile_texts_are_shown_and_never_run(seeded: Seeded, olga: Page) -> None:
    """What a script would do, and what a mark that turns the direction would hide, is seen as text."""
    for path in (f"/calls/{seeded.calls['hostile']}", "/calls", f"/connections/{seeded.connection_id}"):
        olga.goto(path)
        expect(olga).not_to_have_title("owned")
        assert olga.evaluate("document.querySelectorAll('main script, main img').length") == 0, path
        text = olga.inner_text("main")
        assert "\\u202e" in text, path
        assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in text, path
        assert "x" * 1000 not in text, "10 kB are cut"
    olga.goto("/dead-letters")
    olga.locator("a[href^='/dead-letters/']").first.click()
    expect(olga.locator("pre").first).to_contain_text("<script>document.title='owned'</script>")


def test_a_call_is_found_by_what_is_known_of_it_and_its_page_says_the_verdict(
    seeded: Seeded, olga: Page, watched: Watched
) -> None:
    refused = seeded.calls["refused"]
    olga.goto(
        f"/calls?outcome=failed&fault=agent&number={NUMBER.replace('+', '%2B')}&organization={seeded.organization_id}"
    )
    expect(olga.get_by_role("row")).to_have_count(2)
    olga.get_by_role("link", name=refused[:8]).click()
    expect(olga.locator(".sentence")).to_contain_text("refused the socket, in 4 attempts within")
    gaps = " ".join(olga.locator(".ladder tr.gap").all_inner_texts())
    assert "s: the worker owes the next message: to try again, after a pause for the agent's sake" in gaps
    for name in (refused, refused[:8]):
        olga.goto(f"/calls?call={name}")
        expect(olga).to_have_url(f"{seeded.site.url}/calls/{refused}")
    watched.expected.append("status of 400")
    olga.goto("/calls?since=yesterday")
    expect(olga.get_by_text("since is a time such as")).to_be_visible()


def test_pages_of_calls_follow_each_other_without_a_gap(seeded: Seeded, olga: Page) -> None:
    olga.goto("/calls")
    # Those of this run's other tests as well.
    assert olga.locator("tbody tr").count() == len(seeded.site.env.calls())
    shown = olga.locator("tbody a.id").all_inner_texts()
    page_of_one = seeded.site.env.pipeline.query(
        "SELECT (extract(epoch FROM received_at) * 1000000)::bigint AS at, call_id FROM ari.calls"
        " ORDER BY received_at DESC, call_id DESC LIMIT 1"
    )[0]
    olga.goto(f"/calls?after={page_of_one['at']}-{page_of_one['call_id'].hex}")
    assert olga.locator("tbody a.id").all_inner_texts() == shown[1:]
    expect(olga.get_by_role("link", name="Newest")).to_be_visible()


def test_numbers_are_masked_until_an_operator_asks_which_the_audit_has(seeded: Seeded, olga: Page) -> None:
    path = f"/calls/{seeded.calls['good']}"
    olga.goto(path)
    assert NUMBER not in olga.content()
    olga.get_by_role("button", name="Show numbers").press("Enter")
    expect(olga.get_by_text(NUMBER).first).to_be_visible()
    olga.goto(path)
    assert NUMBER not in olga.content(), "for one look"
    exported = olga.request.get(f"{path}/export.json")
    assert json.loads(exported.text())["verdict"]["rule"] == "completed"
    assert NUMBER not in exported.text()
    olga.goto("/audit?action=call+unmask")
    expect(olga.get_by_role("row").nth(1)).to_contain_text("olga")


def test_a_user_who_may_look_only_sees_no_action_and_no_number(seeded: Seeded, page: Page) -> None:
    sign_in(page, "vera", f"/calls/{seeded.calls['live']}")
    expect(page.locator(".sentence")).to_contain_text("so far for")
    assert page.get_by_role("button", name="Show numbers").count() == 0
    assert page.get_by_text("Hang up").count() == 0
    token = page.locator("input[name=csrf]").first.get_attribute("value")
    answer = page.request.post(f"/calls/{seeded.calls['live']}/hang-up", form={"csrf": token or ""})
    assert answer.status == 403


def test_a_user_of_one_organization_sees_its_calls_alone(seeded: Seeded, page: Page) -> None:
    seeded.site.add_user("others", "view", seeded.organization_id + 1)
    sign_in(page, "others", "/calls")
    expect(page.get_by_text("No calls yet.")).to_be_visible()
    answer = page.request.get(f"/calls/{seeded.calls['good']}")
    assert (answer.status, NUMBER in answer.text()) == (404, False)
    for path in ("/connections", "/dead-letters", "/steps", "/changes", "/audit"):
        assert page.request.get(path).status == 403, path
    page.goto(f"/usage?organization={seeded.organization_id}")
    expect(page.get_by_text("No calls in these days.")).to_be_visible()


def test_a_call_is_hung_up_by_the_keyboard(seeded: Seeded, olga: Page) -> None:
    call_id = seeded.calls["live"]
    olga.goto(f"/calls/{call_id}")
    olga.get_by_text("Hang up …").focus()
    olga.keyboard.press("Enter")
    olga.keyboard.press("Tab")
    olga.keyboard.press("Enter")
    expect(olga.get_by_role("status")).to_contain_text("being ended")
    state = f"SELECT state = 'ended' FROM ari.calls WHERE call_id = '{call_id}'"
    wait_until(lambda: seeded.site.env.pipeline.value(state), seconds=10)
    olga.reload()
    expect(olga.locator(".sentence")).to_contain_text("ended by an operator")


def test_a_connection_is_drained_and_released(seeded: Seeded, olga: Page) -> None:
    olga.goto(f"/connections/{seeded.connection_id}")
    expect(olga.locator(".sentence")).to_have_text("Connected: events flow")
    olga.get_by_role("button", name="Test it").click()
    expect(olga.get_by_role("row", name="modules")).to_contain_text("are running")
    olga.get_by_text("Drain …").click()
    olga.get_by_label("Reason, for the others").first.fill("new Asterisk at nine")
    olga.get_by_role("button", name="Drain it").click()
    expect(olga.locator(".sentence")).to_have_text("Drained: it takes no new calls (new Asterisk at nine)")
    olga.get_by_role("button", name="Release: take calls again").click()
    expect(olga.locator(".sentence")).to_have_text("Connected: events flow")
    olga.get_by_role("button", name="Resync now").click()
    expect(olga.get_by_role("status")).to_contain_text("A resync was asked for")
    olga.get_by_role("link", name="What was done to it").click()
    assert olga.locator("tbody tr").count() >= 3


def test_a_frozen_set_of_dead_letters_is_seen_before_it_is_discarded(seeded: Seeded, olga: Page) -> None:
    olga.goto("/dead-letters")
    expect(olga.get_by_role("link", name="InvalidMessage: message version")).to_have_count(1)
    olga.get_by_text("Retry or discard all 3 …").click()
    olga.get_by_label("Reason, for the audit").fill("of another release")
    olga.get_by_role("button", name="Freeze the set").dblclick()
    expect(olga.get_by_role("heading", name="Frozen set")).to_be_visible()
    expect(olga.get_by_text("not yet")).to_be_visible()
    olga.get_by_text("Discard them …").click()
    olga.get_by_role("button", name="Discard them").dblclick()
    expect(olga.get_by_role("status")).to_contain_text("It is ordered")
    wait_until(lambda: "Done: 3 of 3" in ((olga.reload() and olga.inner_text("main")) or ""), seconds=10)
    olga.goto("/dead-letters")
    expect(olga.get_by_text("Every message was handled.")).to_be_visible()
    expect(olga.get_by_label("Frozen sets").locator("tbody tr")).to_have_count(1)


def test_usage_is_drawn_and_told_within_100_kilobytes(seeded: Seeded, olga: Page, watched: Watched) -> None:
    """With all that a browser loads for the first time, the sign-in page and the overview included."""
    olga.goto("/usage?days=7")
    expect(olga.locator("#usage-chart canvas")).to_be_visible()
    expect(olga.locator("tbody tr").last).to_contain_text("completed")
    assert watched.bytes < 100_000
