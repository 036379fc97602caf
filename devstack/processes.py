"""Child processes that end with this process, and free ports on loopback.

Every server of the development stack runs under a guard (`devstack/child_guard.py`): this process can stop it, kill it
and start it again, and the server ends when this process ends, however that happens.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

CHILD_GUARD = Path(__file__).with_name("child_guard.py")


class ProcessError(Exception):
    """A process of the development stack could not be started, or ended unexpectedly."""


def run(
    command: Sequence[str | Path], *, user: str | None = None, timeout_seconds: float = 120, cwd: Path | None = None
) -> str:
    """Run a command to its end and return its standard output.

    Raises:
        ProcessError: it failed; the message holds the end of what it printed.
    """
    try:
        done = subprocess.run(  # noqa: S603  # commands of the development stack, none comes from outside
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_seconds,
            check=False,
            cwd=cwd,
            user=user,
            group=user,
            extra_groups=[] if user else None,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise ProcessError(f"{command[0]}: {exc}") from exc
    if done.returncode:
        raise ProcessError(f"{command[0]} ended with status {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


class GuardedProcess:
    """One process under a guard.

    Args:
        command: runs in the foreground.
        log: file to which its standard output and error are appended.
        stop_signal: asks it to end; after `grace_seconds` it is killed.
        user: operating system user to run it as, if this process is root.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        stop_signal: int = signal.SIGTERM,
        grace_seconds: float = 8.0,
        user: str | None = None,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        guard = [sys.executable, "-I", "-S", str(CHILD_GUARD)]
        options = [str(os.getpid()), str(int(stop_signal)), str(grace_seconds), user or "", "--"]
        self.name = f"{Path(str(command[0])).name} (log {log})"
        self.log = log
        self._grace_seconds = grace_seconds
        with log.open("ab") as output:
            self._guard = subprocess.Popen(  # noqa: S603  # commands of the development stack alone
                [*guard, *options, *(str(part) for part in command)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                # In its own session: Ctrl-C in the terminal is for this process, which stops the servers in order.
                start_new_session=True,
                env=dict(environment) if environment is not None else None,
                cwd=cwd or Path("/"),
            )

    @property
    def running(self) -> bool:
        return self._guard.poll() is None

    def stop(self) -> int:
        """Ask it to end, wait until it and its descendants are gone, and return its exit status."""
        self._close_pipe()
        return self._wait()

    def kill(self) -> int:
        """Kill it by SIGKILL, then wait until it and its descendants are gone."""
        if self._guard.stdin and not self._guard.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.write(b"k")
                self._guard.stdin.flush()
        status = self._wait()
        self._close_pipe()
        return status

    def freeze(self) -> None:
        """Stop it and its descendants by SIGSTOP: the kernel accepts connections for them, and nothing answers."""
        for process in self._running():
            # One may end in the meantime.
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def thaw(self) -> None:
        """Let them continue."""
        for process in self._running():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def _running(self) -> list[psutil.Process]:
        try:
            running: list[psutil.Process] = psutil.Process(self._guard.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return running

    def wait(self, timeout_seconds: float) -> int | None:
        """Return its exit status once it has ended by itself, None if it still runs."""
        try:
            return self._guard.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None

    def _close_pipe(self) -> None:
        if self._guard.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.close()

    def _wait(self) -> int:
        try:
            return self._guard.wait(self._grace_seconds + 10)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            return self._guard.wait()

    def wait_until(self, ready: Callable[[], bool], *, timeout_seconds: float) -> None:
        """Poll until `ready` returns True.

        Raises:
            ProcessError: it ended, or was not ready in time; the message holds the end of its log.
        """
        deadline = time.monotonic() + timeout_seconds
        while not ready():
            if not self.running:
                raise ProcessError(f"{self.name} ended at start: {self.log_tail()}")
            if time.monotonic() > deadline:
                raise ProcessError(f"{self.name} was not ready after {timeout_seconds:.0f} s: {self.log_tail()}")
            time.sleep(0.02)

    def log_tail(self) -> str:
        """Return the end of its log."""
        try:
            return self.log.read_text(errors="replace")[-1500:].strip()
        except OSError:
            return ""


def port_is_free(port: int) -> bool:
    """Return True if a server could listen on this loopback port now."""
    with socket.socket() as probe:
        # As servers do: a port with connections in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_port(preferred: int | None = None) -> int:
    """Return a free loopback port: the preferred one, or another if that is in use."""
    if preferred is not None and port_is_free(preferred):
        return preferred
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
