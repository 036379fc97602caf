"""The servers and the agent of the development stack: they start, restart, keep apart and leave nothing behind."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg
import pytest
import redis
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from devstack import endpoint, folders, processes, servers, tones
from devstack.agent import Agent
from shared.platform.dograh import media_url

pytestmark = pytest.mark.services

SECRET = "a secret of the agent"


@pytest.fixture
def folder() -> Iterator[Path]:
    with folders.temporary() as path:
        yield path


def until(met: Callable[[], Any], *, seconds: float = 10) -> bool:
    """Return True if a condition is met in time."""
    deadline = time.monotonic() + seconds
    while not met():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def one(url: str, statement: str) -> Any:
    with contextlib.closing(psycopg.connect(url, autocommit=True)) as connection:
        row = connection.execute(statement).fetchone()
        return row[0] if row else None


def processes_with(text: str) -> list[int]:
    """Return the ids of other processes with this text in their arguments; dead ones have none."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if process.name != str(os.getpid()) and text.encode() in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def test_postgres_keeps_its_data_and_port_when_it_is_killed(folder: Path) -> None:
    with servers.Postgres(folder / "postgres") as server:
        with contextlib.closing(psycopg.connect(server.url, autocommit=True)) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        url = server.url
        server.kill()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(url, connect_timeout=1)
        server.start()
        assert server.url == url
        assert one(url, "SELECT answer FROM kept") == 42
    assert processes_with(str(folder)) == []


