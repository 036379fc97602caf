"""Samples of a real process, a real Redis and a real Postgres."""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
import redis

from chaos import soak
from devstack import processes, servers
from tests import databases
from tests.support import call_rows

Make = Callable[..., soak.Sampler]


@pytest.fixture
def make(database_url: str, redis_url: str, tmp_path: Path) -> Make:
    """A function that makes a sampler of this process."""

    def made(**changes: object) -> soak.Sampler:
        servers = {"database_url": database_url, "redis_url": redis_url, "path": tmp_path / "samples"}
        return soak.Sampler(lambda: {"this": os.getpid()}, **{**servers, **changes})  # type: ignore[arg-type]

    return made


def test_memory_files_and_threads_of_a_process_are_counted(make: Make, tmp_path: Path) -> None:
    sampler = make()
    before = sampler.sample()["processes"]["this"]
    assert before["pid"] == os.getpid()
    assert 0 < before["proportional_bytes"] <= before["resident_bytes"]
    # Pages that no one has used before: malloc might give what was freed by another test.
    pages = mmap.mmap(-1, 30_000_000)
    for page in range(0, len(pages), mmap.PAGESIZE):
        pages[page] = 1
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    with (tmp_path / "a").open("w"), (tmp_path / "b").open("w"):
        after = sampler.sample()["processes"]["this"]
    release.set()
    thread.join()
    assert after["resident_bytes"] - before["resident_bytes"] > len(pages) * 0.9
    assert (after["files"] - before["files"], after["threads"] - before["threads"]) == (2, 1)


def test_a_process_that_has_ended_is_left_out() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    sampler = soak.Sampler(
        lambda: {"ended": ended.pid, "this": os.getpid()},
        database_url="postgresql://127.0.0.1:1/none",
        redis_url="redis://127.0.0.1:1",
        path=Path("unused"),
    )
    assert list(sampler.sample()["processes"]) == ["this"]


def test_memory_keys_and_clients_of_redis_are_counted(make: Make, redis_url: str) -> None:
    sampler = make()
    before = sampler.sample()["redis"]
    with contextlib.closing(redis.Redis.from_url(redis_url)) as client:
        client.set("a", "1" * 1_000_000)
        after = sampler.sample()["redis"]
    assert before is not None
    assert after is not None
    assert after["run_id"] == before["run_id"] != ""
    assert after["memory_bytes"] - before["memory_bytes"] > 900_000
    assert (after["keys"] - before["keys"], after["clients"] - before["clients"]) == (1, 1)


def test_connections_tuples_and_sizes_of_postgres_are_counted(
    make: Make, postgres_server: servers.Postgres, database_templates: Callable[[str], str]
) -> None:
    # One that no test has had before: Postgres counts what was changed for ever.
    database_url = databases.create(postgres_server.url, template=database_templates("stand-alone"))
    sampler = make(database_url=database_url)
    before = sampler.sample()["postgres"]
    assert before is not None
    with contextlib.closing(psycopg.connect(database_url, autocommit=True)) as connection:
        for statement in call_rows.CONNECTIONS:
            connection.execute(statement)
        connection.execute("UPDATE ari.connections SET state = state")
        # Else another session may count a moment later.
        connection.execute("SELECT pg_stat_force_next_flush()")
        after = sampler.sample()["postgres"]
    assert after is not None
    assert after["connections"] - before["connections"] == 1
    table = after["tables"]["ari.connections"]
    assert (before["tables"]["ari.connections"]["live"], table["live"] > 0) == (0, True)
    # Postgres removes dead tuples from a full page by itself.
    assert 0 < table["dead"] <= table["changed"] == table["live"]
    assert table["table_bytes"] > 0
    assert table["index_bytes"] > 0
    assert "ari.calls" in after["tables"]


def test_a_server_that_does_not_answer_is_missing_from_the_sample(make: Make) -> None:
    nowhere = f"127.0.0.1:{processes.free_port()}"
    found = make(database_url=f"postgresql://{nowhere}/none", redis_url=f"redis://{nowhere}").sample()
    assert (found["redis"], found["postgres"], list(found["processes"])) == (None, None, ["this"])


def test_samples_are_taken_until_the_sampler_is_stopped(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "samples"
    with make(every_seconds=0.05):
        ends_at = time.monotonic() + 20
        while not path.exists() or len(path.read_text().splitlines()) < 3:
            assert time.monotonic() < ends_at
            time.sleep(0.02)
    samples = soak.read(path)
    assert [sample["at"] for sample in samples] == sorted(sample["at"] for sample in samples)
    assert all(sample["postgres"] and sample["redis"] and sample["processes"] for sample in samples)
