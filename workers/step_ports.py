"""The ports that several parts of a worker share. A port of one part stands beside that part."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol

from shared import inbound_lookup, messages
from shared.asterisk import rest
from shared.call import facts, quota_rules
from shared.call.calls import Call
from shared.call.ids import ConnectionVersion
from shared.storage import connections

#: Handles one kind of message, given what its actor has read from it.
Handler = Callable[..., Any]
#: Enqueues a message to be delivered after a delay. Raises QueueUnavailable.
SendLater = Callable[[messages.Message, timedelta], None]


class Connections(Protocol):
    """Where a new call goes. `connections.Connections` is the adapter."""

    def inbound_target(self, connection: ConnectionVersion) -> connections.InboundTarget | None:
        """Return it, or None when there is no such connection version."""

    def is_preempted(self, connection_id: int) -> bool:
        """True if a competing client has the connection's app."""

    def share_an_app(self, connection_id: int, other_id: int) -> bool:
        """True for connections of one organization that are, or were, one app instance."""


class Lookup(Protocol):
    """Where a new call goes, and by which route. `inbound_lookup.InboundLookup` is the adapter."""

    def destination(
        self, connection: ConnectionVersion, called_number: str, *, assume: bool = False
    ) -> inbound_lookup.Destination | None:
        """Return it, or None when there is no such connection version.

        Args:
            assume: It may be assumed, as the last call to this number has found it: then it is to be checked.
        """


class Slots(Protocol):
    """How many slots an organization has. `quotas.Slots` is the adapter."""

    def among(self, own: int | None, platform: int | None) -> int | None:
        """Return the number of slots by the product's and the platform's limit; None for any number."""


class Quota(Protocol):
    """Whether an organization has quota left for a call. Concurrent calls are counted elsewhere."""

    #: Whether a refusal takes a request to another service, which may take seconds.
    asks_network: bool

    def refusal(
        self, call: Call, *, user_id: int, budget: rest.RequestBudget, quota: quota_rules.Quota | None = None
    ) -> facts.Refused | None:
        """Return the refusal, or None when the call may be served.

        Args:
            user_id: Who pays for the call.
            budget: Bounds the adapter's requests in time, and collects them.
            quota: The organization's limits, if they were read already.
        """

    def is_about_runs(self) -> bool:
        """Return whether a call is judged by `authorization`, once it has its run, instead of by `refusal`."""

    def authorization(self, call: Call, *, budget: rest.RequestBudget) -> facts.Refused | None:
        """Return the refusal of a call that has its run, or None when it may be served. May be asked repeatedly."""


class NoQuota:
    """The adapter that lets every call through."""

    asks_network = False

    def refusal(
        self, call: Call, *, user_id: int, budget: rest.RequestBudget, quota: quota_rules.Quota | None = None
    ) -> facts.Refused | None:
        return None

    def is_about_runs(self) -> bool:
        return False

    def authorization(self, call: Call, *, budget: rest.RequestBudget) -> facts.Refused | None:
        return None
