"""The tools of a chaos run on real connections, disks and clocks; a process of its own plays what needs a namespace."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chaos import clocks, network, tools
from devstack import debian
from tests import conftest

ROOT = Path(__file__).parents[2]
Play = Callable[[str], None]


@pytest.fixture(scope="module")
def found() -> tools.Tools:
    """The tools, installed if they are missing."""
    try:
        network.check_permitted()
        return tools.find()
    except (debian.Unavailable, network.NotPermitted) as exc:
        if conftest.ASTERISK.required and not getattr(exc, "archive_unreachable", False):
            pytest.fail(f"the tools of a chaos run are required (REQUIRE_ASTERISK): {exc}", pytrace=False)
        pytest.skip(f"no chaos run: {exc}")


@pytest.fixture
def play(found: tools.Tools) -> Play:
    """A function that plays a scene of tests/support/chaos_scenes.py."""

    def played(scene: str) -> None:
        command = [sys.executable, "-m", "tests.support.chaos_scenes", scene]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    return played


def test_the_proxy_passes_requests_on_unchanged(play: Play) -> None:
    play("passes_unchanged")


def test_the_requests_of_one_tenant_are_slow_refused_or_unanswered(play: Play) -> None:
    play("rest_modes")


def test_an_event_socket_falls_silent_or_is_closed(play: Play) -> None:
    play("event_socket")


def test_a_silent_port_loses_established_connections_without_a_reset(play: Play) -> None:
    play("port_silence")


def test_the_port_of_a_server_that_ended_refuses(play: Play) -> None:
    play("server_ends")


def test_the_connections_to_a_server_are_cut_refused_or_slow(play: Play) -> None:
    play("loud_cut")


def test_a_disk_is_full_until_it_is_freed(play: Play) -> None:
    play("full_disk")


def test_nothing_is_done_outside_a_namespace(found: tools.Tools, tmp_path: Path) -> None:
    with pytest.raises(network.NotPermitted):
        network.Firewall(found.nft)
    with pytest.raises(network.NotPermitted), network.tmpfs(tmp_path, megabytes=1):
        pass


# ── clocks ───────────────────────────────────────────────────────────────────────────────────────────────────────────

#: Prints its wall clock, its monotonic clock, and how long each wait of 0.1 s takes.
WAITS = """
import asyncio, select, threading, time, uvloop
def event(): threading.Event().wait(0.1)
def condition():
    with (known := threading.Condition()): known.wait(0.1)
def lock(): (taken := threading.Lock()).acquire(); taken.acquire(timeout=0.1)
def sleep(): time.sleep(0.1)
def poll(): select.poll().poll(100)
def loop(): asyncio.run(asyncio.sleep(0.1))
def uv(): uvloop.run(asyncio.sleep(0.1))
while True:
    waited = []
    for wait in (event, condition, lock, sleep, poll, loop, uv):
        began = time.perf_counter(); wait(); waited.append(time.perf_counter() - began)
    print(time.time(), time.monotonic(), min(waited), max(waited), flush=True)
"""
#: Connects to a server that says nothing, and prints how long psycopg waits.
CONNECTS = """
import sys, time, psycopg
began = time.monotonic()
try: psycopg.connect(host="127.0.0.1", port=sys.argv[1], user="x", connect_timeout=3)
except psycopg.OperationalError: print(time.monotonic() - began)
"""
#: Has six threads take turns at the interpreter, and prints how often one of them was put to sleep, or had to wait.
TURNS = """
import resource, socket, threading
def count():
    for _ in range(3_000_000): pass
def exchange():
    one, other = socket.socketpair()
    for _ in range(1500): one.send(b"x"); other.recv(1)
threads = [threading.Thread(target=each) for each in (count, count, exchange, exchange, exchange, exchange)]
for thread in threads: thread.start()
for thread in threads: thread.join()
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_nvcsw + used.ru_nivcsw)
"""


def start(clock: clocks.Clock, program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, **clock.environment},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def clock(found: tools.Tools, tmp_path: Path) -> clocks.Clock:
    return clocks.Clock(found.libfaketime, tmp_path / "clock")


def test_the_wall_clock_of_one_process_moves_and_nothing_else_does(clock: clocks.Clock) -> None:
    with start(clock, WAITS) as process:
        assert process.stdout is not None
        for seconds in (0, 3600, -3600, 0):
            clock.ahead(seconds)
            seen = _readings(process.stdout, seconds)
            assert any(abs(offset - seconds) < 60 for offset, _, _, _ in seen), seen
            assert all(abs(monotonic) < 60 for _, monotonic, _, _ in seen), seen
            assert all(shortest > 0.099 for _, _, shortest, _ in seen), seen
            # A process of a busy machine, but no hour.
            assert all(longest < 10 for _, _, _, longest in seen), seen
        process.kill()


def _readings(lines: Iterator[str], seconds: int) -> list[tuple[float, float, float, float]]:
    """Read until the wall clock is off by that much: its offset, the monotonic clock's, shortest, longest wait."""
    seen = []
    for line in lines:
        wall, monotonic, shortest, longest = map(float, line.split())
        seen.append((wall - time.time(), monotonic - time.monotonic(), shortest, longest))
        if abs(seen[-1][0] - seconds) < 60 or len(seen) == 30:
            return seen
    raise AssertionError(f"it ended after {seen}")


def test_postgres_time_outs_do_not_follow_the_wall_clock(clock: clocks.Clock) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = start(clock, CONNECTS, str(silent.getsockname()[1]))
        threading.Timer(1.0, clock.ahead, (3600,)).start()
        output, _ = process.communicate(timeout=60)
    assert 2.5 < float(output) < 30


def test_threads_that_wait_for_the_interpreter_sleep(clock: clocks.Clock) -> None:
    """Each wait of 5 ms ended at once: a process with several busy threads used the whole machine."""
    clock.ahead(3600)
    output, _ = start(clock, TURNS).communicate(timeout=60)
    usual, _ = subprocess.Popen([sys.executable, "-c", TURNS], stdout=subprocess.PIPE, text=True).communicate()
    assert int(output) < 20 * int(usual), (output, usual)


# ── installing ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_installed_package_starts_no_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tmp_path / "policy-rc.d"
    monkeypatch.setattr(tools, "POLICY", policy)
    with tools.no_service_starts():
        assert subprocess.run([policy], check=False).returncode == 101
    assert not policy.exists()
    policy.write_text("#!/bin/sh\nexit 0\n")
    with tools.no_service_starts():
        pass
    assert policy.read_text() == "#!/bin/sh\nexit 0\n"


def test_what_cannot_be_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(debian, "PATH", str(tmp_path))
    with pytest.raises(debian.Unavailable, match="apt-get install haproxy nftables"):
        tools.find()
