"""Calls to an app without an event socket."""

from tests.contract.event_sockets import until
from tests.contract.switches import Switch


def test_plain_dialplan_continues_at_once_without_a_socket(switch: Switch, number: str) -> None:
    leg = switch.dial(number, context="inbound-plain")
    until(lambda: leg not in switch.channel_ids(), 1.0)


def test_recommended_dialplan_lets_the_caller_ring_until_a_socket_is_there(
    switch: Switch, number: str, app: str
) -> None:
    leg = switch.dial(number)
    until(lambda: switch.get(f"/channels/{leg}")["dialplan"]["app_name"] == "Wait")
    assert switch.get(f"/channels/{leg}")["state"] == "Ring"
    with switch.events(app) as events:
        assert events.next("StasisStart", leg)["channel"]["state"] == "Ring"


def test_recommended_dialplan_enters_stasis_at_once_with_a_socket(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        events.next("StasisStart", switch.dial(number), seconds=1.0)
