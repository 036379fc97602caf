"""One haproxy between the product and Asterisk, Postgres, Redis and the media server, changed while it runs.

A connection is passed on byte by byte: the product sees Asterisk's own answers, headers and closed connections, and
Asterisk the product's. Two things differ from a bare proxy:

- A port of the proxy refuses connections while the server behind it does not listen (`_Follower`, within 20 ms).
  haproxy alone would accept them and close them, or answer 503: the product would not know that nothing was sent.
- While the REST of a tenant is at fault, its connections lead through an HTTP frontend of the same process. It writes
  the names of header fields in lower case, adds none, and closes each connection after its answer.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, get_args
from urllib.parse import urlsplit, urlunsplit

from devstack import folders, processes

#: `slow`: each request (of a server: each new connection) waits for SLOW_SECONDS, and is then passed on;
#: `error`: 500, Asterisk sees no request; `hang`: no answer, Asterisk sees no request; `unanswered`: Asterisk executes
#: the request, and its answer never arrives.
Mode = Literal["normal", "slow", "error", "hang", "unanswered"]
SLOW_SECONDS = 2
#: After this time a request that hangs is closed without an answer.
HANG_SECONDS = 60
#: Ports below those that the kernel gives to clients: a silence of one never hits another connection.
FIRST_PORT = 17001
#: The last part of the address from which the first tenant's event socket reaches Asterisk.
_FIRST_EVENT_HOST = 81
_FOLLOW_SECONDS = 0.02
_LUA = Path(__file__).with_name("haproxy.lua")

_GLOBAL = """global
    nbthread 1
    maxconn 8000
    stats socket {folder}/haproxy.sock mode 600 level admin
    lua-load {lua}

defaults
    mode tcp
    maxconn 4000
    backlog 1024
    retries 0
    timeout connect 10s
    timeout client 1h
    timeout server 1h
    timeout tunnel 1h
    timeout client-fin 10s
    timeout server-fin 10s
    timeout http-request 1h
    timeout tarpit {hang}s
"""
_TENANT = """
frontend {name}
    bind 127.0.0.1:{port}
    tcp-request inspect-delay 60s
    tcp-request content accept if {{ req.len gt 0 }}
    use_backend {name}-events if {{ req.payload(0,0) -m reg "^GET [^ ?]*/ari/events[ ?]" }}
    use_backend {name}-faulty unless {{ str({name}),map_str({modes}) -m str normal }}
    default_backend {name}-rest

backend {name}-events
    server asterisk 127.0.0.1:{server_port} source {event_address}

backend {name}-rest
    server asterisk 127.0.0.1:{server_port}

backend {name}-faulty
    server proxy unix@{folder}/{name}.sock

frontend {name}-http
    mode http
    bind unix@{folder}/{name}.sock mode 600
    # Asterisk's absence is a closed connection, and no answer of haproxy's own.
    errorfile 502 /dev/null
    errorfile 503 /dev/null
    errorfile 504 /dev/null
    option httpclose
    http-request set-var(txn.mode) str({name}),map_str({modes})
    http-request lua.pause {slow}000 if {{ var(txn.mode) -m str slow }}
    http-request return status 500 content-type application/json string "{{}}" if {{ var(txn.mode) -m str error }}
    http-request tarpit deny_status 504 if {{ var(txn.mode) -m str hang }}
    http-response lua.pause {hang}000 if {{ var(txn.mode) -m str unanswered }}
    http-response silent-drop if {{ var(txn.mode) -m str unanswered }}
    default_backend {name}-asterisk

backend {name}-asterisk
    mode http
    http-reuse never
    server asterisk 127.0.0.1:{server_port}
"""
_SERVER = """
frontend {name}
    bind 127.0.0.1:{port}
    tcp-request inspect-delay 60s
    tcp-request content lua.pause {slow}000 if {{ str({name}),map_str({modes}) -m str slow }}
    default_backend {name}-server

backend {name}-server
    server server 127.0.0.1:{server_port}
