"""Telephone audio, as far as tests need it: ulaw tones in 20 ms frames, a tone detector, one shared clock."""

import asyncio
import functools
import math
from collections import deque

SAMPLES_PER_SECOND = 8000
FRAME_BYTES = 160
FRAME_SECONDS = 0.02
#: A 20 ms frame holds whole periods of multiples of this frequency, so it repeats without a click.
TONE_STEP_HZ = 50

_BIAS = 0x84
_CLIP = 32635
_AMPLITUDE = 8000
_QUIET_RMS = 50.0


def _encode(sample: int) -> int:
    """Returns a linear 16-bit sample as G.711 ulaw."""
    sign = 0x80 if sample < 0 else 0
    magnitude = min(abs(sample), _CLIP) + _BIAS
    exponent = magnitude.bit_length() - 8
    mantissa = (magnitude >> (exponent + 3)) & 0x0F
    return ~(sign | exponent << 4 | mantissa) & 0xFF


def _decode(byte: int) -> int:
    """Returns a ulaw byte as a linear 16-bit sample."""
    byte = ~byte & 0xFF
    sample = (((byte & 0x0F) << 3) + _BIAS << ((byte >> 4) & 0x07)) - _BIAS
    return -sample if byte & 0x80 else sample


_LINEAR = [_decode(byte) for byte in range(256)]


@functools.cache
def tone(hz: int) -> bytes:
    """Returns 20 ms of a tone, in ulaw.

    Raises:
        ValueError: the frequency is no multiple of 50 Hz below 4 kHz.
    """
    if hz % TONE_STEP_HZ or not 0 < hz < SAMPLES_PER_SECOND // 2:
        raise ValueError(f"a tone is a multiple of {TONE_STEP_HZ} Hz below 4000 Hz, not {hz}")
    turn = 2 * math.pi * hz / SAMPLES_PER_SECOND
    return bytes(_encode(round(_AMPLITUDE * math.sin(turn * index))) for index in range(FRAME_BYTES))


def dominant_hz(ulaw: bytes) -> int | None:
    """Returns the strongest of 50, 100 ... 3950 Hz (Goertzel); None for silence or less than a frame."""
    samples = [_LINEAR[byte] for byte in ulaw]
    if len(samples) < FRAME_BYTES or math.sqrt(sum(s * s for s in samples) / len(samples)) < _QUIET_RMS:
        return None

    def power(hz: int) -> float:
        coefficient = 2 * math.cos(2 * math.pi * hz / SAMPLES_PER_SECOND)
        last = before_last = 0.0
        for sample in samples:
            last, before_last = sample + coefficient * last - before_last, last
        return last * last + before_last * before_last - coefficient * last * before_last

    return max(range(TONE_STEP_HZ, SAMPLES_PER_SECOND // 2, TONE_STEP_HZ), key=power)


class Ear:
    """What one party has heard: a byte count, and the last 80 ms for the tone detector."""

    def __init__(self) -> None:
        self.heard_bytes = 0
        self._recent: deque[bytes] = deque(maxlen=4)

    def hear(self, frame: bytes) -> None:
        """Adds a frame of any length."""
        self.heard_bytes += len(frame)
        self._recent.append(frame)

    def dominant_hz(self) -> int | None:
        """Returns the strongest frequency of the last 80 ms."""
        return dominant_hz(b"".join(self._recent)[-4 * FRAME_BYTES :])


class Ticker:
    """A 20 ms clock for all media legs of an Asterisk; it catches up on late ticks, up to 100 ms."""

    def __init__(self) -> None:
        self._tick = asyncio.Event()

    async def tick(self) -> None:
        """Waits for the next tick."""
        await self._tick.wait()

    async def run(self) -> None:
        """Ticks until it is cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + FRAME_SECONDS, loop.time() - 5 * FRAME_SECONDS)
            await asyncio.sleep(max(0.0, due - loop.time()))
            # Waiters keep the event they wait on; a new one serves those that wait for the next tick.
            passed, self._tick = self._tick, asyncio.Event()
            passed.set()
