"""One Chromium, and one pipeline with the console in front, for all tests of this folder.

Whatever a test looks at: nothing is asked of another host, no script fails, nothing is refused by the policy. The
fixture `page` asserts it when the test ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import axe_playwright_python
import pytest
from playwright import sync_api

from devstack import browser as chromium
from devstack import debian, platform_tables, processes, servers
from devstack.pipeline import procfile, wait_until
from shared.operator.users import Role, Users
from shared.storage import database
from tests import conftest, databases
from tests.acceptance.environment import Deployment, Environment, running_deployment
from tests.support.cheap_passwords import hashed_cheaply

PASSWORD = "correct horse battery"
#: axe-core 4.12.1, as its package brings it: the file that runs in our pages is the one that was looked at.
AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
AXE_SHA256 = "84494fec757e4710dc751c8d7a636e457f4532f08f85c86dc9070133fbff53bc"
#: Headless, a tab is never hidden: the page is told so.
HIDE = """hidden => {
  Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
  document.dispatchEvent(new Event("visibilitychange"));
}"""
#: Before any script of the page: what the policy refuses is kept.
WATCH_POLICY = """
window.refused = [];
document.addEventListener("securitypolicyviolation", (event) => refused.push(
  `${event.violatedDirective}: ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`));
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs the browser."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
    """The console, with a pipeline behind it."""

    url: str
    deployment: Deployment
    #: A tenant and its Asterisk.
    env: Environment

    def add_user(self, name: str, role: Role, organization_id: int | None = None) -> None:
        """Add a user whose password is `PASSWORD`, unless there is one."""
        db = database.Database(self.deployment.database_url, size=1)
        db.open()
        with contextlib.closing(db), hashed_cheaply():
            if name not in {each.user.name for each in Users(db).all()}:
                Users(db).add(name, PASSWORD, role, organization_id)


@pytest.fixture(scope="session")
def site(
    postgres_server: servers.Postgres,
    database_templates: Callable[[platform_tables.Layout], str],
    stack_folder: Path,
    chromium_path: str,
) -> Iterator[Site]:
    """The console of a whole pipeline with one tenant."""
    port = processes.free_port()
    url = databases.create(postgres_server.url, template=database_templates("stand-alone"))
    with (
        running_deployment(
            folder=stack_folder,
            logs=stack_folder / "logs-browser",
            database_url=url,
            processes=tuple(procfile()),
            CONSOLE_PORT=str(port),
        ) as deployment,
        deployment.environment() as env,
    ):
        made = Site(url=f"http://127.0.0.1:{port}", deployment=deployment, env=env)
        wait_until(lambda: not processes.port_is_free(port), seconds=20, what="the console listens")
        made.add_user("olga", "operate")
        made.add_user("vera", "view")
        yield made


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """The Chromium."""
    try:
        return chromium.find()
    except debian.Unavailable as exc:
        conftest.BROWSER.unavailable(str(exc), archive_unreachable=exc.archive_unreachable)


@pytest.fixture(scope="module")
def browser(chromium_path: str) -> Iterator[sync_api.Browser]:
    """A Chromium for a file. While Playwright runs, so does an event loop: the tests of other files run their own."""
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=chromium_path, args=list(chromium.ARGUMENTS))
        yield made
        made.close()


class Watched:
    """What happens in a page that must not."""

    def __init__(self, page: sync_api.Page, origin: str) -> None:
        self.page = page
        self.errors: list[str] = []
        self.foreign: list[str] = []
        #: Bytes as transferred, headers included.
        self.bytes = 0
        #: Parts of messages that a test provokes.
        self.expected: list[str] = []
        self._origin = origin
        page.add_init_script(WATCH_POLICY)
        page.on("console", self._told)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self._asked)
        page.on("requestfinished", self._finished)

    def _told(self, message: sync_api.ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(f"{message.text} ({message.location.get('url', '')})")

    def _asked(self, request: sync_api.Request) -> None:
        if urlsplit(request.url).netloc != urlsplit(self._origin).netloc:
            self.foreign.append(request.url)

    def _finished(self, request: sync_api.Request) -> None:
        sizes = request.sizes()
        self.bytes += sizes["responseBodySize"] + sizes["responseHeadersSize"]

    def assert_clean(self) -> None:
        """Nothing has happened that must not."""
        refused = self.page.evaluate("window.refused || []")
        assert not refused, f"the policy has refused: {refused}"
        assert not self.foreign, f"asked of another host: {self.foreign}"
        errors = [error for error in self.errors if not any(part in error for part in self.expected)]
        assert not errors, f"errors in the browser's console: {errors}"


@pytest.fixture
def context(browser: sync_api.Browser, site: Site) -> Iterator[sync_api.BrowserContext]:
    """A browser's profile: no cookie, nothing cached."""
    made = browser.new_context(base_url=site.url, viewport={"width": 1440, "height": 900})
    made.set_default_timeout(10_000)
    yield made
    made.close()


@pytest.fixture
def watched(context: sync_api.BrowserContext, site: Site) -> Iterator[Watched]:
    """A tab, and what happens in it."""
    made = Watched(context.new_page(), site.url)
    yield made
    made.assert_clean()


@pytest.fixture
def page(watched: Watched) -> sync_api.Page:
    """A tab; what must not happen in it is asserted at the end."""
    return watched.page


@pytest.fixture
def olga(page: sync_api.Page) -> sync_api.Page:
    """A tab in which a user is signed in who may do everything."""
    sign_in(page, "olga")
    return page


def sign_in(page: sync_api.Page, name: str, to: str = "/") -> None:
    """Sign in by the keyboard alone, and come to a page."""
    page.goto(f"/sign-in?next={to}")
    sync_api.expect(page.locator("#name")).to_be_focused()
    page.keyboard.type(name)
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "/sign-in" not in url)


def accessibility_findings(page: sync_api.Page) -> list[str]:
    """Return what axe-core finds wrong with the page as it is now, in both themes."""
    if not page.evaluate("typeof axe === 'object'"):
        script = AXE.read_bytes()
        assert hashlib.sha256(script).hexdigest() == AXE_SHA256
        page.evaluate(script.decode() + "; undefined")
    found: list[str] = []
    for theme in ("dark", "light"):
        page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
        result: dict[str, Any] = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
        found += [
            f"{theme}: {each['id']}: {each['help']}: {[node['html'][:200] for node in each['nodes'][:3]]}"
            for each in result["violations"]
        ]
    return found
