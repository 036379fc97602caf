"""Embedded Postgres and Redis: real servers from wheels, on loopback, with a password, as root or as an ordinary user.

Each is a context manager with a `url`; `stop()`, `kill()` and `start()` (same port, same data) are for tests of
outages, and so are `freeze()` and `thaw()`.
"""

import contextlib
import shutil
import signal
import socket
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from devstack import folders, processes, programs

POSTGRES_PORT = 15432
REDIS_PORT = 16379
#: Attempts to start on a new port, in case another process takes the port that was found free.
START_ATTEMPTS = 3


class _Server:
    """The common part: a folder, a port that survives restarts, a guarded process."""

    def __init__(self, folder: Path, *, preferred_port: int | None) -> None:
        self.folder = folders.make(folder, mode=0o711)
        self.user = folders.server_user()
        self.port: int | None = None
        self._preferred_port = preferred_port
        self._process: processes.GuardedProcess | None = None

    def _launch(self, port: int) -> processes.GuardedProcess:
        raise NotImplementedError

    def start(self) -> None:
        """Start it, on the port it had before if it had one."""
        if self._process and self._process.running:
            return
        for attempt in range(START_ATTEMPTS):
            port = self.port or processes.free_port(self._preferred_port if attempt == 0 else None)
            try:
                self._process = self._launch(port)
            except processes.ProcessError:
                # Only a port that another process has taken in the meantime is worth another attempt.
                if self.port or attempt == START_ATTEMPTS - 1 or processes.port_is_free(port):
                    raise
            else:
                self.port = port
                return

    def stop(self) -> None:
        """Stop it cleanly."""
        if self._process:
            self._process.thaw()
            self._process.stop()

    def kill(self) -> None:
        """Kill it by SIGKILL, as a crash would."""
        if self._process:
            self._process.kill()

    def freeze(self) -> None:
        """Stop all of its processes: it accepts connections, and answers nothing."""
        assert self._process is not None
        self._process.freeze()

    def thaw(self) -> None:
        """Let them continue."""
        assert self._process is not None
        self._process.thaw()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _secret(self, name: str) -> str:
        return folders.secret(self.folder / name)

    def _data(self) -> Path:
        return self.folder / "data"


class Postgres(_Server):
    """PostgreSQL 18.

    Args:
        folder: holds data, password and log; created if missing.
        durable: False is faster, for data that is thrown away.
        standby_of: a server that runs; this one follows it, and takes no writes, until it is promoted.
    """

    def __init__(
        self,
        folder: Path,
        *,
        durable: bool = True,
        preferred_port: int | None = None,
        standby_of: Self | None = None,
    ) -> None:
        super().__init__(folder, preferred_port=preferred_port)
        self._durable = durable
        self._primary = standby_of
        if standby_of is not None:
            folders.write_private(self.folder / "password", standby_of._secret("password") + "\n")

    def promote(self) -> None:
        """Make a standby a primary. What it has not received by then is lost."""
        with contextlib.closing(psycopg.connect(self.url, autocommit=True)) as connection:
            connection.execute("SELECT pg_promote()")

    @property
    def url(self) -> str:
        return f"postgresql://ari:{self._secret('password')}@127.0.0.1:{self.port}/postgres"

    def _launch(self, port: int) -> processes.GuardedProcess:
        binaries = programs.postgres()
        data = self._data()
        if not data.is_dir():
            if self._primary is None:
                self._initialise(binaries)
            else:
                self._copy(self._primary)
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "timezone": "UTC",
        }
        if not self._durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        process = processes.GuardedProcess(
            [binaries / "postgres", "-D", data, *arguments],
            log=self.folder / "log",
            # Postgres's fast shutdown: it does not wait for clients to disconnect.
            stop_signal=signal.SIGINT,
            user=self.user,
        )
        self._wait(process, port)
        return process

    def _wait(self, process: processes.GuardedProcess, port: int) -> None:
        url = f"postgresql://ari:{self._secret('password')}@127.0.0.1:{port}/postgres"

        def ready() -> bool:
            try:
                psycopg.connect(url, connect_timeout=2).close()
            except psycopg.OperationalError:
                return False
            return True

        try:
            process.wait_until(ready, timeout_seconds=60)
        except processes.ProcessError:
            process.stop()
            raise

    def _initialise(self, binaries: Path) -> None:
        """Create the data folder under another name and move it when complete: a partial one is never used."""
        partial = self.folder / "data.partial"
        shutil.rmtree(partial, ignore_errors=True)
        folders.private(partial, owner=self.user)
        password_file = partial / "password"
        folders.write_private(password_file, self._secret("password") + "\n", owner=self.user)
        cluster = partial / "cluster"
        options = ["--username=ari", "--encoding=UTF8", "--no-locale", "--auth=scram-sha-256", "--no-instructions"]
        if not self._durable:
            options.append("--no-sync")
        processes.run(
            [binaries / "initdb", f"--pwfile={password_file}", f"--pgdata={cluster}", *options],
            user=self.user,
            cwd=Path("/"),
        )
        cluster.rename(self._data())
        shutil.rmtree(partial)

    def _copy(self, primary: Self) -> None:
        """Copy a running server's data, as `_initialise` creates it."""
        partial = self.folder / "data.partial"
        shutil.rmtree(partial, ignore_errors=True)
        program = programs.postgres_clients() / "pg_basebackup"
        processes.run(
            [program, f"--pgdata={partial}", f"--dbname={primary.url}", "--write-recovery-conf", "--checkpoint=fast"]
        )
        for path in [partial, *partial.rglob("*")]:
            if self.user:
                shutil.chown(path, self.user, self.user)
        partial.rename(self._data())


