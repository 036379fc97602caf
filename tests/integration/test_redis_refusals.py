"""What a Redis may refuse, and which connections are closed for it; one that fails over, for each kind of client."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from listener import redis_store
from scheduler.listeners import Listeners
from shared import errors, queues
from shared.broker import redis_clients
from shared.broker.bounds import Bounds
from tests.support import failover

#: What tells that a server may not serve, as it says it; from a script on Redis 6.2, the last one.
REFUSALS = [
    "READONLY You can't write against a read only replica.",
    "LOADING Redis is loading the dataset in memory",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "CLUSTERDOWN The cluster is down",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
    "NOREPLICAS Not enough good replicas to write.",
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
    "NOAUTH Authentication required.",
    "ERR Error running script (call to f_1): @user_script:1: @user_script: 1: -READONLY You can't write against a read"
    " only replica.",
]
#: What is about one command.
COMPLAINTS = ["ERR syntax error", "WRONGTYPE Operation against a key holding the wrong kind of value", "OOM command"]


class Stub:
    """A server that answers every PING with `says`, and all else with OK. It counts its connections."""

    def __init__(self) -> None:
        self.says = "+PONG"
        self.connections = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listening.getsockname()[1]}/0?protocol=2"

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                made, _ = self._listening.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(made,), daemon=True).start()

    def _serve(self, made: socket.socket) -> None:
        with contextlib.suppress(OSError), made:
            while data := made.recv(4096):
                for command in data.split(b"*")[1:]:
                    made.sendall(f"{self.says if b'PING' in command else '+OK'}\r\n".encode())

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@pytest.fixture
def stub() -> Iterator[Stub]:
    made = Stub()
    threading.Thread(target=made.accept, daemon=True).start()
    yield made
    made.close()


class Client:
    """A client of either kind, that can do one thing."""

    def __init__(self, kind: str, url: str) -> None:
        self._runner = asyncio.Runner()
        self._sync = redis_clients.client(url) if kind == "sync" else None
        self._async = redis_clients.async_client(url) if kind == "async" else None

    def ping(self) -> str:
        """Return the answer, or the error."""
        try:
            if self._sync is not None:
                return str(self._sync.ping())
            assert self._async is not None
            return str(self._runner.run(self._ping()))
        except redis.RedisError as exc:
            return f"{type(exc).__name__} {exc}"

    async def _ping(self) -> Any:
        assert self._async is not None
        return await self._async.ping()

    def close(self) -> None:
        if self._sync is not None:
            self._sync.close()
        elif self._async is not None:
            self._runner.run(self._async.aclose())
        self._runner.close()


@pytest.fixture(params=["sync", "async"])
def client(stub: Stub, request: pytest.FixtureRequest) -> Iterator[Client]:
    made = Client(request.param, stub.url)
    assert made.ping() == "True"
    assert stub.connections == 1
    yield made
    made.close()


@pytest.mark.parametrize("refusal", REFUSALS, ids=[text.split()[0] for text in REFUSALS[:-1]] + ["script"])
def test_a_connection_to_a_server_that_may_not_serve_is_used_once(stub: Stub, client: Client, refusal: str) -> None:
    stub.says = f"-{refusal}"
    assert "Error" in client.ping()
    stub.says = "+PONG"
    assert client.ping() == "True"
    assert stub.connections == 2


@pytest.mark.parametrize("complaint", COMPLAINTS)
def test_a_command_that_is_refused_closes_nothing(stub: Stub, client: Client, complaint: str) -> None:
    for _ in range(10):
        stub.says = f"-{complaint}"
        assert "Error" in client.ping()
        stub.says = "+PONG"
        assert client.ping() == "True"
    assert stub.connections == 1


def test_so_many_errors_in_a_row_close_their_connection(stub: Stub, client: Client) -> None:
    stub.says = "-ERR whatever it is"
    for _ in range(redis_clients._MOST_FAILURES):
        assert "whatever" in client.ping()
    assert stub.connections == 1
    stub.says = "+PONG"
    assert client.ping() == "True"
    assert stub.connections == 2


def test_a_refusal_closes_the_other_connections_of_the_client_too(stub: Stub) -> None:
    """They lead to the same server: a burst would meet its refusal on each of them, one by one."""
    client = redis_clients.client(stub.url)
    pool = client.connection_pool
    held = [pool.get_connection() for _ in range(3)]
    for each in held:
        pool.release(each)
    stub.says = "-READONLY"
    with pytest.raises(redis.RedisError):
        client.ping()
    stub.says = "+PONG"
    again = [pool.get_connection() for _ in range(3)]
    for each in again:
        each.send_command("PING")  # type: ignore[no-untyped-call]
        assert each.read_response() == b"PONG"
        pool.release(each)
    assert stub.connections == 6
    client.close()


@pytest.mark.services
def test_heartbeats_leave_an_old_master(stack_folder: Path) -> None:
    with failover.servers_in(stack_folder) as pair:
        beats = redis_store.ThreadStore(pair.url, "me", seconds=1)
        beats.beat("")
        pair.happen()
        with pytest.raises(errors.QueueUnavailable):
            beats.beat("")
        beats.beat("")


@pytest.mark.services
def test_a_listener_leaves_an_old_master(stack_folder: Path) -> None:
    async def listen(pair: failover.Failover) -> None:
        client = redis_store.client(pair.url)
        store = redis_store.RedisStore(client, "me", capacity=1, timeout_seconds=2, bounds=Bounds())
        await store.beat([], [])
        pair.happen()
        with pytest.raises(errors.QueueUnavailable):
            await store.beat([], [])
        assert (await store.beat([], [])).unknown
        await store.close()

    with failover.servers_in(stack_folder) as pair:
        asyncio.run(listen(pair))
        assert pair.new.zscore("ari:listeners", "me")


@pytest.mark.services
def test_a_scheduler_leaves_an_old_master(stack_folder: Path) -> None:
    with failover.servers_in(stack_folder) as pair, queues.client(pair.url) as client:
        listeners = Listeners(client, timeout_seconds=2)
        assert listeners.snapshot(1).emptied
        pair.happen()
        with pytest.raises(redis.RedisError):
            listeners.snapshot(1)
        assert listeners.snapshot(1).emptied
