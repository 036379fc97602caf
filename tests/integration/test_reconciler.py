"""Configurations of the platform become connections, on a real Postgres."""

from __future__ import annotations

import pytest

from scheduler.reconciler import Reconciler
from shared import errors
from shared.assignments import SocketState
from shared.call.ids import ConnectionVersion
from shared.platform import dograh
from shared.process import sealing
from shared.storage.connections import Connections
from tests import certificates
from tests.support.scheduler_harness import SEALER, SchedulerHarness

pytestmark = pytest.mark.services


def test_a_configuration_becomes_a_connection(harness: SchedulerHarness) -> None:
    harness.platform.set(1, ari_endpoint="HTTP://Pbx:80/x/", app_password="p@ss & # %")
    harness.reconcile()
    assert harness.connections() == {1: ("active", "", 1)}
    (version,) = harness.versions(1)
    assert (version["endpoint"], version["app"], version["ari_user"]) == ("http://pbx/x", "a", "a")
    assert SEALER.open(version["sealed_password"]) == "p@ss & # %"
    assert harness.rows("SELECT organization_id FROM ari.connections") == [{"organization_id": 101}]


def test_what_did_not_change_stays(harness: SchedulerHarness) -> None:
    harness.platform.set(1)
    harness.reconcile()
    before = harness.versions(1)
    harness.platform.set(
        1, inbound_workflow_id=5, ws_client_name="other", from_numbers=["+49"], ari_endpoint="http://PBX1:80/"
    )
    harness.reconcile()
    assert harness.versions(1) == before


@pytest.mark.parametrize("changes", [{"app_password": "new"}, {"ari_endpoint": "http://moved"}, {"app_name": "b"}])
def test_what_the_socket_needs_makes_a_new_version(harness: SchedulerHarness, changes: dict[str, str]) -> None:
    harness.platform.set(1)
    harness.reconcile()
    old = harness.versions(1)[0]
    harness.platform.set(1, **changes)
    harness.reconcile()
    assert harness.connections() == {1: ("active", "", 2)}
    first, second = harness.versions(1)
    assert first["superseded_at"] is not None
    assert {**first, "superseded_at": None} == old, "a version is never changed once written"
    assert (second["superseded_at"], second["epoch"], second["listener_id"]) == (None, 0, None)


def test_a_changed_ca_bundle_makes_a_new_version_that_older_calls_use_as_well(harness: SchedulerHarness) -> None:
    old, new = (certificates.issue(name, authority=True).pem for name in ("old", "new"))
    connections = Connections(harness.db)
    harness.listeners.beat("l1")
    for bundle in (None, old, new):
        harness.platform.set(1, ari_endpoint="https://pbx1", ari_ca_bundle=bundle)
        harness.reconcile()
        harness.reconcile()
    harness.tick()
    assert [version["ca_bundle"] for version in harness.versions(1)] == [None, old, new]
    assert harness.listeners.assigned("l1")["1:3"].ca_bundle == new
    assert [getattr(connections.details(ConnectionVersion(1, number)), "ca_bundle", "") for number in (1, 2, 3)] == [
        None,
        old,
        new,
    ]
    harness.execute("UPDATE ari.connection_versions SET socket_state = 'connected' WHERE version = 3")
    first = connections.details(ConnectionVersion(1, 1))
    assert first is not None
    assert first.ca_bundle == new, "the bundle of a connected version is known to be right"
    harness.execute("UPDATE ari.connection_versions SET socket_state = 'connecting' WHERE version = 3")
    first = connections.details(ConnectionVersion(1, 1))
    assert first is not None
    assert first.ca_bundle is None, "which version is right is not known yet"
    harness.execute("UPDATE ari.connection_versions SET socket_state = 'retired', retired_at = now() WHERE version < 3")
    first = connections.details(ConnectionVersion(1, 1))
    assert first is not None
    assert first.ca_bundle == new, "it was retired because a later version had connected"
    target = connections.inbound_target(ConnectionVersion(1, 1))
    assert target is not None
    assert target.served_by is not None, "the app instance is the same"
    damaged = new[:36] + "AAAA" + new[40:]
    harness.platform.set(1, ari_endpoint="https://pbx1", ari_ca_bundle=damaged)
    harness.reconcile()
    state, reason, _ = harness.connections()[1]
    assert state == "refused"
    assert "ari_ca_bundle contains a certificate that cannot be read" in reason


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"provider": "ari"}, "app_name is missing"),
        (["provider"], "not a JSON object"),
        (None, "not a JSON object"),
        ({"provider": "ari", "app_name": "a\x00", "app_password": "p", "ari_endpoint": "http://x"}, "app_name"),
        ({"provider": "ari", "app_name": "\ud800", "app_password": "p", "ari_endpoint": "http://x"}, "app_name"),
        ({"provider": "ari", "app_name": "a", "app_password": "\udc00", "ari_endpoint": "http://x"}, "app_password"),
        ({"provider": "ari", "app_name": "a", "app_password": "p", "ari_endpoint": "ftp://x"}, "ari_endpoint"),
    ],
)
def test_a_bad_row_is_reported_and_the_others_go_on(harness: SchedulerHarness, value: object, reason: str) -> None:
    harness.platform.set(1)
    harness.platform.values[2] = value
    harness.platform.set(3)
    harness.reconcile()
    found = harness.connections()
    assert {source: row[0] for source, row in found.items()} == {1: "active", 2: "refused", 3: "active"}
    assert reason in found[2][1]
    # Once it is repaired, it is accepted.
    harness.platform.set(2)
    harness.reconcile()
    assert harness.connections()[2] == ("active", "", 1)


