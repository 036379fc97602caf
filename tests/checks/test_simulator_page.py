"""docs/simulator.md is true: its scenarios run, its requests are accepted, the methods that it names exist."""

import json
import re
import shlex
from pathlib import Path

import pytest
import requests

from simulator import control, scenarios
from simulator.testing import SimulatedAsterisk
from tests.checks import checkout
from tests.contract.event_sockets import until

PAGE = "docs/simulator.md"


def fences(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", checkout.text(PAGE), re.MULTILINE | re.DOTALL)


def test_the_scenarios_of_the_page_run(tmp_path: Path) -> None:
    callers, troubles = fences("json")
    path = tmp_path / "scenario.json"
    path.write_text(callers)
    with SimulatedAsterisk(scenario=scenarios.load(path)) as asterisk:
        until(asterisk.control.channels)
    # All its troubles in their order, a hundred times as fast.
    path.write_text(re.sub(r'"at_seconds": (\d+)', lambda seconds: f'"at_seconds": {int(seconds[1]) / 100}', troubles))
    with SimulatedAsterisk(scenario=scenarios.load(path)) as asterisk:
        # The last one takes it down for three seconds.
        until(lambda: not asterisk.control.is_running)
        until(lambda: asterisk.control.is_running)


def test_the_control_requests_of_the_page_are_accepted() -> None:
    lines = [line for block in fences("sh") for line in block.splitlines() if line.startswith("curl ")]
    assert len(lines) > 10
    with SimulatedAsterisk() as asterisk:
        for line in lines:
            _, _, method, url, *body = shlex.split(line)
            address = url.replace("http://127.0.0.1:8088", asterisk.url)
            data = json.loads(body[1]) if body else None
            answer = requests.request(method, address, json=data, timeout=5)
            assert answer.status_code < 300, (line, answer.text)


@pytest.mark.parametrize(
    "name", ["fault", "hold", "cut_event_sockets", "drop_events", "delay_media", "refuse_media", "set_clock"]
)
def test_the_methods_that_the_page_names_exist(name: str) -> None:
    assert f"`{name}`" in checkout.text(PAGE)
    assert callable(getattr(control.Control, name))
