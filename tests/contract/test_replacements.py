"""Channels that take the place of a leg, and legs that are taken out of Stasis: transfers, pick-ups, moves by a PBX."""

from tests.contract.conftest import ONLY_REAL
from tests.contract.event_sockets import about, until
from tests.contract.switches import Switch

ENDS = {"ChannelHangupRequest", "StasisEnd", "ChannelDestroyed"}


def test_a_leg_that_is_transferred_is_replaced_in_its_bridge(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        leg, media, bridge = switch.join(events, number)
        switch.transfer(leg)
        start = events.next("StasisStart")
        new = start["channel"]
        assert (start["args"], start["replace_channel"]["id"], new["state"]) == ([], leg, "Down")
        assert new["creationtime"] != start["replace_channel"]["creationtime"]
        assert new["dialplan"]["app_data"] == app
        until(lambda: set(switch.get(f"/bridges/{bridge}")["channels"]) == {new["id"], media})
        until(lambda: switch.get(f"/channels/{new['id']}")["state"] == "Up")
        assert switch.get(f"/channels/{new['id']}")["creationtime"] == new["creationtime"]


def test_the_leg_of_the_party_that_transfers_stays_up_and_ends_in_a_stasis_end_alone(
    switch: Switch, number: str, app: str
) -> None:
    with switch.events(app) as events:
        leg, media, _ = switch.join(events, number)
        switch.transfer(leg)
        new = events.next("StasisStart")["channel"]["id"]
        events.rest()
        old = switch.get(f"/channels/{leg}")
        # It shows the app still, which lists it no more.
        assert (old["state"], old["dialplan"]["app_name"]) == ("Up", "Stasis")
        assert set(switch.get(f"/applications/{app}")["channel_ids"]) == {new, media}
        switch.hang_up_caller(leg)
        assert events.types(leg) == ["StasisEnd"]
        until(lambda: leg not in switch.channel_ids())


def test_the_leg_that_came_by_a_transfer_ends_as_any_other(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        leg, _, _ = switch.join(events, number)
        switch.transfer(leg)
        new = events.next("StasisStart")["channel"]["id"]
        events.rest()
        assert switch.status("DELETE", f"/channels/{new}") == 204
        told = [event["type"] for event in events.rest() if about(event) == new and event["type"] in ENDS]
        assert told == ["ChannelHangupRequest", "StasisEnd"]


def test_a_media_leg_that_is_transferred_stays_up(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        leg, media, bridge = switch.join(events, number)
        switch.transfer(media)
        start = events.next("StasisStart")
        assert start["replace_channel"]["id"] == media
        new = start["channel"]["id"]
        until(lambda: set(switch.get(f"/bridges/{bridge}")["channels"]) == {leg, new})
        assert switch.get(f"/channels/{media}")["state"] == "Up"
        assert set(switch.get(f"/applications/{app}")["channel_ids"]) == {leg, media, new}
        events.rest()
        assert switch.status("DELETE", f"/channels/{media}") == 204
        assert "StasisEnd" in events.types(media)


@ONLY_REAL
def test_a_leg_that_is_sent_into_the_dialplan_by_ami_leaves_stasis(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        leg, media, _ = switch.join(events, number)
        switch.act("Redirect", channel=switch.name(leg), context="outbound", exten="1002", priority="1")
        events.next("StasisEnd", leg)
        assert "ChannelHangupRequest" not in events.types(leg)
        until(lambda: switch.get(f"/channels/{leg}")["dialplan"]["app_name"] == "Wait")
        assert switch.get(f"/applications/{app}")["channel_ids"] == [media]


@ONLY_REAL
def test_a_leg_that_is_bridged_with_another_channel_leaves_stasis_and_shows_it_still(
    switch: Switch, number: str, app: str
) -> None:
    with switch.events(app) as events:
        leg, media, _ = switch.join(events, number)
        other = switch.dial("1002", context="outbound")
        until(lambda: switch.get(f"/channels/{other}")["state"] == "Up")
        switch.act("Bridge", channel1=switch.name(leg), channel2=switch.name(f"far-{other}"))
        events.next("StasisEnd", leg)
        assert "ChannelHangupRequest" not in events.types(leg)
        shown = switch.get(f"/channels/{leg}")
        assert (shown["state"], shown["dialplan"]["app_name"]) == ("Up", "Stasis")
        assert switch.get(f"/applications/{app}")["channel_ids"] == [media]


@ONLY_REAL
def test_a_channel_that_picks_a_dialled_leg_up_brings_its_arguments(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        whole = {"endpoint": "Local/ring@far", "app": app, "channelId": number, "appArgs": "a=1", "formats": "ulaw"}
        switch.call("POST", "/channels", {"variables": {"PICKUPMARK": number}}, **whole)
        while events.next("Dial", number)["dialstatus"] != "RINGING":
            pass
        other = f"{number}-other"
        switch.administrator.dial("pickup", called=number, channel_id=other)
        start = events.next("StasisStart", other)
        assert start["args"] == ["a=1"]
        assert "replace_channel" not in start
        # In either order.
        (destroyed,) = [
            event for event in events.rest() if event["type"] == "ChannelDestroyed" and about(event) == number
        ]
        assert destroyed["cause"] == 26
