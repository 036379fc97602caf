"""The wall clock of one process, set by libfaketime; its monotonic clock, and all that waits, stay right.

Measured with libfaketime 0.9.10 (Debian 12) and Python 3.11 with four threads:

- libfaketime.so.1 reads its file into a buffer that all threads share: one reading of 9,000 is wrong by the whole
  offset. libfaketimeMT.so.1 reads it under a lock, and none is.
- Reading the file at each call costs 3 µs, once a second 0.5 µs; time.time() alone costs 0.04 µs.
- Debian compiles it with FORCE_MONOTONIC_FIX, by which a wait for a condition of the monotonic clock ends at once. A
  thread waits so for Python's interpreter lock, 5 ms at a time: it spins as long as it is waited for, and the same work
  takes 14 times the processor time. FAKETIME_FORCE_MONOTONIC_FIX=0 takes that back.
- The time-outs of Lock, Event and Condition, select, poll, asyncio and uvloop are unchanged. time.sleep() fails, and is
  replaced (chaos/under_faketime).
"""

from __future__ import annotations

from pathlib import Path

#: A changed clock is seen within this time: libfaketime reads its file again when a new second begins.
SEEN_SECONDS = 1.0
_SITE = Path(__file__).with_name("under_faketime")


class Clock:
    """The wall clock of a process started with `environment`, and of those that a supervisor starts again in its place.

    Give the environment to a program of Python that runs its site module, and not to a guard around it.

    Args:
        libfaketime: the library to preload, `tools.Tools.libfaketime`.
        file: holds the offset; created, in a folder that the process can read.
    """

    def __init__(self, libfaketime: Path, file: Path) -> None:
        self._file = file
        self.environment = {
            "LD_PRELOAD": str(libfaketime),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_CACHE_DURATION": "0",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
            # Else a module's source seems changed, and Python writes its compiled file again with a wrong time.
            "NO_FAKE_STAT": "1",
            "PYTHONPATH": str(_SITE),
        }
        self.right()

    def ahead(self, seconds: int) -> None:
        """Set the clock ahead of the machine's, or behind it if negative; it goes on from there at the usual rate."""
        partial = self._file.with_name(self._file.name + ".partial")
        partial.write_text(f"{seconds:+d}\n")
        # At once: an empty file would be read as an offset of 0.
        partial.replace(self._file)

    def right(self) -> None:
        """Set the clock to the machine's."""
        self.ahead(0)
