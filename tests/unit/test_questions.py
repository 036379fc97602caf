"""What the operator's first questions are answered with: of a host, of steps."""

from __future__ import annotations

from shared.operator import host_loss, step_times
from shared.operator.processes import Process
from tests.support.call_stories import ARRIVED, ASKED, ended, joined, row, story


def process(kind: str, name: str, host: str, *, is_there: bool = True) -> Process:
    return Process(kind=kind, name=name, is_there=is_there, silent_seconds=0, host=host, log_levels={})


LISTENERS = [process("listener", "listener-1", "a"), process("listener", "listener-2", "b")]
SCHEDULERS = [process("scheduler", "s1", "a"), process("scheduler", "s2", "b")]
#: One was stopped: it takes nothing over.
WORKERS = [process("worker", "w1", "a"), process("worker", "w2", "b", is_there=False)]
SOCKETS = {"listener-1-0123abcd": 3, "listener-2-0123abcd": 2, "": 1}


def test_what_remains_without_a_host() -> None:
    loss = host_loss.of("a", [*LISTENERS, *SCHEDULERS, *WORKERS], leader="s1", sockets=SOCKETS)
    assert (loss.sockets_lost, loss.sockets_left) == (3, 2)
    assert list(host_loss.sentences(loss)) == [
        "No worker is left: callers ring and are lost.",
        "3 event sockets are taken over by listener-2.",
        "s1 leads now; s2 would lead.",
    ]


def test_what_remains_without_the_only_scheduler() -> None:
    loss = host_loss.of("a", [*LISTENERS, SCHEDULERS[0]], leader="s1", sockets=SOCKETS)
    assert list(host_loss.sentences(loss)) == [
        "No scheduler is left: sockets of listeners that die are not taken over, and overdue calls are not swept.",
        "3 event sockets are taken over by listener-2, once a scheduler leads.",
    ]


def test_a_host_whose_processes_all_have_others() -> None:
    loss = host_loss.of("b", [*LISTENERS, *SCHEDULERS, *WORKERS], leader="s1", sockets=SOCKETS)
    assert list(host_loss.sentences(loss)) == ["2 event sockets are taken over by listener-1."]


def test_a_call_counts_once_for_what_it_has_waited_for() -> None:
    # The agent's time is split by a row.
    slow = story(*ARRIVED, *ASKED, row(0.25, "LegsCreated", attempt=1), *joined(5.1), *ended(12, "CallerLeft"),
                 outcome="completed", reason="caller hung up")  # fmt: skip
    first = step_times.of([slow])[0]
    assert (first.part, first.what, first.calls) == ("voice agent", "to accept the media leg", 1)
    assert 5.0 < first.p50 == first.p95 == first.longest < 5.2
    assert first.example == slow.call.call_id
    assert "parties" not in {one.part for one in step_times.of([slow])}, "while they talk, nothing is waited for"
