"""Faults against a simulated Asterisk: refusals, silence, outages and hostile neighbours; calls go on or end properly.

The product's processes run once for most tests of this module, with fast clocks; each test has a tenant and an
Asterisk of its own.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import dramatiq
import pytest

from devstack import servers
from shared import queues
from shared.storage import migrations
from tests import databases
from tests.acceptance.sites import APP, EVENTS, PREFIX, Product, Site, running_product

pytestmark = pytest.mark.services

#: How long a server stays away.
OUTAGE_SECONDS = 3.0


@pytest.fixture(scope="module")
def product(
    postgres_server: servers.Postgres, database_template: str, stack_folder: Path, all_logs: Path
) -> Iterator[Product]:
    database_url = databases.create(postgres_server.url, template=database_template)
    with (
        # The platform refuses a second media leg for a run that a first one has reached; this agent takes it, so that
        # a second attempt can be seen to work.
        running_product(
            folder=stack_folder, logs=all_logs / "faults", database_url=database_url, agent_database=False
        ) as made,
    ):
        yield made


@pytest.fixture
def site(product: Product) -> Iterator[Site]:
    with product.site() as made:
        yield made


def is_there(site: Site, name: str) -> bool:
    """Whether a channel or a bridge of this id exists."""
    return name in {found["id"] for found in [*site.control.channels(), *site.control.bridges()]}


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ["/channels/externalMedia", f"/bridges/{PREFIX}*-b1"], ids=["media-leg", "bridge"])
@pytest.mark.parametrize("fault", ["answers-500", "cut-after-the-effect", "late-effect"])
def test_a_creating_request_of_unknown_outcome_is_looked_for_and_never_repeated_under_its_id(
    site: Site, path: str, fault: str
) -> None:
    match fault:
        case "answers-500":
            site.control.fault("POST", path, "before", status=500, times=1)
        case "cut-after-the-effect":
            site.control.fault("POST", path, "after", abort=True, times=1)
        case "late-effect":
            # Longer than we wait for an answer: it takes effect when the second attempt is long connected.
            site.control.fault("POST", path, "before", delay_seconds=5.0, times=1)
    leg = site.dial()
    site.wait_state(leg, "connected")
    # What had its effect after all is used: only the answer was lost. A bridge that is missing beside its leg is made.
    attempt = 1 if fault == "cut-after-the-effect" or "bridges" in path else 2
    assert site.pipeline.call(leg)["attempt"] == attempt, site.tell()
    assert "LegsUnknown" in site.facts(leg), site.tell()
    assert site.is_joined(leg, attempt), site.tell()
    site.until(
        lambda: all(r.status is not None for r in site.control.requests("POST")), seconds=10, what="all were answered"
    )
    site.until(
        lambda: len(site.control.channels()) == 2 and len(site.control.bridges()) == 1,
        seconds=10,
        what="what the other attempt left is removed",
    )
    assert site.is_joined(leg, attempt), site.tell()
    assert site.pipeline.state(leg) == "connected", site.tell()
    assert site.runs() == 1
    site.control.hang_up(leg)
    # The call itself stays `ending` for as long as the request could still take effect.
    site.wait_empty()
    site.until(lambda: site.run(leg)["is_completed"], seconds=3, what="the run is ended")


def test_two_creating_requests_of_unknown_outcome_end_the_call_with_the_reason(site: Site) -> None:
    site.control.fault("POST", "/channels/externalMedia", "before", status=500)
    leg = site.dial()
    site.until(lambda: site.control.channel(leg) is None, seconds=5, what="the caller is hung up")
    site.until(lambda: site.run(leg)["is_completed"], seconds=2, what="the run is ended")
    assert site.pipeline.state(leg) == "ending", f"a request may still take effect\n{site.tell()}"
    assert "media not created: answered 500" in site.pipeline.call(leg)["reason"], site.tell()
    assert "media not created" in site.pipeline.story(leg), site.tell()
    assert site.count("POST", "/channels/externalMedia") == 2
    site.wait_state(leg, "ended", seconds=20)
    assert site.pipeline.call(leg)["outcome"] == "failed"
    site.wait_empty()


def test_legs_that_cannot_be_joined_end_the_call_with_the_reason_and_never_leave_silence(site: Site) -> None:
    fault = site.control.fault("POST", "/bridges/*/addChannel", "before", status=422, times=1)
    leg = site.dial()
    site.wait_state(leg, "ended")
    assert fault.hits() == 1
    assert site.pipeline.call(leg)["reason"].startswith("legs not joined: 422"), site.tell()
    site.wait_empty()
    site.end(*site.connect())


def test_a_caller_who_left_unheard_before_the_answer_is_known_by_the_404(site: Site) -> None:
    with site.control.hold("POST", "/channels/*/answer", "before") as gate:
        leg = site.dial()
        gate.wait_arrived()
        site.control.drop_events(EVENTS)
        site.control.hang_up(leg)
    site.wait_state(leg, "ended")
    call = site.pipeline.call(leg)
    assert (call["outcome"], call["connected_at"]) == ("abandoned", None), site.tell()
    assert any(r.status == 404 for r in site.asked("POST", f"/channels/{leg}/answer"))
    assert "CallerGone" in site.facts(leg), site.tell()
    site.wait_empty()


@pytest.mark.parametrize("how", ["404-resource-not-found", "401", "503", "cut"])
def test_an_asterisk_that_gives_no_proof_ends_no_call_and_leaves_a_teardown_open(site: Site, how: str) -> None:
    hangs_up, stays = site.connect(2)
    # "Simulated fault" is as little a word for "gone" as "Resource not found".
    status = None if how == "cut" else int(how[:3])
    fault = site.control.fault("*", "*", "before", status=status, abort=status is None)
    site.until(lambda: fault.hits() >= 6, seconds=10, what="several resyncs were answered so")
    assert [site.pipeline.state(leg) for leg in (hangs_up, stays)] == ["connected"] * 2, site.tell()
    site.control.hang_up(hangs_up)
    site.until(lambda: site.run(hangs_up)["is_completed"], seconds=3, what="the run is ended without waiting")
    before = fault.hits()
    site.until(
        lambda: site.facts(hangs_up).count("RemovalPending") >= 2, seconds=10, what="the teardown is tried again"
    )
    # The breaker lets one step ask now and then.
    site.until(lambda: fault.hits() > before, seconds=10, what="it is asked again")
    assert site.pipeline.state(hangs_up) == "ending", site.tell()
    assert is_there(site, site.own(hangs_up, "m")), "nothing can have removed it"
    fault.remove()
    site.wait_state(hangs_up, "ended", seconds=20)
    assert site.pipeline.state(stays) == "connected", site.tell()
    assert site.is_joined(stays), site.tell()
    site.end(stays)


# ── the media leg ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_media_leg_that_is_ready_before_its_request_is_answered_is_joined_once(site: Site) -> None:
    with site.control.hold("POST", "/channels/externalMedia", "after") as gate:
        leg = site.dial()
        gate.wait_arrived()
        site.until(lambda: "MediaReady" in site.facts(leg), seconds=5, what="the leg's own StasisStart came first")
        assert site.pipeline.state(leg) == "prepared", site.tell()
    site.wait_state(leg, "connected", seconds=5)
    assert site.count("POST", f"/bridges/{site.own(leg, 'b')}/addChannel") == 1
    assert site.pipeline.call(leg)["attempt"] == 1, site.tell()
    assert {channel["gaps"] for channel in site.control.channels()} == {0}
    site.end(leg)


def test_a_media_leg_that_is_never_ready_ends_the_call_within_its_bound(site: Site) -> None:
    site.control.delay_media(10)
    leg = site.dial()
    site.until(lambda: site.control.channel(leg) is None, seconds=8, what="the caller is hung up")
    # Asterisk removes a leg that still connects only when it has connected: the teardown is tried until then.
    site.wait_state(leg, "ended", seconds=25)
    call = site.pipeline.call(leg)
    assert (call["outcome"], call["reason"]) == ("failed", "voice agent not reached: media leg not ready in time")
    assert call["connected_at"] is None
    assert site.run(leg)["is_completed"]
    site.wait_empty()


# ── neighbours ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_another_tenants_leg_under_the_id_of_our_media_leg_is_refused_and_recorded(
    product: Product, site: Site
) -> None:
    with product.site() as other:
        site.control.delay_media(2.5)
        leg = site.dial()
        site.until(lambda: "LegsCreated" in site.facts(leg), seconds=5, what="the media leg is on its way")
        forged = site.own(leg, "m")
        other.rest("POST", "/channels", endpoint="Local/1@elsewhere", app=APP, channelId=forged)
        other.until(lambda: len(refusals(other)) >= 1, seconds=5, what="its StasisStart is refused")
        assert forged in refusals(other)[0]
        other.control.hang_up(forged)
        other.until(lambda: len(refusals(other)) >= 2, seconds=5, what="its end is refused")
        assert site.pipeline.state(leg) == "prepared", site.tell()
        assert "MediaReady" not in site.facts(leg), site.tell()
        site.wait_state(leg, "connected")
        # And once more, now that it would end a connected call.
        seen = len(refusals(other))
        other.rest("POST", "/channels", endpoint="Local/1@elsewhere", app=APP, channelId=forged)
        other.until(lambda: len(refusals(other)) > seen, seconds=5, what="its StasisStart is refused again")
        seen = len(refusals(other))
        other.control.hang_up(forged)
        other.until(lambda: len(refusals(other)) > seen, seconds=5, what="its end is refused again")
        with product.queue() as client:
            product.wait_idle(client)
        assert site.pipeline.state(leg) == "connected", site.tell()
        assert site.is_joined(leg), site.tell()
        assert not other.calls(), other.tell()
        site.end(leg)


def refusals(site: Site) -> list[str]:
    return [note for note in site.notes() if note.startswith("ForeignLeg")]


HOSTILE: list[dict[str, Any]] = [
    {"args": [")", ",", "v(token=x)", "%2C", "&workflow_run_id=1"]},
    {"args": ["workflow_run_id=1", "user_id=1", "workflow_id=1"]},
    {"args": ["a\nb", "\x01", "\u202e", "'; DROP TABLE ari.calls; --", '"', "\\"]},
    {"args": ["x" * 4000]},
    {"caller": "'; DROP TABLE ari.calls; --"},
    {"caller": '"Evil" <sip:a@b>;tag=)', "called": "../../etc/passwd"},
    {"caller": "", "called": ""},
    {"caller": "9" * 500},
    {"caller": "☎" * 100, "called": "\r\nX: y"},
    {"channel_id": "a/b?c#d%2Fe&f=g h"},
    {"channel_id": "../applications"},
    {"channel_id": f"{PREFIX}not-quite-ours"},
]
#: Unreadable even as an event: more than any Asterisk sends.
UNREADABLE: list[dict[str, Any]] = [
    {"args": ["x" * 20_000]},
    {"args": [f"a{number}" for number in range(100)]},
    {"caller": "9" * 20_000},
    {"caller": "1\x002"},
    {"called": "\ud800"},
]


def test_hostile_arguments_and_numbers_are_served_or_refused_with_a_record(site: Site) -> None:
    legs = [site.dial(**how) for how in HOSTILE]
    for leg, how in zip(legs, HOSTILE, strict=True):
        site.until(lambda leg=leg: site.pipeline.state(leg) in ("connected", "ended"), seconds=10, what=f"{how}")  # type: ignore[misc]
    served = [leg for leg in legs if site.pipeline.state(leg) == "connected"]
    refused = [leg for leg in legs if leg not in served]
    assert all(site.is_joined(leg) for leg in served), site.tell()
    # These name a run as legs that the platform originated do; it is no run of theirs.
    named = [leg for leg, how in zip(legs, HOSTILE, strict=True) if "workflow_run_id=1" in how.get("args", [])]
    assert refused == named, site.tell()
    assert [site.pipeline.call(leg)["outcome"] for leg in refused] == ["refused"] * len(refused), site.tell()
    site.end(*served)


def test_an_unreadable_caller_does_not_keep_the_resync_from_the_others(site: Site) -> None:
    odd = [site.dial(**how) for how in UNREADABLE]
    (stays,) = site.connect()
    site.control.drop_events(["StasisStart"], times=1)
    unheard = site.dial()
    site.wait_state(unheard, "connected", seconds=8)
    site.control.drop_events(EVENTS)
    site.control.hang_up(stays)
    site.wait_state(stays, "ended", seconds=10)
    site.control.clear()
    for leg in odd:
        site.control.hang_up(leg)
    site.end(unheard)


# ── our own side ─────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def one_worker(_product: Product) -> Iterator[set[str]]:
    """A set-up that nothing stops goes on by itself: only what begins a step is a message."""
    yield set()


@contextlib.contextmanager
def a_worker_for_each_step(product: Product) -> Iterator[set[str]]:
    """Each leaves the next step to another, by a message."""
    product.pipeline.stop("worker")
    served = {"worker.quota": "quota,originate,teardown,resync", "worker.runs": "runs", "worker.media": "media,bridge"}
    for name, queue_names in served.items():
        product.pipeline.start(name, WORKER_QUEUES=queue_names)
    yield {"create_run", "start_media"}
    for name in served:
        product.pipeline.stop(name)
    product.pipeline.start("worker")


@pytest.mark.parametrize("workers", [one_worker, a_worker_for_each_step])
def test_every_message_delivered_three_times_changes_nothing(
    product: Product, site: Site, workers: Callable[[Product], AbstractContextManager[set[str]]]
) -> None:
    with (
        workers(product) as more,
        product.queue() as client,
        Repeater(product.redis_url, times=2) as repeater,
    ):
        legs = [site.dial() for _ in range(8)]
        brief = [site.dial(hang_up_after=0.02 * number) for number in range(4)]
        for leg in legs:
            site.wait_state(leg, "connected", seconds=20)
        assert {channel["gaps"] for channel in site.control.channels()} == {0}, "a leg was added twice"
        for leg in legs:
            assert site.is_joined(leg), site.tell()
            assert site.count("POST", f"/bridges/{site.own(leg, 'b')}/addChannel") == 1, site.tell()
        site.end(*legs)
        for leg in brief:
            site.wait_state(leg, "ended", seconds=20)
        site.wait_empty()
        wanted = {"caller_entered", "media_leg_ready", "leg_ended", "resync_connection", *more}
        site.until(lambda: wanted <= repeater.actors, seconds=20, what="every kind of message was repeated")
        product.wait_idle(client)
    assert len(site.calls()) == len(legs) + len(brief), site.tell()
    assert {call["outcome"] for call in site.calls()} <= {"completed", "abandoned"}, site.tell()


class Repeater:
    """Pushes a copy of every message that anybody pushes, as often as told, a moment after it was pushed."""

    def __init__(self, url: str, *, times: int) -> None:
        self._url = url
        self._times = times
        self._seen: set[str] = set()
        self._done = threading.Event()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="repeater", daemon=True)
        self.actors: set[str] = set()

    def __enter__(self) -> Repeater:
        self._thread.start()
        assert self._listening.wait(5)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._done.set()
        self._thread.join(10)

    def _repeat(self) -> None:
        broker = queues.broker(self._url)
        with contextlib.closing(queues.client(self._url)) as client, client.monitor() as monitor:  # type: ignore[no-untyped-call]
            self._listening.set()
            while not self._done.is_set():
                for message in self._messages(monitor.next_command()["command"]):
                    self.actors.add(message.actor_name)
                    for _ in range(self._times):
                        copy = dramatiq.Message[object](
                            message.queue_name, message.actor_name, message.args, message.kwargs, {}
                        )
                        self._seen.add(copy.message_id)
                        broker.enqueue(copy)

    def _messages(self, command: str) -> Iterator[dramatiq.Message[object]]:
        """The messages in a command as MONITOR shows it, each the first time it is seen."""
        text = command.replace("\\\\", "\\")
        at = text.find('{"queue_name"')
        while at >= 0:
            body, at = json.JSONDecoder().raw_decode(text, at)
            if body["message_id"] not in self._seen:
                self._seen.add(body["message_id"])
                yield dramatiq.Message[object].decode(json.dumps(body).encode())
            at = text.find('{"queue_name"', at)


def test_a_worker_frozen_for_longer_than_its_claim_repeats_nothing_when_it_wakes(
    postgres_server: servers.Postgres, database_template: str, stack_folder: Path, all_logs: Path
) -> None:
    database_url = databases.create(postgres_server.url, template=database_template)
    with (
        running_product(
            folder=stack_folder,
            logs=all_logs / "faults-frozen",
            database_url=database_url,
            processes=("listener", "scheduler"),
        ) as product,
    ):
        product.pipeline.start("worker.rest", WORKER_QUEUES="quota,runs,bridge,teardown,resync")
        product.pipeline.start("worker.frozen", WORKER_QUEUES="media", WORKER_THREADS="2")
        with product.site() as site:
            with site.control.hold("POST", "/channels/externalMedia", "before") as gate:
                legs = [site.dial() for _ in range(2)]
                gate.wait_arrived(count=2)
                product.pipeline.signal("worker.frozen", signal.SIGSTOP)
                # One request has its effect, one has not; the worker hears of neither before its claim is over.
                site.control.fault("POST", "/channels/externalMedia", "before", status=500, times=1)
            product.pipeline.start("worker.media", WORKER_QUEUES="media")
            for leg in legs:
                site.wait_state(leg, "connected", "ended", seconds=25)
            assert [site.pipeline.state(leg) for leg in legs] == ["connected"] * 2, site.tell()
            attempts = {leg: site.pipeline.call(leg)["attempt"] for leg in legs}
            assert sorted(attempts.values()) == [1, 2], f"what was made is used, the other made anew\n{site.tell()}"
            product.pipeline.signal("worker.frozen", signal.SIGCONT)
            for leg in legs:
                site.until(lambda leg=leg: asked_by(site, leg, "worker.frozen"), seconds=10, what="it went on")  # type: ignore[misc]
            with product.queue() as client:
                product.wait_idle(client)
            assert [site.pipeline.state(leg) for leg in legs] == ["connected"] * 2, site.tell()
            assert all(site.is_joined(leg, attempt) for leg, attempt in attempts.items()), site.tell()
            assert len(site.control.bridges()) == 2, site.tell()
            site.end(*legs)


def asked_by(site: Site, leg: str, who: str) -> bool:
    """Whether this process has reported a request it made for a leg's call."""
    return any(row["kind"] == "request" and row["who"] == who for row in site.pipeline.timeline(leg))


