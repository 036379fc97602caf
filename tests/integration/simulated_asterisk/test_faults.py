"""Faults, breakpoints and the logs of the control client."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from websockets.exceptions import ConnectionClosed

from simulator import errors
from simulator.testing import SimulatedAsterisk
from tests.integration.simulated_asterisk.clients import (
    Ari,
    until,
)


def test_a_breakpoint_after_the_effect_holds_only_the_answer(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ThreadPoolExecutor() as pool, asterisk.control.hold("POST", "/bridges/*", "after") as point:
        post = pool.submit(ari.status, "POST", "/bridges/held", type="mixing")
        point.wait_arrived()
        assert [bridge["id"] for bridge in asterisk.control.bridges()] == ["held"]
        assert (point.waiting(), post.done()) == (1, False)
        point.release()
        assert post.result() == 200
    with asterisk.control.hold("GET", "/nothing") as idle, pytest.raises(TimeoutError):
        idle.wait_arrived(0.01)


def test_faults_strike_before_or_after_the_effect(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    fault = asterisk.control.fault("POST", "/bridges/*", status=503, times=1)
    assert ari.status("POST", "/bridges/f1", type="mixing") == 503
    assert ari.status("GET", "/bridges/f1") == 404
    assert ari.status("POST", "/bridges/f1", type="mixing") == 200
    assert fault.hits() == 1
    with asterisk.control.fault("POST", "/bridges/*", "after", abort=True), pytest.raises(requests.ConnectionError):
        ari.status("POST", "/bridges/f2", type="mixing")
    assert ari.status("GET", "/bridges/f2") == 200
    with asterisk.control.fault("GET", "/bridges", delay_seconds=0.1):
        started = time.monotonic()
        ari.get("/bridges")
        assert time.monotonic() - started >= 0.1
    with pytest.raises(errors.ControlError, match="400"):
        asterisk.control.fault("GET", "/bridges", status=99)


def test_requests_and_events_are_remembered(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        asterisk.control.drop_events(["StasisStart"], times=1)
        lost, heard = asterisk.control.dial("app"), asterisk.control.dial("app")
        assert events.next("StasisStart")["channel"]["id"] == heard
        log = asterisk.control.event_log("StasisStart")[-2:]
        assert [(entry["delivered"], entry["event"]["channel"]["id"]) for entry in log] == [
            (False, lost),
            (True, heard),
        ]
        before = time.monotonic()
        ari.call("POST", f"/channels/{heard}/answer", note="x")
        logged = asterisk.control.requests("POST", f"/channels/{heard}/answer")[-1]
        assert (logged.status, logged.query) == (204, {"note": "x"})
        assert before <= logged.started_at <= time.monotonic()


def test_event_sockets_are_cut_or_go_dead(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        assert asterisk.control.cut_event_sockets("app") == 1
        with pytest.raises(ConnectionClosed):
            events.next("never")
    with ari.events() as events:
        assert asterisk.control.cut_event_sockets(silently=True) == 1
        assert not events.socket.ping().wait(0.1)
        assert ari.status("GET", "/applications/app") == 404
        asterisk.control.restart()
        with pytest.raises(ConnectionClosed):
            events.next("never")


def test_restart_after_a_delay(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    asterisk.control.restart(down_seconds=0.1)
    with pytest.raises(requests.ConnectionError):
        ari.get("/channels")
    until(lambda: asterisk.control.is_running)
    assert ari.get("/channels") == []


def test_a_caller_hangs_up_after_a_given_time(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        caller = asterisk.control.dial("app", hang_up_after=0.05)
        events.next("StasisStart", caller)
        assert events.next("ChannelHangupRequest", caller)["cause"] == 16
