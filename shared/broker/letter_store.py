"""The dead letters in Redis: the stream `<namespace>:dead-letters`, whose ids are moments of Redis's clock in ms."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

import redis

from shared.broker import scripts

#: So many are read at once: 4 MB by default.
_BATCH = 500
#: None is 0-0, before which Redis knows no range.
_ID = re.compile(r"(?!0+-0+$)[0-9]{1,15}-[0-9]{1,10}")
_NOTHING, _ENQUEUED = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A message that has failed for good, and why."""

    #: Such as `1732900000000-0`: it names the letter, and orders letters by time.
    id: str
    queue: str
    #: `<group>/<message id>`
    message_key: str
    #: The message, or its beginning if it is longer than `DEAD_LETTER_BYTES`.
    body: bytes
    #: The error and its traceback, or the beginning.
    reason: str

    @property
    def at_ms(self) -> int:
        """When it failed, by Redis's clock."""
        return int(self.id.partition("-")[0])


class Retried(StrEnum):
    """What has become of a letter."""

    ENQUEUED = "enqueued"
    #: Its message was in the queue already: the letter alone is deleted.
    WAS_QUEUED = "was queued"
    #: There is no such letter: it was retried, discarded, or dropped for later ones.
    GONE = "gone"


class DeadLetters:
    """Reads and settles dead letters. Every method raises redis.RedisError."""

    def __init__(self, client: redis.Redis, namespace: str) -> None:
        self._client = client
        self._namespace = namespace
        self._key = f"{namespace}:dead-letters"

    def count(self) -> int:
        """Return how many there are."""
        return self._client.xlen(self._key)

    def dropped(self) -> int:
        """Return how many were dropped for later ones, in the last seven days."""
        return int(cast(Any, self._client.get(f"{self._key}-dropped")) or 0)

    def newest_first(self, before: str | None = None, after: str | None = None) -> Iterator[DeadLetter]:
        """Yield the letters, the newest first, a page at a time.

        Args:
            before: Only those older than the letter of this id, which need not be there.
            after: Only those newer than this one.
        """
        last, least = f"({before}" if before is not None else "+", f"({after}" if after is not None else "-"
        while True:
            page = cast(list[tuple[bytes, dict[bytes, bytes]]], self._client.xrevrange(self._key, last, least, _BATCH))
            yield from (_letter(name, fields) for name, fields in page)
            if len(page) < _BATCH:
                return
            last = f"({page[-1][0].decode()}"

    def get(self, name: str) -> DeadLetter | None:
        """Return the letter of an id; None if there is none."""
        if not is_id(name):
            return None
        found = cast(list[tuple[bytes, dict[bytes, bytes]]], self._client.xrange(self._key, name, name))
        return _letter(*found[0]) if found else None

    def retry(self, letter: DeadLetter, body: bytes) -> Retried:
        """Enqueue a letter's message and delete the letter, at once: a second time finds none."""
        done = scripts.RETRY_LETTER.run(
            self._client, self._namespace, letter.id, letter.queue, letter.message_key, body
        )
        if done == _NOTHING:
            return Retried.GONE
        return Retried.ENQUEUED if done == _ENQUEUED else Retried.WAS_QUEUED

    def discard(self, name: str) -> bool:
        """Delete a letter; return False if there was none."""
        return is_id(name) and self._client.xdel(self._key, name) == 1


def is_id(name: str) -> bool:
    """Return whether a text has the form of a letter's id."""
    return _ID.fullmatch(name) is not None


def _letter(name: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    def text(key: bytes) -> str:
        return fields.get(key, b"").decode(errors="backslashreplace")

    return DeadLetter(
        id=name.decode(),
        queue=text(b"queue"),
        message_key=text(b"message_key"),
        body=fields.get(b"body", b""),
        reason=text(b"reason"),
    )
