"""Resync against a simulated Asterisk: whatever an event, a message, a socket or a process loses, is found and mended.

The product's processes run once for all tests of this module, with fast clocks; each test has a tenant and an Asterisk
of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
import requests

from devstack import servers
from devstack.agent import Agent
from devstack.endpoint import Behaviour
from shared import keys, messages, queues
from shared.core import events
from simulator.control import Control, LoggedRequest
from simulator.settings import Settings
from simulator.testing import SimulatedAsterisk
from tests.acceptance.pipeline import PASSWORD, Pipeline, Tenant, closing_tenant, wait_until

pytestmark = pytest.mark.services

APP = "voiceai"
PREFIX = "aip-"
EVENTS = [
    "StasisStart", "StasisEnd", "ChannelDestroyed", "ChannelHangupRequest", "Dial", "ApplicationReplaced",
]  # fmt: skip
#: Every clock but those under test, so that a test takes seconds.
FAST = {
    "ASSIGN_SECONDS": "0.25",
    "CONFIGURATIONS_SECONDS": "0.5",
    "CONNECT_SECONDS": "1",
    "HEARTBEAT_SECONDS": "0.25",
    "MEDIA_CHECK_SECONDS": "1",
    "QUEUE_SECONDS": "2",
    "READ_SECONDS": "3",
    "RESYNC_SECONDS": "0.5",
    "STALE_START_SECONDS": "30",
    "SWEEP_SECONDS": "0.25",
}


@dataclass(kw_only=True)
class Product:
    """The processes, with the servers and the agent that are theirs alone."""

    pipeline: Pipeline
    agent: Agent
    database_url: str
    redis_url: str

    @contextlib.contextmanager
    def site(self, *, media_urls: dict[str, str] | None = None) -> Iterator[Site]:
        """A tenant and its Asterisk, connected; what must hold after every test is looked at when it ends."""
        configured = Settings(media_urls=media_urls or {})
        with contextlib.ExitStack() as stack:
            asterisk = stack.enter_context(
                SimulatedAsterisk(configured, users={APP: PASSWORD}, media_url=self.agent.url)
            )
            tenant = stack.enter_context(closing_tenant(self.database_url, f"tenant-{uuid.uuid4().hex[:8]}"))
            made = Site(pipeline=self.pipeline, tenant=tenant, asterisk=asterisk)
            tenant.configure(asterisk.url)
            stack.callback(_unless_disconnected, tenant.remove_configuration)
            made.wait_ready()
            yield made
            made.assert_sound()

    @contextlib.contextmanager
    def queue(self) -> Iterator[redis.Redis]:
        """A client of the product's Redis."""
        with contextlib.closing(queues.client(self.redis_url)) as client:
            yield client

    def wait_idle(self, client: redis.Redis) -> None:
        """Waits until no message is waiting or in hand."""
        wait_until(
            lambda: not any(client.hlen(f"{keys.NAMESPACE}:{name}.msgs") for name in messages.QUEUES),
            seconds=10,
            every=0.01,
            what="every message was worked on",
        )


