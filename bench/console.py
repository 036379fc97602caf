"""The console under many viewers: `python -m bench.console [--viewers 50]`.

- what 50 open overviews cost: the process `web` and the transactions of Postgres, by its own count;
- how long a browser takes to the first paint of the overview, with nothing in its cache, and what it transfers.

Prints Markdown tables; docs/bench.md has a result.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.client
import re
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlencode, urlsplit

import psutil
from playwright.sync_api import sync_playwright

from bench.failover import heading, poll, say
from devstack import browser, console_scene, folders
from devstack.console_scene import Scene

SECONDS = 20.0
PAINTS = 7
_TRANSACTIONS = "SELECT sum(xact_commit + xact_rollback) FROM pg_stat_database WHERE datname = current_database()"
_PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def main() -> int:
    """Measure; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--viewers", type=int, nargs="*", default=[0, 1, 50])
    options = parser.parse_args()
    with folders.temporary() as folder, console_scene.running(folder) as scene:
        # No call, and no process beside the console: what is counted is the console's.
        for name in ("listener", "worker", "scheduler"):
            scene.pipeline.stop(name)
        cookie = sign_in(scene.url)
        heading("open overviews", "% of a core", "transactions of Postgres a second", "events a second", "kB a second")
        for viewers in options.viewers:
            measure(scene, cookie, viewers)
        paint(scene, cookie)
    return 0


def measure(scene: Scene, cookie: str, viewers: int) -> None:
    """Measure for a while with so many open overviews, and print a row."""
    with watching(scene.url, cookie, viewers) as seen:
        time.sleep(3)
        web = psutil.Process(scene.pipeline.pid("web"))
        before, transactions, began = web.cpu_times(), scene.pipeline.value(_TRANSACTIONS), time.monotonic()
        ticks, size = seen["events"], seen["bytes"]
        time.sleep(SECONDS)
        seconds, after = time.monotonic() - began, web.cpu_times()
        used = after.user + after.system - before.user - before.system
        # One is this question's own.
        asked = float(scene.pipeline.value(_TRANSACTIONS) - transactions) - 1
        say(viewers, f"{used / seconds:.1%}", f"{asked / seconds:.1f}", f"{(seen['events'] - ticks) / seconds:.0f}",
            f"{(seen['bytes'] - size) / seconds / 1e3:.1f}")  # fmt: skip


def paint(scene: Scene, cookie: str) -> None:
    """Measure the first paint in a browser that has nothing cached, and print a row."""
    name, _, value = cookie.partition("=")
    times, answers, size = [], [], 0
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser.find(), args=list(browser.ARGUMENTS))
        for _ in range(PAINTS):
            context = chromium.new_context(base_url=scene.url)
            context.add_cookies([{"name": name, "value": value, "url": scene.url}])
            page = context.new_page()
            page.goto("/")
            poll(functools.partial(page.evaluate, _PAINT), seconds=10)
            times.append(float(page.evaluate(_PAINT)))
            answers.append(float(page.evaluate("performance.getEntriesByType('navigation')[0].responseEnd")))
            size = page.evaluate("performance.getEntries().reduce((sum, each) => sum + (each.transferSize || 0), 0)")
            context.close()
        chromium.close()
    heading("the page is received, ms: median", "first paint, ms: median", "slowest of 7", "transferred, kB")
    say(*(f"{each:.0f}" for each in (statistics.median(answers), statistics.median(times), max(times))),
        f"{size / 1e3:.1f}")  # fmt: skip


def sign_in(url: str) -> str:
    """Return the cookie of a new session."""
    with contextlib.closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)) as client:
        client.request("GET", "/sign-in")
        answer = client.getresponse()
        visitor = (answer.headers["set-cookie"] or "").partition(";")[0]
        found = re.search(r'name="csrf" value="(\w+)"', answer.read().decode())
        assert found is not None
        form = {"csrf": found[1], "name": console_scene.USER, "password": console_scene.USER_PASSWORD, "next": "/"}
        headers = {"cookie": visitor, "content-type": "application/x-www-form-urlencoded"}
        client.request("POST", "/sign-in", urlencode(form), headers)
        answer = client.getresponse()
        answer.read()
        return (answer.headers["set-cookie"] or "").partition(";")[0]


@contextlib.contextmanager
def watching(url: str, cookie: str, viewers: int) -> Iterator[dict[str, int]]:
    """Keep so many streams open; yields what they have brought so far."""
    seen, stop, lock = {"events": 0, "bytes": 0}, threading.Event(), threading.Lock()

    def watch() -> None:
        with contextlib.closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)) as client:
            client.request("GET", "/live?topic=overview", headers={"cookie": cookie})
            answer = client.getresponse()
            while not stop.is_set() and (line := answer.readline()):
                with lock:
                    seen["bytes"] += len(line)
                    seen["events"] += line == b"event: tick\n"

    threads = [threading.Thread(target=watch) for _ in range(viewers)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    sys.exit(main())
