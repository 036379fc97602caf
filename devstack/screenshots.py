"""`make screenshots`: pictures of the console's pages for the docs, dark and light, of a pipeline with calls.

Each is reduced to a palette: docs/console holds many of them.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from devstack import browser, console_scene, folders
from devstack.console_scene import Scene

FOLDER = Path(__file__).parents[1] / "docs" / "console"
MOST_BYTES = 60_000
_COLOURS = (128, 96, 64, 48, 32)
_SIZE = {"width": 1280, "height": 800}
#: A picture shows no more of a long page, in pixels.
_MOST_HEIGHT = 900


def main() -> int:
    """Take all pictures, or those that are named. Returns the exit status."""
    names = sys.argv[1:]
    with folders.temporary() as folder, console_scene.running(folder) as scene, sync_playwright() as playwright:
        places = paths(scene, scene.happen())
        chromium = playwright.chromium.launch(executable_path=browser.find(), args=list(browser.ARGUMENTS))
        for theme in ("light", "dark"):
            _take(chromium, scene, theme, {name: places[name] for name in names or places})
        chromium.close()
        scene.hang_up()
    return 0


def paths(scene: Scene, call_id: str) -> dict[str, str]:
    """Return the name of each picture and the page that it shows; the first one without a session."""
    connection_id = scene.pipeline.value("SELECT max(connection_id) FROM ari.connections")
    return {
        "sign-in": "/sign-in",
        "overview": "/",
        "calls": "/calls",
        "call": f"/calls/{call_id}",
        "connections": "/connections",
        "connection": f"/connections/{connection_id}",
        "dead-letters": "/dead-letters",
        "steps": "/steps",
        "usage": "/usage",
        "changes": "/changes",
        "audit": "/audit",
    }


def _take(chromium: Browser, scene: Scene, theme: str, places: dict[str, str]) -> None:
    context = chromium.new_context(base_url=scene.url, viewport=_SIZE, color_scheme=theme)  # type: ignore[arg-type]
    page = context.new_page()
    for name, path in places.items():
        page.goto(path)
        if "/sign-in?" in page.url:
            _sign_in(page)
        # Two samples, so that charts and ages are drawn.
        page.wait_for_timeout(2500)
        height = min(_MOST_HEIGHT, page.evaluate("document.documentElement.scrollHeight"))
        clip = {"x": 0, "y": 0, "width": _SIZE["width"], "height": height}
        _write(FOLDER / f"{name}-{theme}.png", page.screenshot(full_page=True, clip=clip))  # type: ignore[arg-type]
    context.close()


def _sign_in(page: Page) -> None:
    page.fill("#name", console_scene.USER)
    page.fill("#password", console_scene.USER_PASSWORD)
    page.press("#password", "Enter")
    page.wait_for_url(lambda url: "/sign-in" not in url)


def _write(path: Path, png: bytes) -> None:
    """Write a picture with as many colours as fit."""
    folders.make(path.parent, mode=0o755)
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    for colours in _COLOURS:
        reduced = io.BytesIO()
        # By coverage: a red that few pixels have stays red.
        palette = picture.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        palette.save(reduced, "PNG", optimize=True)
        if reduced.tell() <= MOST_BYTES:
            break
    path.write_bytes(reduced.getvalue())
    sys.stdout.write(f"{path.name}: {reduced.tell():,} bytes, {colours} colours\n")


if __name__ == "__main__":
    sys.exit(main())
