"""Legs that other programs make in an app, or move between apps."""

from tests.contract.event_sockets import until
from tests.contract.switches import Switch


def test_a_created_leg_is_in_stasis_before_it_is_dialled(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        made = switch.call(
            "POST", "/channels/create", endpoint="Local/wait@far", app=app, channelId=number, formats="ulaw"
        )
        assert (made.status_code, made.json()["state"]) == (200, "Down")
        start = events.next("StasisStart", number)
        assert (start["args"], start["channel"]["state"]) == ([], "Down")
        assert events.types(number) == ["StasisStart"]
        assert switch.status("POST", f"/channels/{number}/dial") == 204
        while events.next("Dial", number)["dialstatus"] != "ANSWER":
            pass
        # It is answered, and does not enter again.
        assert "StasisStart" not in events.types(number)
        channel = switch.get(f"/channels/{number}")
        assert (channel["state"], channel["dialplan"]["app_name"]) == ("Up", "Stasis")
        assert switch.status("DELETE", f"/channels/{number}") == 204
        events.next("ChannelDestroyed", number)
        assert events.types(number) == ["ChannelHangupRequest", "StasisEnd", "ChannelDestroyed"]


def test_a_created_leg_that_rings_shows_it(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        switch.call("POST", "/channels/create", endpoint="Local/ring@far", app=app, channelId=number, formats="ulaw")
        events.next("StasisStart", number)
        assert switch.status("POST", f"/channels/{number}/dial") == 204
        while events.next("Dial", number)["dialstatus"] != "RINGING":
            pass
        assert switch.get(f"/channels/{number}")["state"] == "Ringing"


def test_a_moved_caller_ends_in_one_app_and_starts_in_the_other(switch: Switch, number: str, app: str) -> None:
    other = f"{app}-other"
    with switch.events(app) as events, switch.events(other) as others:
        leg = switch.ring(events, number, context="args")
        assert switch.status("POST", f"/channels/{leg}/move", app=other, appArgs="x=1,y") == 204
        events.next("StasisEnd", leg)
        start = others.next("StasisStart", leg)
        assert start["args"] == ["x=1", "y"]
        # The dialplan still shows the app that it entered by Stasis().
        assert start["channel"]["dialplan"]["app_data"] == f"{app},a=1,b=2"
        assert switch.get(f"/channels/{leg}")["dialplan"]["app_data"] == f"{app},a=1,b=2"
        assert switch.get(f"/applications/{app}")["channel_ids"] == []
        assert switch.get(f"/applications/{other}")["channel_ids"] == [leg]
        events.rest()
        switch.hang_up_caller(leg)
        others.next("StasisEnd", leg)
        assert events.types(leg) == []


def test_a_caller_moved_to_its_own_app_leaves_and_enters(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        leg = switch.ring(events, number)
        events.rest()
        assert switch.status("POST", f"/channels/{leg}/move", app=app) == 204
        assert events.types(leg) == ["StasisEnd", "StasisStart"]
        assert switch.get(f"/applications/{app}")["channel_ids"] == [leg]


def test_a_moved_caller_stays_in_its_bridge(switch: Switch, number: str, app: str) -> None:
    other = f"{app}-other"
    with switch.events(app) as events, switch.events(other) as others:
        leg, media, bridge = switch.join(events, number)
        assert switch.status("POST", f"/channels/{leg}/move", app=other) == 204
        others.next("StasisStart", leg)
        events.next("StasisEnd", leg)
        assert "ChannelLeftBridge" not in events.types(leg)
        assert set(switch.get(f"/bridges/{bridge}")["channels"]) == {leg, media}
        assert switch.status("DELETE", f"/channels/{media}") == 204
        assert switch.status("DELETE", f"/bridges/{bridge}") == 204
        assert switch.get(f"/channels/{leg}")["state"] == "Up"


def test_a_caller_moved_to_an_app_that_is_not_connected_stays(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        leg = switch.ring(events, number)
        assert switch.status("POST", f"/channels/{leg}/move", app=f"{app}-none") == 204
        events.next("ApplicationMoveFailed", leg)
        assert "StasisEnd" not in events.types(leg)
        assert switch.get(f"/applications/{app}")["channel_ids"] == [leg]


def test_the_app_that_a_leg_was_originated_for_lists_it_wherever_it_goes(switch: Switch, number: str, app: str) -> None:
    other = f"{app}-other"
    with switch.events(app) as events, switch.events(other) as others:
        switch.originate("Local/wait@far", app, number)
        events.next("StasisStart", number)
        assert switch.status("POST", f"/channels/{number}/move", app=other) == 204
        others.next("StasisStart", number)
        assert number in switch.get(f"/applications/{app}")["channel_ids"]
        assert number in switch.get(f"/applications/{other}")["channel_ids"]
        where = {"context": "far", "extension": "wait", "priority": "1"}
        assert switch.status("POST", f"/channels/{number}/continue", **where) == 204
        others.next("StasisEnd", number)
        until(lambda: switch.get(f"/channels/{number}")["dialplan"]["app_name"] == "Wait")
        assert number in switch.get(f"/applications/{app}")["channel_ids"]
        assert switch.get(f"/applications/{other}")["channel_ids"] == []
