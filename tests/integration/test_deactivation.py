"""A configuration whose event socket cannot be opened is deactivated as the platform does, and never for our faults."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import redis

from scheduler.deactivation import Deactivation
from shared import errors, socket_errors
from shared.socket_errors import Fault
from tests.support.scheduler_harness import PlayedListeners, SchedulerHarness

pytestmark = pytest.mark.services

DENIED = socket_errors.LASTING[401]
REFUSED = "connection refused"
SILENT = "no answer within 10 s"


@dataclass(kw_only=True)
class Scene:
    """Sockets as their listeners have reported them, and a clock."""

    harness: SchedulerHarness
    now: float = 0.0
    hears: bool = True
    #: What the platform's rows were written with; what it refuses is tried again.
    written: list[tuple[int, int, str]] = field(default_factory=list)
    refuses: bool = False

    def __post_init__(self) -> None:
        self.job = Deactivation(
            self.harness.leader_db,
            self,
            self.harness.store,
            lambda: self.hears,
            lasting_seconds=60,
            failing_seconds=3600,
            monotonic=lambda: self.now,
        )

    def deactivate(self, *, source_id: int, organization_id: int, reason: str) -> bool:
        """Play the platform's rows."""
        if self.refuses:
            return False
        self.written.append((source_id, organization_id, reason))
        self.harness.execute("UPDATE ari.connections SET state = 'removed' WHERE source_id = %s", source_id)
        return True

    def is_now(self, source_id: int, state: str, error: str = "") -> None:
        self.harness.execute(
            "UPDATE ari.connection_versions SET socket_state = %s, last_error = %s WHERE connection_id ="
            " (SELECT connection_id FROM ari.connections WHERE source_id = %s)",
            state,
            error,
            source_id,
        )

    def look_for(self, seconds: float) -> None:
        """Look every five seconds for so long."""
        until = self.now + seconds
        while self.now < until:
            self.now += 5
            self.job.look()


@pytest.fixture
def scene(harness: SchedulerHarness) -> Scene:
    """Two configurations on two hosts; the socket of the second is open."""
    harness.configure(2)
    made = Scene(harness=harness)
    made.is_now(2, "connected")
    return made


@pytest.mark.parametrize("status", [401, 403, 404])
def test_an_answer_that_has_lasted_for_a_minute_deactivates(scene: Scene, status: int) -> None:
    scene.is_now(1, "connecting", socket_errors.LASTING[status])
    scene.look_for(60)
    assert scene.written == []
    scene.look_for(5)
    assert scene.written == [(1, 101, f"ari-{status}: {socket_errors.LASTING[status]}")]
    scene.look_for(100)
    assert len(scene.written) == 1
    (note,) = scene.harness.rows("SELECT name, detail FROM ari.timeline WHERE connection_id = 1")
    assert (note["name"], note["detail"]) == ("Deactivated", scene.written[0][2])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (REFUSED, "ari-connection"),
        (SILENT, "ari-timeout"),
        ("Asterisk answered HTTP 503 instead of opening a websocket", "ari-503"),
    ],
)
def test_an_hour_of_failure_without_a_break_deactivates(scene: Scene, error: str, code: str) -> None:
    scene.is_now(1, "connecting", error)
    scene.look_for(3600)
    assert scene.written == []
    scene.look_for(5)
    assert scene.written == [(1, 101, f"{code}: {error}")]


def test_a_booting_asterisk_is_not_deactivated(scene: Scene) -> None:
    """It answers 404, then 503, and then it is there."""
    scene.is_now(1, "connecting", socket_errors.LASTING[404])
    scene.look_for(55)
    scene.is_now(1, "connecting", "Asterisk answered HTTP 503 instead of opening a websocket")
    scene.look_for(5)
    scene.is_now(1, "connecting", socket_errors.LASTING[404])
    scene.look_for(55)
    assert scene.written == []


