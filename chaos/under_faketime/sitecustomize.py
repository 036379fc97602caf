"""Read by every Python that is started under libfaketime (chaos/clocks.py), before its program."""

import select
import time
from typing import SupportsIndex


def _sleep(seconds: float | SupportsIndex, /) -> None:
    """Sleep, by select: libfaketime 0.9.10 fails clock_nanosleep at an absolute monotonic time (EINVAL, measured)."""
    if (number := float(seconds)) < 0:
        raise ValueError("sleep length must be non-negative")
    select.select((), (), (), number)


time.sleep = _sleep