def test_redis_forgets_everything_when_it_is_killed_and_wants_its_password(folder: Path) -> None:
    with servers.Redis(folder / "redis") as server:
        with contextlib.closing(redis.Redis.from_url(server.url)) as client:
            client.set("key", "value")
            server.kill()
            assert not processes_with(str(folder))
            server.start()
            assert client.get("key") is None
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        with (
            contextlib.closing(redis.Redis.from_url(f"redis://127.0.0.1:{server.port}")) as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.get("key")
    assert processes_with(str(folder)) == []


def test_an_incomplete_data_folder_is_created_again(folder: Path) -> None:
    (folder / "postgres").mkdir()
    (folder / "postgres" / "data.partial" / "cluster").mkdir(parents=True)
    with servers.Postgres(folder / "postgres", durable=False) as server:
        assert one(server.url, "SELECT 1") == 1
    assert not (folder / "postgres" / "data.partial").exists()


def test_a_port_in_use_is_replaced_by_another_one(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with servers.Redis(folder / "redis", preferred_port=port) as server:
            assert server.port != port


def test_two_stacks_do_not_see_each_other(folder: Path) -> None:
    with servers.Redis(folder / "one") as first, servers.Redis(folder / "two") as second:
        assert first.port != second.port
        assert first.url.split("@")[0] != second.url.split("@")[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make the mistake")
def test_no_folder_but_ours_is_opened_for_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = folder / "a private home"
    closed.mkdir(mode=0o700)
    monkeypatch.setenv("ARI_PIPELINE_HOME", str(closed / "data"))
    with pytest.raises(processes.ProcessError), servers.Postgres(folders.named("run") / "postgres", durable=False):
        pass
    assert closed.stat().st_mode & 0o777 == 0o700


def test_secrets_are_for_their_owner_only(folder: Path) -> None:
    secret = folders.secret(folder / "key")
    assert len(secret) > 32
    assert folders.secret(folder / "key") == secret
    assert (folder / "key").stat().st_mode & 0o777 == 0o600


PARENT = """
import sys, time
from pathlib import Path
from devstack import servers
folder = Path(sys.argv[1])
with servers.Postgres(folder / "postgres", durable=False), servers.Redis(folder / "redis"):
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("victim", ["parent", "guards"])
def test_nothing_is_left_after_a_kill(folder: Path, victim: str) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(folder)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == "ready\n"
        guards = set(processes_with("child_guard.py")) & set(processes_with(str(folder)))
        assert len(guards) == 2
        for pid in guards if victim == "guards" else [parent.pid]:
            os.kill(pid, signal.SIGKILL)
        assert until(lambda: set(processes_with(str(folder))) <= {parent.pid})
        parent.kill()
    # A killed server starts again on the same data.
    with servers.Postgres(folder / "postgres", durable=False) as server:
        assert one(server.url, "SELECT 1") == 1


def test_orphans_of_a_guarded_process_end_with_it(folder: Path) -> None:
    script = "sleep 3471 & (setsid sleep 3472 &) ; exec sleep 3473"
    process = processes.GuardedProcess(["sh", "-c", script], log=folder / "log")

    def sleepers() -> int:
        return len(processes_with("sleep\x00347"))

    assert until(lambda: sleepers() == 3)
    process.kill()
    assert sleepers() == 0


@pytest.mark.parametrize("in_memory", [False, True])
def test_folders_of_killed_test_runs_are_removed(in_memory: bool) -> None:
    with folders.temporary(in_memory=in_memory) as first:
        stale = first.parent / "left-behind"
    stale.mkdir()
    with folders.temporary(in_memory=in_memory) as mine, folders.temporary(in_memory=in_memory):
        assert not stale.exists()
        assert mine.exists()
    assert not mine.exists()


def test_a_folder_is_in_memory_where_there_is_room_and_nobody_else_took_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ARI_PIPELINE_HOME", raising=False)
    monkeypatch.setattr(folders, "_MEMORY", folder)
    monkeypatch.setattr(folders, "_MEMORY_NEEDED", 1)
    own = folder / f"ari-pipeline-{os.geteuid()}"

    def place() -> Path:
        with folders.temporary(in_memory=True) as path:
            return path.parent.parent

    assert place() == own
    with monkeypatch.context() as without_room:
        without_room.setattr(folders, "_MEMORY_NEEDED", 2**60)
        stale = own / "temporary" / "left-behind"
        stale.mkdir()
        assert place() == folders.home()
        assert not stale.exists(), "it takes the room"
    with monkeypatch.context() as in_a_container:
        in_a_container.setattr(os, "statvfs", lambda _path: mock.Mock(f_flag=os.ST_NOEXEC))
        assert place() == folders.home()
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("ARI_PIPELINE_HOME", str(folder / "chosen"))
        assert place() == folder / "chosen"
    shutil.rmtree(own)
    own.symlink_to(folder / "of somebody else")
    (folder / "of somebody else").mkdir()
    assert place() == folders.home()
    own.unlink()
    own.write_text("a file")
    assert place() == folders.home()


@pytest.mark.parametrize("frequency", [50, 400, 1004, 3000])
def test_dominant_frequency_of_a_tone_is_found(frequency: int) -> None:
    assert tones.dominant_frequency(tones.tone(frequency)) == pytest.approx(frequency, abs=4)


def test_silence_has_no_frequency() -> None:
    assert tones.dominant_frequency(tones.SILENCE * 8000) is None
    assert tones.dominant_frequency(b"") is None


@pytest.fixture
def runs(empty_database_url: str) -> str:
    """A database with the columns that the agent reads: runs 1 (ready), 2 (completed), 3 (without its call_id)."""
    with contextlib.closing(psycopg.connect(empty_database_url, autocommit=True)) as connection:
        connection.execute("CREATE TYPE workflow_run_state AS ENUM ('initialized', 'running', 'completed')")
        connection.execute(
            "CREATE TABLE workflow_runs (id int, workflow_id int, state workflow_run_state, initial_context json,"
            " gathered_context json)"
        )
        connection.execute("""
            INSERT INTO workflow_runs VALUES
                (1, 7, 'initialized', '{"provider": "ari"}', '{"call_id": "leg"}'),
                (2, 7, 'completed', '{"provider": "ari"}', '{"call_id": "leg"}'),
                (3, 7, 'initialized', '{"provider": "ari"}', '{}')
        """)
    return empty_database_url


def leg_url(agent: Agent, run_id: int, *, secret: str = SECRET) -> str:
    token = media_url.token(secret, {"workflow_id": 7, "user_id": 5, "workflow_run_id": run_id})
    return f"{agent.url}?workflow_id=7&user_id=5&workflow_run_id={run_id}&token={token}"


def test_agent_accepts_a_leg_once_sets_its_run_running_and_echoes(runs: str) -> None:
    with Agent(database_url=runs, secret=SECRET) as agent:
        with connect(leg_url(agent, 1), subprotocols=[endpoint.SUBPROTOCOL]) as leg:  # type: ignore[list-item]
            assert leg.subprotocol == "media"
            assert one(runs, "SELECT state FROM workflow_runs WHERE id = 1") == "running"
            leg.send(tones.tone(400))
            assert leg.recv(timeout=5) == tones.tone(400)
            assert agent.sessions[1].bytes_heard == 8000
            assert agent.sessions[1].dominant_frequency == pytest.approx(400, abs=4)
            with pytest.raises(InvalidStatus, match="409"), connect(leg_url(agent, 1)):
                pass
        assert until(lambda: not agent.sessions[1].open)


@pytest.mark.parametrize(
    ("run_id", "secret", "status"), [(1, "wrong", 403), (2, SECRET, 409), (3, SECRET, 409), (9, SECRET, 404)]
)
def test_agent_refuses_what_the_platform_refuses(runs: str, run_id: int, secret: str, status: int) -> None:
    with Agent(database_url=runs, secret=SECRET) as agent:
        with pytest.raises(InvalidStatus, match=str(status)), connect(leg_url(agent, run_id, secret=secret)):
            pass
        assert agent.refusals[0].startswith(str(status))
        assert not agent.sessions
    assert one(runs, "SELECT count(*) FROM workflow_runs WHERE state = 'running'") == 0


def test_agent_changes_its_behaviour_while_it_runs() -> None:
    with Agent() as agent:
        agent.behaviour.mode, agent.behaviour.tone_hz = "tone", 1000
        with connect(leg_url(agent, 1)) as leg:
            heard = b"".join(bytes(leg.recv(timeout=5)) for _ in range(4))  # type: ignore[arg-type]
            assert tones.dominant_frequency(heard) == pytest.approx(1000, abs=4)
            agent.close_all()
            assert until(lambda: not agent.sessions[1].open)
        agent.behaviour.refuse = 503
        with pytest.raises(InvalidStatus, match="503"), connect(leg_url(agent, 1)):
            pass
        agent.behaviour.refuse, agent.behaviour.accept_delay_seconds = None, 0.3
        began = time.monotonic()
        with connect(leg_url(agent, 1)):
            assert time.monotonic() - began >= 0.3
        agent.stop()
        with pytest.raises(ConnectionRefusedError), connect(agent.url):
            pass
        agent.start()
