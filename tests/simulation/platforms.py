"""The platform and Postgres in memory: routes, runs, connections, and statements that may fail."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar, cast
from uuid import UUID

import greenlet

from shared import errors
from shared.asterisk import rest
from shared.call import call_settings, facts, quota_rules, stasis_args
from shared.call.call_settings import CallSettings
from shared.call.calls import Call
from shared.call.ids import ConnectionVersion
from shared.call.legs import Attempt
from shared.call.stasis_args import RunArgs
from shared.call.states import Cause, Direction, Outcome
from shared.platform.ports import NoRoute, Route
from shared.storage import connections, database, leases
from shared.storage.app_holders import Holder
from tests.simulation import asterisks, faults
from tests.simulation.commits import Transaction
from tests.simulation.faults import Fault
from tests.simulation.stores import MemoryStore
from tests.simulation.world import Fiber, Latch, World

_T = TypeVar("_T")
_STATEMENT_SECONDS = 2.0
#: Saved anew, a configuration has another connection, whose id is so much higher.
_ANEW = 1000


class Postgres:
    """The database server."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.moment = world.moment
        self.is_away = False

    def statement(self, what: str, effect: Callable[[], _T], call_id: UUID | None = None) -> _T:
        """Run one statement of the current fiber. Raises DatabaseUnavailable."""

        if call_id is not None:
            fiber = greenlet.getcurrent()
            assert isinstance(fiber, Fiber)
            fiber.call_id = call_id

        def run() -> _T:
            if self.is_away:
                self._world.pause(_STATEMENT_SECONDS)
                raise errors.DatabaseUnavailable("connection refused")
            return effect()

        return self._world.port_call(
            what, run, latency_seconds=0.0005, own_faults=faults.OF_STATEMENTS, inflict=self._inflict
        )

    def _inflict(self, fault: Fault, effect: Callable[[], _T]) -> _T:
        if fault is Fault.STATEMENT_UNANSWERED:
            effect()
        self._world.pause(self._world.choices.between(0.0, _STATEMENT_SECONDS))
        raise errors.DatabaseUnavailable("server closed the connection unexpectedly")

    def wait(self, latch: Latch, seconds: float) -> bool:
        """Wait for a lock; return whether it was released."""
        return self._world.wait(latch, seconds)

    def connected(self, roll_back: Callable[[], None]) -> None:
        """Register what to do if the process of the current fiber dies."""
        fiber = greenlet.getcurrent()
        assert isinstance(fiber, Fiber)
        fiber.process.at_death.append(roll_back)


@dataclass(slots=True, kw_only=True)
class Run:
    """A row of workflow_runs. Its workflow has the id of its organization."""

    run_id: int
    organization_id: int
    #: `gathered_context.call_id`: the channel of its call, once written.
    channel_id: str | None = None
    is_completed: bool = False
    #: How its call came out, and why.
    came_to: tuple[Outcome | None, str | None] | None = None
    #: Created by the product, for a call.
    is_ours: bool = False


def first_of(connection_id: int) -> int:
    """Return the first connection of a tenant, whichever of its connections this is."""
    return connection_id % _ANEW


def organization_of(connection_id: int) -> int:
    """Return the organization whose connection this is."""
    return 100 + first_of(connection_id)


@dataclass(slots=True, kw_only=True, eq=False)
class Tenant:
    """One tenant, with one connection that serves new calls."""

    connection_id: int
    organization_id: int
    app: str
    asterisk: asterisks.Asterisk

    @property
    def connection(self) -> ConnectionVersion:
        """The one version of its connection."""
        return ConnectionVersion(self.connection_id, 1)

    def save_anew(self) -> None:
        """Remove its configuration and add it again: another connection serves new calls, of the same app instance."""
        self.connection_id += _ANEW


