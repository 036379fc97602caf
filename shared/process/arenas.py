"""The arenas of glibc's malloc: by default up to eight a core, and what is freed in one is not used by another."""

from __future__ import annotations

import ctypes
import os

#: A process runs one thread of Python at a time, so a third arena would save no waiting.
ARENAS = 2
#: `M_ARENA_MAX` of malloc.h.
_M_ARENA_MAX = -8


def limit() -> None:
    """Let all threads of this process share two arenas, so that its memory does not grow by those of each thread.

    To be called before the first thread starts. Does nothing where `MALLOC_ARENA_MAX` is set, or where the C library is
    another than glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_M_ARENA_MAX, ARENAS)
