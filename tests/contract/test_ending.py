"""The end of a call."""

import functools
import time

import pytest

from shared.call.states import Cause
from tests.contract import switches
from tests.contract.agent import ENDS, Agent
from tests.contract.event_sockets import until
from tests.contract.switches import Switch


def test_caller_hangs_up_and_everything_else_stays(switch: Switch, number: str, app: str, agent: Agent) -> None:
    with switch.events(app) as events:
        leg, media, bridge = switch.join(events, number)
        switch.hang_up_caller(leg)
        request = events.next("ChannelHangupRequest", leg)
        assert request["cause"] == 16
        assert "cause" not in request["channel"]
        # Of a leg of SIP there would be the code of an answer; a BYE has none.
        assert "tech_cause" not in request
        assert "cause" not in events.next("StasisEnd", leg)
        # No ChannelDestroyed: the app is not subscribed to a caller that has left it.
        assert events.types(seconds=0.5) == ["ChannelHangupRequest", "ChannelLeftBridge", "StasisEnd"]
        assert switch.get(f"/bridges/{bridge}")["channels"] == [media]
        assert switch.get(f"/channels/{media}")["state"] == "Up"
        assert agent.of(media)[0].is_open


def test_media_socket_closes_and_the_caller_stays_in_silence(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        leg, media, bridge = switch.join(events, number, "close=1")
        destroyed = events.next("ChannelDestroyed", media)
        assert (destroyed["cause"], destroyed["cause_txt"]) == (16, "Normal Clearing")
        assert destroyed["tech_cause"] == 1001
        ending = ["ChannelHangupRequest", "ChannelLeftBridge", "StasisEnd", "ChannelDestroyed"]
        assert events.types() == ending
        assert switch.get(f"/bridges/{bridge}")["channels"] == [leg]
        assert switch.get(f"/channels/{leg}")["state"] == "Up"


@pytest.mark.parametrize(
    ("end", "cause", "tech_cause"),
    [
        ("hangup", 16, 1000),
        ("close", 16, 1001),
        ("error", 16, 1001),
        ("4401", 16, 1001),
        ("4404", 16, 1001),
        ("4409", 16, 1001),
        ("eof", 38, 1001),
        ("half", 38, 1001),
        ("reset", 38, 1001),
        ("opcode", 38, 1003),
        ("garbage", 38, 1003),
    ],
)
def test_the_cause_tells_an_agent_that_was_lost_from_one_that_hung_up(
    switch: Switch, number: str, app: str, agent: Agent, *, end: str, cause: int, tech_cause: int
) -> None:
    """But not the code of its close frame. The StasisEnd, which comes in between, has no cause."""
    with switch.events(app) as events:
        _, media, _ = switch.join(events, number)
        ENDS[end](agent.of(media)[0].socket)
        request = events.next("ChannelHangupRequest", media)
        assert (request["cause"], request["tech_cause"], "soft" in request) == (cause, tech_cause, False)
        assert "cause" not in events.next("StasisEnd", media)
        destroyed = events.next("ChannelDestroyed", media)
        assert (destroyed["cause"], destroyed["tech_cause"]) == (cause, tech_cause)


def test_the_end_of_a_media_leg_that_was_deleted_tells_the_cause_it_was_deleted_with(
    switch: Switch, number: str, app: str
) -> None:
    """As its last event does: by it the listener knows an end that a teardown has asked for."""
    with switch.events(app) as events:
        _, media, _ = switch.join(events, number)
        assert switch.status("DELETE", f"/channels/{media}", reason_code=str(int(Cause.CALL_CLEARED))) == 204
        request = events.next("ChannelHangupRequest", media)
        assert (request["cause"], request["soft"]) == (32, True)
        assert "cause" not in events.next("StasisEnd", media)
        assert events.next("ChannelDestroyed", media)["cause"] == Cause.CALL_CLEARED


def test_delete_of_a_connecting_media_leg_waits_for_its_socket(
    switch: Switch, number: str, app: str, agent: Agent
) -> None:
    with switch.events(app) as events:
        # It may have connected before the request for it is answered, or the next one arrives: then another is taken.
        for media in (f"{number}-{attempt}" for attempt in range(5)):
            switch.external_media(media, app, "delay=0.3")
            until(functools.partial(agent.of, media))
            started = time.monotonic()
            assert switch.status("DELETE", f"/channels/{media}") == 204
            waited_seconds = time.monotonic() - started
            events.next("ChannelDestroyed", media)
            if waited_seconds > 0.1:
                break
        assert waited_seconds > 0.1
        # It even enters Stasis, before or after the ChannelHangupRequest.
        types = events.types(media)
        assert [kind for kind in types if kind.startswith("Stasis")] == ["StasisStart", "StasisEnd"]
        assert types.count("ChannelHangupRequest") == 1
        until(lambda: not agent.of(media)[0].is_open)


def test_delete_of_a_media_leg_that_cannot_connect_ends_with_the_last_attempt(
    switch: Switch, number: str, app: str
) -> None:
    with switch.events(app) as events:
        switch.external_media(number, app, external_host="unreachable")
        # It may lose the race against the end of the attempts.
        assert switch.status("DELETE", f"/channels/{number}") in (204, 404)
        assert events.next("ChannelDestroyed", number)["cause"] in (16, 3)
        assert switch.status("GET", f"/channels/{number}") == 404


def test_caller_who_continues_lives_on_until_deleted(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        leg = switch.ring(events, number)
        where = {"context": "far", "extension": "wait", "priority": "1"}
        assert switch.status("POST", f"/channels/{leg}/continue", **where) == 204
        events.next("StasisEnd", leg)
        dialplan = until(lambda: switch.get(f"/channels/{leg}")["dialplan"]["app_name"] == "Wait")
        assert dialplan
        assert switch.get(f"/applications/{app}")["channel_ids"] == []
        outside = (409, "Channel not in Stasis application")
        assert switch.refusal("POST", f"/channels/{leg}/answer") == outside
        assert switch.refusal("POST", f"/channels/{leg}/continue") == outside
        events.rest()
        assert switch.status("DELETE", f"/channels/{leg}") == 204
        assert events.types() == []
        assert switch.status("GET", f"/channels/{leg}") == 404


def test_caller_who_comes_back_keeps_id_and_creationtime(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        leg = switch.dial(number)
        first = events.next("StasisStart", leg)
        where = {"context": "args", "extension": number, "priority": "1"}
        assert switch.status("POST", f"/channels/{leg}/continue", **where) == 204
        events.next("StasisEnd", leg)
        second = events.next("StasisStart", leg)
        assert (first["args"], second["args"]) == ([], ["a=1", "b=2"])
        assert second["channel"]["creationtime"] == first["channel"]["creationtime"]
        assert switch.get(f"/applications/{app}")["channel_ids"] == [leg]


def test_caller_who_continues_without_a_context_is_hung_up_by_the_dialplan(
    switch: Switch, number: str, app: str
) -> None:
    with switch.events(app) as events:
        leg = switch.ring(events, number)
        assert switch.status("POST", f"/channels/{leg}/continue") == 204
        until(lambda: switch.status("GET", f"/channels/{leg}") == 404)
        assert events.types(leg) == ["StasisStart", "StasisEnd"]


def test_delete_of_a_channel_is_204_and_then_404(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        leg = switch.ring(events, number)
        invalid = (400, "Invalid reason for hangup reason provided")
        assert switch.refusal("DELETE", f"/channels/{leg}", reason="nonsense") == invalid
        assert switch.status("DELETE", f"/channels/{leg}") == 204
        events.next("StasisEnd", leg)
        until(lambda: switch.status("GET", f"/channels/{leg}") == 404)
        assert switch.refusal("DELETE", f"/channels/{leg}") == (404, "Channel not found")


def test_the_hangup_request_of_a_delete_has_cause_32_for_every_reason(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        switch.external_media(number, app)
        events.next("StasisStart", number)
        assert switch.status("DELETE", f"/channels/{number}", reason="congestion") == 204
        request = events.next("ChannelHangupRequest", number)
        assert (request["cause"], request["soft"]) == (32, True)
        destroyed = events.next("ChannelDestroyed", number)
        assert (destroyed["cause"], destroyed["cause_txt"]) == (34, "Circuit/channel congestion")


def test_delete_of_a_bridge_lets_its_channels_live(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        leg, media, bridge = switch.join(events, number)
        assert switch.status("DELETE", f"/bridges/{bridge}") == 204
        # The app gets no BridgeDestroyed: its subscription ended with its last leg.
        assert events.types() == ["ChannelLeftBridge", "ChannelLeftBridge"]
        assert switch.refusal("DELETE", f"/bridges/{bridge}") == (404, "Bridge not found")
        assert {leg, media} <= switch.channel_ids()
        until(lambda: switch.get(f"/applications/{app}")["bridge_ids"] == [])
        assert set(switch.get(f"/applications/{app}")["channel_ids"]) == {leg, media}


def test_a_404_names_what_is_missing(switch: Switch, number: str) -> None:
    assert switch.refusal("GET", "/channels/none") == (404, "Channel not found")
    assert switch.refusal("POST", "/channels/none/answer") == (404, "Channel not found")
    assert switch.refusal("POST", "/channels/none/continue") == (404, "Channel not found")
    assert switch.refusal("GET", "/bridges/none") == (404, "Bridge not found")
    assert switch.refusal("GET", "/applications/none") == (404, "Application not found")
    assert switch.refusal("POST", "/bridges/none/addChannel", channel="none") == (404, "Bridge not found")
    switch.call("POST", f"/bridges/{number}", type="mixing")
    assert switch.refusal("POST", f"/bridges/{number}/addChannel", channel="none") == (400, "Channel not found")
    assert switch.refusal("POST", f"/bridges/{number}/removeChannel", channel="none") == (400, "Channel not found")


def test_a_gone_channel_in_a_request_keeps_the_others_out(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        leg = switch.ring(events, number)
        switch.call("POST", f"/bridges/{number}", type="mixing")
        gone = (400, "Channel not found")
        assert switch.refusal("POST", f"/bridges/{number}/addChannel", channel=f"{leg},none") == gone
        assert switch.get(f"/bridges/{number}")["channels"] == []


def test_a_user_that_may_only_read_has_events_and_looks_and_can_remove_nothing(
    switch: Switch, number: str, app: str
) -> None:
    reader = {"user": switches.READER, "password": switches.READER_PASSWORD}
    with switch.events(app, user=switches.READER, password=switches.READER_PASSWORD) as events:
        leg = switch.ring(events, number)
        bridge = switch.call("POST", "/bridges", type="mixing", bridgeId=f"{number}-bridge").json()["id"]
        for method, path in (
            ("DELETE", f"/channels/{leg}"), ("DELETE", f"/channels/{number}-none"), ("POST", f"/channels/{leg}/answer"),
            ("DELETE", f"/bridges/{bridge}"), ("PUT", f"/applications/{app}/eventFilter"),
        ):  # fmt: skip
            denied = switch.call(method, path, **reader)
            assert (denied.status_code, denied.json()["message"]) == (403, "Write access denied"), method + path
        assert switch.call("GET", f"/channels/{leg}", **reader).json()["id"] == leg
        assert switch.call("GET", f"/bridges/{bridge}", **reader).json()["id"] == bridge
        switch.hang_up_caller(leg)
        events.next("StasisEnd", leg)
        until(lambda: switch.call("GET", f"/channels/{leg}", **reader).status_code == 404)
        assert switch.call("GET", f"/channels/{leg}", **reader).json()["message"] == "Channel not found"
        assert switch.status("DELETE", f"/bridges/{bridge}") == 204
        until(lambda: switch.call("GET", f"/bridges/{bridge}", **reader).status_code == 404)
