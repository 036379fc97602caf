"""Processes of the product that are forked from one that has imported it already.

A run of the tests starts some four hundred processes, and the imports of one take as long as a hundred calls. What is
forked is a process of its own in all else: its main, environment, signals, log and end.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from devstack.pipeline import ROOT, Pipeline, Process

#: Imported by the process that forks. None of them does anything at its import.
_MODULES = ("listener.main", "workers.main", "scheduler.main", "console.main")

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(list(_MODULES))


class Forked:
    """A running process; as `subprocess.Popen`, as far as that is used."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process
        assert process.pid is not None
        self.pid = process.pid

    def poll(self) -> int | None:
        """Return its exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit status once it has ended. Raises TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it by SIGKILL."""
        self.send_signal(signal.SIGKILL)


class ForkedPipeline(Pipeline):
    """A pipeline whose processes are forked, but for those of another release."""

    def _start_process(self, module: str, root: Path, environment: dict[str, str], log: Path) -> Process:
        if root != ROOT:
            return super()._start_process(module, root, environment, log)
        # There from now on: a test may read it before the process has begun.
        log.touch()
        process = _context.Process(
            target=_run, name=module, args=(module, str(root), environment, str(log)), daemon=True
        )
        process.start()
        return Forked(process)


def _run(module: str, root: str, environment: dict[str, str], log: str) -> None:
    """Be the process, in the child."""
    # What is imported stays shared: the garbage collector would look through it at the start, and so copy it.
    gc.freeze()
    os.chdir(root)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module]
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    try:
        status = importlib.import_module(module).main()
    except Exception:  # noqa: BLE001 - as the interpreter does, and not as multiprocessing does
        sys.excepthook(*sys.exc_info())
        status = 1
    sys.exit(status)
