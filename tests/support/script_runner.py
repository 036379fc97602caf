"""The broker's Lua scripts, to be run one by one by tests, with any client: of fakeredis or of a real Redis.

Time is not faked, as Redis reads its own clock: a test moves what is stored instead, such as a session's last poll,
into the past.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import redis

from shared.broker import scripts

NS = "ns"
TIMEOUT_MS = 4500
#: Of `layout.lua`.
LATE_MS, CONFIRMED_MS = 600, 700
#: The arguments of a session whose groups have no limit worth testing.
UNLIMITED = (100, 100, 0)


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply of `poll.lua`."""

    now: int
    in_flight: int
    due_ms: int
    is_idle: bool
    sessions: int
    #: The message keys fetched, in order.
    fetched: list[str] = field(default_factory=list)
    #: Message key → queue and body.
    messages: dict[str, tuple[str, str]] = field(default_factory=dict)


class Scripts:
    """The scripts, with the arguments a test cares for; text instead of bytes."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client

    def enqueue(
        self,
        *message_keys: str,
        queue: str = "q",
        body: str = "body",
        delay_ms: int = 0,
        affinity: str = "",
        bounds: tuple[int, int] | None = None,
        unique: str = "",
        supersedes: bool = False,
    ) -> list[str]:
        """Enqueue messages, which are bounded if bounds in number and bytes are given. Return those refused."""
        parts: list[str | bytes | int] = []
        for message_key in message_keys:
            parts += (queue, message_key, body, delay_ms, affinity, int(bounds is not None), unique, int(supersedes))
        refused = scripts.ENQUEUE.run(self.client, NS, *(bounds or (0, 0)), *parts)
        return [message_keys[at - 1] for at in refused]

    def leave_waiting(self, message_key: str) -> None:
        """Add a message that waits while sessions are idle, as one of a group that is at its limit in each of them."""
        group = message_key.rpartition("/")[0]
        self.client.hset(f"{NS}:queue:q", message_key, "body")
        self.client.rpush(f"{NS}:queue:q:group:{group}", message_key)
        self.client.rpush(f"{NS}:queue:q:rotation", group)

    def poll(
        self,
        session: str = "a",
        *settlements: tuple[str, str, str],
        free: int = 10,
        known: int = 1000,
        credit: int = 0,
        queues: tuple[str, ...] = ("q",),
        fairness: tuple[int | bytes, ...] = UNLIMITED,
        body: str = "settled",
        letters: tuple[int, int] = (1000, 4096),
        oldest_ms: int = -1,
    ) -> Reply:
        """Poll; a settlement is a disposition, a message key of the first queue, and the detail."""
        parts: list[str | bytes | int] = []
        for disposition, message_key, detail in settlements:
            parts += (disposition, queues[0], message_key, body, detail)
        figures: tuple[str | int, ...] = (free, known, credit, len(queues), *queues)
        now, in_flight, due_ms, is_idle, sessions, _subscriptions, *rest = scripts.POLL.run(
            self.client, NS, session, TIMEOUT_MS, oldest_ms, *letters, *figures, *fairness, *parts
        )
        texts = [each.decode() for each in rest]
        messages = {key: (queue, text) for queue, key, text in zip(*[iter(texts)] * 3, strict=True)}
        return Reply(
            now=now,
            in_flight=in_flight,
            due_ms=due_ms,
            is_idle=bool(is_idle),
            sessions=sessions,
            fetched=texts[1::3],
            messages=messages,
        )

    def ack(
        self, session: str, *message_keys: str, known: int = 1000, credit: int = 0, queues: tuple[str, ...] = ("q",)
    ) -> bool:
        """Acknowledge messages of the first queue. Return whether a message is waiting."""
        parts = [part for message_key in message_keys for part in (queues[0], message_key)]
        return bool(scripts.ACK.run(self.client, NS, session, known, credit, len(queues), *queues, *parts))

    def redeliver(self, session: str, *known: str) -> list[str]:
        """Return the message keys redelivered."""
        _, lost = scripts.REDELIVER.run(self.client, NS, session, *known)
        return sorted(each.decode() for each in lost[1::3])

    def forgotten(self, session: str, *known: str) -> list[str]:
        """Return those that are known and not in flight."""
        forgotten, _ = scripts.REDELIVER.run(self.client, NS, session, *known)
        return sorted(each.decode() for each in forgotten)

    def deregister(self, session: str, *queues: str) -> None:
        scripts.DEREGISTER.run(self.client, NS, session, *queues)

    def live_sessions(self) -> set[str] | None:
        """Look who lives, as one who has no session; return None while that is not known."""
        found = scripts.SESSIONS.run(self.client, NS, TIMEOUT_MS)
        return None if found is None else {each.decode() for each in found}

    def count(self, *queues: str) -> list[int]:
        """Return waiting, delayed and in flight, of each queue."""
        return list(scripts.COUNT.run(self.client, NS, *(queues or ("q",))))

    def oldest(self, *queues: str) -> list[int]:
        """Return how long the oldest message has waited, of each queue, in ms."""
        return list(scripts.OLDEST.run(self.client, NS, *queues))

    def flush(self, *queues: str) -> None:
        scripts.FLUSH.run(self.client, NS, *queues)

    def now(self) -> int:
        seconds, microseconds = self.client.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    def sessions(self) -> dict[str, int]:
        """Return the sessions, each with its last poll."""
        found: Any = self.client.zrange(f"{NS}:sessions", 0, -1, withscores=True)
        return {name.decode(): int(at) for name, at in found}

    def in_flight(self, session: str) -> set[str]:
        """Return queue and message key of each message in flight in a session."""
        found: Any = self.client.smembers(f"{NS}:in-flight:{session}")
        return {name.decode() for name in found}

    def credits(self) -> dict[str, int]:
        found: Any = self.client.hgetall(f"{NS}:credits")
        return {name.decode(): int(credit) for name, credit in found.items()}

    def tags(self) -> dict[str, str]:
        found: Any = self.client.hgetall(f"{NS}:tags")
        return {tag.decode(): session.decode() for tag, session in found.items()}

    def idle(self, queue: str = "q") -> list[str]:
        """Return the idle sessions, the longest idle first."""
        found: Any = self.client.zrange(f"{NS}:queue:{queue}:idle", 0, -1)
        return [name.decode() for name in found]

    def rotation(self, queue: str = "q") -> list[str]:
        found: Any = self.client.lrange(f"{NS}:queue:{queue}:rotation", 0, -1)
        return [name.decode() for name in found]

    def aside(self, queue: str = "q") -> list[str]:
        """Return the groups that were set aside, in their order."""
        found: Any = self.client.zrange(f"{NS}:queue:{queue}:aside", 0, -1)
        return [name.decode() for name in found]

    def bounded(self, group: str) -> dict[str, int]:
        """Return the group's bounded messages as they are counted, with their sizes, and the sum of these."""
        found: Any = self.client.hgetall(f"{NS}:bounded:{group}")
        return {name.decode(): int(size) for name, size in found.items() if name != b"checked"}

    def dead_letters(self) -> list[dict[str, str]]:
        found: Any = self.client.xrange(f"{NS}:dead-letters")
        return [{name.decode(): value.decode() for name, value in fields.items()} for _, fields in found]

    def silence(self, session: str, ms: int) -> None:
        """Move a session's last poll into the past, while another session went on polling."""
        self.client.zadd(f"{NS}:sessions", {session: self.now() - ms})
        self.liveness(last_poll=self.now(), grace_until=0, last_search=0)

    def liveness(self, **fields: int) -> None:
        for name, at in fields.items():
            self.client.hset(f"{NS}:liveness", name, str(at))
