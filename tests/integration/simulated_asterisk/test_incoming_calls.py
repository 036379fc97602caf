"""The simulated Asterisk serves incoming and originated calls as a real one was measured to do."""

import time

import pytest

from simulator.testing import SimulatedAsterisk
from tests.integration.simulated_asterisk.clients import (
    Ari,
)


def test_caller_rings_and_enters_the_app_with_its_arguments(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        caller = asterisk.control.dial("app", caller="+4930", called="200", args=["a=1", "b=2"])
        start = events.next("StasisStart", caller)
        channel = start["channel"]
        assert (start["application"], start["args"]) == ("app", ["a=1", "b=2"])
        assert channel["state"] == "Ring"
        assert channel["caller"]["number"] == "+4930"
        assert channel["dialplan"] == {
            "context": "inbound",
            "exten": "200",
            "priority": 1,
            "app_name": "Stasis",
            "app_data": "app,a=1,b=2",
        }
        assert ari.get(f"/channels/{caller}") == channel
        assert [found["id"] for found in ari.get("/channels")] == [caller]
        assert time.strptime(channel["creationtime"][:19], "%Y-%m-%dT%H:%M:%S")
        assert channel["creationtime"].endswith("+0000")


def test_a_second_answer_changes_nothing(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        caller = asterisk.control.dial("app")
        events.next("StasisStart", caller)
        assert ari.status("POST", f"/channels/{caller}/answer") == 204
        assert events.next("ChannelStateChange", caller)["channel"]["state"] == "Up"
        assert ari.status("POST", f"/channels/{caller}/answer") == 204
        assert events.rest() == ["StasisStart", "ChannelStateChange"]


def test_hang_up_tells_the_cause_first_and_then_the_end(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        caller = asterisk.control.dial("app")
        events.next("StasisStart", caller)
        events.seen.clear()
        asterisk.control.hang_up(caller, cause=17)
        request = events.next("ChannelHangupRequest", caller)
        assert next(iter(request)) == "cause"
        assert request["cause"] == 17
        assert "cause" not in events.next("StasisEnd", caller)
        assert events.rest() == ["ChannelHangupRequest", "StasisEnd"]
        assert ari.refusal("GET", f"/channels/{caller}") == (404, "Channel not found")


def test_deleted_caller_is_gone_and_leaves_the_app(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        caller = asterisk.control.dial("app")
        events.next("StasisStart", caller)
        assert ari.status("DELETE", f"/channels/{caller}", reason="nonsense") == 400
        assert ari.status("DELETE", f"/channels/{caller}", reason="congestion") == 204
        request = events.next("ChannelHangupRequest", caller)
        assert (request["cause"], request["soft"]) == (32, True)
        events.next("StasisEnd", caller)
        assert ari.status("DELETE", f"/channels/{caller}") == 404


def test_caller_who_continues_lives_on_and_may_come_back(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        caller = asterisk.control.dial("app")
        first = events.next("StasisStart", caller)
        assert ari.status("POST", f"/channels/{caller}/continue", context="far", extension="wait") == 204
        events.next("StasisEnd", caller)
        outside = ari.get(f"/channels/{caller}")
        assert outside["dialplan"]["app_name"] == "Wait"
        assert ari.get("/applications/app")["channel_ids"] == []
        assert ari.refusal("POST", f"/channels/{caller}/answer") == (409, "Channel not in Stasis application")
        asterisk.control.reenter(caller, "app", ["again"])
        second = events.next("StasisStart", caller)
        assert second["args"] == ["again"]
        assert second["channel"]["creationtime"] == first["channel"]["creationtime"]
        asterisk.control.continue_in_dialplan(caller)
        events.next("StasisEnd", caller)
        assert ari.status("DELETE", f"/channels/{caller}") == 204
        assert events.rest() == ["StasisStart", "StasisEnd", "StasisStart", "StasisEnd"]
        assert ari.status("GET", f"/channels/{caller}") == 404


def test_local_originate_brings_an_inbound_call(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        made = ari.call(
            "POST",
            "/channels",
            endpoint="Local/5551234@inbound",
            context="far",
            extension="wait",
            priority="1",
            channelId="X",
            otherChannelId="Y",
        )
        assert made.json()["id"] == "X"
        start = events.next("StasisStart")
        assert (start["channel"]["id"], start["channel"]["state"]) == ("Y", "Ring")
        assert start["channel"]["dialplan"]["exten"] == "5551234"
        assert ari.status("DELETE", "/channels/X") == 204
        events.next("StasisEnd", "Y")
        assert asterisk.control.channels() == []


def test_answered_originate_enters_stasis_and_tells_all_of_its_end(ari: Ari) -> None:
    with ari.events() as events:
        query = {"endpoint": "PJSIP/100", "app": "app", "appArgs": "k=v,l=w"}
        assert ari.status("POST", "/channels", channelId="o1", **query) == 200
        assert ari.status("POST", "/channels", channelId="o1", **query) == 409
        assert ari.get("/applications/app")["channel_ids"] == ["o1"]
        start = events.next("StasisStart", "o1")
        assert start["args"] == ["k=v", "l=w"]
        assert [e["dialstatus"] for e in events.seen if e["type"] == "Dial"] == ["", "RINGING", "ANSWER"]
        events.seen.clear()
        assert ari.status("DELETE", "/channels/o1") == 204
        events.next("ChannelDestroyed", "o1")
        assert events.rest() == ["ChannelHangupRequest", "StasisEnd", "ChannelDestroyed"]


@pytest.mark.parametrize(
    ("extension", "status", "cause"), [("busy", "BUSY", 0), ("congestion", "CONGESTION", 0), ("ring", "RINGING", 19)]
)
def test_unanswered_originate_never_enters_stasis(ari: Ari, extension: str, status: str, cause: int) -> None:
    with ari.events() as events:
        ari.call("POST", "/channels", endpoint=f"Local/{extension}@far", app="app", channelId="o2", timeout="0.1")
        destroyed = events.next("ChannelDestroyed", "o2")
        dials = [event for event in events.seen if event["type"] == "Dial"]
        assert (dials[-1]["dialstatus"], dials[-1]["peer"]["id"]) == (status, "o2")
        assert destroyed["cause"] == cause
        assert "StasisStart" not in events.rest()
