"""TALK_DETECT, by which Asterisk tells of each party that sends audio."""

import pytest

from tests.contract.event_sockets import about
from tests.contract.switches import Switch

#: A day of silence, after which a party would count as silent again.
DAY = "86400000"


@pytest.mark.parametrize(("treatment", "is_heard"), [("tone=400", True), ("", False)])
def test_a_media_leg_is_told_once_when_the_agent_sends_audio(
    switch: Switch, number: str, app: str, treatment: str, *, is_heard: bool
) -> None:
    with switch.events(app) as events:
        _, media, _ = switch.join(events, number, treatment)
        for _ in range(2):
            status = switch.status("POST", f"/channels/{media}/variable", variable="TALK_DETECT(set)", value=DAY)
            assert status == 204
        told = [event for event in events.rest(0.6) if event["type"] == "ChannelTalkingStarted"]
        assert [about(event) for event in told] == ([media] if is_heard else [])


@pytest.mark.parametrize(("far", "is_heard"), [("play400", True), ("wait", False)])
def test_a_caller_is_told_once_when_it_sends_audio(
    switch: Switch, number: str, app: str, far: str, *, is_heard: bool
) -> None:
    with switch.events(app) as events:
        leg, _, _ = switch.join(events, number, far=far)
        status = switch.status("POST", f"/channels/{leg}/variable", variable="TALK_DETECT(set)", value=DAY)
        assert status == 204
        told = [event for event in events.rest(0.6) if event["type"] == "ChannelTalkingStarted"]
        assert [about(event) for event in told] == ([leg] if is_heard else [])


def test_without_the_function_nothing_is_told(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        switch.join(events, number, "tone=400", far="play400")
        assert "ChannelTalkingStarted" not in events.types(seconds=0.5)


def test_a_leg_that_is_gone_is_refused(switch: Switch, number: str, app: str) -> None:
    refused = switch.refusal("POST", f"/channels/{number}/variable", variable="TALK_DETECT(set)", value=DAY)
    assert refused == (404, "Channel not found")