@dataclass(kw_only=True)
class Site:
    """One tenant and its Asterisk."""

    pipeline: Pipeline
    tenant: Tenant
    asterisk: SimulatedAsterisk
    #: Requests that the test itself makes to create something, under ids of ours.
    forged: set[str] = field(default_factory=set)

    @property
    def control(self) -> Control:
        return self.asterisk.control

    @property
    def connection(self) -> dict[str, Any]:
        """The connection's id and version."""
        (found,) = self.pipeline.query(
            "SELECT connection_id, version FROM ari.connections WHERE organization_id = %s", self.tenant.organization_id
        )
        return found

    def wait_ready(self, *, seconds: float = 15) -> None:
        """Waits until the socket is up and the resync after it has set the event filter."""
        self.until(lambda: self.pipeline.connected(self.asterisk.url), seconds=seconds, what="the socket is up")
        self.until(
            lambda: self.count("PUT", "/applications/voiceai/eventFilter"), seconds=seconds, what="the filter is set"
        )

    def dial(self, **how: Any) -> str:
        """Somebody calls in; the simulator's own ids may be those of another site's callers."""
        return self.control.dial(APP, **({"channel_id": f"caller-{uuid.uuid4().hex[:12]}"} | how))

    def connect(self, count: int = 1) -> list[str]:
        """So many callers, each with an agent on the line."""
        legs = [self.dial() for _ in range(count)]
        for leg in legs:
            self.wait_state(leg, "connected")
        return legs

    def wait_state(self, leg: str, *states: str, seconds: float = 10) -> None:
        """Waits until the newest call of a leg is in one of these states."""
        self.until(lambda: self.pipeline.state(leg) in states, seconds=seconds, what=f"{leg} is {' or '.join(states)}")

    def wait_empty(self, *, seconds: float = 10) -> None:
        """Waits until neither channel nor bridge is left."""
        self.until(
            lambda: not self.control.channels() and not self.control.bridges(), seconds=seconds, what="nothing is left"
        )

    def until(self, condition: Callable[[], object], *, seconds: float, what: str) -> None:
        """Polls; explains itself with everything that is known."""
        wait_until(condition, seconds=seconds, what=lambda: f"{what}\n{self.tell()}")

    def end(self, *legs: str) -> None:
        """These callers hang up; all that was made for them goes."""
        for leg in legs:
            self.control.hang_up(leg)
        for leg in legs:
            self.wait_state(leg, "ended")
        self.wait_empty()

    def own(self, leg: str, kind: str, attempt: int = 1) -> str:
        """The id of the media leg (`m`) or the bridge (`b`) of a leg's newest call."""
        return f"{PREFIX}{self.pipeline.calls(leg)[-1]['call_id'].hex}-{kind}{attempt}"

    def is_joined(self, leg: str, attempt: int = 1) -> bool:
        """Whether caller and agent, and nobody else, are in the call's bridge."""
        wanted = {leg, self.own(leg, "m", attempt)}
        bridge_id = self.own(leg, "b", attempt)
        return any(b["id"] == bridge_id and set(b["channels"]) == wanted for b in self.control.bridges())

    def run(self, leg: str) -> dict[str, Any]:
        """The run of a leg's newest call."""
        (found,) = self.pipeline.query(
            "SELECT * FROM workflow_runs WHERE id = %s", self.pipeline.calls(leg)[-1]["workflow_run_id"]
        )
        return found

    def runs(self) -> int:
        """How many runs this tenant has."""
        count = self.pipeline.value(
            "SELECT count(*) FROM workflow_runs WHERE workflow_id = %s", self.tenant.workflow_id
        )
        return int(count)

    def calls(self) -> list[dict[str, Any]]:
        """This tenant's calls."""
        return self.pipeline.query(
            "SELECT * FROM ari.calls WHERE organization_id = %s ORDER BY received_at", self.tenant.organization_id
        )

    def facts(self, leg: str) -> list[str]:
        """Names of what happened to a leg's calls."""
        return [row["name"] for row in self.pipeline.timeline(leg)]

    def notes(self) -> list[str]:
        """What was noted of the connection: name and detail."""
        rows = self.pipeline.query(
            "SELECT name, detail FROM ari.timeline WHERE connection_id = %s ORDER BY id",
            self.connection["connection_id"],
        )
        return [f"{row['name']}: {row['detail']}" for row in rows]

    def asked(self, method: str, path: str) -> list[LoggedRequest]:
        """The requests made so far to a path."""
        return self.control.requests(method, path)

    def count(self, method: str, path: str) -> int:
        """How many requests were made to a path."""
        return len(self.asked(method, path))

    def rest(self, method: str, path: str, **query: str) -> requests.Response:
        """A request of somebody else's: the owner of the Asterisk, another controller."""
        if method == "POST":
            self.forged.update(query.get("channelId", "").split())
        answer = requests.request(
            method, f"{self.asterisk.url}/ari{path}", params=query, auth=(APP, PASSWORD), timeout=5
        )
        answer.raise_for_status()
        return answer

    def push_event(self, client: redis.Redis, event: events.Event) -> None:
        """What a listener would push."""
        seconds, micros = client.time()
        connection = self.connection
        message = messages.of_event(
            event,
            prefix=PREFIX,
            connection_id=connection["connection_id"],
            connection_version=connection["version"],
            at_ms=seconds * 1000 + micros // 1000,
        )
        assert message is not None
        queues.BrokerOrders(queues.broker(self.pipeline.redis_url)).send(message)

    def tell(self) -> str:
        """Everything that is known."""
        stories = [
            f"-- {call['channel_id']} {call['state']} {call['outcome']} {call['reason']}\n"
            f"{self.pipeline.story(call['channel_id'])}"
            for call in self.calls()
        ]
        channels = [
            (channel["id"], channel["state"], channel["app"], channel["bridge_id"])
            for channel in self.control.channels()
        ]
        bridges = [(bridge["id"], bridge["channels"]) for bridge in self.control.bridges()]
        letters = self.pipeline.query("SELECT name, detail FROM ari.timeline WHERE kind = 'dead-letter'")
        return "\n".join([
            *stories, f"-- of the connection: {self.notes()}", f"-- channels: {channels}", f"-- bridges: {bridges}",
            f"-- dead letters: {letters}",
        ])  # fmt: skip

    def assert_sound(self) -> None:
        """What holds after every test, whatever was done to us."""
        assert self.control.crashes == 0, f"Asterisk crashed\n{self.tell()}"
        made = Counter(
            request.query["channelId"]
            for request in self.asked("POST", "/channels/externalMedia")
            if request.query.get("channelId") not in self.forged
        )
        made += Counter(r.path for r in self.control.requests("POST") if r.path.startswith(f"/bridges/{PREFIX}")
                        and r.path.count("/") == 2)  # fmt: skip
        assert not [one for one, times in made.items() if times > 1], f"an id was used twice: {made}\n{self.tell()}"
        doubly = self.pipeline.query(
            "SELECT workflow_run_id FROM ari.calls WHERE organization_id = %s AND workflow_run_id IS NOT NULL"
            " GROUP BY 1 HAVING count(*) > 1",
            self.tenant.organization_id,
        )
        assert not doubly, f"two calls with one run\n{self.tell()}"
        with_run = [call for call in self.calls() if call["workflow_run_id"] is not None]
        assert self.runs() == len(with_run), f"a run without a call\n{self.tell()}"
        open_runs = self.pipeline.query(
            "SELECT r.id FROM workflow_runs r JOIN ari.calls c ON c.workflow_run_id = r.id"
            " WHERE c.organization_id = %s AND c.state = 'ended' AND NOT r.is_completed",
            self.tenant.organization_id,
        )
        assert not open_runs, f"a run that outlived its call\n{self.tell()}"
        letters = self.pipeline.query("SELECT name, detail FROM ari.timeline WHERE kind = 'dead-letter'")
        assert not letters, f"dead letters: {letters}"


