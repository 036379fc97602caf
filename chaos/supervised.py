"""Processes under supervisord, which starts again what dies, as systemd or a container engine would."""

from __future__ import annotations

import getpass
import os
import shlex
import signal
import sys
import xmlrpc.client
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from supervisor.xmlrpc import SupervisorTransport

from devstack import folders, processes
from devstack.pipeline import ROOT

_HEAD = """[unix_http_server]
file={folder}/control
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisord]
nodaemon=true
user={user}
logfile={folder}/supervisord.log
pidfile={folder}/pid
childlogdir={folder}
"""
_PROGRAM = """[program:{name}]
command={command}
directory={root}
environment={environment}
autorestart=true
startsecs=0
stopwaitsecs=30
stdout_logfile={folder}/{name}.log
stdout_logfile_maxbytes=0
redirect_stderr=true
"""


@dataclass(frozen=True, kw_only=True)
class Program:
    """One process: its command, and what its environment has besides the common one. No secrets: they go to a file."""

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


class Supervised:
    """Runs programs by name, and starts every one again that ends.

    Args:
        folder: for logs and the control socket.
        environment: of all of them; inherited, as it has secrets.
    """

    def __init__(self, folder: Path, programs: Mapping[str, Program], environment: Mapping[str, str]) -> None:
        self._folder = folders.make(folder, mode=0o700)
        self._programs = programs
        self._environment = {"PATH": os.environ.get("PATH", os.defpath), "PYTHONUNBUFFERED": "1", **environment}
        self._process: processes.GuardedProcess | None = None

    def pids(self) -> dict[str, int]:
        """Return name → id of the processes that run now."""
        found: list[dict[str, Any]] = self._control().getAllProcessInfo()
        return {one["name"]: one["pid"] for one in found if one["pid"]}

    def signal(self, number: int, *names: str) -> list[str]:
        """Send a signal to processes, all in the same moment; return the names of those that ran."""
        pids = self.pids()
        reached = [name for name in names if name in pids]
        for name in reached:
            os.kill(pids[name], number)
        return reached

    def hold(self, name: str) -> None:
        """Stop one, and start it no more until `release`."""
        self._control().stopProcess(name)

    def release(self, name: str) -> None:
        """Start one that was held."""
        self._control().startProcess(name)

    def start(self) -> None:
        """Start all of them."""
        configuration = self._folder / "supervisord.conf"
        programs = [self._program(name, program) for name, program in self._programs.items()]
        head = _HEAD.format(folder=self._folder, user=getpass.getuser())
        folders.write_private(configuration, head + "".join(programs))
        self._process = processes.GuardedProcess(
            [sys.executable, "-m", "supervisor.supervisord", "-c", configuration],
            log=self._folder / "supervisord.out",
            grace_seconds=40,
            environment=self._environment,
            cwd=ROOT,
        )
        self._process.wait_until(self._runs_all, timeout_seconds=20)

    def stop(self) -> None:
        """Stop all of them by SIGTERM."""
        if self._process:
            self.signal(signal.SIGCONT, *self._programs)
            self._process.stop()

    def _program(self, name: str, program: Program) -> str:
        return _PROGRAM.format(
            name=name,
            command=shlex.join(program.command).replace("%", "%%"),
            root=ROOT,
            environment=",".join(f'{key}="{value}"' for key, value in program.environment.items()),
            folder=self._folder,
        )

    def _runs_all(self) -> bool:
        try:
            return set(self.pids()) == set(self._programs)
        except OSError:
            return False

    def _control(self) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{self._folder}/control")
        return xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport).supervisor

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
