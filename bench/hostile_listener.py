"""One listener with event sockets that flood it: `python -m bench.hostile_listener [--seconds 10] [CASE ...]`.

Runs a real listener process and an embedded Redis, one tenant whose Asterisk sends an event every 50 ms, and hostile
servers in a process of their own, which send as fast as they are read. Prints, for each case, the longest gap between
two heartbeats, how late the tenant's events reached Redis, and what the listener used. docs/bench.md has a result.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import redis
from websockets.utils import accept_key

from devstack import folders, servers
from devstack.pipeline import SECRET_KEY
from shared import assignments, keys
from shared.process import sealing

EVENT_PAUSE_SECONDS = 0.05
POLL_SECONDS = 0.005
WARM_UP_SECONDS = 3.0
_CHUNK_BYTES = 2**16
#: The default of EVENT_MESSAGE_BYTES.
_LARGEST_BYTES = 2**18
#: Below the default of EVENT_FRAMES_PER_SECOND.
_PATIENT_FRAMES_PER_SECOND = 1_900
_PATIENT_PAUSE_SECONDS = 0.05

_TEXT, _PING, _FIN = 0x1, 0x9, 0x80


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What the hostile servers send, on how many sockets."""

    kind: str
    sockets: int

    @property
    def name(self) -> str:
        """As given on the command line."""
        return f"{self.kind}-{self.sockets}"


KINDS = ("nothing", "text", "pings", "fragments", "messages", "largest", "patient")
CASES = [Case(kind="nothing", sockets=1)] + [
    Case(kind=kind, sockets=sockets) for kind in KINDS[1:] for sockets in (1, 100)
]


@dataclass(slots=True)
class Result:
    """What was measured in one case. Times in seconds, memory in bytes."""

    gap: float = 0.0
    late: list[float] = field(default_factory=list)
    sent: int = 0
    processor: float = 0.0
    memory: int = 0
    #: Hostile sockets that were closed by the listener and are not open at the end.
    closed: int = 0


def say(text: str) -> None:
    """Print a line of the report."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


# ── the servers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def frame(opcode: int, body: bytes, *, fin: bool = True) -> bytes:
    """Return a frame from a server."""
    first, size = bytes([opcode | (_FIN if fin else 0)]), len(body)
    if size < 126:
        return first + bytes([size]) + body
    return first + (struct.pack("!BH", 126, size) if size < 2**16 else struct.pack("!BQ", 127, size)) + body


def hostile_bytes(kind: str) -> bytes:
    """Return what is sent over and over."""
    match kind:
        case "text":
            return frame(_TEXT, b"x") * (_CHUNK_BYTES // 3)
        case "pings":
            return frame(_PING, b"") * (_CHUNK_BYTES // 2)
        case "fragments":
            return frame(0, b"x", fin=False) * (_CHUNK_BYTES // 3)
        case "messages" | "largest":
            return frame(_TEXT, _nested(2**20 if kind == "messages" else _LARGEST_BYTES))
        case "patient":
            return frame(_PING, b"") * int(_PATIENT_FRAMES_PER_SECOND * _PATIENT_PAUSE_SECONDS)
    return b""


def _nested(size: int) -> bytes:
    """Return an event of at most so many bytes, of as many lists as they hold."""
    return json.dumps({"type": "StasisStart", "args": [[] for _ in range(size // 4 - 50)]}).encode()


async def shake_hands(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the upgrade request."""
    request = await reader.readuntil(b"\r\n\r\n")
    lines = dict(line.split(": ", 1) for line in request.decode().split("\r\n")[1:] if line)
    key = {name.lower(): value for name, value in lines.items()}["sec-websocket-key"]
    head = ("HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade")
    writer.write("\r\n".join([*head, f"Sec-WebSocket-Accept: {accept_key(key)}", "", ""]).encode())