def _unless_disconnected(act: Callable[[], None]) -> None:
    """A test may have killed the server under the tenant's connection."""
    with contextlib.suppress(psycopg.OperationalError):
        act()


@contextlib.contextmanager
def running_product(
    *,
    folder: Path,
    logs: Path,
    database_url: str,
    redis_server: servers.Redis | None = None,
    processes: tuple[str, ...] = (),
    agent_database: bool = True,
    kind: type[Pipeline] = Pipeline,
    **environment: str,
) -> Iterator[Product]:
    """The processes (all unless told) with fast clocks and a Redis of their own, started."""
    logs.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        own_redis = redis_server or stack.enter_context(servers.Redis(folder / f"redis-{uuid.uuid4().hex[:8]}"))
        pipeline = stack.enter_context(
            kind(database_url=database_url, redis_url=own_redis.url, logs=logs, **(FAST | environment))
        )
        agent = stack.enter_context(
            Agent(
                database_url=database_url if agent_database else None,
                secret=pipeline.media_secret,
                behaviour=Behaviour(mode="tone", tone_hz=400),
            )
        )
        pipeline.start(*processes)
        yield Product(pipeline=pipeline, agent=agent, database_url=database_url, redis_url=own_redis.url)


@contextlib.contextmanager
def own_database(server_url: str, template: str) -> Iterator[str]:
    """A migrated database for a whole module."""
    name = f"test_{uuid.uuid4().hex}"
    yield servers.create_database(server_url, name, template=template)
    servers.drop_database(server_url, name)


