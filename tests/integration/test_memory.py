"""glibc's malloc gives each thread an arena, up to a limit; the collector leaves alone what was imported."""

import os
import subprocess
import sys

import pytest

#: Prints the arenas of a process whose eight threads have each allocated something at the same time.
SCRIPT = """
import ctypes, re, sys, tempfile, threading
from shared.process import memory
if sys.argv[1] == "limited":
    memory.limit_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.fdopen.restype = ctypes.c_void_p
together = threading.Barrier(8)
def allocate():
    libc.malloc(100_000)
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
with tempfile.TemporaryFile("w+") as file:
    stream = ctypes.c_void_p(libc.fdopen(file.fileno(), b"w"))
    libc.malloc_info(0, stream)
    libc.fflush(stream)
    file.seek(0)
    print(len(re.findall("<heap nr=", file.read())))
"""

_glibc = pytest.mark.skipif(
    "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""), reason="the C library is not glibc"
)


def _arenas(how: str, **variables: str) -> int:
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    command = [sys.executable, "-c", SCRIPT, how]
    return int(subprocess.run(command, env=environment | variables, capture_output=True, check=True, timeout=30).stdout)


@_glibc
def test_threads_share_two_arenas() -> None:
    assert _arenas("as it is") > 2
    assert _arenas("limited") == 2


@_glibc
def test_a_limit_of_the_environment_stands() -> None:
    assert _arenas("limited", MALLOC_ARENA_MAX="1") == 1


#: Prints how many objects the collector looks through before and after.
FREEZE = """
import gc, workers.main
from shared.process import memory
before = len(gc.get_objects())
memory.freeze()
print(before, len(gc.get_objects()), gc.get_freeze_count())
"""


def test_the_collector_leaves_alone_what_was_imported() -> None:
    """In a process of its own: that of the tests has what other tests left behind."""
    printed = subprocess.run([sys.executable, "-c", FREEZE], capture_output=True, check=True, timeout=30).stdout
    before, after, frozen = map(int, printed.split())
    assert before > 10_000
    assert after < 1_000
    assert frozen > 10_000
