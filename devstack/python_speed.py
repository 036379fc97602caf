"""Say how long this interpreter takes for some Python, in seconds, and its path; fail before Python 3.11.

The Makefile takes the fastest interpreter of a version that the PATH has: one that was built without optimization, as
version managers build them by default, takes half as long again.
"""

import importlib.util
import sys
import timeit

_WORK = "[Work(i).add(1) for i in range(3000)]"
_WORKER = """
class Work:
    def __init__(self, number):
        self.number = number

    def add(self, other):
        return self.number + other
"""
#: Of an interpreter that can make no environment, as the Makefile will say if there is no other of its version.
_NOT_INSTALLABLE = 999.0


def main() -> None:
    """Write `<seconds> <path>`."""
    # Whatever interpreter has the name is asked.
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.exit(1)
    can_install = importlib.util.find_spec("ensurepip") is not None
    seconds = min(timeit.repeat(_WORK, _WORKER, number=5, repeat=7)) if can_install else _NOT_INSTALLABLE
    sys.stdout.write(f"{seconds} {sys.executable}\n")


if __name__ == "__main__":
    main()
