"""The simulated Asterisk delivers events to event sockets as a real one was measured to do."""

from simulator.testing import SimulatedAsterisk
from tests.integration.simulated_asterisk.clients import (
    Ari,
    joined_call,
    until,
)


def test_newer_socket_replaces_the_older_without_a_gap(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as older, Ari(asterisk.url, "other", "secret").events() as newer:
        assert older.next("ApplicationReplaced")["application"] == "app"
        caller = asterisk.control.dial("app")
        newer.next("StasisStart", caller)
        older.seen.clear()
        assert older.rest() == []
        assert older.socket.ping().wait(2)
        assert [socket["is_hearing"] for socket in asterisk.control.sockets("app")] == [False, True]


def test_socket_serves_several_apps(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events("a,b") as events:
        for app in ("a", "b"):
            assert events.next("StasisStart", asterisk.control.dial(app))["application"] == app


def test_without_a_socket_calls_stay_and_events_are_lost(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        stays, goes = asterisk.control.dial("app"), asterisk.control.dial("app")
        events.next("StasisStart", stays)
        events.next("StasisStart", goes)
    until(lambda: not asterisk.control.sockets("app"))
    asterisk.control.hang_up(goes)
    assert ari.status("POST", f"/channels/{stays}/answer") == 204
    assert ari.get("/applications/app")["channel_ids"] == [stays]
    with ari.events() as events:
        assert events.rest() == []
        asterisk.control.hang_up(stays)
        events.next("StasisEnd", stays)


def test_the_recommended_dialplan_waits_for_the_app_and_the_plain_one_hangs_up(
    asterisk: SimulatedAsterisk, ari: Ari
) -> None:
    recommended = asterisk.control.dial("app")
    plain = asterisk.control.dial("app", dialplan="plain")
    until(lambda: asterisk.control.channel(plain) is None)
    waiting = until(lambda: asterisk.control.channel(recommended))
    assert (waiting["state"], waiting["app"]) == ("Ring", None)
    with ari.events() as events:
        assert events.next("StasisStart", recommended)["channel"]["state"] == "Ring"
        assert [channel["id"] for channel in ari.get("/channels")] == [recommended]


def test_application_lives_as_long_as_it_has_a_socket_or_a_channel(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        assert ari.get("/applications/app")["channel_ids"] == []
        caller = asterisk.control.dial("app")
        events.next("StasisStart", caller)
    until(lambda: not asterisk.control.sockets("app"))
    assert ari.get("/applications/app")["channel_ids"] == [caller]
    asterisk.control.hang_up(caller)
    assert ari.refusal("GET", "/applications/app") == (404, "Application not found")


def test_application_lists_what_it_is_subscribed_to(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        ari.call("POST", "/bridges/empty", type="mixing")
        assert ari.get("/applications/app")["bridge_ids"] == []
        caller, leg, bridge = joined_call(ari, events, asterisk)
        listed = ari.get("/applications/app")
        assert (set(listed["channel_ids"]), listed["bridge_ids"]) == ({caller, leg}, [bridge])
        assert ari.status("POST", f"/bridges/{bridge}/removeChannel", channel=f"{caller},{leg}") == 204
        assert ari.get(f"/bridges/{bridge}")["channels"] == []
        assert ari.get("/applications/app")["bridge_ids"] == []
        assert ari.status("POST", f"/bridges/{bridge}/removeChannel", channel=caller) == 422


def test_event_filter_holds_while_the_app_lives(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    allowed = [{"type": "StasisStart"}, {"type": "StasisEnd"}]
    with ari.events() as events:
        answer = ari.call("PUT", "/applications/app/eventFilter", {"allowed": allowed})
        assert (answer.status_code, answer.json()["events_allowed"]) == (200, allowed)
        caller = asterisk.control.dial("app")
        events.next("StasisStart", caller)
        ari.call("POST", f"/channels/{caller}/answer")
        assert events.rest() == ["StasisStart"]
    with ari.events() as hidden, ari.events():
        assert ari.get("/applications/app")["events_allowed"] == allowed
        assert hidden.rest() == []
    assert ari.status("DELETE", f"/channels/{caller}") == 204
    until(lambda: ari.status("GET", "/applications/app") == 404)
    with ari.events():
        assert ari.get("/applications/app")["events_allowed"] == []
        assert ari.call("PUT", "/applications/app/eventFilter", {"allowed": 1}).status_code == 400
    assert ari.call("PUT", "/applications/none/eventFilter", {"allowed": []}).status_code == 404