@pytest.mark.parametrize("which", ["redis", "postgres"])
def test_an_outage_of_a_server_during_calls_loses_none(stack_folder: Path, all_logs: Path, which: str) -> None:
    folder = stack_folder / f"outage-{which}"
    folder.mkdir(mode=0o711)
    with (
        # Durable: without, a killed Postgres forgets what it has just said it wrote.
        servers.Postgres(folder / "postgres") as postgres,
        servers.Redis(folder / "redis") as own_redis,
    ):
        migrations.upgrade(postgres.url)
        server: servers.Postgres | servers.Redis = postgres if which == "postgres" else own_redis
        with running_product(
            folder=folder,
            logs=all_logs / f"faults-{which}",
            database_url=postgres.url,
            redis_server=own_redis,
            agent_database=False,
        ) as product:
            outage(product, server)


def outage(product: Product, server: servers.Postgres | servers.Redis) -> None:
    with product.site() as site:
        stays, hangs_up = site.connect(2)
        with site.control.hold("POST", "/channels/externalMedia", "after") as gate:
            in_media = site.dial()
            gate.wait_arrived()
            server.kill()
            down_at = time.monotonic()
        site.control.hang_up(hangs_up)
        meanwhile = [site.dial() for _ in range(2)]
        brief = site.dial(hang_up_after=0.5)
        time.sleep(max(0.0, down_at + OUTAGE_SECONDS - time.monotonic()))
        server.start()
        product.pipeline.reconnect()
        site.wait_state(hangs_up, "ended", seconds=25)
        for leg in (in_media, *meanwhile):
            site.wait_state(leg, "connected", seconds=25)
        site.until(lambda: site.pipeline.state(brief) in (None, "ended"), seconds=25, what="the brief caller's call")
        assert site.pipeline.state(stays) == "connected", site.tell()
        assert site.is_joined(stays), site.tell()
        assert {channel["gaps"] for channel in site.control.channels()} == {0}, "a connected caller heard a gap"
        connected = [in_media, *meanwhile]
        assert all(site.is_joined(leg, site.pipeline.call(leg)["attempt"]) for leg in connected), site.tell()
        site.end(stays, *connected)
