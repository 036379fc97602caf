"""The stand-in of the platform's API, without the product: it does what the platform does, by its keys and rows."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
import redis
import requests
from psycopg.rows import dict_row
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from devstack import platform_tables, servers, tones
from devstack.platform_api import media
from devstack.platform_api.calls import NotPlaced
from devstack.platform_api.layouts import Layout
from devstack.platform_api.server import Options
from devstack.platform_api.stand_in import StandIn
from devstack.tenants import Tenant, closing_tenant
from simulator.settings import Settings
from simulator.testing import SimulatedAsterisk
from tests import databases
from tests.integration.simulated_asterisk.clients import Ari, until

pytestmark = pytest.mark.services

SECRET = "a secret of the platform"
APP = "voiceai"


class Platform:
    """The stand-in with its database, Redis, Asterisk and one tenant."""

    def __init__(self, layout: Layout, database_url: str, redis_url: str, asterisk: SimulatedAsterisk) -> None:
        self.layout = layout
        self.asterisk = asterisk
        self.ari = Ari(asterisk.url, "platform", "p")
        self.redis: Any = redis.Redis.from_url(redis_url, decode_responses=True)
        self._connection = psycopg.connect(database_url, autocommit=True, row_factory=dict_row)
        self.tenant = Tenant(database_url, "acme")
        self.configuration_id = self.tenant.configure(
            asterisk.url, app="platform", password="p", numbers=["+4930123456"], stasis_app_name=APP
        )
        self.options = Options(
            layout=layout,
            database_url=database_url,
            redis_url=redis_url,
            token_secret=SECRET,
            dial_template="Local/{number}@far",
        )

    def query(self, statement: str, *values: object) -> list[dict[str, Any]]:
        return self._connection.execute(statement, values).fetchall()

    def run(self, run_id: int) -> dict[str, Any]:
        (row,) = self.query("SELECT * FROM workflow_runs WHERE id = %s", run_id)
        return row

    def inbound(self, **changes: Any) -> int:
        """Write a run as the product does for a caller."""
        initial = {"provider": "ari", "telephony_configuration_id": self.configuration_id}
        columns = {
            "workflow_id": self.tenant.workflow_id,
            "definition_id": self.tenant.definition_id,
            "state": "initialized",
            "mode": "ari",
            "initial_context": initial,
            "gathered_context": {"call_id": "caller", "bridge_id": "bridge", "ext_channel_id": "media"},
        } | changes
        values = [json.dumps(value) if isinstance(value, dict) else value for value in columns.values()]
        (row,) = self.query(
            f"INSERT INTO workflow_runs ({', '.join(columns)}, name, call_type, is_completed, usage_info, cost_info,"
            f" annotations) VALUES ({', '.join(['%s'] * len(columns))}, 'ARI Inbound +49', 'inbound', false, '{{}}',"
            " '{}', '{}') RETURNING id",
            *values,
        )
        return int(row["id"])

    def media_url(self, stand_in: StandIn, run_id: int, **changes: object) -> str:
        tenant = {"user_id": self.tenant.user_id, "organization_id": self.tenant.organization_id}
        query: dict[str, object] = {"workflow_id": self.tenant.workflow_id, "workflow_run_id": run_id}
        name = media.QUERY[self.layout][1]
        query[name] = tenant[name]
        query["token"] = media.token(SECRET, self.tenant.workflow_id, self.tenant.organization_id, run_id)
        query |= changes
        return f"{stand_in.media_url}?" + "&".join(f"{key}={value}" for key, value in query.items())

    def close(self) -> None:
        self.tenant.close()
        self._connection.close()
        self.redis.close()


@pytest.fixture(scope="module")
def database_urls(postgres_server: servers.Postgres) -> Callable[[Layout], str]:
    """Return the database of a layout, empty but for its tables; there is one for all tests."""
    made: dict[Layout, str] = {}

    def emptied(layout: Layout) -> str:
        url = made[layout] = made.get(layout) or databases.create(postgres_server.url)
        platform_tables.create(url, layout, exists_ok=True)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("TRUNCATE organizations, users RESTART IDENTITY CASCADE")
        return url

    return emptied


@pytest.fixture(params=["2026-02", "newest"])
def platform(
    request: pytest.FixtureRequest, database_urls: Callable[[Layout], str], redis_url: str
) -> Iterator[Platform]:
    with SimulatedAsterisk(Settings(audio=False), users={"platform": "p"}) as asterisk:
        made = Platform(request.param, database_urls(request.param), redis_url, asterisk)
        yield made
        made.close()


only_newest = pytest.mark.parametrize("platform", ["newest"], indirect=True)
only_february = pytest.mark.parametrize("platform", ["2026-02"], indirect=True)


@pytest.fixture
def stand_in(platform: Platform) -> Iterator[StandIn]:
    with StandIn(platform.options) as made:
        yield made


@contextlib.contextmanager
def leg(url: str) -> Iterator[ClientConnection]:
    with connect(url, subprotocols=[Subprotocol("media")], open_timeout=5) as made:
        yield made


# ── the tables ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("column", ["usage_info", "cost_info", "initial_context", "gathered_context", "annotations"])
def test_a_run_without_a_json_column_is_refused_as_the_platform_s_tables_refuse_it(
    platform: Platform, column: str
) -> None:
    columns = {"name": "'n'", "workflow_id": str(platform.tenant.workflow_id), "mode": "'ari'"}
    columns |= dict.fromkeys(["usage_info", "cost_info", "initial_context", "gathered_context", "annotations"], "'{}'")
    del columns[column]
    with pytest.raises(psycopg.errors.NotNullViolation, match=column):
        platform.query(f"INSERT INTO workflow_runs ({', '.join(columns)}) VALUES ({', '.join(columns.values())})")


def test_a_database_that_has_its_tables_is_left_and_a_tenant_is_taken_up_again(platform: Platform) -> None:
    platform_tables.create(platform.options.database_url, platform.layout, exists_ok=True)
    with closing_tenant(platform.options.database_url, "acme") as again:
        assert again.configure(platform.asterisk.url, app="platform", password="p") == platform.configuration_id
        assert (again.workflow_id, again.definition_id) == (platform.tenant.workflow_id, platform.tenant.definition_id)


# ── calls that the platform places ───────────────────────────────────────────────────────────────────────────────────


def test_a_call_is_placed_with_the_layout_s_arguments_and_its_channel_is_written_later(
    platform: Platform, stand_in: StandIn
) -> None:
    stand_in.behaviour.call_id_after_seconds = 0.5
    placing = threading.Thread(target=stand_in.call, args=(platform.tenant.workflow_id, "100"))
    with platform.asterisk.control.hold("POST", "/channels") as request:
        placing.start()
        request.wait_arrived()
        (run,) = platform.query("SELECT * FROM workflow_runs")
        slot = platform.redis.hgetall(f"workflow_slot_mapping:{run['id']}")
        assert bool(slot) == (platform.layout == "newest"), "taken and bound before the POST; 2026-02: campaigns only"
    until(lambda: [asked for asked in platform.asterisk.control.requests("POST", "/channels") if asked.status == 200])
    assert "call_id" not in platform.run(run["id"])["gathered_context"]
    placing.join(5)
    (asked,) = platform.asterisk.control.requests("POST", "/channels")
    args = f"workflow_run_id={run['id']},workflow_id={platform.tenant.workflow_id}"
    user = f",user_id={platform.tenant.user_id}"
    is_newest = platform.layout == "newest"
    assert asked.query["appArgs"] == args + ("" if is_newest else user)
    assert asked.query["app"] == (APP if is_newest else "platform")
    assert asked.query["endpoint"] == "Local/100@far"
    row = platform.run(run["id"])
    assert (row["state"], row["call_type"], row["definition_id"]) == (
        "initialized", "outbound", platform.tenant.definition_id,
    )  # fmt: skip
    configuration = row["initial_context"].get("telephony_configuration_id")
    assert configuration == (platform.configuration_id if is_newest else None)
    channel = row["gathered_context"]["call_id"]
    assert platform.redis.get(f"ari:channel:{channel}") == (str(row["id"]) if is_newest else None)


@only_newest
def test_the_api_of_august_names_no_channel(platform: Platform, stand_in: StandIn) -> None:
    stand_in.behaviour.names_channels = False
    placed = stand_in.call(platform.tenant.workflow_id, "100")
    assert platform.redis.get(f"ari:channel:{placed.channel_id}") is None


@only_newest
def test_calls_of_others_count_stale_ones_do_not(platform: Platform, stand_in: StandIn) -> None:
    key = f"concurrent_calls:{platform.tenant.organization_id}"
    platform.query(
        "INSERT INTO organization_configurations (organization_id, key, value)"
        " VALUES (%s, 'CONCURRENT_CALL_LIMIT', '{\"value\": 2}') RETURNING id",
        platform.tenant.organization_id,
    )
    platform.redis.zadd(key, {"ours": time.time(), "stale": time.time() - 1201})
    placed = stand_in.call(platform.tenant.workflow_id, "100")
    assert platform.redis.zscore(key, "stale") is None
    with pytest.raises(NotPlaced, match="too many"):
        stand_in.call(platform.tenant.workflow_id, "100")
    slot = platform.redis.hgetall(f"workflow_slot_mapping:{placed.run_id}")["slot_id"]
    assert platform.redis.zrange("concurrent_calls_fleet", 0, -1) == [f"{platform.tenant.organization_id}:{slot}"]


def test_a_call_that_asterisk_refuses_is_failed_and_keeps_no_slot(platform: Platform, stand_in: StandIn) -> None:
    platform.asterisk.control.fault("POST", "/channels", status=500)
    with pytest.raises(NotPlaced, match="500"):
        stand_in.call(platform.tenant.workflow_id, "100")
    (run,) = platform.query("SELECT state::text, is_completed, gathered_context FROM workflow_runs")
    assert (run["state"], run["is_completed"]) == ("completed", True)
    assert run["gathered_context"]["call_disposition"] == "error"
    assert not platform.redis.keys("concurrent_calls:*")
    assert not platform.redis.keys("workflow_slot_mapping:*")


# ── media legs ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_media_leg_sets_its_run_running_and_its_end_completes_it(platform: Platform, stand_in: StandIn) -> None:
    run_id = platform.inbound()
    org = platform.tenant.organization_id
    platform.redis.zadd(f"concurrent_calls:{org}", {"s1": time.time()})
    platform.redis.zadd("concurrent_calls_fleet", {f"{org}:s1": time.time()})
    platform.redis.hset(f"workflow_slot_mapping:{run_id}", mapping={"org_id": org, "slot_id": "s1"})
    with leg(platform.media_url(stand_in, run_id)) as socket:
        assert socket.subprotocol == "media"
        socket.send(tones.tone(400))
        assert socket.recv(timeout=5) == tones.tone(400)
        assert platform.run(run_id)["state"] == "running"
    until(lambda: platform.run(run_id)["is_completed"])
    row = platform.run(run_id)
    assert (row["state"], row["gathered_context"]["call_disposition"]) == ("completed", "user_hangup")
    assert row["gathered_context"]["bridge_id"] == "bridge"
    assert "call_duration_seconds" in row["usage_info"]
    assert platform.redis.keys("*") == [], "the slot that the product took is given back"


def test_whose_disposition_is_kept_differs(platform: Platform, stand_in: StandIn) -> None:
    run_id = platform.inbound(gathered_context={"call_id": "c", "call_disposition": "completed"})
    with leg(platform.media_url(stand_in, run_id)):
        pass
    until(lambda: platform.run(run_id)["is_completed"])
    kept = platform.run(run_id)["gathered_context"]["call_disposition"]
    assert kept == ("completed" if platform.layout == "2026-02" else "user_hangup")


def closed(url: str) -> int:
    """Return the code by which a leg is closed; the HTTP status of one that is not accepted."""
    try:
        with leg(url) as socket:
            socket.recv(timeout=5)
    except ConnectionClosed as exc:
        return exc.rcvd.code if exc.rcvd is not None else 0
    except InvalidStatus as exc:
        return exc.response.status_code
    raise AssertionError("it was served")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        pytest.param({"workflow_id": ""}, 403, id="nothing-in-the-query"),
        pytest.param({"workflow_run_id": "x"}, 1011, id="no-number"),
        pytest.param({"workflow_run_id": 999}, 4404, id="no-run"),
        pytest.param({"workflow_id": 999}, 4404, id="no-workflow"),
    ],
)
def test_a_leg_that_names_something_else_is_refused(
    platform: Platform, stand_in: StandIn, changes: dict[str, object], code: int
) -> None:
    run_id = platform.inbound()
    stand_in.api.admission = replace(stand_in.api.admission, token_secret=None)
    assert closed(platform.media_url(stand_in, run_id, **changes)) == code
    assert stand_in.api.refusals[0].startswith(str(code))
    assert platform.run(run_id)["state"] == "initialized"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        pytest.param({"state": "completed"}, 4409, id="completed"),
        pytest.param({"state": "running"}, 4409, id="running"),
        pytest.param({"initial_context": {}}, 4400, id="no-provider"),
        pytest.param({"initial_context": {"provider": "twilio"}}, 4400, id="another-provider"),
        pytest.param({"mode": "smallwebrtc"}, 4400, id="smallwebrtc"),
        pytest.param({"definition_id": None}, 1011, id="no-definition"),
    ],
)
def test_a_run_that_is_not_as_it_has_to_be_is_refused(
    platform: Platform, stand_in: StandIn, changes: dict[str, Any], code: int
) -> None:
    assert closed(platform.media_url(stand_in, platform.inbound(**changes))) == code


@only_newest
def test_a_parked_configuration_refuses_its_legs_until_it_is_taken_up_again(
    platform: Platform, stand_in: StandIn
) -> None:
    configuration_id = platform.configuration_id
    platform.query(
        "UPDATE telephony_configurations SET inactive = true, inactive_since = now(), inactive_reason = 'r' RETURNING 1"
    )
    assert closed(platform.media_url(stand_in, platform.inbound())) == 1011
    reactivate = f"/api/v1/organizations/telephony-configs/{configuration_id}/reactivate"
    assert requests.post(stand_in.url + reactivate, timeout=5).status_code == 200
    (row,) = platform.query("SELECT inactive, inactive_since, inactive_reason FROM telephony_configurations")
    assert set(row.values()) == {False, None}
    with leg(platform.media_url(stand_in, platform.inbound())):
        pass


@only_newest
@pytest.mark.parametrize("enforces", [True, False])
def test_a_wrong_token_is_refused_where_tokens_are_enforced(platform: Platform, *, enforces: bool) -> None:
    with StandIn(replace(platform.options, enforces_token=enforces)) as stand_in:
        url = platform.media_url(stand_in, platform.inbound(), token="0" * 64)
        if enforces:
            assert closed(url) == 4401
        else:
            with leg(url):
                pass


def test_an_agent_hangs_up_by_asterisk_and_not_by_its_socket(platform: Platform, stand_in: StandIn) -> None:
    run_id = platform.inbound(gathered_context={"call_id": "caller/1;2"})
    stand_in.behaviour.close_after_seconds = 0.1
    with leg(platform.media_url(stand_in, run_id)) as socket, pytest.raises(ConnectionClosed):
        socket.recv(timeout=5)
    assert [asked.path for asked in platform.asterisk.control.requests("DELETE")] == ["/channels/caller/1;2"]
    until(lambda: platform.run(run_id)["is_completed"])
    assert platform.run(run_id)["gathered_context"]["call_disposition"] == "agent_hangup"


# ── transfers ────────────────────────────────────────────────────────────────────────────────────────────────────────


@only_february
def test_2026_02_transfers_nothing(platform: Platform, stand_in: StandIn) -> None:
    with leg(platform.media_url(stand_in, run_id := platform.inbound())), pytest.raises(NotPlaced, match="2026-02"):
        stand_in.transfer(run_id, "200")


def answer(platform: Platform, make: Callable[[dict[str, Any]], dict[str, Any]]) -> threading.Thread:
    """Do what the product does once the destination has answered or not."""

    def work() -> None:
        (key,) = until(lambda: platform.redis.keys("ari:transfer_channel:*"))
        transfer_id = platform.redis.get(key)
        context = until(lambda: _with_channel(platform.redis.get(f"transfer:context:{transfer_id}")))
        until(lambda: (platform.asterisk.control.channel(context["call_sid"]) or {}).get("app"))
        until(lambda: platform.redis.publish(f"transfer:events:{transfer_id}", json.dumps(make(context))))

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def _with_channel(text: Any) -> dict[str, Any] | None:
    context: dict[str, Any] = json.loads(text) if text else {}
    return context if context.get("call_sid") else None


def event(context: dict[str, Any], **changes: object) -> dict[str, Any]:
    return {
        "type": "destination_answered",
        "transfer_id": context["transfer_id"],
        "original_call_sid": context["original_call_sid"],
        "transfer_call_sid": context["call_sid"],
        "end_call": False,
    } | changes


@only_newest
def test_a_transfer_swaps_the_legs_in_the_product_s_bridge_and_completes_the_run(
    platform: Platform, stand_in: StandIn
) -> None:
    run_id = platform.inbound()
    platform.redis.set("ari:channel:caller", run_id)
    with platform.ari.events(APP), leg(platform.media_url(stand_in, run_id)):
        assert platform.ari.status("POST", "/bridges", bridgeId="bridge") == 200
        answering = answer(platform, event)
        result = stand_in.transfer(run_id, "200")
        answering.join(5)
    assert result.is_made, result
    asked = [(one.method, one.path, one.query) for one in platform.asterisk.control.requests()][-4:]
    assert asked[0][2]["appArgs"] == f"transfer,{result.transfer_id}"
    assert asked[0][2]["app"] == APP
    assert [(method, path) for method, path, _ in asked[1:]] == [
        ("POST", "/bridges/bridge/addChannel"), ("POST", "/bridges/bridge/removeChannel"),
        ("DELETE", "/channels/media"),
    ]  # fmt: skip
    assert asked[1][2]["channel"] == result.destination
    until(lambda: platform.run(run_id)["is_completed"])
    gathered = platform.run(run_id)["gathered_context"]
    assert (gathered["transfer_state"], gathered["transfer_bridge_id"]) == ("in-progress", "bridge")
    assert gathered["transfer_destination_channel_id"] == result.destination
    assert sorted(platform.redis.keys("*")) == sorted(["ari:channel:caller", f"ari:channel:{result.destination}"])


@only_newest
def test_a_transfer_without_the_caller_s_key_fails_and_the_agent_is_out(platform: Platform, stand_in: StandIn) -> None:
    run_id = platform.inbound()
    with platform.ari.events(APP), leg(platform.media_url(stand_in, run_id)) as socket:
        answering = answer(platform, event)
        result = stand_in.transfer(run_id, "200")
        answering.join(5)
        assert (result.is_answered, result.is_made) == (True, False)
        assert "is not known" in result.reason
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=5)
    until(lambda: platform.run(run_id)["is_completed"])


@only_newest
def test_a_transfer_that_fails_leaves_the_caller_with_the_agent(platform: Platform, stand_in: StandIn) -> None:
    run_id = platform.inbound()
    with platform.ari.events(APP), leg(platform.media_url(stand_in, run_id)) as socket:
        answering = answer(platform, lambda context: event(context, type="transfer_failed", reason="busy"))
        result = stand_in.transfer(run_id, "200")
        answering.join(5)
        assert (result.is_made, result.reason) == (False, "busy")
        socket.send(tones.tone(400))
        assert socket.recv(timeout=5) == tones.tone(400)
    assert not platform.redis.keys("*transfer*")


@only_newest
def test_a_message_with_an_unknown_field_is_dropped_and_a_caller_who_leaves_ends_the_wait(
    platform: Platform, stand_in: StandIn
) -> None:
    run_id = platform.inbound()
    with platform.ari.events(APP), leg(platform.media_url(stand_in, run_id)) as socket:
        answering = answer(platform, lambda context: event(context, extra=1))
        threading.Timer(1.0, socket.close).start()
        result = stand_in.transfer(run_id, "200")
        answering.join(5)
    assert (result.is_made, result.reason) == (False, "the caller left")
    assert len(stand_in.api.transfers.dropped) == 1
