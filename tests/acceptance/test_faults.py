"""Faults against a simulated Asterisk: refusals, silence, outages and hostile neighbours; calls go on or end properly.

The product's processes run once for most tests of this file, with short times; each test has its own tenant and
Asterisk.
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
from tests.acceptance.environment import APP, EVENTS, Deploy, Deployment, Environment, running_deployment
from tests.support import metrics_pages

pytestmark = pytest.mark.services

#: Duration of an outage.
OUTAGE_SECONDS = 3.0


@pytest.fixture(scope="module")
def deployment(deploy: Deploy) -> Iterator[Deployment]:
    # The platform refuses a second media leg for a run that a first one has reached. This agent accepts it, so that a
    # second attempt can be seen to work.
    with deploy("faults", agent_database=False) as made:
        yield made


def is_there(env: Environment, name: str) -> bool:
    """Return True if a channel or a bridge of this id exists."""
    return name in {found["id"] for found in [*env.control.channels(), *env.control.bridges()]}


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ["/channels/externalMedia", "/bridges/*-b1"], ids=["media-leg", "bridge"])
@pytest.mark.parametrize("fault", ["answers-500", "cut-after-the-effect", "late-effect"])
def test_a_creating_request_of_unknown_outcome_is_looked_for_and_never_repeated_under_its_id(
    env: Environment, path: str, fault: str
) -> None:
    match fault:
        case "answers-500":
            env.control.fault("POST", path, "before", status=500, times=1)
        case "cut-after-the-effect":
            env.control.fault("POST", path, "after", abort=True, times=1)
        case "late-effect":
            # Longer than the timeout of a request: it takes effect long after the second attempt is connected.
            env.control.fault("POST", path, "before", delay_seconds=5.0, times=1)
    leg = env.dial()
    env.wait_state(leg, "connected")
    # A request that took effect is used: only its answer was lost. A missing bridge is created for the existing leg.
    attempt = 1 if fault == "cut-after-the-effect" or "bridges" in path else 2
    assert env.pipeline.call(leg)["attempt"] == attempt, env.describe()
    assert "LegsUnknown" in env.facts(leg), env.describe()
    assert env.is_joined(leg, attempt), env.describe()
    env.until(
        lambda: all(r.status is not None for r in env.control.requests("POST")), seconds=10, what="all were answered"
    )
    env.until(
        lambda: len(env.control.channels()) == 2 and len(env.control.bridges()) == 1,
        seconds=10,
        what="what the other attempt left is removed",
    )
    assert env.is_joined(leg, attempt), env.describe()
    assert env.pipeline.state(leg) == "connected", env.describe()
    assert env.runs() == 1
    env.control.hang_up(leg)
    # The call itself stays `ending` for as long as the request could still take effect.
    env.wait_empty()
    env.until(lambda: env.run(leg)["is_completed"], seconds=3, what="the run is ended")


def test_two_creating_requests_of_unknown_outcome_end_the_call_with_the_reason(env: Environment) -> None:
    env.control.fault("POST", "/channels/externalMedia", "before", status=500)
    leg = env.dial()
    env.until(lambda: env.control.channel(leg) is None, seconds=5, what="the caller is hung up")
    env.until(lambda: env.run(leg)["is_completed"], seconds=2, what="the run is ended")
    assert env.pipeline.state(leg) == "ending", f"a request may still take effect\n{env.describe()}"
    assert "media not created: answered 500" in env.pipeline.call(leg)["reason"], env.describe()
    assert "media not created" in env.pipeline.story(leg), env.describe()
    assert env.count("POST", "/channels/externalMedia") == 2
    env.wait_state(leg, "ended", seconds=20)
    assert env.pipeline.call(leg)["outcome"] == "failed"
    env.wait_empty()


def test_legs_that_cannot_be_joined_end_the_call_with_the_reason_and_never_leave_silence(env: Environment) -> None:
    fault = env.control.fault("POST", "/bridges/*/addChannel", "before", status=422, times=1)
    leg = env.dial()
    env.wait_state(leg, "ended")
    assert fault.hits() == 1
    assert env.pipeline.call(leg)["reason"].startswith("legs not joined: 422"), env.describe()
    env.wait_empty()
    env.end(*env.connect())


def test_a_caller_that_left_without_an_event_before_the_answer_is_detected_by_the_404(env: Environment) -> None:
    with env.control.hold("POST", "/channels/*/answer", "before") as point:
        leg = env.dial()
        point.wait_arrived()
        env.control.drop_events(EVENTS)
        env.control.hang_up(leg)
    env.wait_state(leg, "ended")
    call = env.pipeline.call(leg)
    assert (call["outcome"], call["connected_at"]) == ("abandoned", None), env.describe()
    assert any(r.status == 404 for r in env.asked("POST", f"/channels/{leg}/answer"))
    assert "CallerGone" in env.facts(leg), env.describe()
    env.wait_empty()


@pytest.mark.parametrize("how", ["404-resource-not-found", "401", "503", "cut"])
def test_an_asterisk_that_gives_no_proof_ends_no_call_and_leaves_a_teardown_open(env: Environment, how: str) -> None:
    hangs_up, stays = env.connect(2)
    # "Simulated fault" does not prove that a channel is gone, and neither does "Resource not found".
    status = None if how == "cut" else int(how[:3])
    fault = env.control.fault("*", "*", "before", status=status, abort=status is None)
    env.until(lambda: fault.hits() >= 6, seconds=10, what="several resyncs were answered so")
    assert [env.pipeline.state(leg) for leg in (hangs_up, stays)] == ["connected"] * 2, env.describe()
    env.control.hang_up(hangs_up)
    env.until(lambda: env.run(hangs_up)["is_completed"], seconds=3, what="the run is ended without waiting")
    before = fault.hits()
    env.until(lambda: env.facts(hangs_up).count("RemovalPending") >= 2, seconds=10, what="the teardown is tried again")
    # The circuit breaker admits a probe now and then.
    env.until(lambda: fault.hits() > before, seconds=10, what="it is asked again")
    assert env.pipeline.state(hangs_up) == "ending", env.describe()
    assert is_there(env, env.own(hangs_up, "m")), "nothing can have removed it"
    fault.remove()
    env.wait_state(hangs_up, "ended", seconds=20)
    assert env.pipeline.state(stays) == "connected", env.describe()
    assert env.is_joined(stays), env.describe()
    env.end(stays)


# ── the media leg ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_media_leg_that_is_ready_before_its_request_is_answered_is_joined_once(env: Environment) -> None:
    with env.control.hold("POST", "/channels/externalMedia", "after") as point:
        leg = env.dial()
        point.wait_arrived()
        env.until(lambda: "MediaReady" in env.facts(leg), seconds=5, what="the leg's own StasisStart came first")
        assert env.pipeline.state(leg) == "prepared", env.describe()
    env.wait_state(leg, "connected", seconds=5)
    assert env.count("POST", f"/bridges/{env.own(leg, 'b')}/addChannel") == 1
    assert env.pipeline.call(leg)["attempt"] == 1, env.describe()
    assert {channel["gaps"] for channel in env.control.channels()} == {0}
    env.end(leg)


def test_a_media_leg_that_is_never_ready_ends_the_call_within_its_bound(env: Environment) -> None:
    env.control.delay_media(10)
    leg = env.dial()
    env.until(lambda: env.control.channel(leg) is None, seconds=8, what="the caller is hung up")
    # Asterisk removes a connecting leg only once it is connected: the teardown is retried until then.
    env.wait_state(leg, "ended", seconds=25)
    call = env.pipeline.call(leg)
    assert (call["outcome"], call["reason"]) == ("failed", "voice agent not reached: media leg not ready in time")
    assert call["connected_at"] is None
    assert env.run(leg)["is_completed"]
    env.wait_empty()


# ── neighbours ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_another_tenants_leg_under_the_id_of_our_media_leg_is_refused_and_recorded(
    deployment: Deployment, env: Environment
) -> None:
    with deployment.environment() as other:
        env.control.delay_media(2.5)
        leg = env.dial()
        env.until(lambda: "LegsCreated" in env.facts(leg), seconds=5, what="the media leg is on its way")
        forged = env.own(leg, "m")
        other.rest("POST", "/channels", endpoint="Local/1@elsewhere", app=APP, channelId=forged)
        other.until(lambda: len(refusals(other)) >= 1, seconds=5, what="its StasisStart is refused")
        assert forged in refusals(other)[0]
        other.control.hang_up(forged)
        other.until(lambda: len(refusals(other)) >= 2, seconds=5, what="its end is refused")
        assert env.pipeline.state(leg) == "prepared", env.describe()
        assert "MediaReady" not in env.facts(leg), env.describe()
        env.wait_state(leg, "connected")
        # Again, now that the event would end a connected call.
        seen = len(refusals(other))
        other.rest("POST", "/channels", endpoint="Local/1@elsewhere", app=APP, channelId=forged)
        other.until(lambda: len(refusals(other)) > seen, seconds=5, what="its StasisStart is refused again")
        seen = len(refusals(other))
        other.control.hang_up(forged)
        other.until(lambda: len(refusals(other)) > seen, seconds=5, what="its end is refused again")
        with deployment.queue() as client:
            deployment.wait_idle(client)
        assert env.pipeline.state(leg) == "connected", env.describe()
        assert env.is_joined(leg), env.describe()
        assert not other.calls(), other.describe()
        env.end(leg)


def refusals(env: Environment) -> list[str]:
    return [entry for entry in env.connection_entries() if entry.startswith("ForeignLeg")]


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
    {"channel_id": "aip-not-quite-ours"},
]
#: More than any Asterisk sends, and whether it is served: what is only shown is cut.
BEYOND: list[tuple[dict[str, Any], bool]] = [
    ({"args": ["x" * 20_000]}, False),
    ({"args": [f"a{number}" for number in range(100)]}, True),
    ({"caller": "9" * 20_000}, True),
    ({"caller": "1\x002"}, True),
    ({"called": "\ud800"}, True),
]
#: Rejected when the event is parsed: the leg cannot be named.
UNREADABLE: list[dict[str, Any]] = [{"channel_id": "c" * 151}, {"channel_id": "c" * 5_000}]


def test_hostile_arguments_and_numbers_are_served_or_refused_with_a_record(env: Environment) -> None:
    legs = [env.dial(**how) for how in HOSTILE]
    for leg, how in zip(legs, HOSTILE, strict=True):
        env.until(lambda leg=leg: env.pipeline.state(leg) in ("connected", "ended"), seconds=10, what=f"{how}")  # type: ignore[misc]
    served = [leg for leg in legs if env.pipeline.state(leg) == "connected"]
    refused = [leg for leg in legs if leg not in served]
    assert all(env.is_joined(leg) for leg in served), env.describe()
    # These name a run, as legs originated by the platform do, but not one of their tenant.
    named = [leg for leg, how in zip(legs, HOSTILE, strict=True) if "workflow_run_id=1" in how.get("args", [])]
    assert refused == named, env.describe()
    assert [env.pipeline.call(leg)["outcome"] for leg in refused] == ["refused"] * len(refused), env.describe()
    env.end(*served)


def test_what_no_asterisk_sends_is_served_or_refused_with_a_record(env: Environment) -> None:
    legs = [env.dial(**how) for how, _ in BEYOND]
    for leg, (how, is_served) in zip(legs, BEYOND, strict=True):
        env.until(lambda leg=leg: env.pipeline.state(leg) in ("connected", "ended"), seconds=10, what=f"{how}")  # type: ignore[misc]
        assert (env.pipeline.state(leg) == "connected") is is_served, env.describe()
    env.end(*(leg for leg, (_, is_served) in zip(legs, BEYOND, strict=True) if is_served))


def test_an_unreadable_caller_does_not_keep_the_resync_from_the_others(env: Environment) -> None:
    odd = [env.dial(**how) for how in UNREADABLE]
    (stays,) = env.connect()
    env.control.drop_events(["StasisStart"], times=1)
    unheard = env.dial()
    env.wait_state(unheard, "connected", seconds=8)
    env.control.drop_events(EVENTS)
    env.control.hang_up(stays)
    env.wait_state(stays, "ended", seconds=10)
    env.control.clear()
    for leg in odd:
        env.control.hang_up(leg)
    env.end(unheard)


# ── our own side ─────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def one_worker(_deployment: Deployment) -> Iterator[set[str]]:
    """One worker: a set-up runs from step to step without messages."""
    yield set()


@contextlib.contextmanager
def a_worker_for_each_step(deployment: Deployment) -> Iterator[set[str]]:
    """Several workers: each enqueues the next step for another one."""
    deployment.pipeline.stop("worker")
    served = {
        "worker.admission": "admission,originate,teardown,resync",
        "worker.runs": "runs",
        "worker.media": "media,bridge",
    }
    for name, queue_names in served.items():
        deployment.pipeline.start(name, WORKER_QUEUES=queue_names)
    yield {"create_run", "start_media"}
    for name in served:
        deployment.pipeline.stop(name)
    deployment.pipeline.start("worker")


@pytest.mark.parametrize("workers", [one_worker, a_worker_for_each_step])
def test_every_message_delivered_three_times_changes_nothing(
    deployment: Deployment, env: Environment, workers: Callable[[Deployment], AbstractContextManager[set[str]]]
) -> None:
    with (
        workers(deployment) as more,
        deployment.queue() as client,
        Repeater(deployment.redis_url, times=2) as repeater,
    ):
        legs = [env.dial() for _ in range(8)]
        brief = [env.dial(hang_up_after=0.02 * number) for number in range(4)]
        for leg in legs:
            env.wait_state(leg, "connected", seconds=20)
        assert {channel["gaps"] for channel in env.control.channels()} == {0}, "a leg was added twice"
        for leg in legs:
            assert env.is_joined(leg), env.describe()
            assert env.count("POST", f"/bridges/{env.own(leg, 'b')}/addChannel") == 1, env.describe()
        env.end(*legs)
        for leg in brief:
            env.wait_state(leg, "ended", seconds=20)
        env.wait_empty()
        wanted = {"caller_entered", "media_leg_ready", "leg_ended", "resync_connection", *more}
        env.until(lambda: wanted <= repeater.actors, seconds=20, what="every kind of message was repeated")
        deployment.wait_idle(client)
    assert len(env.calls()) == len(legs) + len(brief), env.describe()
    assert {call["outcome"] for call in env.calls()} <= {"completed", "abandoned"}, env.describe()


#: Options of a message of which one waits.
_NAMED = ("unique", "supersedes")


class Repeater:
    """Enqueues `times` copies of every message, a moment after it was enqueued."""

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
                    # Of resyncs one waits: copies under other names would each be postponed, and be copied again.
                    options = {name: message.options[name] for name in _NAMED if name in message.options}
                    for _ in range(self._times):
                        copy = dramatiq.Message[object](
                            message.queue_name, message.actor_name, message.args, message.kwargs, options
                        )
                        self._seen.add(copy.message_id)
                        broker.enqueue(copy)

    def _messages(self, command: str) -> Iterator[dramatiq.Message[object]]:
        """Yield the messages in a command that MONITOR shows, except those seen before."""
        text = command.replace("\\\\", "\\")
        at = text.find('{"queue_name"')
        while at >= 0:
            body, at = json.JSONDecoder().raw_decode(text, at)
            if body["message_id"] not in self._seen:
                self._seen.add(body["message_id"])
                yield dramatiq.Message[object].decode(json.dumps(body).encode())
            at = text.find('{"queue_name"', at)


def test_a_worker_frozen_for_longer_than_its_claim_repeats_nothing_when_it_wakes(
    deploy: Deploy,
) -> None:
    with deploy("faults-frozen", processes=("listener", "scheduler")) as deployment:
        deployment.pipeline.start("worker.rest", WORKER_QUEUES="admission,runs,bridge,teardown,resync")
        deployment.pipeline.start("worker.frozen", WORKER_QUEUES="media", WORKER_THREADS="2")
        with deployment.environment() as env:
            with env.control.hold("POST", "/channels/externalMedia", "before") as point:
                legs = [env.dial() for _ in range(2)]
                point.wait_arrived(count=2)
                deployment.pipeline.signal("worker.frozen", signal.SIGSTOP)
                # One request takes effect, the other does not; both answers come after the worker's claim has expired.
                env.control.fault("POST", "/channels/externalMedia", "before", status=500, times=1)
            deployment.pipeline.start("worker.media", WORKER_QUEUES="media")
            for leg in legs:
                env.wait_state(leg, "connected", "ended", seconds=25)
            assert [env.pipeline.state(leg) for leg in legs] == ["connected"] * 2, env.describe()
            attempts = {leg: env.pipeline.call(leg)["attempt"] for leg in legs}
            assert sorted(attempts.values()) == [1, 2], f"what was made is used, the other made anew\n{env.describe()}"
            deployment.pipeline.signal("worker.frozen", signal.SIGCONT)
            for leg in legs:
                env.until(lambda leg=leg: asked_by(env, leg, "worker.frozen"), seconds=10, what="it went on")  # type: ignore[misc]
            with deployment.queue() as client:
                deployment.wait_idle(client)
            assert [env.pipeline.state(leg) for leg in legs] == ["connected"] * 2, env.describe()
            assert all(env.is_joined(leg, attempt) for leg, attempt in attempts.items()), env.describe()
            assert len(env.control.bridges()) == 2, env.describe()
            env.end(*legs)


def asked_by(env: Environment, leg: str, who: str) -> bool:
    """Return True if a process has recorded a request for a leg's call."""
    return any(row["kind"] == "request" and row["who"] == who for row in env.pipeline.timeline(leg))


