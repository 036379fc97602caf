"""The product's admission on a real Postgres with the platform's tables: who is admitted, by which round trips."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from shared.asterisk import events
from shared.call import facts
from shared.call.calls import Call
from shared.call.ids import ConnectionVersion
from shared.call.legs import Naming
from shared.call.limits import Limits
from shared.call.steps import Step
from shared.inbound_lookup import InboundLookup
from shared.platform import dograh
from shared.storage import connections, database, quotas
from shared.storage.call_writer import CallWriter
from shared.storage.postgres_calls import PostgresCalls
from tests.dograh_tables import NUMBER, VALUE, configure, execute, one
from tests.support.flows import CommandQueue, OneAsterisk, WorkStep
from workers.admission import Admission
from workers.asterisks import Asterisks
from workers.awaited_legs import AwaitedLegs
from workers.call_allowance import CallAllowance
from workers.claims import Claim
from workers.flow import Flow
from workers.inbound import Inbound
from workers.transfer_legs import TransferLegs

CONNECTION = ConnectionVersion(1, 1)
LOOK = ["SELECT", "SELECT"]
#: The call's statement writes its attempt and its timeline as well.
WRITE = ["INSERT workflow_runs", "INSERT ari.calls"]


def leg_of(channel_id: str) -> events.Channel:
    return events.Channel(
        id=channel_id, name="PJSIP/trunk-1", state="Ring", created="c", caller_number="1", called_number=NUMBER,
        app_name="Stasis", app_data="voiceai",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Worker:
    """The product's admission on one Postgres. Its media step only notes the calls it gets."""

    db: database.Database
    inbound: Inbound
    began: list[Call]

    def receive(self, channel_id: str = "1762.1", connection: ConnectionVersion = CONNECTION) -> None:
        leg = leg_of(channel_id)
        self.inbound.receive(connection=connection, leg=leg, args=(), stamp="2026-05-01T12:00:00.000+0000")

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many calls, attempts and runs there are."""
        row = one(
            self.db,
            "SELECT (SELECT count(*) FROM ari.calls) AS calls, (SELECT count(*) FROM ari.attempts) AS attempts,"
            " (SELECT count(*) FROM workflow_runs) AS runs",
        )
        return row["calls"], row["attempts"], row["runs"]

    @property
    def states(self) -> list[str]:
        """The states of the first call, from its timeline."""
        row = one(
            self.db,
            "SELECT array_agg(state_to ORDER BY id) AS states FROM ari.timeline"
            " WHERE state_to IS NOT NULL AND call_id = (SELECT call_id FROM ari.calls ORDER BY received_at LIMIT 1)",
        )
        return list(row["states"] or [])


def connected(db: database.Database) -> Worker:
    """Configure a connection, and return a worker."""
    source_id = configure(db, json.dumps(VALUE))
    execute(
        db,
        "INSERT INTO ari.connections (source_id, organization_id, state, version) VALUES (%s, 1, 'active', 1)",
        source_id,
    )
    execute(
        db,
        "INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password)"
        " VALUES (1, 1, 'http://a', 'a', 'a', 'x')",
    )
    worker = make(db)
    # The clock, and the statements that every connection prepares.
    worker.inbound.writer.store.now()
    return worker


def make(db: database.Database, monotonic: Callable[[], float] = time.monotonic) -> Worker:
    """Return a worker.

    Args:
        monotonic: The clock of what it assumes.
    """
    store, limits = PostgresCalls(db, who="test", prefix="aip-"), Limits()
    writer = CallWriter(store, CommandQueue(), limits, who="test")
    watch = dograh.Watch(db)
    watch.look()
    # The platform's own limit of calls takes a lock: without one there is none.
    routes = dograh.Routes(db, watch=watch, limits=dograh.CallLimits(setting="off", default=10))
    known, runs = connections.Connections(db), dograh.Runs(db, watch=watch)
    own = quotas.Quotas(db, now=store.now)
    asterisks = cast(Asterisks, OneAsterisk())
    admission = Admission(
        connections=known,
        routes=routes,
        quota=own,
        slots=quotas.Slots(own, dograh.Accounts(db), default=None),
        slot_count=store,
        runs=runs,
        asterisks=asterisks,
        naming=Naming("aip-"),
        limits=limits,
    )
    began: list[Call] = []

    def media(claim: Claim) -> list[facts.Fact]:
        began.append(claim.call)
        claim.give_up("the test ends here")
        return []

    steps = {Step.ADMISSION: admission, Step.MEDIA: WorkStep(media)}
    flow = Flow(
        writer, asterisks, steps, serves={Step.ADMISSION, Step.RUNS, Step.MEDIA}, awaited=AwaitedLegs(capacity=0)
    )
    inbound = Inbound(
        flow=flow,
        writer=writer,
        connections=known,
        lookup=InboundLookup(db, known, routes, monotonic=monotonic),
        asterisks=asterisks,
        runs=runs,
        naming=Naming("aip-"),
        allowance=CallAllowance(1000),
        age_ms=lambda _at_ms: 0.0,
        transfer_legs=cast(TransferLegs, None),
        assumes=True,
    )
    return Worker(db=db, inbound=inbound, began=began)
