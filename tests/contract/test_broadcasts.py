"""Calls that `StasisBroadcast` offers to several apps."""

from tests.contract.event_sockets import until
from tests.contract.switches import Switch


def claim(switch: Switch, leg: str, app: str) -> int:
    return switch.status("POST", "/events/claim", channelId=leg, application=app)


def test_call_is_offered_to_every_app_whose_name_matches(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as one, switch.events(f"{app}-b") as two, switch.events(f"x{app}") as other:
        leg = switch.dial(number, context="broadcast", caller="+4915550001")
        for events in (one, two):
            offer = events.next("CallBroadcast", leg)
            assert (offer["caller"], offer["called"]) == ("+4915550001", number)
            assert offer["channel"]["dialplan"]["app_name"] == "StasisBroadcast"
        assert switch.get(f"/channels/{leg}")["state"] == "Ring"
        # An offer does not subscribe the app.
        assert switch.get(f"/applications/{app}")["channel_ids"] == []
        assert other.types() == []


def test_first_claim_gets_the_call_and_later_ones_are_conflicts(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as one, switch.events(f"{app}-b") as two:
        leg = switch.dial(number, context="broadcast")
        two.next("CallBroadcast", leg)
        assert claim(switch, leg, f"{app}-b") == 204
        assert claim(switch, leg, app) == 409
        start = two.next("StasisStart", leg)
        assert start["args"] == []
        # Not `Stasis`, though it is in Stasis.
        dialplan = switch.get(f"/channels/{leg}")["dialplan"]
        assert (dialplan["app_name"], dialplan["app_data"]) == ("StasisBroadcast", f"1000,^app-{number}")
        again = switch.refusal("POST", "/events/claim", channelId=leg, application=f"{app}-b")
        assert again == (409, "Channel has already been claimed by another application")
        assert one.types() == ["CallBroadcast"]
        assert switch.status("POST", f"/channels/{leg}/continue") == 204
        two.next("StasisEnd", leg)
        until(lambda: claim(switch, leg, app) == 404)


def test_unclaimed_call_continues_in_the_dialplan(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        leg = switch.dial(number, context="broadcast")
        until(lambda: leg not in switch.channel_ids())
        assert events.types() == ["CallBroadcast"]
    gone = (404, "Channel not found or not in broadcast state")
    assert switch.refusal("POST", "/events/claim", channelId=leg, application=app) == gone


def test_claim_for_an_app_without_a_socket_wins_and_the_call_is_lost(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        leg = switch.dial(number, context="broadcast")
        events.next("CallBroadcast", leg)
        assert claim(switch, leg, f"never-{number}") == 204
        until(lambda: leg not in switch.channel_ids(), 0.8)
        assert events.types() == ["CallBroadcast"]


def test_claim_needs_a_channel_and_an_app(switch: Switch, app: str) -> None:
    assert switch.status("POST", "/events/claim", channelId="none") == 400
    assert switch.status("POST", "/events/claim", application=app) == 400