@pytest.mark.parametrize("which", ["redis", "postgres"])
def test_an_outage_of_a_server_during_calls_loses_none(stack_folder: Path, all_logs: Path, which: str) -> None:
    folder = stack_folder / f"outage-{which}"
    folder.mkdir(mode=0o711)
    with (
        # Durable, or else a killed Postgres loses what it has confirmed.
        servers.Postgres(folder / "postgres") as postgres,
        servers.Redis(folder / "redis") as own_redis,
    ):
        migrations.upgrade(postgres.url)
        server: servers.Postgres | servers.Redis = postgres if which == "postgres" else own_redis
        with running_deployment(
            folder=folder,
            logs=all_logs / f"faults-{which}",
            database_url=postgres.url,
            redis_server=own_redis,
            agent_database=False,
        ) as deployment:
            outage(deployment, server)


def outage(deployment: Deployment, server: servers.Postgres | servers.Redis) -> None:
    with deployment.environment() as env:
        stays, hangs_up = env.connect(2)
        with env.control.hold("POST", "/channels/externalMedia", "after") as point:
            in_media = env.dial()
            point.wait_arrived()
            server.kill()
            down_at = time.monotonic()
        env.control.hang_up(hangs_up)
        meanwhile = [env.dial() for _ in range(2)]
        brief = env.dial(hang_up_after=0.5)
        time.sleep(max(0.0, down_at + OUTAGE_SECONDS - time.monotonic()))
        which = "postgres" if isinstance(server, servers.Postgres) else "redis"
        for name in ("listener", "worker", "scheduler"):
            uses = {"redis"} if name == "listener" else {"postgres", "redis"}
            assert metrics_pages.away(deployment.pipeline, name) == {which} & uses
        server.start()
        deployment.pipeline.reconnect()
        env.wait_state(hangs_up, "ended", seconds=25)
        for leg in (in_media, *meanwhile):
            env.wait_state(leg, "connected", seconds=25)
        env.until(lambda: env.pipeline.state(brief) in (None, "ended"), seconds=25, what="the brief caller's call")
        assert env.pipeline.state(stays) == "connected", env.describe()
        assert env.is_joined(stays), env.describe()
        assert {channel["gaps"] for channel in env.control.channels()} == {0}, "a connected caller heard a gap"
        connected = [in_media, *meanwhile]
        assert all(env.is_joined(leg, env.pipeline.call(leg)["attempt"]) for leg in connected), env.describe()
        env.end(stays, *connected)