async def flood(kind: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send until the listener closes the socket."""
    again = hostile_bytes(kind)
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        await shake_hands(reader, writer)
        reading = asyncio.create_task(_read_on(reader, writer))
        if kind == "fragments":
            writer.write(frame(_TEXT, b"x", fin=False))
        while not reading.done():
            if again:
                writer.write(again)
                await writer.drain()
            await asyncio.sleep(_PATIENT_PAUSE_SECONDS if kind in ("nothing", "patient") else 0)
    writer.transport.abort()


async def _read_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read pings and pongs; answer the pings in turn, so that the socket is not closed for want of an answer."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readexactly(2)
            masked = await reader.readexactly(4 + (head[1] & 0x7F))
            if head[0] & 0xF == _PING:
                mask, body = masked[:4], masked[4:]
                writer.write(frame(0xA, bytes(byte ^ mask[at % 4] for at, byte in enumerate(body))))


async def serve_hostile(kind: str) -> None:
    """Serve on a port that is printed, until killed."""
    server = await asyncio.start_server(lambda r, w: flood(kind, r, w), "127.0.0.1", 0, limit=2**20)
    say(str(server.sockets[0].getsockname()[1]))
    await asyncio.sleep(3600)


class Tenant:
    """The tenant who shall not notice: its Asterisk sends a StasisStart every 50 ms."""

    def __init__(self) -> None:
        self.port = 0
        #: Channel → when its event was sent.
        self.sent: dict[str, float] = {}
        self._ready = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()
        self._ready.wait(10)

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await asyncio.sleep(3600)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await shake_hands(reader, writer)
            reading = asyncio.create_task(_read_on(reader, writer))
            while not reading.done():
                leg = f"caller-{len(self.sent)}"
                self.sent[leg] = time.monotonic()
                writer.write(frame(_TEXT, json.dumps(stasis_start(leg)).encode()))
                await asyncio.sleep(EVENT_PAUSE_SECONDS)
        writer.transport.abort()


def stasis_start(channel_id: str) -> dict[str, Any]:
    """Return the event of a new caller."""
    stamp = "2026-01-01T00:00:00.000+0000"
    dialplan = {"context": "inbound", "exten": "200", "priority": 1, "app_name": "Stasis", "app_data": "voiceai"}
    channel = {
        "id": channel_id, "name": f"PJSIP/{channel_id}", "state": "Ring", "creationtime": stamp,
        "caller": {"name": "", "number": "100"}, "dialplan": dialplan,
    }  # fmt: skip
    return {"type": "StasisStart", "timestamp": stamp, "args": [], "channel": channel, "application": "voiceai"}


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def running_listener(url: str, folder: Path) -> Iterator[psutil.Process]:
    """Run a listener process."""
    environment = {"REDIS_URL": url, "SECRET_KEY": SECRET_KEY, "LOG_LEVEL": "warning", "PROCESS_NAME": "bench"}
    with (folder / "listener.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "listener.main"], env={**os.environ, **environment}, stdout=log, stderr=log
        )
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def running_hostile(kind: str) -> Iterator[int]:
    """Run the hostile servers; yield their port."""
    command = [sys.executable, "-m", "bench.hostile_listener", "--serve", kind]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own module
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


def assign(client: Any, listener: str, ports: Sequence[int]) -> None:
    """Assign a socket to each port, as the scheduler does."""
    sealed = sealing.Sealer((SECRET_KEY.partition(",")[0],)).seal("password")
    pipe = client.pipeline(transaction=True)
    for number, port in enumerate(ports, start=1):
        one = assignments.Assignment(
            connection_id=number, version=1, organization_id=number, epoch=1, endpoint=f"http://127.0.0.1:{port}",
            app="voiceai", user="voiceai", sealed_password=sealed, fingerprint=f"{number}:1",
        )  # fmt: skip
        pipe.hset(keys.assignments(listener), one.key, assignments.encode(one))
    pipe.incr(keys.revision(listener))
    pipe.execute()


def measure(client: Any, listener: str, process: psutil.Process, tenant: Tenant, seconds: float) -> Result:
    """Look at Redis every few milliseconds."""
    result, first = Result(), len(tenant.sent)
    used = sum(process.cpu_times()[:2])
    beat, beat_at = client.zscore(keys.LISTENERS, listener), time.monotonic()
    queue, seen = f"{keys.NAMESPACE}:queue:admission", set(client.hkeys(f"{keys.NAMESPACE}:queue:admission"))
    ends_at = time.monotonic() + seconds
    while (now := time.monotonic()) < ends_at:
        score, found = client.pipeline(transaction=False).zscore(keys.LISTENERS, listener).hkeys(queue).execute()
        # By Redis's clock, and while none comes by this one.
        result.gap = max(result.gap, (score - beat) / 1000, now - beat_at)
        if score != beat:
            beat, beat_at = score, now
        for message_key in set(found) - seen:
            seen.add(message_key)
            leg = json.loads(client.hget(queue, message_key))["kwargs"]["event"]["channel"]["id"]
            result.late.append(time.monotonic() - tenant.sent[leg])
        result.memory = max(result.memory, process.memory_info().rss)
        time.sleep(POLL_SECONDS)
    # What has not arrived is as late as it is by now.
    arrived = first + len(result.late)
    pending = [at for at in list(tenant.sent.values())[arrived:] if now - at > EVENT_PAUSE_SECONDS]
    result.late += [now - at for at in pending]
    result.sent, result.processor = len(tenant.sent) - first, sum(process.cpu_times()[:2]) - used
    return result


def run(case: Case, seconds: float, folder: Path) -> Result:
    """Run one case with a Redis and a listener of its own."""
    with (
        servers.Redis(folder / f"redis-{case.name}") as server,
        running_listener(server.url, folder) as process,
        running_hostile(case.kind) as port,
        redis.Redis.from_url(server.url) as client,
    ):
        while not (found := client.zrange(keys.LISTENERS, 0, -1)):
            time.sleep(POLL_SECONDS)
        listener, tenant = found[0].decode(), Tenant()
        assign(client, listener, [tenant.port])
        time.sleep(WARM_UP_SECONDS)
        threading.Timer(1.0, assign, (client, listener, [tenant.port, *[port] * case.sockets])).start()
        result = measure(client, listener, process, tenant, seconds)
        reports = [assignments.decode_report(text) for text in client.hvals(keys.reports(listener))]
        result.closed = sum("closed by us" in report.error for report in reports)
        return result


def main() -> None:
    """Run the cases and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", choices=[case.name for case in CASES] + [[]])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve_hostile(given.serve))
        return
    say("| case | longest gap, s | events | late p50, ms | p95 | max | processor, s | memory, MB | closed |")
    say("|---|---|---|---|---|---|---|---|---|")
    with folders.temporary() as folder:
        for case in CASES:
            if given.cases and case.name not in given.cases:
                continue
            result = run(case, given.seconds, folder)
            late = sorted(result.late) or [float("nan")]
            times = (late[len(late) // 2], late[int(len(late) * 0.95)], late[-1])
            shown = " | ".join(f"{each * 1000:.0f}" for each in times)
            say(
                f"| {case.name} | {result.gap:.2f} | {len(result.late)} of {result.sent} | {shown} |"
                f" {result.processor:.1f} | {result.memory / 2**20:.0f} | {result.closed} |"
            )


if __name__ == "__main__":
    main()
