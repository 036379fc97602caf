"""What every step works with, handed in from main."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from shared import messages, outbound_calls
from shared.asterisk import rest
from shared.call import facts, ids
from shared.call.calls import Call
from shared.call.limits import Step
from shared.call.stasis_args import RunArgs
from shared.platform.ports import NoRoute, Route
from shared.storage import connections, database
from shared.storage.call_writer import CallWriter
from workers.asterisks import Asterisks


class Routes(Protocol):
    """Which workflow serves a call. `dograh.Routes` is the adapter."""

    def inbound(self, *, source_id: int, organization_id: int) -> Route | NoRoute:
        """Where an inbound call goes."""


class Runs(Protocol):
    """The workflow runs of calls. `dograh.Runs` is the adapter."""

    def create(self, connection: database.Connection, call: Call) -> int:
        """Inserts the workflow run, inside a transaction."""

    def attach(self, connection: database.Connection, call: Call, args: RunArgs, *, source_id: int) -> Route | NoRoute:
        """Attaches a run that waits for a call to this one, inside a transaction."""

    def waiting(self, connection: database.Connection, *, organization_id: int, channel_id: str) -> int | None:
        """The run for which the platform has begun a call under this channel id, locked; or None."""

    def end_in(self, connection: database.Connection, call: Call, media: Mapping[str, str]) -> None:
        """Ends the call's run, inside a transaction."""

    def note_media(self, call: Call, *, media_id: str, bridge_id: str) -> None:
        """Tells the run its media leg and bridge."""

    def end(self, call: Call, *, media_id: str, bridge_id: str) -> None:
        """Ends the run, if that is ours to do."""


class Quota(Protocol):
    """Whether a call may be served, by what its organization has used. Concurrency is not counted here."""

    def refusal(self, call: Call, *, user_id: int, budget: rest.RequestBudget) -> facts.Refused | None:
        """Why not, or None when it may.

        Args:
            user_id: Who pays for the call.
            budget: Bounds the adapter's requests in time, and records them.
        """


class NoQuota:
    """The adapter that lets every call through."""

    def refusal(self, call: Call, *, user_id: int, budget: rest.RequestBudget) -> facts.Refused | None:
        return None


class Connections(Protocol):
    """What a new call meets. `connections.Connections` is the adapter."""

    def inbound_target(self, connection_id: int, version: int) -> connections.InboundTarget | None:
        """None when there is no such connection."""

    def is_preempted(self, connection_id: int) -> bool:
        """Whether another client has its app."""


class Leases(Protocol):
    """What only one may do at a time. `leases.Leases` is the adapter. Both raise DatabaseUnavailable."""

    def take(self, name: str, holder: str, seconds: float) -> int | None:
        """None when another has it."""

    def release(self, name: str, holder: str) -> None:
        """Lets another have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """The ports of the steps."""

    writer: CallWriter
    #: The steps whose queues these threads serve: to such a step they go on by themselves, without a message.
    serves: frozenset[Step]
    asterisks: Asterisks
    routes: Routes
    runs: Runs
    quota: Quota
    #: How many slots an organization has; None for any number.
    slots: Callable[[int], int | None]
    originates: outbound_calls.OutboundCalls
    connections: Connections
    leases: Leases
    #: Runs requests at the same time; each gives its result or its PipelineError.
    in_parallel: Callable[..., list[Any]]
    #: Enqueues a message to be worked on after a while. Raises QueueUnavailable.
    send_later: Callable[[messages.Message, timedelta], None]
    #: Redis's time in ms; None when unknown.
    redis_ms: Callable[[], int | None]
    #: Begins our channel and bridge ids.
    prefix: str
    #: Signs the media URL; None when tokens are off.
    token_secret: str | None

    def media_id(self, call: Call, attempt: int | None = None) -> str:
        """The media leg's channel id, of the newest attempt unless told."""
        return ids.media_id(self.prefix, call.call_id, attempt or call.attempt)

    def bridge_id(self, call: Call, attempt: int | None = None) -> str:
        """The bridge's id, of the newest attempt unless told."""
        return ids.bridge_id(self.prefix, call.call_id, attempt or call.attempt)