class Routes:
    """Which workflow serves a call: the one with the id of its organization.

    Args:
        continue_in_dialplan: Whether a refused caller continues in the dialplan.
        platform_limit: As many calls of each organization as the platform counts with ours; None if it counts none.
    """

    def __init__(self, postgres: Postgres, *, continue_in_dialplan: bool, platform_limit: int | None = None) -> None:
        self._postgres = postgres
        self._continues = continue_in_dialplan
        self._platform_limit = platform_limit

    def inbound(self, connection_id: int, called_number: str) -> Route | NoRoute:
        return self._postgres.statement("route", lambda: self.to(organization_of(connection_id)))

    def send_inbound(
        self, connection: object, connection_id: int, called_number: str, *, run_ids: int = 1
    ) -> Callable[[], Route | NoRoute | None]:
        raise AssertionError("sent by the lookup, which is simulated as a whole")

    def check_inbound(self, connection: object, connection_id: int, called_number: str, read: int) -> None:
        raise AssertionError("sent by the lookup, which is simulated as a whole")

    def preferred(self, organization_id: int, workflow_run_id: int | None) -> int | None:
        return None

    def outbound(self, *, connection_id: int, workflow_id: int) -> Route | NoRoute:
        return self._postgres.statement("outbound route", lambda: self.to(organization_of(connection_id)))

    def to(self, organization_id: int) -> Route:
        settings = CallSettings(
            media_client=asterisks.CLIENT,
            call_seconds=None,
            dial_template=call_settings.DEFAULT_DIAL_TEMPLATE,
            caller_id=None,
        )
        return Route(
            workflow_id=organization_id, user_id=1, settings=settings, continue_in_dialplan=self._continues,
            concurrent_calls=self._platform_limit, shares_slots=self._platform_limit is not None,
        )  # fmt: skip

    def refusal(self, reason: str) -> NoRoute:
        return NoRoute(reason=reason, hangup_cause=Cause.NOT_ALLOWED, continue_in_dialplan=self._continues)


