"""What every page has: the way in and out, the navigation by keyboard, the theme, and the age of what it shows."""

from __future__ import annotations

import signal

from playwright.sync_api import Page, expect

from tests.browser.conftest import HIDE, Site, Watched, accessibility_findings, sign_in


def test_the_sign_in_page_leads_in_by_the_keyboard_alone(page: Page, site: Site) -> None:
    page.goto("/")
    expect(page).to_have_title("Sign in · ari-pipeline")
    assert accessibility_findings(page) == []
    sign_in(page, "olga")
    expect(page.get_by_role("navigation", name="Pages").get_by_role("link", name="Overview")).to_have_attribute(
        "aria-current", "page"
    )
    page.keyboard.press("Tab")
    expect(page.locator(":focus")).to_have_text("Skip to content")
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()


def test_a_page_says_how_old_its_data_is_and_that_it_lost_the_server(olga: Page, site: Site) -> None:
    expect(olga.locator("#age")).to_have_text("Data is 1 s old", timeout=4000)
    expect(olga.locator("#age")).to_have_attribute("data-state", "live")
    site.deployment.pipeline.signal("web", signal.SIGSTOP)
    # Within three seconds: this is the promise.
    expect(olga.get_by_role("alert")).to_contain_text("The server has not answered", timeout=3000)
    site.deployment.pipeline.signal("web", signal.SIGCONT)
    expect(olga.locator("#lost")).to_be_hidden(timeout=6000)


def test_a_page_whose_session_has_ended_says_so_and_not_that_the_server_is_lost(
    olga: Page, watched: Watched, site: Site
) -> None:
    expect(olga.locator("#age")).to_have_attribute("data-state", "live")
    site.env.pipeline.execute("DELETE FROM ari.console_sessions WHERE user_name = 'olga'")
    watched.expected.append("status of 401")
    olga.evaluate(HIDE, True)
    olga.evaluate(HIDE, False)
    expect(olga.get_by_role("alert")).to_have_text(
        "You are signed out. Reload the page to sign in again.", timeout=4000
    )
    olga.reload()
    expect(olga).to_have_title("Sign in · ari-pipeline")


def test_a_page_that_is_kept_current_no_longer_says_why(olga: Page, watched: Watched) -> None:
    expect(olga.locator("#age")).to_have_attribute("data-state", "live")
    watched.expected.append("status of 503")
    said = "You have 60 pages open, and no further one is kept current: close some."
    olga.route("**/live*", lambda route: route.fulfill(status=503, content_type="text/plain", body=said))
    olga.evaluate(HIDE, True)
    olga.evaluate(HIDE, False)
    expect(olga.get_by_role("alert")).to_have_text(said, timeout=4000)
    olga.unroute("**/live*")
    expect(olga.locator("#lost")).to_be_hidden(timeout=6000)


def test_pages_that_refuse_have_no_barrier_either(page: Page, watched: Watched) -> None:
    watched.expected.append("status of 40")
    for path in ("/nothing-here", "/theme"):
        page.goto(path)
        assert accessibility_findings(page) == [], path
    sign_in(page, "vera", "/calls/0c9a4e52-9c5e-5c53-8a5f-6d0a5d6a2f11")
    expect(page.get_by_role("heading", name="Not found")).to_be_visible()
    assert accessibility_findings(page) == []


def test_the_theme_is_switched_and_kept(olga: Page) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light = olga.evaluate(ground)
    olga.get_by_role("button", name="Switch to dark").click()
    assert olga.evaluate(ground) != light
    olga.reload()
    assert olga.evaluate(ground) != light


def test_signing_out_leads_out(olga: Page) -> None:
    olga.get_by_role("button", name="Sign out").click()
    expect(olga).to_have_title("Sign in · ari-pipeline")
    olga.goto("/")
    expect(olga).to_have_title("Sign in · ari-pipeline")


def test_everything_works_without_a_script(site: Site, browser: object) -> None:
    context = browser.new_context(base_url=site.url, java_script_enabled=False)  # type: ignore[attr-defined]
    page = context.new_page()
    sign_in(page, "vera")
    expect(page.get_by_text("Live calls")).to_be_visible()
    page.get_by_role("button", name="Switch to dark").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    context.close()
