"""Fairness: how much of a session's capacity the messages of one group may use, so that the other groups keep theirs.

A thread that waits for a slow peer is not available to other groups. So a quarter of the capacity is never used by one
group alone, nor by all slow groups together. A thread that computes takes processor time from the other threads. So
while several groups are active, each is limited to an equal share of the capacity: the burst of one group is served
beside the messages of the others, not before them. A message over the limit waits in its queue and occupies no thread.

Pure apart from its memory; the time is a parameter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

#: A message in flight for longer is slow. A message that waits for no slow peer takes about 20 ms.
SLOW_SECONDS = 1.0
#: How long a group counts as slow after its last slow message, and as active after its last message.
REMEMBERED_SECONDS = 10.0


class Fairness:
    """The messages in flight in one session, by group.

    Args:
        capacity: Most messages in flight. With a capacity of 1, nothing can be reserved for other groups.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        #: Most messages of a group that is the only active one, and of all slow groups together.
        self.ceiling = max(1, capacity - max(1, capacity // 4))
        #: Message → its group and since when it is in flight, the oldest first.
        self._in_flight: dict[bytes, tuple[bytes, float]] = {}
        #: Group → until when it counts as slow, even if its next messages are quick.
        self._slow_until: dict[bytes, float] = {}
        #: Group → until when it counts as active, even with no message in flight.
        self._active_until: dict[bytes, float] = {}

    def delivered(self, name: bytes, group: bytes, now: float) -> None:
        """Note a message that is now in flight."""
        self._in_flight[name] = (group, now)
        if group:
            self._active_until[group] = now + REMEMBERED_SECONDS

    def settled(self, name: bytes, now: float) -> None:
        """Note a message that is no longer in flight. An unknown message changes nothing."""
        group, since = self._in_flight.pop(name, (b"", now))
        if group and now - since > SLOW_SECONDS:
            self._slow_until[group] = now + REMEMBERED_SECONDS

    def group_limit(self, now: float) -> int:
        """Return the most messages one group may have in flight, given the number of active groups."""
        self._active_until = {group: until for group, until in self._active_until.items() if until > now}
        active = {group for group, _ in self._in_flight.values() if group} | set(self._active_until)
        return min(self.ceiling, max(1, self._capacity // 4, self._capacity // max(1, len(active))))

    def credit(self, free: int, now: float) -> int:
        """Return how many further messages, whatever their groups, take no group above its limit.

        Args:
            free: The free capacity.
        """
        in_flight, slow = self._groups(now)
        left = min(free, self.group_limit(now) - max(in_flight.values(), default=0))
        if slow:
            left = min(left, self._slow_free(in_flight, slow))
        return max(0, left)

    def arguments(self, now: float) -> Iterator[bytes | int]:
        """Yield the arguments of `poll.lua`.

        The limit of one group; how many further messages slow groups may have; the number of groups that follow, and of
        each: its name, its messages in flight, and 1 if it is slow. A message without a group has no limit.
        """
        in_flight, slow = self._groups(now)
        groups = set(in_flight) | slow
        yield self.group_limit(now)
        yield self._slow_free(in_flight, slow)
        yield len(groups)
        for group in sorted(groups):
            yield from (group, in_flight[group], int(group in slow))

    def _groups(self, now: float) -> tuple[Counter[bytes], set[bytes]]:
        """Return the number of messages in flight of each group, and the slow groups."""
        self._slow_until = {group: until for group, until in self._slow_until.items() if until > now}
        grouped = [(group, since) for group, since in self._in_flight.values() if group]
        slow = {group for group, since in grouped if now - since > SLOW_SECONDS} | set(self._slow_until)
        return Counter(group for group, _ in grouped), slow

    def _slow_free(self, in_flight: Counter[bytes], slow: set[bytes]) -> int:
        return max(0, self.ceiling - sum(in_flight[group] for group in slow))
