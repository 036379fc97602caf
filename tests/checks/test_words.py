"""Words that this project has given up for the field's own are not used again, and prose has subjects.

An identifier, a log event, a Redis key, a column and a field of a message may have none of them. In sentences the same
words are ordinary English, and free.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.checks import checkout

#: Word (or words in a row) → what is used instead.
REPLACED = {
    "authorities": "tls",
    "chance": "random",
    "chances": "choices",
    "company": "batching window",
    "crew": "pool",
    "crews": "pools",
    "crowded": "no_free_slot",
    "departure": "continue_in_dialplan",
    "dismiss": "expire_session",
    "drives": "step_retries",
    "driven": "dispatched again",
    "ear": "wake-up thread",
    "elder": "previous listener",
    "entrance": "inbound_target",
    "entrances": "inbound targets",
    "exits": "outbound_connections",
    "give way": "start_draining",
    "go on": "continue_in_dialplan",
    "goes on": "continue_in_dialplan",
    "held": "in flight (broker), assigned (sockets), claimed (calls)",
    "hold": "claim_request",
    "holding": "claim, or slot",
    "holdings": "socket_pool",
    "homeless": "unassigned",
    "insist": "retry_on_conflict",
    "is taken": "is_preempted",
    "ladder": "backoff",
    "learn": "apply",
    "learned": "transition",
    "ledger": "call_writer",
    "leftover": "orphan",
    "leftovers": "orphans",
    "let go": "release_previous",
    "member": "session",
    "members": "sessions",
    "muster": "build_pools",
    "mustered": "pools",
    "news": "reports_revision, or changed",
    "nobody": "a named part",
    "open until": "in_doubt_until",
    "originates": "outbound_calls",
    "overtaken": "version_conflict",
    "patient": "grace period",
    "place call": "originate_leg",
    "placements": "rebalancing",
    "places": "capacity",
    "pulse": "liveness",
    "pushes": "publisher",
    "redrive": "dispatch again",
    "redrives": "step_retries",
    "retake": "reclaim",
    "retakes": "reclaims",
    "same place": "same_app_instance",
    "sentinel": "boot_marker",
    "serving": "call_settings",
    "settled at": "outcome_at",
    "shunned": "cooldown_until",
    "side by side": "in_parallel",
    "sieve": "prefilter",
    "sight": "snapshot",
    "somebody": "a named part",
    "spared": "grace",
    "standing": "assignment_lease",
    "stranger": "competing client",
    "strangers": "competing clients",
    "surroundings": "socket_context",
    "taken at": "preempted_at",
    "taken over": "run_attached",
    "telling": "conclusive",
    "tools": "adapters",
    "unasked": "never_dialled",
    "unheard": "missed",
    "unsettled": "in_doubt",
    "verdict": "disposition (broker), action (scheduler)",
    "verdicts": "actions",
    "whoever": "a named part",
    "why": "reason",
    "wire": "event_stream",
    "wires": "websocket, or tcp_proxy",
    "witness": "request_budget",
    "yielding": "draining",
}
#: Beginning of a path → the words that are right there, with the reason.
ALLOWED = {
    "arictl/": {
        "tools": "what a command works with; the workers' bag of ports is what was renamed",
        "verdict": "what is to be said of a call",
    },
    "console/": {"ladder": "telephony's diagram of a call", "verdict": "what is to be said of a call"},
    "shared/operator/": {"ladder": "telephony's diagram of a call", "verdict": "what is to be said of a call"},
}
#: Subjects that name no part: in sentences too.
PRONOUNS = re.compile(r"\b(?:whoever|nobody|somebody)\b", re.IGNORECASE)
MOST_PRONOUNS = 19
SQL = re.compile(r"\b(?:SELECT|INSERT INTO|UPDATE|DELETE FROM|CREATE|ALTER|WHERE|SET)\b")


def words(name: str) -> list[str]:
    """Split an identifier, in whichever case it is written."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def replaced(name: str) -> set[str]:
    """Return the replaced words that a name is made of."""
    said = f" {' '.join(words(name))} "
    return {word for word in REPLACED if f" {word} " in said}


def machine_words(path: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of all that a machine or a `grep` reads: names, SQL, keys, fields, log events."""
    yield from checkout.identifiers(path)
    for line, string in checkout.strings(path):
        if SQL.search(string):
            yield from ((line, name) for name in re.findall(r"[A-Za-z_]\w*", re.sub(r"--.*|'[^']*'", "", string)))
        elif re.fullmatch(r"[a-z][\w:.-]*", string):
            yield line, string
    if path.endswith(".py"):
        yield from checkout.log_events(path)


def files() -> list[str]:
    return list(checkout.product_files(".py", ".lua"))


def left(path: str) -> Iterator[str]:
    """Yield a line for each replaced word of a file."""
    allowed = {word for start, reasons in ALLOWED.items() if path.startswith(start) for word in reasons}
    stem = path.rpartition("/")[2].partition(".")[0]
    for line, name in sorted({*machine_words(path), (0, stem)}):
        for word in sorted(replaced(name) - allowed):
            yield f"{path}:{line}: {name} ({word} -> {REPLACED[word]})"


@pytest.mark.parametrize("package", checkout.PRODUCT)
def test_no_replaced_word_is_used_again(package: str) -> None:
    found = [line for path in files() if path.startswith(f"{package}/") for line in left(path)]
    assert not found, f"{len(found)} places:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("elder_epoch", {"elder"}),
        ("_previousElder", {"elder"}),
        ("HoldingsChanged", {"holdings"}),
        ("ari:news", {"news"}),
        ("left side by side", {"side by side"}),
        ("yielding", {"yielding"}),
        ("threshold", set()),
        ("holder", set()),
        ("hear", set()),
    ],
)
def test_a_name_is_split_into_its_words(name: str, expected: set[str]) -> None:
    assert replaced(name) == expected


def test_the_walk_sees_names_columns_keys_and_log_events() -> None:
    seen = {name for path in files() for _, name in machine_words(path)}
    assert {"asyncio", "connection_versions", "ari:capacities", "redis", "DATABASE_URL".lower()} <= seen


def test_sentences_have_subjects() -> None:
    found = [
        f"{name}:{number}: {line.strip()}"
        for name in [*files(), *checkout.PAGES]
        for number, line in enumerate(checkout.text(name).splitlines(), 1)
        for _ in PRONOUNS.findall(line)
    ]
    assert len(found) <= MOST_PRONOUNS, f"{len(found)} times whoever, nobody, somebody:\n" + "\n".join(found)
