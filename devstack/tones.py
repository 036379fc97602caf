"""Tones in 8 kHz ulaw: generates them, and finds the dominant frequency of audio, which survives transcoding."""

import cmath
import math
from collections.abc import Sequence
from functools import cache

RATE_HZ = 8000
#: Samples and bytes of a frame of 20 ms.
FRAME = 160
SILENCE = b"\xff"
#: Samples used to find a frequency: 0.26 s, a resolution of 3.9 Hz.
WINDOW = 2048
#: Mean amplitude (of 32,767) below which audio is silence.
AUDIBLE = 200


def encoded(sample: int) -> int:
    """Return a 16-bit sample as a ulaw byte (ITU-T G.711)."""
    sign = 0x80 if sample < 0 else 0
    magnitude = min(abs(sample), 32635) + 132
    exponent = magnitude.bit_length() - 8
    mantissa = (magnitude >> (exponent + 3)) & 0x0F
    return ~(sign | exponent << 4 | mantissa) & 0xFF


@cache
def _decoding() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        code = ~byte & 0xFF
        magnitude = (((code & 0x0F) << 3) + 132 << (code >> 4 & 0x07)) - 132
        table.append(-magnitude if code & 0x80 else magnitude)
    return tuple(table)


def tone(frequency_hz: int, *, seconds: int = 1, amplitude: int = 8000) -> bytes:
    """Return a sine tone of a whole number of seconds, so that it repeats without a click."""
    step = 2 * math.pi * frequency_hz / RATE_HZ
    return bytes(encoded(round(amplitude * math.sin(step * n))) for n in range(RATE_HZ * seconds))


def dominant_frequency(ulaw: bytes) -> float | None:
    """Return the strongest frequency of the last quarter of a second, in Hz; None for silence or too little audio."""
    table = _decoding()
    return strongest([table[byte] for byte in ulaw[-WINDOW:]])


def strongest(audio: Sequence[int]) -> float | None:
    """Return the same for 16-bit samples at 8 kHz."""
    if len(audio) < WINDOW:
        return None
    samples = audio[-WINDOW:]
    mean = sum(samples) / WINDOW
    if sum(abs(sample - mean) for sample in samples) / WINDOW < AUDIBLE:
        return None
    # A Hann window: the cut edges add no other frequencies.
    shaped = [(s - mean) * (1 - math.cos(2 * math.pi * n / WINDOW)) for n, s in enumerate(samples)]
    spectrum = _transform([complex(value) for value in shaped])
    strengths = [abs(value) for value in spectrum[: WINDOW // 2]]
    return strengths.index(max(strengths)) * RATE_HZ / WINDOW


def _transform(values: list[complex]) -> list[complex]:
    """Return the Fourier transform of 2^n values."""
    count = len(values)
    if count == 1:
        return values
    even, odd = _transform(values[::2]), _transform(values[1::2])
    turned = [cmath.rect(1, -2 * math.pi * k / count) * odd[k] for k in range(count // 2)]
    return [a + b for a, b in zip(even, turned, strict=True)] + [a - b for a, b in zip(even, turned, strict=True)]
