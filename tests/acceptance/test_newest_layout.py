"""Beside the platform's newest layout, from the caller to the voice agent: contract points 2, 3, 5 to 8, 11, 12, 15."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

import pytest

from devstack.pipeline import MEDIA_SECRET
from shared.platform.dograh import media_url
from simulator import media
from tests.acceptance.environment import APP, Deploy, Deployment, Environment
from tests.acceptance.outbound import LOCAL, arictl, only_call, request_call, run_row, waiting_run

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def deployment(deploy: Deploy) -> Iterator[Deployment]:
    with deploy("newest-layout", layout="newest") as made:
        yield made


@pytest.fixture
def configuration_id(env: Environment) -> int:
    return env.tenant.configure(env.asterisk.url)


def media_queries(env: Environment) -> list[dict[str, str]]:
    """Return the query by which each media leg is to connect to the voice agent."""
    requests = env.asked("POST", "/channels/externalMedia")
    return [dict(parse_qsl(media.query_of(request.query["transport_data"]))) for request in requests]


def test_a_caller_is_connected_by_the_number_and_the_run_and_the_media_url_are_the_platform_s(
    env: Environment, configuration_id: int
) -> None:
    (leg,) = env.connect()
    assert env.is_joined(leg)
    run = env.run(leg)
    assert run["definition_id"] == env.tenant.definition_id
    assert run["initial_context"] == {
        "caller_number": "+15551234",
        "called_number": "100",
        "direction": "inbound",
        "provider": "ari",
        "telephony_configuration_id": configuration_id,
        "external_pbx_call": None,
    }
    gathered = run["gathered_context"]
    assert (gathered["call_id"], gathered["ext_channel_id"]) == (leg, env.own(leg, "m"))
    ids: dict[str, int | None] = {
        "workflow_id": env.tenant.workflow_id,
        "organization_id": env.tenant.organization_id,
        "workflow_run_id": run["id"],
    }
    expected = {name: str(value) for name, value in ids.items()} | {"token": media_url.token(MEDIA_SECRET, ids)}
    assert media_queries(env) == [expected]
    env.end(leg)
    assert env.run(leg)["is_completed"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("DELETE FROM telephony_phone_numbers WHERE organization_id = %s RETURNING 1", "no active phone number 100"),
        (
            "UPDATE telephony_phone_numbers SET inbound_workflow_id = NULL WHERE organization_id = %s RETURNING 1",
            "phone number 100 has no inbound workflow",
        ),
        (
            "UPDATE workflows SET released_definition_id = NULL WHERE organization_id = %s RETURNING 1",
            "inbound workflow has no definition",
        ),
    ],
)
def test_a_caller_without_a_route_is_hung_up_with_the_reason_and_gets_no_run(
    env: Environment, change: str, reason: str
) -> None:
    if "released" in change:
        env.pipeline.query(
            "UPDATE workflow_definitions SET is_current = false WHERE workflow_id = %s RETURNING 1",
            env.tenant.workflow_id,
        )
    env.pipeline.query(change, env.tenant.organization_id)
    leg = env.dial()
    env.wait_state(leg, "ended")
    call = env.pipeline.call(leg)
    assert (call["outcome"], env.runs()) == ("refused", 0)
    assert call["reason"].startswith(reason)
    env.wait_empty()


def test_two_configurations_on_one_asterisk_serve_by_their_apps_and_only_their_own_numbers(
    env: Environment, configuration_id: int
) -> None:
    second = env.tenant.configure(
        env.asterisk.url, name="second", stasis_app_name="second", numbers=["200"], ws_client_name="media"
    )
    env.until(lambda: env.control.sockets("second"), seconds=10, what="the second app's socket is open")
    legs = [env.dial(), env.control.dial("second", called="200", channel_id="second-caller")]
    for leg, configuration in zip(legs, (configuration_id, second), strict=True):
        env.wait_state(leg, "connected")
        assert env.run(leg)["initial_context"]["telephony_configuration_id"] == configuration
    elsewhere = env.dial(called="200")
    env.wait_state(elsewhere, "ended")
    assert f"belongs to another configuration, {second}" in env.pipeline.call(elsewhere)["reason"]
    env.pipeline.query("UPDATE telephony_configurations SET inactive = true WHERE id = %s RETURNING 1", second)
    env.until(lambda: _state(env, -second) == "removed", seconds=10, what="the second one is disconnected")
    assert env.is_joined(legs[0])
    assert "second-caller" in {channel["id"] for channel in env.control.channels()}, "its call goes on"
    for leg in legs:
        env.end_one(leg)
    env.wait_empty()


def _state(env: Environment, source_id: int) -> Any:
    return env.pipeline.value("SELECT state FROM ari.connections WHERE source_id = %s", source_id)


def test_a_leg_that_the_platform_originates_names_no_user(env: Environment) -> None:
    run_id = waiting_run(env)
    leg = env.dial(answered=True, args=[f"workflow_run_id={run_id},workflow_id={env.tenant.workflow_id}"])
    env.wait_state(leg, "connected")
    assert env.run(leg)["id"] == run_id
    (query,) = media_queries(env)
    assert query["organization_id"] == str(env.tenant.organization_id)
    env.end(leg)


def test_a_leg_of_the_platform_that_is_not_answered_ends_its_run(env: Environment) -> None:
    run_id, leg = waiting_run(env), f"platform-{env.tenant.organization_id}"
    said = f"workflow_run_id={run_id},workflow_id={env.tenant.workflow_id}"
    env.rest("POST", "/channels", endpoint="Local/busy@far", app=APP, appArgs=said, channelId=leg, timeout="1")
    env.pipeline.query(
        "UPDATE workflow_runs SET gathered_context = %s WHERE id = %s RETURNING 1",
        json.dumps({"provider": "ari", "call_id": leg}),
        run_id,
    )
    assert only_call(env, "ended")["outcome"] == "busy"
    assert run_row(env, run_id)["is_completed"]


def test_our_own_outbound_call_is_dialled_by_its_configuration(env: Environment, configuration_id: int) -> None:
    env.tenant.configure(env.asterisk.url, dial_string_template=LOCAL["ari_dial_template"])
    request_call(env, "100")
    call = only_call(env, "connected")
    assert run_row(env, call["workflow_run_id"])["initial_context"]["telephony_configuration_id"] == configuration_id
    env.end(call["channel_id"])


def test_arictl_adds_lists_and_removes_a_configuration(env: Environment) -> None:
    organization = str(env.tenant.organization_id)
    added = arictl(
        env, "connection", "add", "--organization", organization, "--endpoint", env.asterisk.url, "--app", APP,
        "--stasis-app", "third", "--ws-client", "media", "--workflow", str(env.tenant.workflow_id), "--name", "third",
        "--from-number", "+49 30 123456", ARI_PASSWORD="x",
    )  # fmt: skip
    assert added.returncode == 0, added.stderr
    listed = arictl(env, "connection", "list")
    assert " third " in listed.stdout or "1 not connected yet" in listed.stdout
    ambiguous = arictl(env, "connection", "remove", "--organization", organization)
    assert (ambiguous.returncode != 0, "--name" in ambiguous.stderr) == (True, True)
    removed = arictl(env, "connection", "remove", "--organization", organization, "--name", "third")
    assert removed.returncode == 0, removed.stderr


def test_a_configuration_without_a_websocket_client_is_inactive_until_it_is_reactivated(
    env: Environment, configuration_id: int
) -> None:
    query = "SELECT inactive, inactive_reason FROM telephony_configurations WHERE id = %s"
    env.tenant.configure(env.asterisk.url, ws_client_name="")
    env.until(lambda: env.pipeline.query(query, configuration_id)[0]["inactive"], seconds=5, what="it is inactive")
    assert env.pipeline.query(query, configuration_id)[0]["inactive_reason"].startswith("ari-missing-ws-client-name: ")
    env.until(lambda: not env.pipeline.connected(env.asterisk.url), seconds=10, what="its socket is closed")
    env.pipeline.execute(
        "UPDATE telephony_configurations SET inactive = false, inactive_since = NULL, inactive_reason = NULL"
        " WHERE id = %s",
        configuration_id,
    )
    env.tenant.configure(env.asterisk.url)
    env.until(lambda: env.pipeline.connected(env.asterisk.url), seconds=15, what="it is taken up")
    (leg,) = env.connect()
    env.end(leg)
