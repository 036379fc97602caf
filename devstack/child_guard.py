"""Keep one child process, and never leave it behind.

Run as a script between us and a server:
`child_guard.py PARENT_PID STOP_SIGNAL GRACE_SECONDS USER -- COMMAND…`. The end of
its standard input means "stop the child" (so our death, even by kill -9, stops it too), a byte `k` there means "kill -9
the child now". Imports only the standard library and nothing of ours: it is started with `python -I -S`.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def prctl(option: int, value: int) -> None:
    """Ask Linux for a process attribute; elsewhere there is none, and the pipe from our parent has to do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def descendants() -> list[int]:
    """Live children of this process; orphans of the child count among them, because we are their subreaper."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    try:
        return [int(pid) for pid in children.read_text().split()]
    except OSError:
        return []


def end_orphans(grace_seconds: float) -> None:
    """End what the child left behind: politely first, then by kill -9."""
    deadline = time.monotonic() + grace_seconds
    asked: set[int] = set()
    while pids := descendants():
        late = time.monotonic() >= deadline
        for pid in pids:
            if late or pid not in asked:
                asked.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


def keep(*, parent_pid: int, stop_signal: int, grace_seconds: float, user: str, command: list[str]) -> int:
    """Run the command until it ends or we are told to stop it.

    Returns:
        Its exit status, 128 + the signal's number if it was killed.
    """
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    told_to_stop = False

    def on_signal(number: int, _frame: object) -> None:
        nonlocal told_to_stop
        told_to_stop = told_to_stop or number == signal.SIGTERM

    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, on_signal)
    prctl(PR_SET_CHILD_SUBREAPER, 1)

    def before_exec() -> None:
        # If the keeper itself is killed, the kernel stops the child. (After the change of user, which would reset it.)
        prctl(PR_SET_PDEATHSIG, stop_signal)

    child = subprocess.Popen(  # noqa: S603  # the command is our caller's, that is its purpose
        command,
        stdin=subprocess.DEVNULL,
        preexec_fn=before_exec,  # noqa: PLW1509  # this process has one thread
        user=user or None,
        group=user or None,
        extra_groups=[] if user else None,
    )
    give_up_at = float("inf")
    while child.poll() is None:
        readable, _, _ = select.select([0, wake_read] if not told_to_stop else [wake_read], [], [], 0.5)
        if wake_read in readable:
            os.read(wake_read, 512)
        if 0 in readable:
            order = os.read(0, 1)
            if order == b"k":
                child.kill()
            told_to_stop = told_to_stop or not order
        # A process forked by our parent may hold its end of the pipe open after it died; then only this tells.
        told_to_stop = told_to_stop or os.getppid() != parent_pid
        if told_to_stop and give_up_at == float("inf"):
            give_up_at = time.monotonic() + grace_seconds
            child.send_signal(stop_signal)
        if time.monotonic() > give_up_at:
            child.kill()
    end_orphans(2.0)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def main() -> int:
    parent_pid, stop_signal, grace_seconds, user = sys.argv[1:5]
    return keep(
        parent_pid=int(parent_pid),
        stop_signal=int(stop_signal),
        grace_seconds=float(grace_seconds),
        user=user,
        command=sys.argv[6:],
    )


if __name__ == "__main__":
    sys.exit(main())
