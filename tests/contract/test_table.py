"""docs/simulator.md says what is so: its table has every contract test, its examples work.

`UPDATE_DOCS=1 make test ARGS=tests/contract/test_table.py` makes the table anew.
"""

import ast
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from simulator import control, scenarios
from simulator.testing import SimulatedAsterisk
from tests.contract.event_sockets import until

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "simulator.md"
BEGIN = "<!-- contract: UPDATE_DOCS=1 make test ARGS=tests/contract/test_table.py -->\n"
END = "<!-- end of contract -->\n"
#: Fixtures that are both Asterisks in turn.
BOTH = {"switch", "make_switch"}


def rows(path: Path) -> Iterator[tuple[str, str, str]]:
    """Fact, simulated, real: of each test of a file that meets an Asterisk."""
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
            continue
        if not BOTH & {argument.arg for argument in node.args.args}:
            continue
        names = {decorator.id for decorator in node.decorator_list if isinstance(decorator, ast.Name)}
        fact = node.name.removeprefix("test_").replace("_", " ")
        yield fact[0].upper() + fact[1:], "no" if "ONLY_REAL" in names else "yes", "yes"


def table() -> str:
    parts = []
    for path in sorted(HERE.glob("test_*.py")):
        if found := list(rows(path)):
            docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
            lines = "".join(f"| {' | '.join(row)} |\n" for row in found)
            heading = docstring.splitlines()[0]
            parts.append(f"{heading}\n\n| `{path.name}` | Simulated | Real |\n|---|---|---|\n{lines}")
    return "\n" + "\n".join(parts) + "\n"


def fences(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_table_has_every_contract_test() -> None:
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{PAGE} has no place for the table"
    current = before + BEGIN + table() + END + after
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(current)
    else:
        assert page == current, "UPDATE_DOCS=1 make test ARGS=tests/contract/test_table.py"


def test_scenarios_of_the_page_are_played(tmp_path: Path) -> None:
    callers, troubles = fences("json")
    path = tmp_path / "scenario.json"
    path.write_text(callers)
    with SimulatedAsterisk(scenario=scenarios.load(path)) as asterisk:
        until(asterisk.control.channels)
    # Every trouble of it, at once and in its order.
    path.write_text(re.sub(r'"at_seconds": (\d+)', lambda seconds: f'"at_seconds": {int(seconds[1]) / 100}', troubles))
    with SimulatedAsterisk(scenario=scenarios.load(path)) as asterisk:
        # The last one takes it down for three seconds.
        until(lambda: not asterisk.control.is_running)
        until(lambda: asterisk.control.is_running)


def test_orders_of_the_page_are_taken() -> None:
    lines = [line for block in fences("sh") for line in block.splitlines() if line.startswith("curl ")]
    assert len(lines) > 10
    with SimulatedAsterisk() as asterisk:
        for line in lines:
            _, _, method, url, *body = shlex.split(line)
            address = url.replace("http://127.0.0.1:8088", asterisk.url)
            data = json.loads(body[1]) if body else None
            answer = requests.request(method, address, json=data, timeout=5)
            assert answer.status_code < 300, (line, answer.text)


@pytest.mark.parametrize("name", ["fault", "hold", "cut_event_sockets", "drop_events", "delay_media", "refuse_media"])
def test_methods_the_page_names_are_there(name: str) -> None:
    assert f"`{name}`" in PAGE.read_text()
    assert callable(getattr(control.Control, name))
