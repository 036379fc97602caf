"""The judge's detection of a tone in a recording."""

from __future__ import annotations

import math
from array import array

import pytest

from chaos.judge import tones


@pytest.mark.parametrize(("hz", "heard"), [(400, 2.0), (420, 0.0), (1004, 0.0)])
def test_a_tone_is_told_from_its_neighbours(hz: float, heard: float) -> None:
    samples = array("h", [round(8000 * math.sin(2 * math.pi * hz * n / 8000)) for n in range(16000)])
    assert tones.tone_seconds(samples, 400) == pytest.approx(heard)


def test_silence_and_a_short_recording_have_no_tone() -> None:
    assert tones.tone_seconds(tones.ulaw(b"\xff" * 8000), 400) == 0
    assert tones.tone_seconds(tones.linear(b"\1"), 400) == 0
