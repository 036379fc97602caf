"""The platform beside us: the layout of its database, and what is left of an earlier one."""

from __future__ import annotations

from collections.abc import Iterator

from arictl.checks.findings import Finding, ok, warning, wrong
from shared.platform import dograh
from shared.platform.dograh import layouts
from shared.storage import database


def check_layout(db: database.Database, setting: layouts.Setting) -> list[Finding]:
    """Check which layout the platform's tables have, and whether calls can be served by it."""
    return list(_layout(db, setting))


def _layout(db: database.Database, setting: layouts.Setting) -> Iterator[Finding]:
    found, there = layouts.find(db, setting), layouts.find(db)
    if found.unserved is None:
        yield ok("layout", str(found))
    else:
        yield wrong(
            "layout",
            f"{found}: {found.unserved}",
            "no call is served. Use a release that serves this layout, or the database of the layout of 2026-02",
        )
    if found.is_set and found.layout is not there.layout:
        yield wrong(
            "PLATFORM_LAYOUT",
            f"{found.layout}, and the tables have the layout {there.layout}",
            "remove PLATFORM_LAYOUT, unless you know that the tables are misread",
        )
    if there.layout is layouts.Layout.NEWEST:
        stale = len(dograh.Configurations(db).all())
        if stale:
            yield warning(
                "stale configurations",
                f"{stale} of the layout before, which the platform's own upgrade has copied and left behind",
                "nothing to do: they are not read any more, and no event socket is opened for them",
            )