@pytest.fixture(scope="module")
def product(
    postgres_server: servers.Postgres, database_template: str, stack_folder: Path, all_logs: Path
) -> Iterator[Product]:
    with (
        own_database(postgres_server.url, database_template) as database_url,
        running_product(folder=stack_folder, logs=all_logs / "resync", database_url=database_url) as made,
    ):
        yield made


@pytest.fixture
def site(product: Product) -> Iterator[Site]:
    with product.site() as made:
        yield made


# ── what was lost on the way to us ───────────────────────────────────────────────────────────────────────────────────


def test_a_caller_whose_stasis_start_was_lost_is_adopted_and_the_late_event_changes_nothing(
    product: Product, site: Site
) -> None:
    site.control.drop_events(["StasisStart"], times=1)
    leg = site.dial(caller="+49301234", called="100", args=["sales"])
    site.wait_state(leg, "connected")
    call = site.pipeline.call(leg)
    assert (call["caller_number"], call["called_number"], call["args"]) == ("+49301234", "100", ["sales"])
    assert call["entered_stamp"] is None, "no event told of it"
    before = site.facts(leg)
    (lost,) = [
        entry["event"]
        for entry in site.control.event_log("StasisStart")
        if entry["event"]["channel"]["id"] == leg and not entry["delivered"]
    ]
    late = events.parse(json.dumps(lost))
    assert late is not None
    with product.queue() as client:
        for _ in range(2):
            site.push_event(client, late)
        product.wait_idle(client)
    assert len(site.pipeline.calls(leg)) == 1, site.tell()
    assert site.facts(leg) == before, site.tell()
    assert site.runs() == 1
    assert site.is_joined(leg), site.tell()
    site.end(leg)


def test_callers_who_hang_up_while_the_listener_is_dead_are_ended(product: Product, site: Site) -> None:
    legs = site.connect(3)
    product.pipeline.kill("listener")
    try:
        for leg in legs:
            site.control.hang_up(leg)
        for leg in legs:
            site.wait_state(leg, "ended", seconds=15)
            assert (site.pipeline.call(leg)["outcome"], site.run(leg)["is_completed"]) == ("completed", True)
        site.wait_empty()
    finally:
        product.pipeline.start("listener")
    site.until(lambda: site.control.sockets(APP), seconds=15, what="a socket again")
    site.end(*site.connect())


@pytest.mark.parametrize("silently", [False, True], ids=["loudly", "silently"])
def test_a_cut_event_socket_is_opened_again_and_what_happened_meanwhile_is_found(
    postgres_server: servers.Postgres,
    database_template: str,
    stack_folder: Path,
    all_logs: Path,
    silently: bool,
) -> None:
    """The clock asks for no resync here: the new connection does."""
    with (
        own_database(postgres_server.url, database_template) as database_url,
        running_product(
            folder=stack_folder,
            logs=all_logs / f"resync-cut-{silently}",
            database_url=database_url,
            RESYNC_SECONDS="300",
        ) as product,
        product.site() as site,
    ):
        gone, stays = site.connect(2)
        # A resync judges only what has been still for two seconds.
        site.until(
            lambda: site.pipeline.value("SELECT clock_timestamp() - max(at) > '2.1 s' FROM ari.timeline"),
            seconds=5,
            what="quiet",
        )
        filters = site.count("PUT", "/applications/voiceai/eventFilter")
        lost = site.count("GET", "/applications/voiceai")
        assert site.control.cut_event_sockets(APP, silently=silently) == 1
        site.control.hang_up(gone)
        site.wait_state(gone, "ended", seconds=25)
        assert site.pipeline.call(gone)["outcome"] == "completed"
        assert site.count("GET", "/applications/voiceai") > lost, "it was the resync that found it"
        assert site.pipeline.state(stays) == "connected", site.tell()
        site.end(stays)
        # Without a socket and without a channel, the app and its filter are gone.
        site.control.cut_event_sockets(APP)
        site.until(
            lambda: site.count("PUT", "/applications/voiceai/eventFilter") > filters,
            seconds=15,
            what="the event filter is set again",
        )
        assert allowed(site) == set(EVENTS)
        site.end(*site.connect())


