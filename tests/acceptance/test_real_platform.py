"""The newest layout on a real Asterisk, beside the stand-in of the platform's API.

Three configurations of two organizations share the PBX, each with an app of its own; two of the numbers are the same.
`PLATFORM_CALLERS=200 PLATFORM_CALLS=50 PLATFORM_TRANSFERS=20` make as many as a busy hour might; ten callers a second.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from devstack import servers
from devstack.asterisk import RealAsterisk
from devstack.asterisk_config import Client, Configuration
from devstack.asterisk_root import Root
from devstack.pipeline import MEDIA_SECRET, Pipeline, wait_until
from devstack.platform_api.calls import Placed
from devstack.platform_api.server import Options
from devstack.platform_api.stand_in import StandIn
from devstack.platform_api.transfers import EVENT_FIELDS, Result
from devstack.processes import free_port
from devstack.tenants import PASSWORD, Tenant, closing_tenant
from tests.acceptance.environment import Deploy
from tests.support import platform_api

pytestmark = [pytest.mark.asterisk, pytest.mark.services]

NUMBER, OTHER_NUMBER = "+4930111111", "+4930222222"
CALLERS, CALLS, TRANSFERS = (
    int(os.environ.get(f"PLATFORM_{name}", count)) for name, count in (("CALLERS", 12), ("CALLS", 12), ("TRANSFERS", 6))
)
_CALLERS_SECONDS = 0.1
#: What the platform's keys of these names count must come back to nothing. Its own expire: contexts, orders, a binding
#: whose slot was given back.
EXPIRING = ("transfer:context:", "transfer:by_call_sid:", "arq:", "ari:told:")
#: A telephone that is picked up after a moment, and one that stops ringing before the platform stops waiting.
_TELEPHONES = """[far](+)
exten => late,1,Ringing()
 same => n,Wait(2)
 same => n,Answer()
 same => n,Wait(3600)
exten => given-up,1,Ringing()
 same => n,Wait(2)
 same => n,Hangup(19)
"""
_SCHEMA = """
SELECT string_agg(line, ';' ORDER BY line) FROM (
    SELECT concat_ws(' ', table_name, column_name, data_type, is_nullable, column_default) AS line
      FROM information_schema.columns WHERE table_schema = 'public'
    UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL SELECT concat_ws(' ', conrelid::regclass, pg_get_constraintdef(oid)) FROM pg_constraint
      WHERE connamespace = 'public'::regnamespace
) lines
"""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One configuration: the context that its callers come by, and who answers them."""

    context: str
    number: str
    tenant: Tenant
    workflow_id: int
    configuration_id: int


@dataclass(frozen=True, kw_only=True)
class Shared:
    """The PBX with its three lines, the product and the platform."""

    pipeline: Pipeline
    platform: StandIn
    asterisk: RealAsterisk
    lines: tuple[Line, ...]
    #: A client of the platform's Redis, of text; its type is of bytes and text.
    keys: Any

    def until(self, condition: Callable[[], object], what: str, *, seconds: float = 20) -> None:
        """Poll until a condition holds."""
        wait_until(condition, seconds=seconds, what=lambda: f"{what}\n{self._described()}")

    def run(self, run_id: int) -> dict[str, Any]:
        (row,) = self.pipeline.query("SELECT * FROM workflow_runs WHERE id = %s", run_id)
        return row

    def completed(self, run_id: int) -> dict[str, Any]:
        """Wait until a run is completed; return its gathered_context."""
        self.until(lambda: self.run(run_id)["is_completed"], f"run {run_id} is completed")
        found: dict[str, Any] = self.run(run_id)["gathered_context"]
        return found

    def connect(self, line: Line) -> str:
        """Return the leg of a new caller who talks to the agent."""
        leg = self.asterisk.dial(line.context, called=line.number)
        self.until(lambda: self.pipeline.state(leg) == "connected", f"{leg} is connected")
        return leg

    def left(self) -> dict[str, Any]:
        """Return what is counted and noted in the platform's Redis."""
        found = [key for key in self.keys.keys("*") if not key.startswith(EXPIRING)]
        return {key: self.keys.type(key) for key in found}

    def _described(self) -> str:
        calls = [(call["channel_id"], call["state"], call["outcome"], call["reason"]) for call in self.pipeline.calls()]
        seen = (calls, self.left(), self.platform.api.refusals, self.asterisk.channels(), self.pipeline.log_tail())
        return "\n".join(map(str, seen))


