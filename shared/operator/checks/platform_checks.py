"""The platform beside us: the layout of its database, who completes runs, and rows by which callers are refused."""

from __future__ import annotations

from collections.abc import Iterator

from shared.operator.checks.findings import Finding, ok, warning, wrong
from shared.platform.dograh import inspection, layouts
from shared.storage import database

#: A shorter secret can be guessed.
_SECRET_LENGTH = 16
#: The scheduler tells of them every half second.
_LATE_SECONDS = 60
_WAITING = """
SELECT count(*) AS runs, extract(epoch FROM clock_timestamp() - min(written_at))::float AS seconds FROM ari.outbox
"""
#: So many of a kind are named.
_NAMED = 5


def check(db: database.Database, setting: layouts.Setting, *, run_completion: str) -> list[Finding]:
    """Check which layout the platform's tables have, whether calls can be served by it, and its rows.

    Args:
        run_completion: RUN_COMPLETION.
    """
    return list(_check(db, setting, run_completion))


def check_outbox(db: database.Database, *, redis_is_known: bool, setting: layouts.Setting) -> list[Finding]:
    """Check whether the platform is told of the runs that we end."""
    with db.connection() as connection:
        row = connection.execute(_WAITING).fetchone()
    assert row is not None
    if row["seconds"] is not None and row["seconds"] > _LATE_SECONDS:
        return [
            wrong(
                "ended runs",
                f"{row['runs']} wait for the platform to be told of them, the oldest for {row['seconds']:.0f} s",
                "is a scheduler leading, with PLATFORM_REDIS_URL, and does that Redis take writes? A campaign's event"
                " waits for the platform's orchestrator of campaigns",
            )
        ]
    if redis_is_known:
        return [ok("ended runs", "the platform is told of them")]
    if layouts.find(db, setting).revision is None:
        return []
    return [
        warning(
            "ended runs",
            "the platform is not told of runs that end without a conversation: no webhook, no retry of a campaign",
            "set PLATFORM_REDIS_URL of workers and schedulers to the platform's REDIS_URL",
        )
    ]


def check_token_secrets(*, ours: str, platforms: str) -> list[Finding]:
    """Check the secrets that sign the token of a media URL, each empty if it is not set. No finding shows one.

    Args:
        ours: MEDIA_TOKEN_SECRET, which counts where both are set.
        platforms: TELEPHONY_WS_TOKEN_SECRET.
    """
    return list(_token_secrets({"MEDIA_TOKEN_SECRET": ours, "TELEPHONY_WS_TOKEN_SECRET": platforms}))


def _token_secrets(secrets: dict[str, str]) -> Iterator[Finding]:
    given = {name: secret for name, secret in secrets.items() if secret}
    for name, secret in given.items():
        if secret != secret.strip():
            yield warning(
                name,
                "begins or ends with white space, which is part of it",
                "is it so at the platform? The agent refuses a media leg whose token is signed by another text",
            )
        if len(secret) < _SECRET_LENGTH:
            yield warning(
                name,
                f"has {len(secret)} characters: it can be guessed",
                f"use {_SECRET_LENGTH} or more, the same text here and at the platform",
            )
    if len(set(given.values())) > 1:
        yield wrong(
            " and ".join(given),
            "differ, and the first one counts",
            "set one of them, to the text that the platform has",
        )


def _check(db: database.Database, setting: layouts.Setting, run_completion: str) -> Iterator[Finding]:
    found, there = layouts.find(db, setting), layouts.find(db)
    if found.unserved is None:
        yield ok("layout", str(found))
    else:
        yield wrong(
            "layout",
            f"{found}: {found.unserved}",
            "no call is served. Use a release that serves this layout",
        )
    if found.is_set and found.layout is not there.layout:
        yield wrong(
            "PLATFORM_LAYOUT",
            f"{found.layout}, and the tables have the layout {there.layout}",
            "remove PLATFORM_LAYOUT, unless you know that the tables are misread",
        )
    yield _completion(found, run_completion)
    if there.layout is layouts.Layout.NEWEST and there.unserved is None:
        yield from _newest(db)


def _completion(found: layouts.Found, setting: str) -> Finding:
    is_platform = setting == "platform" or (setting == "auto" and found.platform_completes_runs)
    what = "runs of connected calls"
    seen = f"completed by {'the platform' if is_platform else 'us'} (RUN_COMPLETION={setting})"
    if found.is_ours and is_platform:
        return wrong(
            what,
            f"{seen}, which is not there: the tables are those of an installation without it",
            "every run of a connected call stays open for ever: remove RUN_COMPLETION",
        )
    if found.platform_completes_runs and not is_platform:
        return wrong(
            what,
            f"{seen}, and the platform's API is there, which does it as well",
            "we would complete a run before the API has written the call's disposition, which is lost then: remove"
            " RUN_COMPLETION",
        )
    if setting == "auto" and not found.is_ours and not found.platform_completes_runs:
        return warning(
            what,
            f"{seen}; whose the tables are is not known: neither the platform's alembic_version is there nor are they"
            " those of an installation without it",
            "say it by RUN_COMPLETION=ours or RUN_COMPLETION=platform",
        )
    return ok(what, seen)


def _newest(db: database.Database) -> Iterator[Finding]:
    if stale := inspection.stale_configurations(db):
        yield warning(
            "stale configurations",
            f"{stale} of the layout before, which the platform's own upgrade has copied and left behind",
            "nothing to do: they are not read any more, and no event socket is opened for them",
        )
    if undefined := inspection.undefined_workflows(db):
        yield wrong(
            "workflow definitions",
            f"none for {len(undefined)} workflows of phone numbers: {_named(undefined)}",
            "their callers are refused, since the voice agent ends a call whose run has none: publish them",
        )
    else:
        yield ok("workflow definitions", "one for each workflow of a phone number")
    if odd := inspection.odd_numbers(db):
        yield wrong(
            "phone numbers",
            f"{len(odd)} are stored in another form than calls are looked up by: {_named(odd)}",
            "no call finds them: save them again in the platform",
        )
    if repeated := inspection.repeated_defaults(db):
        yield warning(
            "defaults",
            f"several of one kind: {_named(repeated)}",
            "the first caller id is shown, and the platform takes any of such configurations: leave one of each, and"
            " restore the platform's unique indexes",
        )
    if inactive := inspection.inactive_configurations(db):
        reasons = [
            f"{row['id']} of organization {row['organization_id']} ({row['inactive_reason']})" for row in inactive
        ]
        yield warning(
            "inactive configurations",
            f"{len(inactive)}: {_named(reasons)}",
            "they are not connected: correct them, and re-activate them in the platform",
        )


def _named(some: list[int] | list[str]) -> str:
    more = f" and {len(some) - _NAMED} more" if len(some) > _NAMED else ""
    return ", ".join(str(one) for one in some[:_NAMED]) + more
