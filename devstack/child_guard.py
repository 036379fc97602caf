"""Runs one child process and never leaves it behind.

Runs as a script between the stack and a server: `child_guard.py PARENT_PID STOP_SIGNAL GRACE_SECONDS USER -- COMMAND…`.
End of file on its standard input stops the child, so the death of its parent, even by kill -9, stops it too; a byte
`k` there kills the child at once. It imports the standard library alone: it is started with `python -I -S`.
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
    """Set a process attribute on Linux; other systems have none, and rely on the pipe from the parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def descendants() -> list[int]:
    """Return the live children of this process, orphans of the child included: this process is their subreaper."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    try:
        return [int(pid) for pid in children.read_text().split()]
    except OSError:
        return []


def end_orphans(grace_seconds: float) -> None:
    """End the processes that the child left behind: by SIGTERM first, then by SIGKILL."""
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


def guard(*, parent_pid: int, stop_signal: int, grace_seconds: float, user: str, command: list[str]) -> int:
    """Run the command until it ends or has to be stopped.

    Returns:
        Its exit status, 128 + the signal's number if it was killed.
    """
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    is_stopping = False

    def on_signal(number: int, _frame: object) -> None:
        nonlocal is_stopping
        is_stopping = is_stopping or number == signal.SIGTERM

    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, on_signal)
    prctl(PR_SET_CHILD_SUBREAPER, 1)

    def before_exec() -> None:
        # If the guard itself is killed, the kernel stops the child. (After the change of user, which would reset it.)
        prctl(PR_SET_PDEATHSIG, stop_signal)

    child = subprocess.Popen(  # noqa: S603  # running its arguments is the purpose of this script
        command,
        stdin=subprocess.DEVNULL,
        preexec_fn=before_exec,  # noqa: PLW1509  # this process has one thread
        user=user or None,
        group=user or None,
        extra_groups=[] if user else None,
    )
    kill_at = float("inf")
    while child.poll() is None:
        readable, _, _ = select.select([0, wake_read] if not is_stopping else [wake_read], [], [], 0.5)
        if wake_read in readable:
            os.read(wake_read, 512)
        if 0 in readable:
            command_byte = os.read(0, 1)
            if command_byte == b"k":
                child.kill()
            is_stopping = is_stopping or not command_byte
        # A process forked by the parent may keep the pipe open after the parent has died: only this check shows it.
        is_stopping = is_stopping or os.getppid() != parent_pid
        if is_stopping and kill_at == float("inf"):
            kill_at = time.monotonic() + grace_seconds
            child.send_signal(stop_signal)
        if time.monotonic() > kill_at:
            child.kill()
    end_orphans(2.0)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def main() -> int:
    parent_pid, stop_signal, grace_seconds, user = sys.argv[1:5]
    return guard(
        parent_pid=int(parent_pid),
        stop_signal=int(stop_signal),
        grace_seconds=float(grace_seconds),
        user=user,
        command=sys.argv[6:],
    )


if __name__ == "__main__":
    sys.exit(main())
