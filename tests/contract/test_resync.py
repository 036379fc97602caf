"""The state of apps and channels over REST, for a client that has missed events."""

from urllib.parse import quote

import pytest

from shared.asterisk.events import parse_channel
from tests.contract.conftest import MakeSwitch
from tests.contract.event_sockets import until
from tests.contract.switches import Switch


def test_an_app_exists_while_it_has_a_socket_or_a_channel(switch: Switch, number: str, app: str) -> None:
    assert switch.refusal("GET", f"/applications/{app}") == (404, "Application not found")
    with switch.events(app) as events:
        assert switch.get(f"/applications/{app}")["channel_ids"] == []
        leg = switch.ring(events, number)
    assert switch.get(f"/applications/{app}")["channel_ids"] == [leg]
    switch.hang_up_caller(leg)
    until(lambda: not switch.is_connected(app))


def test_application_lists_channels_and_bridges_but_no_empty_bridge(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        switch.call("POST", f"/bridges/{number}-empty", type="mixing")
        assert switch.get(f"/applications/{app}")["bridge_ids"] == []
        leg, media, bridge = switch.join(events, number)
        listed = switch.get(f"/applications/{app}")
        assert (set(listed["channel_ids"]), listed["bridge_ids"]) == ({leg, media}, [bridge])


def test_application_lists_a_media_leg_that_is_still_down(switch: Switch, number: str, app: str) -> None:
    with switch.events(app):
        switch.external_media(number, app, "delay=0.3")
        assert switch.get(f"/applications/{app}")["channel_ids"] == [number]


def test_legs_removed_from_a_bridge_stay_listed_and_the_bridge_does_not(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        leg, media, bridge = switch.join(events, number)
        assert switch.status("POST", f"/bridges/{bridge}/removeChannel", channel=f"{leg},{media}") == 204
        until(lambda: switch.get(f"/applications/{app}")["bridge_ids"] == [])
        assert set(switch.get(f"/applications/{app}")["channel_ids"]) == {leg, media}
        again = switch.refusal("POST", f"/bridges/{bridge}/removeChannel", channel=leg)
        assert again == (422, "Channel not in this bridge")


def test_bridge_whose_legs_ended_in_it_stays_listed_until_deleted(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        leg, media, bridge = switch.join(events, number)
        switch.hang_up_caller(leg)
        events.next("StasisEnd", leg)
        switch.call("DELETE", f"/channels/{media}")
        events.next("StasisEnd", media)
        until(lambda: switch.get(f"/applications/{app}")["channel_ids"] == [])
        assert switch.get(f"/applications/{app}")["bridge_ids"] == [bridge]
        assert switch.status("DELETE", f"/bridges/{bridge}") == 204
        events.next("BridgeDestroyed")
        until(lambda: switch.get(f"/applications/{app}")["bridge_ids"] == [])


def test_application_outlives_its_socket_once_a_leg_ended_in_a_bridge(switch: Switch, number: str, app: str) -> None:
    """It can: of some 300 times that a real Asterisk was asked, it had removed the app once."""
    for attempt in range(3):
        bridge = f"{number}-{attempt}"
        with switch.events(app) as events:
            leg = switch.ring(events, number)
            switch.call("POST", f"/bridges/{bridge}", type="mixing")
            assert switch.status("POST", f"/bridges/{bridge}/addChannel", channel=leg) == 204
            events.next("ChannelEnteredBridge", leg)
            switch.hang_up_caller(leg)
            events.next("StasisEnd", leg)
        answer = switch.call("GET", f"/applications/{app}")
        if answer.status_code == 200:
            break
    assert (answer.json()["channel_ids"], answer.json()["bridge_ids"]) == ([], [bridge])


@pytest.mark.parametrize("leaves", ["hangs up", "continues"])
def test_the_app_lists_no_channel_that_is_gone_or_was_sent_elsewhere(
    switch: Switch, number: str, app: str, leaves: str
) -> None:
    """So a 404 for a channel that it lists is about another one."""
    with switch.events(app) as events:
        leg = switch.ring(events, number)
        assert switch.get(f"/applications/{app}")["channel_ids"] == [leg]
        if leaves == "continues":
            assert switch.status("POST", f"/channels/{leg}/continue", context="far", extension="wait") == 204
            until(lambda: switch.get(f"/applications/{app}")["channel_ids"] == [])
        switch.hang_up_caller(leg)
        until(lambda: switch.status("GET", f"/channels/{leg}") == 404)
        assert switch.get(f"/applications/{app}")["channel_ids"] == []


def test_get_of_a_channel_has_app_arguments_and_creationtime(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        leg = switch.dial(number, context="args")
        start = events.next("StasisStart", leg)
        found = switch.get(f"/channels/{leg}")
        assert (found["dialplan"]["app_name"], found["dialplan"]["app_data"]) == ("Stasis", f"{app},a=1,b=2")
        assert found["creationtime"] == start["channel"]["creationtime"]
        assert start["args"] == ["a=1", "b=2"]


@pytest.mark.parametrize("context", ["escaped", "quoted"])
def test_escaped_or_quoted_argument_list_is_one_argument(switch: Switch, number: str, app: str, context: str) -> None:
    with switch.events(app) as events:
        leg = switch.dial(number, context=context)
        start = events.next("StasisStart", leg)
        assert start["args"] == ["a=1,b=2"]
        written = "a=1\\,b=2" if context == "escaped" else '"a=1,b=2"'
        assert start["channel"]["dialplan"]["app_data"] == f"{app},{written}"


@pytest.mark.parametrize(("context", "args"), [("bracketed", ["(a=1,b=2)", "[c,d]"]), ("quoted-app", ["a\\b)]", "c"])])
def test_the_product_takes_app_data_apart_as_asterisk_does(
    switch: Switch, number: str, app: str, context: str, args: list[str]
) -> None:
    with switch.events(app) as events:
        leg = switch.dial(number, context=context)
        assert events.next("StasisStart", leg)["args"] == args
        found = parse_channel(switch.get(f"/channels/{leg}"))
        assert (found.stasis_app, found.stasis_args) == (app, tuple(args))


def test_resource_not_found_is_a_wrong_path_and_not_a_channel(switch: Switch) -> None:
    assert switch.refusal("GET", "/nothing") == (404, "Resource not found")
    assert switch.refusal("GET", "/channels/none/nothing") == (404, "Resource not found")


def test_resource_not_found_is_answered_for_a_live_channel_when_the_module_is_gone(make_switch: MakeSwitch) -> None:
    switch = make_switch()
    with switch.events("app-5550001") as events:
        leg = switch.ring(events, "5550001")
        switch.unload_channels()
        assert switch.refusal("GET", f"/channels/{leg}") == (404, "Resource not found")
        assert switch.refusal("DELETE", f"/channels/{leg}") == (404, "Resource not found")
        assert switch.get("/applications/app-5550001")["channel_ids"] == [leg]


def test_ids_with_slashes_and_percent_signs_are_one_quoted_segment(switch: Switch, number: str, app: str) -> None:
    wild = f"{number}/b?c#d%2F%e"
    with switch.events(app) as events:
        switch.dial(number, channel_id=wild)
        assert events.next("StasisStart")["channel"]["id"] == wild
        assert switch.get(f"/channels/{quote(wild, safe='')}")["id"] == wild
        assert switch.status("DELETE", f"/channels/{quote(wild, safe='')}") == 204
        events.next("StasisEnd", wild)