def test_a_row_that_raises_an_unexpected_error_affects_no_other(
    harness: SchedulerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = SEALER.seal

    def breaking(secret: str) -> str:
        if secret == "break":
            raise RuntimeError(secret)
        return seal(secret)

    monkeypatch.setattr(SEALER, "seal", breaking)
    harness.platform.set(1, app_password="break")
    harness.platform.set(2)
    harness.reconcile()
    assert harness.connections() == {2: ("active", "", 1)}


def test_a_row_that_turned_bad_drains(harness: SchedulerHarness) -> None:
    harness.platform.set(1)
    harness.reconcile()
    harness.platform.set(1, app_name=None)
    harness.reconcile()
    assert harness.connections() == {1: ("refused", "app_name is missing", 1)}
    assert harness.versions(1)[0]["superseded_at"] is not None
    harness.platform.set(1)
    harness.reconcile()
    assert harness.connections() == {1: ("active", "", 1)}
    assert harness.versions(1)[0]["superseded_at"] is None, "nothing that the socket needs has changed"


def test_an_app_instance_belongs_to_the_first_configuration_that_its_asterisk_accepted(
    harness: SchedulerHarness,
) -> None:
    # A configuration with a wrong password keeps no other out, even if it came first and spells the endpoint otherwise.
    harness.platform.set(1, ari_endpoint="http://pbx", app_password="guessed")
    harness.platform.set(2, ari_endpoint="HTTP://PBX:80/ari/")
    harness.platform.set(3, ari_endpoint="http://pbx", app_name="other")
    harness.reconcile()
    assert [row[0] for row in harness.connections().values()] == ["active"] * 3
    harness.listeners.beat("l1")
    harness.tick()
    assigned = {assignment.connection_id: assignment for assignment in harness.listeners.assigned("l1").values()}
    harness.listeners.report("l1", assigned[1], SocketState.CONNECTING, error="401")
    harness.listeners.report("l1", assigned[2])
    harness.tick()
    harness.reconcile()
    refusal = "endpoint and app are in use by connection 2, which the Asterisk accepted first"
    assert harness.connections()[1] == ("refused", refusal, 1)
    assert harness.connections()[2][0] == harness.connections()[3][0] == "active"
    harness.tick()
    assert {assignment.connection_id for assignment in harness.listeners.assigned("l1").values()} == {2, 3}
    # It stays the owner's when the owner changes its password.
    harness.platform.set(2, ari_endpoint="http://pbx", app_password="new")
    harness.reconcile()
    assert (harness.connections()[1][0], harness.connections()[2]) == ("refused", ("active", "", 2))
    del harness.platform.values[2]
    harness.reconcile()
    harness.reconcile()
    assert harness.connections()[1][0] == "active"


def test_a_removed_configuration_is_removed(harness: SchedulerHarness) -> None:
    harness.platform.set(1)
    harness.platform.set(2)
    harness.reconcile()
    del harness.platform.values[1]
    harness.reconcile()
    assert harness.connections()[1] == ("removed", "configuration removed", 1)
    assert harness.versions(1)[0]["superseded_at"] is not None
    changed = harness.rows("SELECT changed_at FROM ari.connections WHERE source_id = 1")
    harness.reconcile()
    assert harness.rows("SELECT changed_at FROM ari.connections WHERE source_id = 1") == changed


def test_over_half_missing_at_once_is_confirmed_by_a_second_read(harness: SchedulerHarness) -> None:
    for source_id in range(1, 6):
        harness.platform.set(source_id)
    harness.reconcile()
    kept = harness.platform.values
    harness.platform.values = {1: kept[1], 2: kept[2]}
    harness.reconcile()
    assert {row[0] for row in harness.connections().values()} == {"active"}
    # A read that is complete again needs no confirmation, and the next loss needs a new one.
    harness.platform.values = kept
    harness.reconcile()
    harness.platform.values = {}
    harness.reconcile()
    assert {row[0] for row in harness.connections().values()} == {"active"}
    harness.reconcile()
    assert {row[0] for row in harness.connections().values()} == {"removed"}


def test_two_of_five_missing_needs_no_confirmation(harness: SchedulerHarness) -> None:
    for source_id in range(1, 6):
        harness.platform.set(source_id)
    harness.reconcile()
    del harness.platform.values[1], harness.platform.values[2]
    harness.reconcile()
    assert sorted(row[0] for row in harness.connections().values()) == ["active"] * 3 + ["removed"] * 2


def test_a_read_that_fails_removes_nothing(harness: SchedulerHarness) -> None:
    harness.platform.set(1)
    harness.reconcile()
    harness.platform.away = True
    for _ in range(3):
        with pytest.raises(errors.DatabaseUnavailable):
            harness.reconcile()
    assert harness.connections() == {1: ("active", "", 1)}


def test_a_password_is_sealed_again_after_its_key_was_lost(harness: SchedulerHarness) -> None:
    harness.platform.set(1)
    harness.reconcile()
    other = sealing.Sealer(("an entirely different key",))
    Reconciler(harness.db, harness.platform, other).reconcile()
    assert harness.connections()[1] == ("active", "", 2)
    assert other.open(harness.versions(1)[1]["sealed_password"]) == "p"


def test_a_row_that_failed_is_tried_again_although_nothing_has_changed(
    harness: SchedulerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.platform.set(1)
    with monkeypatch.context() as broken:
        broken.setattr(SEALER, "seal", lambda _secret: 1 / 0)
        harness.reconcile()
        harness.reconcile()
    assert harness.connections() == {}
    harness.reconcile()
    assert harness.connections() == {1: ("active", "", 1)}


def test_while_nothing_has_changed_no_configuration_is_read(harness: SchedulerHarness) -> None:
    reads = 0

    def read_all() -> list[dograh.ConfigurationRow]:
        nonlocal reads
        reads += 1
        return type(harness.platform).all(harness.platform)

    harness.platform.all = read_all  # type: ignore[method-assign]
    harness.platform.set(1)
    for _ in range(5):
        harness.reconcile()
    assert reads == 2, "once for the configuration, once because a connection was written"
    for change in (
        "UPDATE ari.connections SET state = 'refused'",
        "UPDATE ari.connection_versions SET accepted_at = now()",
    ):
        harness.execute(change)
        before = reads
        harness.reconcile()
        assert reads == before + 1, change
        harness.reconcile()
        harness.reconcile()


def test_each_time_that_many_are_missing_is_confirmed(harness: SchedulerHarness) -> None:
    harness.configure(4)
    harness.reconcile()
    for _ in range(2):
        whole, harness.platform.values = harness.platform.values, {}
        harness.reconcile()
        harness.platform.values = whole
        harness.reconcile()
    assert {row[0] for row in harness.connections().values()} == {"active"}
