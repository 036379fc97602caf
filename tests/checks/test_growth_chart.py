"""A soak draws what it has sampled."""

from __future__ import annotations

from pathlib import Path

from chaos import growth_chart
from chaos.soak import Sample
from tests.support.soak_samples import made


def test_samples_are_drawn_as_a_small_png(tmp_path: Path) -> None:
    def silent(sample: Sample, minute: float) -> None:
        if 12 < minute < 13:
            sample["redis"] = sample["postgres"] = None
            del sample["processes"]["worker.1"]

    samples = made(silent)
    faults = [{"name": "worker killed", "at": samples[0]["at"] + 60 * minute} for minute in range(30)]
    growth_chart.draw(samples, faults, tmp_path / "chart.png")
    drawn = (tmp_path / "chart.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    assert len(drawn) < 250_000
