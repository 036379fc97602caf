"""Information about an Asterisk: version, modules, websocket clients."""

from tests.contract.agent import Agent
from tests.contract.switches import Switch

CLIENTS = "/asterisk/config/dynamic/res_websocket_client/websocket_client"


def test_the_version_is_available(switch: Switch) -> None:
    assert switch.get("/asterisk/info")["system"]["version"].startswith("22.")


def test_running_modules_are_listed(switch: Switch) -> None:
    running = {module["name"] for module in switch.get("/asterisk/modules") if module["status"] == "Running"}
    assert {"chan_websocket.so", "res_websocket_client.so", "app_stasis.so"} <= running
    assert switch.get("/asterisk/modules/chan_websocket.so")["status"] == "Running"
    unknown = (404, "Module could not be found in running modules")
    assert switch.refusal("GET", "/asterisk/modules/chan_nothing.so") == unknown


def test_websocket_clients_are_found_by_name(switch: Switch, agent: Agent) -> None:
    attributes = {entry["attribute"]: entry["value"] for entry in switch.get(f"{CLIENTS}/media")}
    assert attributes["uri"] == agent.url
    assert (attributes["protocols"], attributes["connection_type"]) == ("media", "per_call_config")
    assert switch.refusal("GET", f"{CLIENTS}/stranger") == (404, "Object with id 'stranger' not found")


def test_a_user_event_reaches_the_app_that_it_names(switch: Switch, app: str) -> None:
    with switch.events(app) as events:
        body = {"variables": {"a": "1"}}
        assert switch.call("POST", "/events/user/hello", body, application=app).status_code == 204
        event = events.next("ChannelUserevent")
        assert (event["eventname"], event["userevent"]) == ("hello", {"a": "1", "eventname": "hello"})
    gone = switch.call("POST", "/events/user/hello", body, application="none")
    assert (gone.status_code, gone.json()["message"]) == (404, "Application not found")
