"""Fairness: how much of a session's capacity the messages of one group may use, so that the other groups keep theirs.

A thread that waits for a slow peer is not available to other groups. So a quarter of the capacity is never used by one
group alone, nor by all slow groups together. A thread that computes takes processor time from the other threads. So
while several groups are active, each is limited to an equal share of the capacity: the burst of one group is served
beside the messages of the others, not before them. A message over the limit waits in its queue and occupies no thread.
Which groups are slow is told to Redis, and known to all sessions that serve the same queues.

Pure apart from its memory; the time is a parameter.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, OrderedDict
from collections.abc import Iterator

#: A message in flight for longer is slow. A message that waits for no slow peer takes about 20 ms.
SLOW_SECONDS = 1.0
#: How long a group counts as slow after its last slow message, and as active after its last message.
REMEMBERED_SECONDS = 10.0


class Fairness:
    """The messages in flight in one session, by group. What a method costs grows with these, and not with the groups.

    Args:
        capacity: Most messages in flight. With a capacity of 1, nothing can be reserved for other groups.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        #: Most messages of a group that is the only active one, and of all slow groups together.
        self.ceiling = max(1, capacity - max(1, capacity // 4))
        #: Message → its group and since when it is in flight, the oldest first.
        self._in_flight: dict[bytes, tuple[bytes, float]] = {}
        #: Group → until when it counts as slow, even if its next messages are quick; the latest last.
        self._slow_until: OrderedDict[bytes, float] = OrderedDict()
        #: Group → until when it counts as active, even with no message in flight; the latest last.
        self._active_until: OrderedDict[bytes, float] = OrderedDict()

    def delivered(self, name: bytes, group: bytes, now: float) -> None:
        """Note a message that is now in flight."""
        self._in_flight[name] = (group, now)
        if group:
            _remember(self._active_until, group, now)

    def settled(self, name: bytes, now: float) -> None:
        """Note a message that is no longer in flight. An unknown message changes nothing."""
        group, since = self._in_flight.pop(name, (b"", now))
        if group and now - since > SLOW_SECONDS:
            _remember(self._slow_until, group, now)

    def group_limit(self, now: float) -> int:
        """Return the most messages one group may have in flight, given the number of active groups."""
        _forget(self._active_until, now)
        in_flight = {group for group, _ in self._in_flight.values() if group}
        active = len(self._active_until) + sum(group not in self._active_until for group in in_flight)
        return min(self.ceiling, max(1, self._capacity // 4, self._capacity // max(1, active)))

    def credit(self, free: int, now: float) -> int:
        """Return how many further messages, whatever their groups, take no group above its limit.

        Args:
            free: The free capacity.
        """
        in_flight, slow = self._groups(now)
        left = min(free, self.group_limit(now) - max(in_flight.values(), default=0))
        if slow or self._slow_until:
            left = min(left, self._slow_free(in_flight, slow))
        return max(0, left)

    def arguments(self, now: float) -> Iterator[bytes | int]:
        """Yield the arguments of `poll.lua`.

        The limit of one group; how many further messages slow groups may have; the number of groups that follow, and of
        each: its name, its messages in flight, and for how many ms it counts as slow (0: it does not). Redis remembers
        the slow groups, so only the latest are told, each more than once. A message without a group has no limit.
        """
        in_flight, slow = self._groups(now)
        told = dict.fromkeys((*in_flight, *itertools.islice(reversed(self._slow_until), self._capacity)))
        yield self.group_limit(now)
        yield self._slow_free(in_flight, slow)
        yield len(told)
        for group in sorted(told):
            left_seconds = REMEMBERED_SECONDS if group in slow else self._slow_until.get(group, now) - now
            yield from (group, in_flight[group], math.ceil(left_seconds * 1000))

    def _groups(self, now: float) -> tuple[Counter[bytes], set[bytes]]:
        """Return the number of messages in flight of each group, and the groups of which one is slow now."""
        _forget(self._slow_until, now)
        grouped = [(group, since) for group, since in self._in_flight.values() if group]
        return Counter(group for group, _ in grouped), {group for group, since in grouped if now - since > SLOW_SECONDS}

    def _slow_free(self, in_flight: Counter[bytes], slow: set[bytes]) -> int:
        taken = sum(count for group, count in in_flight.items() if group in slow or group in self._slow_until)
        return max(0, self.ceiling - taken)


def _remember(until: OrderedDict[bytes, float], group: bytes, now: float) -> None:
    until[group] = now + REMEMBERED_SECONDS
    until.move_to_end(group)


def _forget(until: OrderedDict[bytes, float], now: float) -> None:
    """Remove the groups whose time is over: they are the first."""
    while until and next(iter(until.values())) <= now:
        until.popitem(last=False)