class Redis(_Server):
    """Redis 6.2 without persistence: the pipeline may lose its data at any time."""

    def __init__(self, folder: Path, *, preferred_port: int | None = None) -> None:
        super().__init__(folder, preferred_port=preferred_port)

    @property
    def url(self) -> str:
        return f"redis://:{self._secret('password')}@127.0.0.1:{self.port}/0"

    def _launch(self, port: int) -> processes.GuardedProcess:
        data = folders.private(self._data(), owner=self.user)
        settings = {
            "bind": "127.0.0.1",
            "port": str(port),
            "dir": str(data),
            "save": '""',
            "appendonly": "no",
            "maxmemory-policy": "noeviction",
            "requirepass": self._secret("password"),
        }
        # A file, because every user of the machine can read the arguments.
        configuration = data / "redis.conf"
        text = "".join(f"{name} {value}\n" for name, value in settings.items())
        folders.write_private(configuration, text, owner=self.user)
        process = processes.GuardedProcess([programs.redis(), configuration], log=self.folder / "log", user=self.user)

        def ready() -> bool:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                    connection.sendall(f"AUTH {self._secret('password')}\r\n".encode())
                    return connection.recv(64).startswith(b"+OK")
            except OSError:
                return False

        try:
            process.wait_until(ready, timeout_seconds=15)
        except processes.ProcessError:
            process.stop()
            raise
        return process


def create_database(url: str, name: str, *, template: str | None = None, exists_ok: bool = False) -> str:
    """Create a database on the server of `url`, empty or as a copy of `template`, and return its URL."""
    statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
    if template:
        # Copying files is faster on a server that does not sync.
        statement += sql.SQL(" TEMPLATE {} STRATEGY FILE_COPY").format(sql.Identifier(template))
    tolerated: tuple[type[Exception], ...] = (psycopg.errors.DuplicateDatabase,) if exists_ok else ()
    with contextlib.closing(psycopg.connect(url, autocommit=True)) as connection, contextlib.suppress(*tolerated):
        connection.execute(statement)
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def drop_database(url: str, name: str) -> None:
    """Drop a database on the server of `url`, and disconnect its clients."""
    statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
    with contextlib.closing(psycopg.connect(url, autocommit=True)) as connection:
        connection.execute(statement)
