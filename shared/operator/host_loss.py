"""What remains if a host dies: its processes, those of other hosts, the leader, and whose event sockets move. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shared.operator.processes import Process

KINDS = ("scheduler", "listener", "worker", "web")
#: A listener's id is its process's name and a random part.
_LISTENER = re.compile(r"(.+)-[0-9a-f]{8}")

SOCKETS = """
SELECT coalesce(listener_id, '') AS listener, count(*)::integer AS sockets FROM ari.connection_versions
WHERE retired_at IS NULL GROUP BY 1
"""
LEADER = """
SELECT regexp_replace(holder, '/[^/]*$', '') AS leader FROM ari.leases
WHERE name = 'scheduler' AND expires_at > clock_timestamp()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class KindLoss:
    """The processes of one kind."""

    kind: str
    #: Those that die with the host, and those of other hosts.
    lost: tuple[str, ...]
    left: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLoss:
    """What remains if a host dies."""

    host: str
    kinds: tuple[KindLoss, ...]
    #: The scheduler that leads now; None if none does.
    leader: str | None
    #: Event sockets that are assigned to its listeners.
    sockets_lost: int
    #: Those that are assigned to other listeners.
    sockets_left: int


def of(host: str, processes: Sequence[Process], *, leader: str | None, sockets: Mapping[str, int]) -> HostLoss:
    """Return what remains without a host.

    Args:
        host: As the processes tell theirs.
        processes: Of the registry; those that are not there count for nothing.
        sockets: Listener id → event sockets; '' for those that no listener has.
    """
    there = [each for each in processes if each.is_there]
    kinds = tuple(
        KindLoss(
            kind=kind,
            lost=_names(each for each in there if each.kind == kind and each.host == host),
            left=_names(each for each in there if each.kind == kind and each.host != host),
        )
        for kind in KINDS
    )
    listeners = next(each.lost for each in kinds if each.kind == "listener")
    lost = sum(number for listener, number in sockets.items() if _process_of(listener) in listeners)
    assigned = sum(number for listener, number in sockets.items() if listener)
    return HostLoss(host=host, kinds=kinds, leader=leader, sockets_lost=lost, sockets_left=assigned - lost)


def sentences(loss: HostLoss) -> Iterable[str]:
    """Tell what comes of it, the worst first."""
    by_kind = {each.kind: each for each in loss.kinds}
    listeners, workers, schedulers = by_kind["listener"], by_kind["worker"], by_kind["scheduler"]
    if listeners.lost and not listeners.left:
        yield f"No listener is left: {_sockets(loss.sockets_lost)} closed, and no event arrives."
    if workers.lost and not workers.left:
        yield "No worker is left: callers ring and are lost."
    if schedulers.lost and not schedulers.left:
        yield "No scheduler is left: sockets of listeners that die are not taken over, and overdue calls are not swept."
    if listeners.lost and listeners.left:
        scheduler = "" if schedulers.left else ", once a scheduler leads"
        yield f"{_sockets(loss.sockets_lost)} taken over by {', '.join(listeners.left)}{scheduler}."
    if workers.lost and workers.left:
        yield f"The calls that its workers have in work are gone on with by {', '.join(workers.left)}."
    if loss.leader in schedulers.lost and schedulers.left:
        yield f"{loss.leader} leads now; {' or '.join(schedulers.left)} would lead."


def _sockets(number: int) -> str:
    return f"{number} event socket{' is' if number == 1 else 's are'}"


def _names(processes: Iterable[Process]) -> tuple[str, ...]:
    return tuple(sorted(each.name for each in processes))


def _process_of(listener: str) -> str:
    match = _LISTENER.fullmatch(listener)
    return match[1] if match is not None else listener