def allowed(site: Site) -> set[str]:
    return {entry["type"] for entry in site.rest("GET", "/applications/voiceai").json()["events_allowed"]}


def test_the_event_filter_is_set_after_the_socket_is_up_and_put_back_when_somebody_changes_it(site: Site) -> None:
    opened = min(socket["opened_at"] for socket in site.control.sockets(APP))
    assert opened <= min(r.started_at for r in site.asked("PUT", "/applications/voiceai/eventFilter"))
    assert allowed(site) == set(EVENTS)
    requests.put(
        f"{site.asterisk.url}/ari/applications/voiceai/eventFilter",
        json={"allowed": [{"type": "ChannelDtmfReceived"}]},
        auth=(APP, PASSWORD),
        timeout=5,
    ).raise_for_status()
    site.until(lambda: allowed(site) == set(EVENTS), seconds=5, what="the filter is ours again")
    site.end(*site.connect())


def test_a_media_leg_whose_stasis_start_was_lost_is_found_ready_and_joined(site: Site) -> None:
    with site.control.hold("POST", "/channels/externalMedia", "before") as gate:
        leg = site.dial()
        gate.wait_arrived()
        site.control.drop_events(["StasisStart"], times=1)
    site.wait_state(leg, "connected", seconds=6)
    delivered = [entry["delivered"] for entry in site.control.event_log("StasisStart")]
    assert delivered == [True, False], "the media leg's event was lost"
    assert site.is_joined(leg), site.tell()
    assert site.pipeline.call(leg)["attempt"] == 1, site.tell()
    site.end(leg)


def test_a_connected_call_whose_media_leg_or_caller_went_unheard_is_ended(site: Site) -> None:
    agent_gone, caller_gone, stays = site.connect(3)
    site.control.drop_events(EVENTS)
    site.control.hang_up(site.own(agent_gone, "m"))
    site.control.hang_up(caller_gone)
    site.wait_state(agent_gone, "ended")
    site.wait_state(caller_gone, "ended")
    assert site.control.channel(agent_gone) is None, "the caller was left in silence"
    assert site.pipeline.call(agent_gone)["reason"] == "agent hung up", site.tell()
    assert site.pipeline.call(caller_gone)["reason"] == "caller hung up", site.tell()
    assert site.pipeline.state(stays) == "connected", site.tell()
    site.control.hang_up(stays)
    site.wait_state(stays, "ended")
    site.wait_empty()


# ── what somebody else did ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_connected_call_whose_bridge_was_taken_apart_is_ended_with_the_reason(site: Site) -> None:
    unbridged, removed, stays = site.connect(3)
    site.rest("DELETE", f"/bridges/{site.own(unbridged, 'b')}")
    site.rest("POST", f"/bridges/{site.own(removed, 'b')}/removeChannel", channel=removed)
    site.wait_state(unbridged, "ended")
    site.wait_state(removed, "ended")
    assert site.pipeline.call(unbridged)["reason"] == "bridge lost: the bridge is gone", site.tell()
    assert site.pipeline.call(removed)["reason"].startswith("bridge lost: not in the bridge"), site.tell()
    assert removed in site.pipeline.call(removed)["reason"]
    assert {site.pipeline.call(leg)["outcome"] for leg in (unbridged, removed)} == {"failed"}
    assert site.is_joined(stays), site.tell()
    site.end(stays)


