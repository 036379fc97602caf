"""What hostile tenants cost the others in Redis: `python -m bench.hostile_broker [PART ...]`.

Memory: with a `maxmemory` of 128 MB, one tenant sends 41 events of 1 MB and then small ones for as long as they are
taken; then 41 of its messages are dead letters. Table: what that takes up, and how many messages of others are taken.
Exchanges: a session at its limit for slow groups, while 0, 1,000 and 3,000 of these wait. Table: how long it takes to
enqueue, fetch and acknowledge a message of a quick group. Prints tables in Markdown; docs/bench.md has a result.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import dramatiq
import redis

from devstack import folders, servers
from listener import buffer, redis_store
from shared import errors, keys, messages, queues
from shared.asterisk import events
from shared.broker.bounds import Bounds
from shared.broker.deliveries import Disposition, Settlement
from shared.broker.fairness import Fairness
from shared.broker.session_client import Figures, SessionClient
from shared.call.ids import ConnectionVersion

MAX_MEMORY = 128 * 2**20
LARGE = 41
#: More than any bound lets in.
SMALL = 300_000
OTHERS = 100
WAITING = (0, 1_000, 3_000)
EXCHANGES = 100
CAPACITY = 8
HOSTILE = ConnectionVersion(1, 1)
QUEUE = "admission"


def say(text: str = "") -> None:
    """Print a line of the report."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def row(*cells: object) -> None:
    """Print a row of a table."""
    say("| " + " | ".join(str(cell) for cell in cells) + " |")


def table(*headings: str) -> None:
    """Print the head of a table."""
    row(*headings)
    row(*("---" for _ in headings))


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def start(number: int, *, args: Sequence[str] = (), app_data: str = "", padding: str = "") -> str:
    """Return a StasisStart as an Asterisk sends it."""
    channel = {
        "id": f"caller-{number}",
        "name": f"PJSIP/trunk-{number}",
        "state": "Ring",
        "creationtime": "2026-11-29T12:00:00.000+0000",
        "dialplan": {"app_name": "Stasis", "app_data": app_data},
    }
    event = {"type": "StasisStart", "application": "voiceai", "timestamp": "s", "args": args, "channel": channel}
    return json.dumps(event | {"padding": padding}, ensure_ascii=False)


def encoded(raw: Iterable[str], connection: ConnectionVersion) -> Iterator[buffer.EncodedMessage]:
    """Yield the messages that a listener makes of these events; none of one that it refuses."""
    for text in raw:
        with contextlib.suppress(errors.InvalidEvent):
            event = events.parse(text)
            assert event is not None
            message = messages.of_event(event, connection=connection, at_ms=0)
            assert message is not None
            yield buffer.encode_message(connection, message)


def _parts(batch: Sequence[buffer.EncodedMessage]) -> Iterator[list[buffer.EncodedMessage]]:
    """Yield the messages in parts, as a listener's buffer gives them out: of 500, or of about a megabyte."""
    part: list[buffer.EncodedMessage] = []
    for each in batch:
        part.append(each)
        if len(part) == 500 or sum(len(one.body) for one in part) >= 2**20:
            yield part
            part = []
    yield part


def push(url: str, batch: Sequence[buffer.EncodedMessage]) -> int:
    """Push messages as a listener does; return how many were accepted."""

    async def pushing() -> int:
        store = redis_store.RedisStore(
            redis_store.client(url), "bench", capacity=1, timeout_seconds=2.0, bounds=Bounds()
        )
        accepted = 0
        with contextlib.suppress(errors.QueueUnavailable):
            for part in _parts(batch):
                accepted += len(part) - len(await store.push(part))
        await store.close()
        return accepted

    return asyncio.run(pushing())


def others(url: str) -> int:
    """Push a message of each of many other tenants; return how many were accepted."""
    batch = [next(encoded([start(number)], ConnectionVersion(number + 2, 1))) for number in range(OTHERS)]
    return sum(push(url, [each]) for each in batch)


def large_events(*, long_args: bool) -> Iterator[str]:
    """Yield events of 1 MB: with long arguments, or with such as a dialplan can give and much else."""
    args, padding = ["ä" * 4096] * (64 if long_args else 2), "" if long_args else "ä" * 4096 * 62
    for number in range(LARGE):
        yield start(number, args=args, app_data="ä" * 4096 * 64, padding=padding)


def waiting_bytes(client: redis.Redis) -> int:
    """Return the size of the bodies that wait."""
    return sum(len(body) for body in client.hvals(f"{keys.NAMESPACE}:queue:{QUEUE}"))


