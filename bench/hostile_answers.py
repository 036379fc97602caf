"""Set-up time of one tenant while another's Asterisk is hostile: `python -m bench.hostile_answers [CASE ...]`.

Runs the processes of the Procfile and two tenants, each with a simulated Asterisk. A proxy stands before that of A. It
passes on the event socket, and answers requests itself:

- `huge`: 16 MB of empty lists
- `largest`: as many values as an answer may have: 2 MiB of bridges, 256 kB for the app, 64 kB for all else
- `deep`: 64 kB of opening brackets
- `lying`: 12,000 bridges named as ours are, each of which it says it removed; all other requests are passed on
- `slow bytes`: byte by byte, as fast as the network takes them

A has callers all the time, and a resync every two seconds. B's callers come at an even rate. Prints a Markdown table:
B's set-up times, and by how much the worker grew.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

from bench import fairness
from bench.fairness import Environment, pace, process, quantile, say
from devstack import folders, processes, servers
from devstack.endpoint import PATH
from devstack.pipeline import SECRET_KEY, Pipeline, wait_until
from devstack.tenants import PASSWORD, closing_tenant
from shared.storage import migrations
from simulator.control import Control

RESYNC_SECONDS = 2
AHEAD_SECONDS = 3.0
_APP = re.compile(rb"GET \S*/ari/applications/[^/ ]+ ")
_BRIDGES = b"GET /ari/bridges "
_OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
_REMOVED = b"HTTP/1.1 204 No Content\r\n\r\n"
_MODE = b"/hostile/"


# ── the proxy ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _answered(body: bytes) -> bytes:
    return _OK % (len(body), body)


def _dense(size: int) -> bytes:
    """Return JSON with as many values as an answer of this size may have: keys, which cost the most."""
    pairs = b",".join(b'"%08d":1' % number for number in range(size // 12 - 2))
    return b'{"id":"b",' + pairs[: size - 20].rpartition(b",")[0] + b"}"


def _lies() -> bytes:
    names = [f"aip-{uuid.uuid4().hex}-b1" for _ in range(12_000)]
    return json.dumps([{"id": name, "channels": [], "name": "x" * 90} for name in names]).encode()


Answer = Callable[[bytes], bytes | None]


def _modes() -> Mapping[str, Answer]:
    """Return mode → the answer to a request, None to pass it on."""
    huge = _answered(b"[" + b",".join([b"[]"] * (16 * 2**20 // 3)) + b"]")
    app, one, lies = _answered(_dense(2**18)), _answered(_dense(2**16)), _answered(_lies())
    bridges = _answered(b"[" + b",".join([_dense(2**15)] * 63) + b"]")

    def largest(head: bytes) -> bytes:
        return bridges if head.startswith(_BRIDGES) else app if _APP.match(head) else one

    deep = _answered(b"[" * 2**16)
    return {
        "": lambda _head: None,
        "huge": lambda _head: huge,
        "largest": largest,
        "deep": lambda _head: deep,
        "lying": lambda head: (
            lies if head.startswith(_BRIDGES) else _REMOVED if head.startswith(b"DELETE /ari/bridges/") else None
        ),
        "slow bytes": lambda _head: one,
    }


class Proxy:
    """Passes on what is to be passed on, each request by a connection of its own."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._modes = _modes()
        self._mode = ""

    async def serve(self, port: int) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", port, limit=2**20)
        async with server:
            await server.serve_forever()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await self._request(reader, writer):
                pass
        writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return False when the connection is at its end."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        body = await reader.readexactly(int(length[1])) if length else b""
        target = head.split(b" ", 2)[1]
        if target.startswith(_MODE):
            self._mode = target.removeprefix(_MODE).decode().replace("%20", " ")
            writer.write(_answered(b"{}"))
            return True
        is_socket = b"upgrade: websocket" in head.lower()
        answer = None if is_socket else self._modes[self._mode](head)
        if answer is None:
            await self._pass_on(head, body, reader, writer, is_socket=is_socket)
            return False
        size = 1 if self._mode == "slow bytes" else len(answer)
        for at in range(0, len(answer), size):
            writer.write(answer[at : at + size])
            await writer.drain()
        return True

    async def _pass_on(
        self, head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_socket: bool
    ) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            back.write((head if is_socket else head[:-2] + b"Connection: close\r\n\r\n") + body)
            if is_socket:
                await asyncio.wait(
                    [asyncio.create_task(_pipe(there, writer)), asyncio.create_task(_pipe(reader, back))],
                    return_when=asyncio.FIRST_COMPLETED,
                )
            else:
                await _pipe(there, writer)
        finally:
            back.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()


# ── the benchmark ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of one case."""

    #: B's set-up times in s.
    times: list[float]
    #: The most that the worker grew by.
    grown_mb: float


class Memory:
    """The resident memory of a process while a case runs."""

    def __init__(self, pid: int) -> None:
        self._tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        self._stop = threading.Event()
        self._before = self._now()
        self.most = self._before
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @property
    def grown_mb(self) -> float:
        self._stop.set()
        self._thread.join()
        return (self.most - self._before) / 2**20

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.most = max(self.most, self._now())

    def _now(self) -> int:
        return sum(each.memory_info().rss for each in self._tree)