"""


class Proxy:
    """A haproxy process; a context manager.

    Args:
        haproxy: the program.
        folder: its configuration, socket and log; created if missing. Its path has 60 characters at most.
        tenants: name → HTTP port of its Asterisk. Each tenant has a port of the proxy.
        servers: name → port of another server: Postgres, Redis, the media server.
    """

    def __init__(
        self, haproxy: Path, folder: Path, *, tenants: Mapping[str, int], servers: Mapping[str, int] | None = None
    ) -> None:
        self._haproxy = haproxy
        self._folder = folders.make(folder, mode=0o700)
        self._tenants = tuple(tenants)
        self._server_ports = {**tenants, **(servers or {})}
        #: Name of a tenant or server → the port of the proxy that leads to it.
        self.ports = {name: FIRST_PORT + number for number, name in enumerate(self._server_ports)}
        self._process: processes.GuardedProcess | None = None
        self._follower = _Follower(self._change, self._server_ports)

    def url(self, name: str, server_url: str) -> str:
        """Return the URL of a server with the port of the proxy in it."""
        parts = urlsplit(server_url)
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{self.ports[name]}"))

    def event_address(self, tenant: str) -> str:
        """Return the address that only this tenant's event sockets use: a silence of it leaves REST alone."""
        return f"127.0.0.{_FIRST_EVENT_HOST + self._tenants.index(tenant)}"

    def set_mode(self, name: str, mode: Mode) -> None:
        """Change how a tenant's REST requests, or the new connections of a server (normal, slow), are treated.

        At the beginning of a fault the tenant's REST connections are closed, so that each request meets the fault: a
        request under way in that moment is lost. At its end only what is under way still meets it.
        """
        if mode not in get_args(Mode) or (name not in self._tenants and mode not in ("normal", "slow")):
            raise ValueError(f"{name} has no mode {mode}")
        self._change(f"set map {self._modes} {name} {mode}")
        if name in self._tenants and mode != "normal":
            self.cut(name)

    def cut_event_socket(self, tenant: str) -> None:
        """Close the event sockets of a tenant, both ends told at once."""
        self._change(f"shutdown sessions server {tenant}-events/asterisk")

    def cut(self, name: str) -> None:
        """Close the connections to a server, or the REST connections of a tenant, both ends told at once."""
        backend = f"{name}-rest/asterisk" if name in self._tenants else f"{name}-server/server"
        self._change(f"shutdown sessions server {backend}")

    def refuse(self, name: str) -> None:
        """Refuse new connections and close those there are, as if the server had ended."""
        self._follower.refuse(name, is_refused=True)
        self.cut(name)
        if name in self._tenants:
            self.cut_event_socket(name)

    def accept(self, name: str) -> None:
        """Undo `refuse`."""
        self._follower.refuse(name, is_refused=False)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._modes.write_text("".join(f"{name} normal\n" for name in self._server_ports))
        configuration = self._folder / "haproxy.cfg"
        configuration.write_text("".join(self._configuration()))
        self._process = processes.GuardedProcess(
            [self._haproxy, "-db", "-q", "-f", configuration], log=self._folder / "log", stop_signal=15
        )
        try:
            self._process.wait_until(self._answers, timeout_seconds=10)
        except processes.ProcessError:
            self._process.stop()
            raise
        self._follower.start()

    def stop(self) -> None:
        """End it; its connections are closed."""
        self._follower.stop()
        if self._process:
            self._process.kill()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _modes(self) -> Path:
        return self._folder / "modes"

    def _configuration(self) -> Iterator[str]:
        yield _GLOBAL.format(folder=self._folder, lua=_LUA, hang=HANG_SECONDS)
        for name, server_port in self._server_ports.items():
            is_tenant = name in self._tenants
            yield (_TENANT if is_tenant else _SERVER).format(
                name=name,
                port=self.ports[name],
                server_port=server_port,
                event_address=self.event_address(name) if is_tenant else None,
                folder=self._folder,
                modes=self._modes,
                slow=SLOW_SECONDS,
                hang=HANG_SECONDS,
            )

    def _answers(self) -> bool:
        try:
            return "Uptime" in self._command("show info")
        except OSError:
            return False

    def _change(self, command: str) -> None:
        if answer := self._command(command).strip():
            raise processes.ProcessError(f"haproxy: {command}: {answer}")

    def _command(self, command: str) -> str:
        """Send a command to haproxy's runtime API, and return its answer."""
        with socket.socket(socket.AF_UNIX) as asked:
            asked.settimeout(5)
            asked.connect(str(self._folder / "haproxy.sock"))
            asked.sendall(command.encode() + b"\n")
            with asked.makefile("rb") as answer:
                return answer.read().decode()


class _Follower:
    """A thread that opens and closes the ports of the proxy with those of the servers behind it.

    Args:
        change: gives haproxy a command.
        server_ports: name of a frontend → port of its server.
    """

    def __init__(self, change: Callable[[str], None], server_ports: Mapping[str, int]) -> None:
        self._change = change
        self._server_ports = server_ports
        self._refused: set[str] = set()
        self._closed: set[str] = set()
        self._lock = threading.Lock()
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy-follower", daemon=True)

    def start(self) -> None:
        self._follow()
        self._thread.start()

    def stop(self) -> None:
        self._is_stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def refuse(self, name: str, *, is_refused: bool) -> None:
        """Keep a port closed although its server listens."""
        (self._refused.add if is_refused else self._refused.discard)(name)
        self._follow()

    def _run(self) -> None:
        while not self._is_stopped.wait(_FOLLOW_SECONDS):
            # haproxy itself may have ended.
            with contextlib.suppress(OSError):
                self._follow()

    def _follow(self) -> None:
        with self._lock:
            # A port at which a server listens cannot be bound; the probe does not disturb a server that is starting.
            closed = {name for name, port in self._server_ports.items() if processes.port_is_free(port)}
            closed |= self._refused
            for name in closed - self._closed:
                self._change(f"disable frontend {name}")
            for name in self._closed - closed:
                self._change(f"enable frontend {name}")
            self._closed = closed