def memory(server: servers.Redis) -> None:
    """Measure what one tenant may take up."""
    client = redis.Redis.from_url(server.url)
    client.config_set("maxmemory", MAX_MEMORY)
    say("\n### Redis of 128 MB: one tenant floods it\n")
    table("what it sends", "messages accepted", "largest, bytes", "bodies, MB", "used memory, MB", "others accepted")
    small = next(encoded([start(0)], HOSTILE))
    cases: dict[str, Callable[[], list[buffer.EncodedMessage]]] = {
        f"{LARGE} events of 1 MB": lambda: list(encoded(large_events(long_args=False), HOSTILE)),
        f"{LARGE} events of 1 MB, long arguments": lambda: list(encoded(large_events(long_args=True), HOSTILE)),
        f"{SMALL:,} small events": lambda: [
            buffer.EncodedMessage(HOSTILE, small.queue, f"1/{number}", small.body, "", True) for number in range(SMALL)
        ],
    }
    for name, made in cases.items():
        client.flushall()
        batch = made()
        accepted = push(server.url, batch)
        bodies = waiting_bytes(client) / 2**20
        used = client.info("memory")["used_memory"] / 2**20
        largest = max((len(each.body) for each in batch), default=0)
        row(name, f"{accepted:,}", f"{largest:,}", f"{bodies:.1f}", f"{used:.1f}", f"{others(server.url)} of {OTHERS}")
    client.flushall()
    letters = [next(encoded([text], HOSTILE), None) for long in (True, False) for text in large_events(long_args=long)]
    used = dead_letters(server.url, client, [each.body for each in letters if each is not None][:LARGE])
    row(f"{LARGE} dead letters of its largest messages", "", "", "", f"{used:.1f}", f"{others(server.url)} of {OTHERS}")
    client.config_set("maxmemory", 0)
    client.flushall()
    client.close()


def dead_letters(url: str, client: redis.Redis, bodies: Sequence[bytes]) -> float:
    """Have each message fail for good; return the memory used then, in MB."""
    session = _session(client)
    for number, body in enumerate(bodies):
        client.hset(f"{keys.NAMESPACE}:queue:{QUEUE}", f"1/{number}", body)
        client.rpush(f"{keys.NAMESPACE}:queue:{QUEUE}:group:1", f"1/{number}")
        client.rpush(f"{keys.NAMESPACE}:queue:{QUEUE}:rotation", "1")
        (delivery,) = _poll(session, Fairness(CAPACITY), free=1)
        failed = Settlement(delivery=delivery, disposition=Disposition.DEAD_LETTER, body=body, detail="no")
        with contextlib.suppress(redis.RedisError):
            _poll(session, Fairness(CAPACITY), [failed], free=0)
    return float(client.info("memory")["used_memory"] / 2**20)


# ── exchanges ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _session(client: redis.Redis) -> SessionClient:
    return SessionClient(client, keys.NAMESPACE, "bench", tag="0" * 8, timeout_ms=60_000, bounds=Bounds())


def _poll(session: SessionClient, fairness: Fairness, settled: Sequence[Settlement] = (), *, free: int = 2):  # type: ignore[no-untyped-def]
    figures = Figures(queues=[QUEUE], free=free, known=1000, credit=0)
    return session.poll(figures, fairness.arguments(time.monotonic()), settled, oldest_at=None).fetched


def exchange(broker: dramatiq.Broker, session: SessionClient, fairness: Fairness) -> float:
    """Enqueue a message of a quick group, fetch it and acknowledge it; return the seconds."""
    message: messages.Message = dramatiq.Message(QUEUE, "x", (), {}, {"group": "quick"})
    began = time.perf_counter()
    broker.enqueue(message)
    (delivery,) = _poll(session, fairness)
    _poll(session, fairness, [Settlement(delivery=delivery, disposition=Disposition.ACK, body=b"")], free=0)
    return time.perf_counter() - began


def exchanges(server: servers.Redis) -> None:
    """Measure an exchange beside slow groups that wait."""
    say("\n### One message of a quick tenant, enqueued, fetched and acknowledged, while slow tenants wait: ms\n")
    table("slow tenants waiting", "p50", "p95")
    for number in WAITING:
        with contextlib.closing(redis.Redis.from_url(server.url)) as client:
            client.flushall()
            broker, session, fairness = queues.broker(server.url), _session(client), Fairness(CAPACITY)
            now = time.monotonic()
            for each in range(number):
                fairness.delivered(b"%d" % each, b"slow %d" % each, now - 2)
                fairness.settled(b"%d" % each, now)
                if each % CAPACITY == CAPACITY - 1:
                    _poll(session, fairness, free=0)
            for each in range(fairness.ceiling):
                fairness.delivered(b"in flight %d" % each, b"hanging %d" % each, now - 2)
            broker.enqueue_all(
                dramatiq.Message(QUEUE, "x", (), {}, {"group": f"slow {each}"}) for each in range(number)
            )
            for _ in range(number // 200 + 1):
                _poll(session, fairness)
            took = sorted(exchange(broker, session, fairness) * 1000 for _ in range(EXCHANGES))
            row(f"{number:,}", f"{statistics.median(took):.2f}", f"{took[int(len(took) * 0.95)]:.2f}")
            broker.close()


PARTS: dict[str, Callable[[servers.Redis], None]] = {"memory": memory, "exchanges": exchanges}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m bench.hostile_broker", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parts = parser.parse_args().parts or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    with folders.temporary() as folder, servers.Redis(folder / "redis") as server:
        for part in parts:
            PARTS[part](server)


if __name__ == "__main__":
    main()