@pytest.fixture(scope="module")
def shared(deploy: Deploy, asterisk_root: Root, stack_folder: Path) -> Iterator[Shared]:
    with servers.Redis(stack_folder / "redis-of-the-platform") as theirs:
        options = {
            "PLATFORM_REDIS_URL": theirs.url, "RUN_COMPLETION": "auto", "DEFAULT_ORG_CONCURRENCY_LIMIT": "50",
            "times": {},
        }  # fmt: skip
        with deploy("real-platform", layout="newest", agent_database=False, **options) as deployment:
            url = deployment.database_url
            port = free_port()
            with (
                StandIn(
                    Options(
                        layout="newest",
                        database_url=url,
                        redis_url=theirs.url,
                        token_secret=MEDIA_SECRET,
                        default_limit=50,
                        dial_template="Local/{number}@far",
                    ),
                    port=port,
                ) as platform,
                RealAsterisk(asterisk_root, stack_folder / "asterisk-real-platform", _configured(platform)) as asterisk,
                closing_tenant(url, "acme") as acme,
                closing_tenant(url, "globex") as globex,
                platform_api.connected(theirs.url) as keys,
            ):
                lines = _lines(asterisk.url, acme, globex)
                before = deployment.pipeline.value(_SCHEMA)
                deployment.pipeline.wait_connected()
                wait_until(lambda: _sockets(deployment.pipeline) == 3, seconds=30, what="three sockets")
                yield Shared(pipeline=deployment.pipeline, platform=platform, asterisk=asterisk, lines=lines, keys=keys)
                assert deployment.pipeline.value(_SCHEMA) == before, "the platform's tables are unaltered"
                assert platform.api.refusals == []


def _configured(platform: StandIn) -> Configuration:
    return Configuration(
        contexts={"sales": "app-sales", "support": "app-support", "other": "app-other"},
        users={"acme": PASSWORD, "globex": PASSWORD},
        clients={"media": Client(uri=platform.media_url)},
        dialplan=_TELEPHONES,
    )


def _lines(url: str, acme: Tenant, globex: Tenant) -> tuple[Line, ...]:
    support = acme.add_workflow("support")
    acme.add_definition(support)
    made = []
    for tenant, user, context, number, workflow_id in [
        (acme, "acme", "sales", NUMBER, acme.workflow_id),
        (acme, "acme", "support", OTHER_NUMBER, support),
        (globex, "globex", "other", NUMBER, globex.workflow_id),
    ]:
        configuration_id = tenant.configure(
            url, app=user, name=context, numbers=[number], stasis_app_name=f"app-{context}",
            inbound_workflow_id=workflow_id,
        )  # fmt: skip
        made.append(
            Line(
                context=context, number=number, tenant=tenant, workflow_id=workflow_id,
                configuration_id=configuration_id,
            )
        )  # fmt: skip
    return tuple(made)


def _sockets(pipeline: Pipeline) -> int:
    return int(
        pipeline.value(
            "SELECT count(*) FROM ari.connection_versions v JOIN ari.connections c USING (connection_id, version)"
            " WHERE c.state = 'active' AND v.socket_state = 'connected'"
        )
    )


@pytest.fixture(autouse=True)
def _nothing_is_left(shared: Shared) -> Iterator[None]:
    yield
    shared.platform.behaviour.call_id_after_seconds = 0.0
    shared.until(lambda: not shared.asterisk.channels() and not shared.asterisk.bridges(), "nothing is left")
    is_over = "SELECT count(*) = 0 FROM ari.calls WHERE state <> 'ended'"
    shared.until(lambda: shared.pipeline.value(is_over), "every call has ended")
    shared.until(lambda: not shared.left(), "no slot is left")
    assert shared.platform.api.transfers.dropped == []


def test_callers_of_every_line_reach_the_workflow_of_its_number(shared: Shared) -> None:
    with ThreadPoolExecutor(CALLERS) as threads:
        served = []
        for line in itertools.islice(itertools.cycle(shared.lines), CALLERS):
            served.append(threads.submit(_served, shared, line))
            time.sleep(_CALLERS_SECONDS)
    for each in served:
        each.result()


