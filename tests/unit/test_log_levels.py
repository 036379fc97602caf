"""The level of a process, and of the lines of one connection, changes while it runs, and ends by itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog

from shared.process.log_levels import LogLevels, Wish
from shared.process.registry import wishes


@pytest.fixture(autouse=True)
def root() -> Iterator[logging.Logger]:
    logger = logging.getLogger()
    before = logger.level
    yield logger
    logger.setLevel(before)
    structlog.contextvars.clear_contextvars()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def record(level: int, message: object = "text") -> logging.LogRecord:
    return logging.LogRecord("ours", level, "", 0, message, None, None)


def test_a_wish_holds_for_its_time(root: logging.Logger) -> None:
    clock = Clock()
    levels = LogLevels("info", clock)
    assert (levels.level, root.level) == ("info", logging.INFO)
    levels.set([Wish(level="debug", seconds=10)])
    assert (levels.level, root.level) == ("debug", logging.DEBUG)
    clock.now += 11
    levels.expire()
    assert (levels.level, root.level) == ("info", logging.INFO)


def test_the_lines_of_one_connection_have_their_level_whatever_the_process_s(root: logging.Logger) -> None:
    levels = LogLevels("info")
    levels.set([Wish(level="debug", connection_id=7, seconds=10), Wish(level="error", connection_id=8, seconds=10)])
    assert root.level == logging.DEBUG
    assert levels.of_connections == {7: "debug", 8: "error"}
    for message, lowest in (
        ({"event": "x", "connection": "7:2"}, logging.DEBUG),
        ({"event": "x", "connection": 7}, logging.DEBUG),
        ({"event": "x", "connection": "8:1"}, logging.ERROR),
        ({"event": "x", "connection": "9:1"}, logging.INFO),
        ({"event": "x"}, logging.INFO),
        ("a library's", logging.INFO),
    ):
        passed = [level for level in (10, 20, 30, 40) if levels.filter(record(level, message))]
        assert min(passed) == lowest, message


def test_what_is_bound_tells_the_connection_of_any_line() -> None:
    levels = LogLevels("error")
    levels.set([Wish(level="debug", connection_id=7, seconds=10)])
    assert not levels.filter(record(logging.DEBUG))
    with structlog.contextvars.bound_contextvars(connection="7:2"):
        assert levels.filter(record(logging.DEBUG))
        assert levels.filter(record(logging.DEBUG, {"event": "x"}))


def test_unused_it_looks_at_no_line() -> None:
    levels = LogLevels("info")

    class Untouched:
        def __getattr__(self, name: str) -> object:
            raise AssertionError(name)

    assert levels.filter(Untouched())  # type: ignore[arg-type]


def test_what_cannot_be_a_level_is_left_out() -> None:
    levels = LogLevels("info")
    levels.set([Wish(level="chatty", seconds=10), Wish(level="warning", seconds=10)])
    assert levels.level == "warning"


def test_wishes_are_read_as_far_as_they_can_be_and_those_for_one_process_come_last() -> None:
    wished = [
        '["worker-1", 0]', '{"level": "debug", "until_ms": 6000}',
        '["", 0]', '{"level": "error", "until_ms": 9000}',
        '["", 7]', '{"level": "debug", "until_ms": 3000}',
        '["worker-2", 0]', '{"level": "error", "until_ms": 9000}',
        '["", 8]', '{"level": "debug", "until_ms": 999}',
        "broken", "{}",
        '["", 9]', '{"level": "debug"}',
    ]  # fmt: skip
    found = wishes(("worker-1", "worker/worker-1"), wished, now_ms=1000)
    assert found == [
        Wish(level="error", connection_id=0, seconds=8),
        Wish(level="debug", connection_id=7, seconds=2),
        Wish(level="debug", connection_id=0, seconds=5),
    ]