def test_leftovers_with_our_prefix_and_no_live_call_are_removed(site: Site) -> None:
    over, stays = site.connect(2)
    site.control.hang_up(over)
    site.wait_state(over, "ended")
    strange = f"{PREFIX}{uuid.uuid4().hex}"
    for leg in (f"{strange}-m1", site.own(over, "m", 2)):
        site.rest("POST", "/channels", endpoint="Local/1@elsewhere", app=APP, channelId=leg)
    for bridge in (f"{strange}-b1", site.own(over, "b", 2)):
        site.rest("POST", f"/bridges/{bridge}", type="mixing")
    site.until(
        lambda: not [b for b in site.control.bridges() if b["id"] != site.own(stays, "b")],
        seconds=10,
        what="the bridges are removed",
    )
    site.until(
        lambda: {c["id"] for c in site.control.channels()} == {stays, site.own(stays, "m")},
        seconds=5,
        what="the legs are removed",
    )
    assert any(f"{strange}-m1 had no live call: removed" in note for note in site.notes()), site.notes()
    assert site.is_joined(stays), site.tell()
    site.end(stays)


def test_legs_and_bridges_of_another_controller_are_left_alone_and_reported(product: Product) -> None:
    with (
        Agent() as their_agent,
        product.site(media_urls={"theirs": their_agent.url}) as site,
    ):
        with site.control.hold("GET", "/applications/voiceai", "before"):
            # A whole call of theirs: the caller in a bridge of theirs with a media leg of theirs. A caller's
            # StasisStart was heard by their socket, not by ours.
            site.control.drop_events(["StasisStart"], times=1)
            caller = site.dial()
            site.rest("POST", "/bridges/their-bridge", type="mixing")
            site.rest("POST", "/bridges/their-bridge/addChannel", channel=caller)
            site.rest(
                "POST",
                "/channels/externalMedia",
                app=APP,
                external_host="theirs",
                format="ulaw",
                transport="websocket",
                encapsulation="none",
                channelId="their-media",
                transport_data="v(workflow_id=1,user_id=1,workflow_run_id=1)",
            )
            site.until(
                lambda: (site.control.channel("their-media") or {}).get("app") == APP, seconds=5, what="it is ready"
            )
            site.rest("POST", "/bridges/their-empty-bridge", type="mixing")
            looks = site.count("GET", "/bridges")
        site.until(lambda: site.count("GET", "/bridges") >= looks + 3, seconds=10, what="three looks at the bridges")
        assert site.control.channel("their-media") is not None
        told = [note for note in site.notes() if caller in note]
        assert told, site.tell()
        assert "in bridge their-bridge, which is not ours: left alone" in told[0]
        assert "ForeignMedia: channel their-media" in "\n".join(site.notes()), site.tell()
        site.control.hang_up("their-media")
        site.until(lambda: site.control.channel("their-media") is None, seconds=5, what="their leg is gone")
        with product.queue() as client:
            product.wait_idle(client)
        assert not site.calls(), f"a leg of theirs became a call of ours\n{site.tell()}"
        assert site.control.channel(caller) is not None
        assert {bridge["id"] for bridge in site.control.bridges()} == {"their-bridge", "their-empty-bridge"}
        assert not [r for r in site.control.requests("DELETE") if "their" in r.path or caller in r.path]


