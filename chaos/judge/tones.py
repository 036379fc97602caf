"""Looks for a tone in recorded audio by Goertzel's algorithm, which needs no library and survives transcoding."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

RATE_HZ = 8000
#: Samples that are looked at together: 0.1 s, so neighbours from 10 Hz on are told apart.
WINDOW = 800
#: Mean amplitude (of 32,767) below which audio is silence.
AUDIBLE = 200
#: The share of a window's energy that a tone must have.
SHARE = 0.5


def tone_seconds(samples: Sequence[int], hz: float, *, enough: float = math.inf) -> float:
    """Return for how many seconds a tone is heard in 16-bit samples at 8 kHz; the search stops at `enough`."""
    heard = 0.0
    for begin in range(0, len(samples) - WINDOW + 1, WINDOW):
        if _share(samples[begin : begin + WINDOW], hz) >= SHARE:
            heard += WINDOW / RATE_HZ
        if heard >= enough:
            break
    return heard


def linear(data: bytes) -> array[int]:
    """Return the samples of signed 16-bit audio, as in a `.sln` file."""
    return array("h", data[: len(data) & ~1])


def ulaw(data: bytes) -> array[int]:
    """Return the samples of ulaw audio (ITU-T G.711)."""
    return array("h", [_ULAW[byte] for byte in data])


def _share(samples: Sequence[int], hz: float) -> float:
    """Return the share of the energy that is at a frequency, from 0 to 1; 0 for silence."""
    count = len(samples)
    mean = sum(samples) / count
    if sum(abs(sample - mean) for sample in samples) / count < AUDIBLE:
        return 0.0
    coefficient = 2 * math.cos(2 * math.pi * hz / RATE_HZ)
    last = before = energy = 0.0
    for sample in samples:
        value = sample - mean
        energy += value * value
        last, before = value + coefficient * last - before, last
    power = last * last + before * before - coefficient * last * before
    return 2 * power / (count * energy)


def _decoded(byte: int) -> int:
    code = ~byte & 0xFF
    magnitude = (((code & 0x0F) << 3) + 132 << (code >> 4 & 0x07)) - 132
    return -magnitude if code & 0x80 else magnitude


_ULAW = [_decoded(byte) for byte in range(256)]
