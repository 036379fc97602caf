"""Shares: how many of a member's places the messages of one group may hold, so that the others keep theirs.

A thread that waits for somebody slow is a thread the others lack. So a quarter of the places is never held by one group
alone, nor by all slow groups together. A thread that works takes processor time from the others. So while several
groups are about, each holds no more than an even share of the places: a burst of one is then served beside the others'
calls, and not before them. What finds no place waits in its queue, and in no thread.

Pure, but for what it remembers; times are given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

#: A message in hand for longer is slow. One that waits for nobody slow takes some 20 ms.
SLOW_SECONDS = 1.0
#: For how long a group is slow after its last slow message, and about after its last one.
REMEMBERED_SECONDS = 10.0


class Shares:
    """Who holds the places of one member.

    Args:
        places: There are. With one place alone nothing can be kept for others.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        #: Most places of one group that is alone, and of all slow groups together.
        self.most = max(1, places - max(1, places // 4))
        #: Message → its group and since when it is in hand, the oldest first.
        self._in_hand: dict[bytes, tuple[bytes, float]] = {}
        #: Group → until when it is slow, whatever it does.
        self._slow_until: dict[bytes, float] = {}
        #: Group → until when it is about, whether it holds a place or not.
        self._about_until: dict[bytes, float] = {}

    def taken(self, name: bytes, group: bytes, now: float) -> None:
        """A message is in hand."""
        self._in_hand[name] = (group, now)
        if group:
            self._about_until[group] = now + REMEMBERED_SECONDS

    def settled(self, name: bytes, now: float) -> None:
        """It is in hand no more. One that is not known changes nothing."""
        group, since = self._in_hand.pop(name, (b"", now))
        if group and now - since > SLOW_SECONDS:
            self._slow_until[group] = now + REMEMBERED_SECONDS

    def share(self, now: float) -> int:
        """Most places of one group, by who is about."""
        self._about_until = {group: until for group, until in self._about_until.items() if until > now}
        about = {group for group, _ in self._in_hand.values() if group} | set(self._about_until)
        return min(self.most, max(1, self._places // 4, self._places // max(1, len(about))))

    def is_full(self, now: float) -> bool:
        """Whether some group holds its share: it may be waiting for one of its places."""
        held = Counter(group for group, _ in self._in_hand.values() if group)
        return bool(held) and max(held.values()) >= self.share(now)

    def arguments(self, now: float) -> Iterator[bytes | int]:
        """As the script takes them.

        Most places of one group; places left to slow ones; how many groups follow, and of each: its name, how many
        places it holds, and 1 if it is slow. A message of no group (its name is empty) may always be taken.
        """
        self._slow_until = {group: until for group, until in self._slow_until.items() if until > now}
        in_hand = [(group, since) for group, since in self._in_hand.values() if group]
        held = Counter(group for group, _ in in_hand)
        slow = {group for group, since in in_hand if now - since > SLOW_SECONDS} | set(self._slow_until)
        groups = set(held) | slow
        yield self.share(now)
        yield max(0, self.most - sum(held[group] for group in slow))
        yield len(groups)
        for group in sorted(groups):
            yield from (group, held[group], int(group in slow))