class Runs:
    """The workflow runs."""

    def __init__(self, postgres: Postgres, store: MemoryStore, routes: Routes) -> None:
        self._postgres = postgres
        self._store = store
        self._routes = routes
        self.rows: dict[int, Run] = {}
        #: The channels of callers whom the platform transfers, as it has written into their runs.
        self.transferred: set[str] = set()
        self._last = 0

    def begin(self, organization_id: int) -> Run:
        """Create a run as the platform does for a call that it makes."""
        run = Run(run_id=self.reserve(), organization_id=organization_id)
        self.rows[run.run_id] = run
        return run

    def reserve(self) -> int:
        """Return an id that no run has."""
        self._last += 1
        return self._last

    # ── the port ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def workflow_of(self, workflow_run_id: int, organization_id: int) -> int | None:
        run = self._postgres.statement("workflow of a run", lambda: self.rows.get(workflow_run_id))
        return organization_id if run is not None and run.organization_id == organization_id else None

    def create(
        self,
        connection: database.Connection,
        call: Call,
        *,
        first_attempt: Attempt | None = None,
        reserved_id: int | None = None,
    ) -> int:
        transaction = cast(Transaction, connection)

        def insert() -> None:
            if run_id in self.rows:
                raise errors.DuplicateKey('duplicate key value violates unique constraint "workflow_runs_pkey"')
            run = Run(run_id=run_id, organization_id=call.organization_id, is_ours=True)
            transaction.writes.append(lambda: self._add(run))

        if reserved_id is not None:
            run_id = reserved_id
            transaction.unsent.append(insert)
        else:
            run_id = self.reserve()
            self._postgres.statement("insert run", insert)
        return run_id

    def attach(self, connection: database.Connection, call: Call, args: RunArgs) -> Route | NoRoute:
        transaction, run_id = cast(Transaction, connection), args.workflow_run_id

        def lock() -> Route | NoRoute:
            run = self.rows.get(run_id)
            if run is None or run.organization_id != call.organization_id:
                return self._routes.refusal(f"run {run_id} is not of this organization")
            self._store.locks.acquire(transaction, ("run row", run_id))
            calls = [row.call for row in self._store.rows.values() if row.call.workflow_run_id == run_id]
            if run.is_completed or any(other.call_id != call.call_id for other in calls):
                return self._routes.refusal(f"run {run_id} does not wait for a call")
            transaction.writes.append(lambda: self._set(run, "channel_id", call.channel_id))
            return self._routes.to(call.organization_id)

        return self._postgres.statement("attach run", lock)

    def waiting(self, connection: database.Connection, *, organization_id: int, channel_id: str) -> int | None:
        def find() -> int | None:
            wanted = (organization_id, channel_id, False)
            for run in reversed(self.rows.values()):
                if (run.organization_id, run.channel_id, run.is_completed) == wanted:
                    self._store.locks.acquire(cast(Transaction, connection), ("run row", run.run_id))
                    return run.run_id if not run.is_completed else None
            return None

        return self._postgres.statement("waiting run", find)

    def end_in(self, connection: database.Connection, call: Call, media: Mapping[str, str]) -> None:
        run_id = call.workflow_run_id
        assert run_id is not None
        self._postgres.statement(
            "end run", lambda: cast(Transaction, connection).writes.append(lambda: self._end(run_id, call))
        )

    def note_media(self, call: Call, *, media_id: str, bridge_id: str) -> None:
        self._postgres.statement("note media", lambda: None)

    def is_begun(self, call: Call) -> bool:
        return True

    def has_transfer(self, call: Call) -> bool:
        # The run is the same one, whichever channel is the caller's leg by then.
        legs = {call.channel_id, *call.replacements}
        return self._postgres.statement("transfer of a run", lambda: not legs.isdisjoint(self.transferred))

    def note_transfer(self, call: Call) -> None:
        self._postgres.statement("note transfer", lambda: None)

    def end(self, call: Call, *, media_id: str, bridge_id: str, within: database.Connection | None = None) -> None:
        run_id = call.workflow_run_id or self._named(call)
        if run_id is None:
            return
        if within is None:
            self._postgres.statement("end run", lambda: self._end(run_id, call))
        else:
            transaction = cast(Transaction, within)

            def lock() -> None:
                self._store.locks.acquire(transaction, ("run row", run_id))

            self._postgres.statement("lock run", lock)
            transaction.writes.append(lambda: self._end(run_id, call))

    def _end(self, run_id: int, call: Call) -> None:
        # A fail-over may have lost it.
        run = self.rows.get(run_id)
        if run is not None and not run.is_completed:
            self._set(run, "is_completed", True)
            self._set(run, "came_to", (call.outcome, call.reason))

    def _add(self, run: Run) -> None:
        self._store.log.note(None, lambda: self.rows.pop(run.run_id))
        self.rows[run.run_id] = run

    def _set(self, run: Run, name: str, value: object) -> None:
        before = getattr(run, name)
        self._store.log.note(None, lambda: setattr(run, name, before))
        setattr(run, name, value)

    def _named(self, call: Call) -> int | None:
        """Return the run that the leg names, if it still waits for a call."""
        if call.direction is not Direction.OUTBOUND or not stasis_args.names_run(call.args):
            return None
        run_id = stasis_args.read(call.args).workflow_run_id
        run = self.rows.get(run_id)
        if run is None or run.organization_id != call.organization_id:
            return None
        return None if any(row.call.workflow_run_id == run_id for row in self._store.rows.values()) else run_id


class Quota:
    """Refuses some of the outbound calls.

    Args:
        refuses: The share of them, from 0 to 1.
        asks_network: As the port says it.
        about_runs: It is asked about a run, once there is one.

    Attributes:
        authorized: the runs that it was asked about and has let through.
        refuses_runs: of inbound calls.
    """

    def __init__(self, world: World, *, refuses: float, asks_network: bool, about_runs: bool = False) -> None:
        self._world = world
        self.asks_network = asks_network or about_runs
        self.refuses = refuses
        self.authorized: set[int] = set()
        self.refuses_runs = False
        self._about_runs = about_runs

    def refusal(
        self, call: Call, *, user_id: int, budget: rest.RequestBudget, quota: object = None
    ) -> facts.Refused | None:
        # Zero is the calm choice; a certain refusal makes none.
        if call.direction is Direction.INBOUND or (self.refuses < 1 and not self._world.choices.happens(self.refuses)):
            return None
        return facts.Refused(reason="the credits are used up", hangup_cause=Cause.NOT_ALLOWED)

    def is_about_runs(self) -> bool:
        return self._about_runs

    def authorization(self, call: Call, *, budget: rest.RequestBudget) -> facts.Refused | None:
        refused = self.refusal(call, user_id=0, budget=budget)

        def answer() -> facts.Refused | None:
            if refused is not None or (self.refuses_runs and call.direction is Direction.INBOUND):
                return facts.Refused(reason="the credits are used up", hangup_cause=Cause.NOT_ALLOWED)
            assert call.workflow_run_id is not None
            self.authorized.add(call.workflow_run_id)
            return None

        return self._world.port_call(
            "authorize", answer, latency_seconds=0.02, own_faults=(), inflict=lambda _fault, effect: effect()
        )


