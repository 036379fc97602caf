"""The set-up benchmark draws what it has measured, at once or from the saved JSON."""

from __future__ import annotations

import json
from pathlib import Path

from bench import chart, setup
from bench.bridgings import SetUp
from bench.setup import Cell, Results


def test_a_saved_measurement_is_drawn_as_a_small_png(tmp_path: Path) -> None:
    results = Results()
    for variant in setup.VARIANTS:
        cell = Cell(set_ups=[SetUp(whole=number, until_media=number // 2) for number in range(1, 600)], lost=1)
        cell.used["worker"], cell.means = 6.0, [300.0]
        results.cells[variant, 20.0] = cell
    saved = json.loads(json.dumps(setup.saved(results)))
    assert next((cell["variant"], cell["lost"], cell["cpu_ms"]) for cell in saved) == ("floor", 1, {"worker": 10.0})
    chart.draw(saved, tmp_path / "chart.png")
    drawn = (tmp_path / "chart.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    assert len(drawn) < 120_000


def test_a_measurement_in_which_no_call_was_served_is_drawn(tmp_path: Path) -> None:
    results = Results()
    results.cells["pipeline", 1.0] = Cell(lost=3)
    chart.draw(setup.saved(results), tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size
