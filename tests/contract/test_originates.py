"""Originated calls."""

import pytest

from tests.contract.event_sockets import until
from tests.contract.switches import Switch

DESTROYED = "ChannelDestroyed"
REQUEST = "ChannelHangupRequest"


@pytest.mark.parametrize(
    ("far", "types", "statuses", "cause"),
    [
        ("busy", ["Dial", "Dial", DESTROYED], ["", "BUSY"], 0),
        ("congestion", ["Dial", "Dial", DESTROYED], ["", "CONGESTION"], 0),
        ("reject", ["Dial", REQUEST, "Dial", DESTROYED], ["", "NOANSWER"], 21),
        # A time-out has no Dial event.
        ("ring", ["Dial", "ChannelStateChange", "Dial", DESTROYED], ["", "RINGING"], 19),
    ],
)
def test_unanswered_originate_ends_in_channel_destroyed_alone(
    switch: Switch, number: str, *, far: str, types: list[str], statuses: list[str], cause: int
) -> None:
    app = f"app-{number}"
    with switch.events(app) as events:
        assert switch.originate(f"Local/{far}@far", app, number, timeout="1").status_code == 200
        destroyed = events.next(DESTROYED, number)
        dials = [event for event in events.seen if event["type"] == "Dial"]
        assert [dial["dialstatus"] for dial in dials] == statuses
        assert {(dial["peer"]["id"], dial["dialstring"]) for dial in dials} == {(number, f"{far}@far")}
        assert (destroyed["cause"], "cause" in destroyed["channel"]) == (cause, False)
        # Dialling and channel are reported independently; under load their order is random.
        seen = events.types(number)
        assert (sorted(seen), seen[-1]) == (sorted(types), types[-1])


def test_a_deleted_originate_that_rings_is_reported_as_not_answered(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        switch.originate("Local/ring@far", app, number, timeout="20")
        while events.next("Dial", number)["dialstatus"] != "RINGING":
            pass
        events.rest(0.1)
        assert switch.status("DELETE", f"/channels/{number}") == 204
        assert events.next(REQUEST, number)["cause"] == 32
        assert events.next("Dial", number)["dialstatus"] == "NOANSWER"
        assert events.next(DESTROYED, number)["cause"] == 16


@pytest.mark.parametrize(
    ("caller_id", "number_shown"),
    [
        ("+4930123", "+4930123"),
        ("<+4930123>", "+4930123"),
        ("<+49.30-12>", "+493012"),
        ("*31#49", "*31#49"),
        # A letter makes it a name, unless it stands in brackets.
        ("support", ""),
        ("12a", ""),
        ("1_2", ""),
        ("<support>", "support"),
        ("<1_2>", "1_2"),
    ],
)
def test_a_caller_id_is_a_number_in_brackets_and_otherwise_perhaps_a_name(
    switch: Switch, number: str, app: str, caller_id: str, number_shown: str
) -> None:
    with switch.events(app):
        made = switch.originate("Local/ring@far", app, number, callerId=caller_id)
        assert made.json()["caller"]["number"] == number_shown


def test_answered_originate_enters_stasis_with_its_arguments(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        switch.originate("Local/wait@far", app, number, appArgs="k=v,l=w")
        start = events.next("StasisStart", number)
        assert (start["args"], start["channel"]["state"]) == (["k=v", "l=w"], "Up")
        assert events.types(number) == ["Dial", "ChannelStateChange", "Dial", "StasisStart"]
        dialplan = switch.get(f"/channels/{number}")["dialplan"]
        assert (dialplan["app_name"], dialplan["app_data"]) == ("Stasis", f"{app},k=v,l=w")


def test_originated_leg_gets_all_three_events_of_its_end(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        switch.originate("Local/wait@far", app, number)
        events.next("StasisStart", number)
        events.rest()
        assert switch.status("DELETE", f"/channels/{number}") == 204
        assert events.next(DESTROYED, number)["cause"] == 16
        assert events.types(number) == [REQUEST, "StasisEnd", DESTROYED]


def test_the_app_gets_both_halves_of_a_local_originate(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        switch.originate("Local/ring@far", app, number, otherChannelId=f"{number};2")
        assert set(switch.get(f"/applications/{app}")["channel_ids"]) == {number, f"{number};2"}
        switch.call("DELETE", f"/channels/{number}")
        events.next(DESTROYED, f"{number};2")


def test_channel_that_picks_a_call_up_replaces_it(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        leg, other = switch.pick_up(events, number)
        start = events.next("StasisStart", other)
        assert (start["replace_channel"]["id"], start["args"]) == (leg, [])
        end = events.next("StasisEnd", leg)
        # It even takes over the creationtime, which its StasisStart still had differently.
        until(lambda: switch.get(f"/channels/{other}")["creationtime"] == end["channel"]["creationtime"])
        assert start["channel"]["creationtime"] != end["channel"]["creationtime"]
        assert switch.status("GET", f"/channels/{leg}") == 404
        assert switch.get(f"/applications/{app}")["channel_ids"] == [other]
        assert DESTROYED not in events.types(leg)


def test_originate_without_app_or_extension_is_refused(switch: Switch) -> None:
    answer = switch.refusal("POST", "/channels", endpoint="Local/wait@far")
    assert answer == (400, "Application or extension must be specified")
    assert switch.refusal("POST", "/channels", endpoint="nonsense", app="a") == (400, "Invalid endpoint specified")


def test_dialled_in_caller_is_a_ringing_inbound_call(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        leg = switch.dial(number, caller="+4915550001")
        channel = events.next("StasisStart", leg)["channel"]
        assert (channel["state"], channel["caller"]["number"]) == ("Ring", "+4915550001")
        assert (channel["dialplan"]["context"], channel["dialplan"]["exten"]) == ("inbound", number)
        switch.hang_up_caller(leg)
        events.next("StasisEnd", leg)
        until(lambda: leg not in switch.channel_ids())
