"""Looks host names up, for all threads and tasks of a process: a dead name server holds up its own names only.

A lookup cannot be cancelled, and may take half a minute. So each has a thread of its own, a name one at a time; names
that did not answer last time share a part of the threads (a bulkhead), and are not asked again for a while.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import dataclass
from typing import Any

from shared import errors
from shared.asterisk import address_guard

#: As `socket.getaddrinfo`.
Resolve = Callable[..., Sequence[tuple[Any, ...]]]

#: How many addresses of one host are tried.
_TRIED = 4
#: Default of NAME_LOOKUPS.
LOOKUPS = 1024
#: The part of the threads that names may have that are not known to answer.
_UNPROVEN_PART = 0.25
#: A name that was slower is not known to answer.
_PROMPT_SECONDS = 2.0
#: A name that was not found is not looked up again for this long.
_RETRY_SECONDS = 10.0
#: Most names remembered.
_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """An address of a host."""

    family: int
    #: As `socket.connect` takes it.
    sockaddr: tuple[Any, ...]


def lookup(
    rule: address_guard.AddressGuard, host: str, port: int, resolve: Resolve = socket.getaddrinfo
) -> list[Address]:
    """Return the addresses of a host that may be connected to. Takes as long as the system's resolver does.

    Raises:
        EndpointRefused: One of them must not be connected to.
        AsteriskUnreachable: The host has no address.
    """
    try:
        found = resolve(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise errors.AsteriskUnreachable("the host name is not found", may_have_acted=False) from exc
    usable = [
        Address(family=entry[0], sockaddr=entry[4]) for entry in found if entry[0] in (socket.AF_INET, socket.AF_INET6)
    ]
    if not usable:
        raise errors.AsteriskUnreachable("the host name has no address", may_have_acted=False)
    rule.check(host, [str(address.sockaddr[0]) for address in usable])
    return usable[:_TRIED]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """The last lookup of a name."""

    #: It was found, in time.
    proven: bool
    #: It was not found: not to be looked up before then.
    retry_at: float = 0.0


class NameLookups:
    """The lookups of a process.

    Args:
        threads: Most lookups at the same time.
        resolve: A parameter for tests, as `monotonic`.
    """

    def __init__(
        self,
        rule: address_guard.AddressGuard,
        *,
        threads: int = LOOKUPS,
        resolve: Resolve = socket.getaddrinfo,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rule = rule
        self._threads = threads
        self._resolve = resolve
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._running: dict[tuple[str, int], futures.Future[list[Address]]] = {}
        #: By host, the latest last.
        self._outcomes: OrderedDict[str, _Outcome] = OrderedDict()

    def start(self, host: str, port: int) -> futures.Future[list[Address]]:
        """Return the lookup of this name that is running, or start one. It ends with what `lookup` raises.

        Raises:
            EndpointRefused, AsteriskUnreachable: It was not started.
        """
        if _is_literal(host):
            done: futures.Future[list[Address]] = futures.Future()
            done.set_result(lookup(self._rule, host, port, self._resolve))
            return done
        with self._lock:
            running = self._running.get((host, port))
            if running is not None:
                return running
            self._check(host)
            made = self._running[host, port] = futures.Future()
        # Those who wait for it may give up; it goes on.
        made.set_running_or_notify_cancel()
        try:
            # Not in a pool: a process that ends would wait for the pool's threads.
            threading.Thread(target=self._look_up, args=(host, port, made), name="lookup", daemon=True).start()
        except RuntimeError:
            self._finish(host, port, _Outcome(proven=False))
            made.set_exception(_too_many())
        return made

    def _check(self, host: str) -> None:
        """Raise AsteriskUnreachable if the name is not to be looked up now."""
        last = self._outcomes.get(host)
        if last is not None and self._monotonic() < last.retry_at:
            raise errors.AsteriskUnreachable("the host name is not found, as just before", may_have_acted=False)
        is_proven = last is not None and last.proven
        if len(self._running) >= self._threads * (1 if is_proven else _UNPROVEN_PART):
            raise _too_many()

    def _look_up(self, host: str, port: int, made: futures.Future[list[Address]]) -> None:
        began = self._monotonic()
        try:
            found = lookup(self._rule, host, port, self._resolve)
        except BaseException as exc:  # noqa: BLE001 - raised again in the waiting threads
            # A name with a forbidden address was found.
            found_none = not isinstance(exc, errors.EndpointRefused)
            self._finish(
                host, port, _Outcome(proven=False, retry_at=self._monotonic() + _RETRY_SECONDS if found_none else 0.0)
            )
            made.set_exception(exc)
        else:
            self._finish(host, port, _Outcome(proven=self._monotonic() - began <= _PROMPT_SECONDS))
            made.set_result(found)

    def _finish(self, host: str, port: int, outcome: _Outcome) -> None:
        with self._lock:
            self._running.pop((host, port), None)
            self._outcomes[host] = outcome
            self._outcomes.move_to_end(host)
            if len(self._outcomes) > _REMEMBERED:
                self._outcomes.popitem(last=False)


def _too_many() -> errors.AsteriskUnreachable:
    return errors.AsteriskUnreachable("too many host names are being resolved", may_have_acted=False)


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