@pytest.mark.parametrize(("seconds", "deactivates"), [(20, True), (35, False)])
def test_a_socket_that_was_open_for_half_a_minute_has_not_failed_without_a_break(
    scene: Scene, seconds: float, *, deactivates: bool
) -> None:
    scene.is_now(1, "connecting", REFUSED)
    scene.look_for(3000)
    scene.is_now(1, "connected")
    scene.look_for(seconds)
    scene.is_now(1, "connecting", REFUSED)
    scene.look_for(700)
    assert bool(scene.written) is deactivates


@pytest.mark.parametrize(
    "error",
    [
        "the host name is not found",
        "the host name is not found, as just before",
        "too many host names are being resolved",
        "10.0.0.1 is a private address, which ENDPOINT_GUARD=strict refuses",
        "no SECRET_KEY of this process opens the password",
        "internal error of the listener, see its log",
        "closed by us: Asterisk sent more than 2000 frames a second",
        "what no release has said yet",
    ],
)
def test_an_error_of_ours_deactivates_none(scene: Scene, error: str) -> None:
    scene.is_now(1, "connecting", error)
    scene.look_for(4000)
    assert scene.written == []


def test_silence_counts_only_while_a_socket_to_another_host_is_open(scene: Scene) -> None:
    """Else it may be the network of ours."""
    scene.is_now(1, "connecting", SILENT)
    scene.is_now(2, "connecting", SILENT)
    scene.look_for(4000)
    assert scene.written == []
    scene.is_now(2, "connected")
    scene.look_for(3605)
    assert [source for source, _, _ in scene.written] == [1]


@pytest.mark.parametrize("what", ["not heard", "not looked", "unassigned", "another leader"])
def test_what_was_not_seen_is_no_failure(scene: Scene, what: str) -> None:
    """Redis or Postgres was away, no listener was there, this scheduler was frozen, or another one has led since."""
    scene.is_now(1, "connecting", DENIED)
    scene.look_for(55)
    if what == "not heard":
        scene.hears = False
        scene.look_for(35)
        scene.hears = True
    elif what == "not looked":
        scene.now += 40
    elif what == "unassigned":
        scene.is_now(1, "unassigned", DENIED)
        scene.look_for(40)
        scene.is_now(1, "connecting", DENIED)
    else:
        scene.__post_init__()
    scene.look_for(55)
    assert scene.written == []
    scene.look_for(10)
    assert len(scene.written) == 1


def test_what_the_platform_s_rows_do_not_take_yet_is_tried_again(scene: Scene) -> None:
    """A call is being set up, and its media socket asks for the configuration."""
    scene.is_now(1, "connecting", DENIED)
    scene.refuses = True
    scene.look_for(100)
    scene.refuses = False
    scene.look_for(5)
    assert len(scene.written) == 1


@pytest.mark.parametrize("state", ["replaced", "parked", "quarantined"])
def test_a_socket_that_another_client_has_is_not_deactivated(scene: Scene, state: str) -> None:
    scene.is_now(1, state, "app taken over by another client")
    if state != "replaced":
        scene.harness.execute("UPDATE ari.connection_versions SET parked_at = now() WHERE connection_id = 1")
    scene.look_for(4000)
    assert scene.written == []


def test_whether_listeners_are_heard_of(harness: SchedulerHarness, listeners: PlayedListeners) -> None:
    harness.tick()
    assert not harness.assigner.hears_listeners(), "there is none"
    listeners.beat("l1")
    harness.tick()
    assert harness.assigner.hears_listeners()
    away = harness.new_assigner(client=redis.Redis(port=1, socket_connect_timeout=0.1))
    with pytest.raises(errors.QueueUnavailable):
        away.tick()
    assert not away.hears_listeners()


def test_whose_fault_an_error_is() -> None:
    assert socket_errors.judge(DENIED) is Fault.LASTING
    assert socket_errors.judge("the TLS certificate is not valid: expired") is Fault.ANSWERED
    assert socket_errors.judge("connection lost") is Fault.SILENT
    assert socket_errors.judge("") is Fault.OURS