def _served(shared: Shared, line: Line) -> None:
    """Call a line, talk for a second, and hang up."""
    leg = shared.connect(line)
    run = shared.pipeline.run(leg)
    assert (run["workflow_id"], run["mode"], run["call_type"]) == (line.workflow_id, "ari", "inbound")
    assert run["definition_id"] is not None
    assert run["initial_context"]["telephony_configuration_id"] == line.configuration_id
    assert run["initial_context"]["called_number"] == line.number
    time.sleep(1)
    shared.asterisk.hang_up_caller(leg)
    assert shared.completed(run["id"])["call_disposition"] == "user_hangup"


def test_a_number_of_another_line_is_no_number_of_this_one(shared: Shared) -> None:
    sales, support, other = shared.lines
    for line, number in [(sales, support.number), (other, support.number), (sales, "+4930999999")]:
        leg = shared.asterisk.dial(line.context, called=number)
        shared.until(lambda leg=leg: shared.pipeline.state(leg) == "ended", f"{leg} has ended")  # type: ignore[misc]
        call = shared.pipeline.call(leg)
        assert (call["outcome"], call["workflow_run_id"]) == ("refused", None), call["reason"]


def test_an_agent_hangs_up_by_the_configuration_that_the_run_names(shared: Shared) -> None:
    _, support, _ = shared.lines
    leg = shared.asterisk.dial(support.context, called=support.number)
    shared.until(lambda: shared.pipeline.state(leg) == "connected", "connected")
    run_id = shared.pipeline.run(leg)["id"]
    shared.platform.hang_up(run_id)
    assert shared.completed(run_id)["call_disposition"] == "agent_hangup"


@pytest.mark.parametrize("call_id_after", [0.0, 0.02])
def test_calls_that_the_platform_places_end_as_what_they_were(shared: Shared, call_id_after: float) -> None:
    """By every line, all at once: the events about an unanswered leg come within a millisecond."""
    shared.platform.behaviour.call_id_after_seconds = call_id_after
    wanted = {"wait": "user_hangup", "busy": "busy", "reject": "failed", "ring": "no-answer"}
    calls = list(itertools.islice(itertools.cycle(itertools.product(shared.lines, wanted)), CALLS))
    with ThreadPoolExecutor(len(calls)) as threads:
        placed = list(threads.map(lambda call: _place(shared, *call), calls))
    for (line, number), call in zip(calls, placed, strict=True):
        if number == "wait":
            leg = call.channel_id
            shared.until(lambda leg=leg: shared.pipeline.state(leg) == "connected", f"{leg} is connected")  # type: ignore[misc]
            shared.asterisk.hang_up(leg)
        gathered = shared.completed(call.run_id)
        assert gathered["call_disposition"] == wanted[number], (
            f"{number} by {line.context}: {shared.pipeline.story(call.channel_id)}"
        )
        assert gathered["call_id"] == call.channel_id


def _place(shared: Shared, line: Line, number: str) -> Placed:
    return shared.platform.call(
        line.workflow_id, number, configuration_id=line.configuration_id, ring_seconds=3 if number == "ring" else None
    )


# ── transfers ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class Transferring:
    """One transfer that the agent makes."""

    shared: Shared
    #: The call's leg.
    caller: str
    run_id: int

    def make(self, number: str) -> Result:
        return self.shared.platform.transfer(self.run_id, number, seconds=5)

    def swapped(self) -> str:
        """Transfer to a telephone that is answered; return its leg once caller and destination talk."""
        result = self.make("wait")
        assert result.is_made, result
        assert result.destination is not None
        parties = {self.caller, result.destination}
        self.shared.until(lambda: self.are_together(parties), "the parties talk")
        return result.destination

    def are_together(self, parties: set[str]) -> bool:
        return any(set(bridge["channels"]) == parties for bridge in self.shared.asterisk.bridges())

    def gathered(self, *, disposition: str) -> dict[str, Any]:
        """Wait until the run is completed; return its gathered_context."""
        gathered = self.shared.completed(self.run_id)
        assert gathered["call_disposition"] == disposition
        assert gathered["call_id"] == self.caller
        return gathered

    def is_over(self) -> bool:
        return self.shared.pipeline.state(self.caller) == "ended"

    def wait_terminated(self) -> None:
        """Wait until a call that was transferred is over."""
        self.shared.until(self.is_over, "the call has ended", seconds=5)
        self.until_state("terminated")

    def until_state(self, state: str) -> None:
        """Wait until the run says so of its transfer."""
        self.shared.until(
            lambda: self.gathered(disposition="transferred")["transfer_state"] == state, f"it is {state}", seconds=5
        )