class AppHolders:
    """Who has which app. No connection is asked for: each is ours, or was taken over."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        #: Connection → when its app was taken over from another process.
        self.displaced: dict[int, datetime] = {}

    def note(self, connection: ConnectionVersion, holder: Holder) -> str:
        raise AssertionError("no version is asked for")

    def has_lately_displaced(self, connection: ConnectionVersion, *, seconds: float) -> bool:
        return self._postgres.statement("taken over", lambda: self._is_lately(connection.connection_id, seconds))

    def _is_lately(self, connection_id: int, seconds: float) -> bool:
        displaced = self.displaced.get(first_of(connection_id))
        return displaced is not None and self._postgres.moment() < displaced + timedelta(seconds=seconds)


class Leases:
    """Leases: one holder at a time."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        #: Name → holder, and until when.
        self._held: dict[str, tuple[str, datetime]] = {}

    def take(self, name: str, holder: str, seconds: float) -> int | None:
        return self._postgres.statement("lease", lambda: self._take(name, holder, seconds))

    def release(self, name: str, holder: str) -> None:
        self._postgres.statement("lease", lambda: self._release(name, holder))

    def of_others(self, workers: Collection[str], *, besides: str) -> list[leases.Lease]:
        return self._postgres.statement("leases of others", lambda: self.of_others_now(workers))

    def of_others_now(self, workers: Collection[str]) -> list[leases.Lease]:
        """Return the leases that stand and belong to others than these workers."""
        now = self._postgres.moment()
        held = (leases.Lease(name=name, holder=holder) for name, (holder, until) in self._held.items() if until > now)
        return [lease for lease in held if lease.worker not in workers]

    def _take(self, name: str, holder: str, seconds: float) -> int | None:
        now = self._postgres.moment()
        other, until = self._held.get(name, (holder, now))
        if other != holder and until > now:
            return None
        self._held[name] = (holder, now + timedelta(seconds=seconds))
        return 1

    def _release(self, name: str, holder: str) -> None:
        if self._held.get(name, ("",))[0] == holder:
            del self._held[name]


class Connections:
    """The tenants' connections."""

    def __init__(self, postgres: Postgres, tenants: list[Tenant]) -> None:
        self._postgres = postgres
        self._tenants = {tenant.connection_id: tenant for tenant in tenants}

    def inbound_target(self, connection: ConnectionVersion) -> connections.InboundTarget | None:
        return self._postgres.statement("inbound target", lambda: self.target(connection))

    def target(self, connection: ConnectionVersion) -> connections.InboundTarget:
        tenant = self._tenants[first_of(connection.connection_id)]
        return connections.InboundTarget(
            served_by=tenant.connection,
            organization_id=tenant.organization_id,
            quota=quota_rules.Quota(organization_id=tenant.organization_id),
        )

    def outbound_connection(self, organization_id: int, preferred: int | None) -> connections.ConnectionDetails:
        (tenant,) = (one for one in self._tenants.values() if one.organization_id == organization_id)
        return self._postgres.statement("outbound connection", lambda: self._details(tenant))

    def is_preempted(self, connection_id: int) -> bool:
        return self._postgres.statement("is preempted", lambda: False)

    def share_an_app(self, connection_id: int, other_id: int) -> bool:
        return self._postgres.statement("share an app", lambda: first_of(connection_id) == first_of(other_id))

    def _details(self, tenant: Tenant) -> connections.ConnectionDetails:
        return connections.ConnectionDetails(
            connection=tenant.connection,
            organization_id=tenant.organization_id,
            endpoint=f"http://{tenant.asterisk.name}",
            app=tenant.app,
            user=tenant.app,
            sealed_password="",
            credentials_of=1,
        )
