"""What a group's bounded messages, and the dead letters, may take up in Redis."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Kept by the scripts: `enqueue.lua` refuses a message that does not fit, `poll.lua` drops the oldest letters."""

    #: Most bounded messages of one group in all queues, in whatever state, and most bytes of them.
    group_messages: int = 2000
    group_bytes: int = 2 * 2**20
    #: Most dead letters, and most bytes that one keeps of its body, and of its reason.
    dead_letters: int = 1000
    dead_letter_bytes: int = 4096