def _answered(one: Transferring) -> str:
    """The run is completed while the parties talk: nothing ends them for that."""
    destination = one.swapped()
    assert one.gathered(disposition="transferred")["transfer_caller_channel_id"] == one.caller
    ends_at = time.monotonic() + 3
    while time.monotonic() < ends_at:
        assert one.are_together({one.caller, destination})
        time.sleep(0.1)
    one.until_state("complete")
    one.shared.asterisk.hang_up_caller(one.caller)
    one.wait_terminated()
    return "destination_answered"


def _destination_leaves(one: Transferring) -> str:
    one.shared.asterisk.hang_up(one.swapped())
    one.wait_terminated()
    return "destination_answered"


def _caller_leaves(one: Transferring) -> str:
    one.swapped()
    one.shared.asterisk.hang_up_caller(one.caller)
    one.wait_terminated()
    return "destination_answered"


def _busy(one: Transferring) -> str:
    result = one.make("busy")
    assert (result.is_made, result.reason) == (False, "The line is busy, or the call was declined.")
    return _keeps_the_agent(one)


def _cancelled(one: Transferring) -> str:
    """It stops ringing while the agent still waits."""
    result = one.make("given-up")
    assert (result.is_made, result.reason) == (False, "The call was not answered.")
    return _keeps_the_agent(one)


def _keeps_the_agent(one: Transferring) -> str:
    """The caller talks to the agent as before, and hangs up."""
    assert one.shared.pipeline.state(one.caller) == "connected"
    assert one.shared.platform.api.sessions[one.run_id].open
    one.shared.asterisk.hang_up_caller(one.caller)
    assert "transfer_state" not in one.gathered(disposition="user_hangup")
    return "transfer_failed"


def _caller_leaves_first(one: Transferring) -> str:
    """The destination answers a second after the caller has left."""
    leaving = threading.Timer(1, one.shared.asterisk.hang_up_caller, [one.caller])
    leaving.start()
    result = one.make("late")
    leaving.join()
    assert (result.is_made, result.reason) == (False, "the caller left")
    one.gathered(disposition="user_hangup")
    legs = (one.caller, result.destination)
    one.shared.until(
        lambda: not [leg for leg in one.shared.asterisk.channels() if leg["id"] in legs],
        "no party is left alone", seconds=7,
    )  # fmt: skip
    return ""


_TRANSFERS: tuple[Callable[[Transferring], str], ...] = (
    _answered, _busy, _cancelled, _destination_leaves, _caller_leaves, _caller_leaves_first,
)  # fmt: skip


def test_transfers_end_as_the_platform_would_have_them(shared: Shared) -> None:
    """By every line, all at once; the platform is told by exactly the names that it reads."""
    kinds = list(itertools.islice(itertools.cycle(_TRANSFERS), TRANSFERS))
    lines = itertools.islice(itertools.cycle(shared.lines), TRANSFERS)
    legs = [shared.connect(line) for line in lines]
    begun = [Transferring(shared=shared, caller=leg, run_id=shared.pipeline.run(leg)["id"]) for leg in legs]
    with _all_news(shared.keys) as news, ThreadPoolExecutor(len(begun)) as threads:
        told = list(threads.map(lambda kind, one: kind(one), kinds, begun))
    assert {frozenset(each) for each in news} == {EVENT_FIELDS}
    for kind, one, wanted in zip(kinds, begun, told, strict=True):
        heard = {each["type"] for each in news if each["original_call_sid"] == one.caller}
        assert heard == ({wanted} if wanted else set()), kind
    destinations = "SELECT gathered_context ->> 'transfer_destination_channel_id' FROM workflow_runs"
    assert shared.pipeline.value(f"SELECT count(*) FROM ari.calls WHERE channel_id IN ({destinations})") == 0


@contextlib.contextmanager
def _all_news(keys: Any) -> Iterator[list[Mapping[str, Any]]]:
    """Hear what is published of every transfer."""
    news: list[Mapping[str, Any]] = []
    with keys.pubsub(ignore_subscribe_messages=True) as waiting:
        waiting.psubscribe(**{"transfer:events:*": lambda message: news.append(json.loads(message["data"]))})
        thread = waiting.run_in_thread(sleep_time=0.05, daemon=True)
        try:
            yield news
        finally:
            thread.stop()
            thread.join()