@contextlib.contextmanager
def behind_a_proxy(pipeline: Pipeline, agent_url: str) -> Iterator[tuple[Environment, str]]:
    """Start tenant A's Asterisk and the proxy in front of it; yield also the proxy's address."""
    port, proxy_port = processes.free_port(), processes.free_port()
    simulated = process(
        "simulator", "--port", str(port), "--user", "voiceai", "--password", PASSWORD, "--media-url", agent_url,
        "--no-audio",
    )  # fmt: skip
    proxy, url = (
        process("bench.hostile_answers", "--proxy", str(proxy_port), str(port)),
        f"http://127.0.0.1:{proxy_port}",
    )
    with simulated, proxy, closing_tenant(pipeline.database_url, "a") as tenant:
        control = Control(f"http://127.0.0.1:{port}")
        wait_until(lambda: fairness.answers(control), seconds=20, what="the simulator")
        tenant.configure(url)
        wait_until(lambda: pipeline.connected(url), seconds=20, what=pipeline.log_tail)
        yield Environment(control, tenant, pipeline), url


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The two tenants, the proxy before A's Asterisk, and the processes."""

    a: Environment
    b: Environment
    proxy: str
    pipeline: Pipeline

    def run(self, case: str) -> Result:
        """Run one case."""
        stop, memory = threading.Event(), Memory(self.pipeline.pid("worker"))
        callers = threading.Thread(target=pace, args=(self.a, stop))
        try:
            if case != "alone":
                self._answer(case)
                callers.start()
            time.sleep(AHEAD_SECONDS)
            return Result(times=fairness.measure(self.b, self.pipeline), grown_mb=memory.grown_mb)
        finally:
            stop.set()
            self._answer("")
            if callers.ident is not None:
                callers.join()
            self.b.reset()
            self.a.reset()

    def _answer(self, mode: str) -> None:
        requests.get(f"{self.proxy}/hostile/{mode}", timeout=5)


def report(cases: Mapping[str, Result]) -> None:
    """Print the table; each case is compared with B alone."""
    say("| A's answers | B's calls | answered | p50 ms | p95 ms | p95 against alone | worker grew by MB |")
    say("|---|---|---|---|---|---|---|")
    alone = quantile(next(iter(cases.values())).times, 0.95)
    for case, seen in cases.items():
        answered = sum(value != float("inf") for value in seen.times)
        p50, p95 = quantile(seen.times, 0.5), quantile(seen.times, 0.95)
        say(
            f"| {case} | {len(seen.times)} | {answered} | {p50:.1f} | {p95:.1f} | {p95 / alone:.2f} |"
            f" {seen.grown_mb:.0f} |"
        )


def bench(folder: Path, cases: Sequence[str]) -> dict[str, Result]:
    """Return case → result."""
    with contextlib.ExitStack() as stack:
        postgres = stack.enter_context(servers.Postgres(folder / "postgres"))
        redis = stack.enter_context(servers.Redis(folder / "redis"))
        database_url = servers.create_database(postgres.url, "hostile")
        migrations.upgrade(database_url)
        (folder / "logs").mkdir()
        pipeline = Pipeline(
            database_url=database_url, redis_url=redis.url, logs=folder / "logs", LOG_LEVEL="error",
            RESYNC_SECONDS=str(RESYNC_SECONDS),
        )  # fmt: skip
        stack.enter_context(pipeline)
        port = processes.free_port()
        stack.enter_context(
            process("devstack.agent", "--port", str(port), DATABASE_URL=database_url, SECRET_KEY=SECRET_KEY)
        )
        pipeline.start()
        agent_url = f"ws://127.0.0.1:{port}{PATH}"
        a, proxy = stack.enter_context(behind_a_proxy(pipeline, agent_url))
        b = stack.enter_context(fairness.connected_tenant(pipeline, agent_url, "b"))
        stage = Stage(a=a, b=b, proxy=proxy, pipeline=pipeline)
        # The first calls of a process are not measured: they warm it up.
        stage.run("alone")
        return {case: stage.run(case) for case in cases}


def main() -> None:
    """Run the benchmark, or its proxy."""
    parser = argparse.ArgumentParser(prog="python -m bench.hostile_answers", description=__doc__)
    parser.add_argument("--calls", type=int, default=40)
    parser.add_argument("--proxy", type=int, nargs=2, metavar=("PORT", "TARGET"), help=argparse.SUPPRESS)
    parser.add_argument("cases", nargs="*", metavar="CASE")
    options = parser.parse_args()
    if options.proxy:
        asyncio.run(Proxy(options.proxy[1]).serve(options.proxy[0]))
        return
    fairness.CALLS = options.calls
    cases = ["alone", *(options.cases or ["huge", "largest", "deep", "lying", "slow bytes"])]
    with folders.temporary() as folder:
        report(bench(folder, cases))


if __name__ == "__main__":
    main()