def test_a_caller_sent_on_in_the_dialplan_is_never_hung_up_and_is_a_new_call_when_it_comes_back(site: Site) -> None:
    (leg,) = site.connect()
    first_run = site.pipeline.call(leg)["workflow_run_id"]
    site.control.continue_in_dialplan(leg)
    site.wait_state(leg, "ended")
    assert [channel["id"] for channel in site.control.channels()] == [leg], site.tell()
    assert not site.count("DELETE", f"/channels/{leg}"), site.tell()
    site.control.reenter(leg, APP)
    site.until(lambda: len(site.pipeline.calls(leg)) == 2, seconds=5, what="a second call")
    site.wait_state(leg, "connected")
    first, second = site.pipeline.calls(leg)
    assert (first["entry"], second["entry"]) == (1, 2)
    assert first["state"] == "ended"
    assert second["workflow_run_id"] not in (None, first_run)
    assert site.is_joined(leg), site.tell()
    site.end(leg)


def test_a_caller_sent_on_unheard_survives_the_resync_and_is_a_new_call_when_it_comes_back_unheard(site: Site) -> None:
    (leg,) = site.connect()
    site.control.drop_events(EVENTS)
    site.control.continue_in_dialplan(leg)
    site.wait_state(leg, "ended")
    assert [channel["id"] for channel in site.control.channels()] == [leg], site.tell()
    site.control.reenter(leg, APP)
    site.until(lambda: len(site.pipeline.calls(leg)) == 2, seconds=5, what="a second call")
    site.wait_state(leg, "connected", seconds=15)
    assert not site.count("DELETE", f"/channels/{leg}"), site.tell()
    assert [call["entry"] for call in site.pipeline.calls(leg)] == [1, 2]
    assert site.runs() == 2
    site.control.clear()
    site.end(leg)


# ── what was lost on our side ────────────────────────────────────────────────────────────────────────────────────────


def test_an_emptied_redis_loses_no_call_and_touches_no_connected_one(product: Product, site: Site) -> None:
    connected = site.connect(3)
    made = site.count("POST", "/channels/externalMedia")
    with site.control.hold("POST", "/channels/externalMedia", "before") as gate, product.queue() as client:
        in_media = [site.dial() for _ in range(3)]
        gate.wait_arrived(count=3)
        # With the worker frozen, what the listener pushes is still in Redis when it is emptied.
        product.pipeline.signal("worker", signal.SIGSTOP)
        try:
            unread = [site.dial() for _ in range(3)]
            site.until(
                lambda: client.llen(f"{keys.NAMESPACE}:quota") >= 3, seconds=5, what="their events are in the queue"
            )
            client.flushall()
        finally:
            product.pipeline.signal("worker", signal.SIGCONT)
    waiting = [*in_media, *unread]
    for leg in waiting:
        site.wait_state(leg, "connected", "ended", seconds=25)
    assert [site.pipeline.state(leg) for leg in waiting] == ["connected"] * 6, site.tell()
    assert all(len(site.pipeline.calls(leg)) == 1 for leg in [*connected, *waiting]), site.tell()
    assert all(site.is_joined(leg, site.pipeline.call(leg)["attempt"]) for leg in [*connected, *waiting]), site.tell()
    assert site.runs() == 9
    assert {channel["gaps"] for channel in site.control.channels()} == {0}, "a connected caller heard a gap"
    assert all(site.facts(leg)[-1] in ("Joined", "MediaReady") for leg in connected), site.tell()
    assert site.count("POST", "/channels/externalMedia") >= made + 6
    site.end(*connected, *waiting)


def test_a_quiet_resync_asks_one_request_and_two_every_fourth_time(site: Site) -> None:
    legs = site.connect(2)
    site.until(lambda: site.count("GET", "/bridges"), seconds=10, what="a full look")
    since = site.control.requests()[-1].started_at

    def asked_since() -> list[str]:
        return [f"{r.method} {r.path}" for r in site.control.requests() if r.started_at > since]

    site.until(lambda: asked_since().count("GET /bridges") >= 3, seconds=20, what="three full looks")
    seen = asked_since()
    assert set(seen) == {"GET /applications/voiceai", "GET /bridges"}, seen
    between = [len(list(group)) for what, group in itertools.groupby(seen) if what == "GET /applications/voiceai"]
    assert between[1:3] == [4, 4], f"looks between two full ones: {between}"
    site.end(*legs)
