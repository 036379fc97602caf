"""Scenario files, and the simulator as a process."""

import base64
import contextlib
import gc
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pydantic
import pytest
import requests
from websockets.sync.client import connect

from simulator import control, errors, scenarios
from simulator.testing import SimulatedAsterisk
from tests.integration.simulated_asterisk.clients import (
    PASSWORD,
    USER,
    Ari,
    until,
)


def test_scenario_file_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "scenario.json"
    path.write_text(json.dumps({"callers": [{"app": "demo", "rate_per_second": 0, "talk": 1}], "faults": [{}]}))
    with pytest.raises(errors.ScenarioError) as refused:
        scenarios.load(path)
    assert all(part in str(refused.value) for part in ("callers.0.rate_per_second", "callers.0.talk", "faults.0.path"))
    with pytest.raises(errors.ScenarioError, match="No such file"):
        scenarios.load(tmp_path / "none.json")


def test_troubles_of_a_scenario_happen_at_their_times() -> None:
    troubles = [
        {"at_seconds": 0.05, "media": {"refuse": True}},
        {"at_seconds": 0.05, "fault": {"path": "/bridges", "status": 503}},
        {"at_seconds": 0.05, "breakpoint": {"path": "/channels"}},
        {"at_seconds": 0.6, "clear": {}},
        {"at_seconds": 0.9, "cut_sockets": {}},
        {"at_seconds": 1.2, "crash": {}},
    ]
    scenario = scenarios.Scenario.model_validate({"troubles": troubles})
    with SimulatedAsterisk(scenario=scenario) as asterisk, requests.Session() as session:
        session.auth = ("demo", "demo")
        until(lambda: session.get(f"{asterisk.url}/ari/bridges", timeout=5).status_code == 503)
        began = time.monotonic()
        # Hangs until `clear` releases the breakpoint.
        assert session.get(f"{asterisk.url}/ari/channels", timeout=5).status_code == 200
        assert time.monotonic() - began > 0.2
        assert session.get(f"{asterisk.url}/ari/bridges", timeout=5).status_code == 200
        until(lambda: not asterisk.control.is_running)
        assert asterisk.control.crashes == 1


@pytest.mark.parametrize("trouble", [{"at_seconds": 1}, {"crash": {}, "clear": {}}, {"explode": {}}])
def test_a_trouble_is_exactly_one_known_control_request(trouble: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        scenarios.Scenario.model_validate({"troubles": [trouble]})


def test_process_plays_a_scenario_and_ends_on_sigterm(tmp_path: Path) -> None:
    path = tmp_path / "scenario.json"
    callers = {"app": "demo", "rate_per_second": 50, "hang_up_within_ms": 1, "count": 3, "caller_numbers": ["+1"]}
    fault = {"method": "GET", "path": "/bridges", "status": 500}
    path.write_text(json.dumps({"callers": [callers], "faults": [fault]}))
    command = [sys.executable, "-m", "simulator", "--port", "0", "--user", USER, "--password", PASSWORD]
    command += ["--scenario", str(path), "--path-prefix", "/asterisk", "--media-url", "media=ws://127.0.0.1:9/?a=b"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1].removesuffix("/ari")
        ari = Ari(url)
        assert ari.status("GET", "/bridges") == 500
        with ari.events("demo") as events:
            driver = control.Control(url)
            caller = driver.dial("demo")
            events.next("StasisStart", caller)
            process.send_signal(signal.SIGTERM)
            assert process.wait(5) == 0


def test_hundreds_of_asterisks_run_in_one_process() -> None:
    count = 300
    command = [sys.executable, "-m", "simulator", "--port", "0", "--count", str(count), "--no-audio"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        urls = [process.stdout.readline().split()[-1].removesuffix("/ari") for _ in range(count)]
        assert len(set(urls)) == count
        farm = [control.Control(url) for url in urls]
        with contextlib.ExitStack() as sockets:
            for url in urls:
                sockets.enter_context(
                    connect(
                        f"{url.replace('http', 'ws', 1)}/ari/events?app=voiceai",
                        additional_headers={"Authorization": "Basic " + base64.b64encode(b"demo:demo").decode()},
                        proxy=None,
                    )
                )
            for one in farm[::30]:
                one.dial("voiceai")
            assert [len(one.channels()) for one in farm[:31]] == [1, *([0] * 29), 1], "each is one by itself"
    finally:
        process.terminate()
        output, _ = process.communicate(timeout=20)
    assert (process.returncode, output) == (0, "")


def test_a_connection_made_while_it_stops_is_cut_off() -> None:
    """A connection that stays open would be a ResourceWarning, and so an error."""
    for _ in range(10):
        ended = threading.Event()
        with contextlib.ExitStack() as clients:
            asterisk = SimulatedAsterisk().start()

            def knock(asterisk: SimulatedAsterisk, ended: threading.Event, clients: contextlib.ExitStack) -> None:
                while not ended.wait(0.0002):
                    with contextlib.suppress(OSError):
                        clients.enter_context(socket.create_connection(("127.0.0.1", asterisk.port), timeout=1))

            knocking = threading.Thread(target=knock, args=(asterisk, ended, clients))
            knocking.start()
            time.sleep(0.02)
            asterisk.stop()
            ended.set()
            knocking.join()
        gc.collect()
