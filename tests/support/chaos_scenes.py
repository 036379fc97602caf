"""What chaos/ does to connections and disks, tried inside a namespace: `python -m tests.support.chaos_scenes NAME`.

A process of its own, because entering the namespace replaces the program.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import http.server
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import websockets.exceptions
from websockets.sync import client as websocket_client
from websockets.sync import server as websocket_server

from chaos import network, proxy, tools
from devstack import folders

ASTERISK, EVENTS, POSTGRES = 8088, 8089, 5432
#: Longer than anything takes that is not meant to wait.
SILENT_SECONDS = 0.7


class Asterisk(http.server.ThreadingHTTPServer):
    """Answers each request with what it was asked, and counts."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, bytes, list[tuple[str, str]]]] = []
        super().__init__(("127.0.0.1", ASTERISK), _Answers)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def server_close(self) -> None:
        self.shutdown()
        super().server_close()


class _Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Whole answers: in two packets, the second waits for an acknowledgement.
    wbufsize = 65536
    server: Asterisk

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path, body, list(self.headers.items())))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_GET


@contextlib.contextmanager
def proxied(folder: Path, **ports: int) -> Iterator[proxy.Proxy]:
    """A proxy of the tenants `a` and `b`, and of Postgres."""
    tenants = {"a": ASTERISK, "b": ASTERISK} | ports
    with proxy.Proxy(tools.find().haproxy, folder / "proxy", tenants=tenants, servers={"postgres": POSTGRES}) as made:
        yield made


class Rest:
    """A connection that is kept open, as the product's are."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3)

    def ask(self, method: str = "GET", path: str = "/ari/channels?x=1") -> tuple[int, float]:
        """Return status and seconds."""
        began = time.monotonic()
        self.connection.request(method, path, body=b"12" if method == "POST" else None, headers={"Authorization": "x"})
        answer = self.connection.getresponse()
        answer.read()
        return answer.status, time.monotonic() - began


def until(condition: Callable[[], object]) -> None:
    ends_at = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < ends_at, "not within 10 s"
        time.sleep(0.02)


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def pair(port: int, listening: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Return both ends of an open connection through a port; haproxy passes it on once the client has sent."""
    ours = socket.create_connection(("127.0.0.1", port), timeout=5)
    ours.sendall(b"?")
    theirs, _ = listening.accept()
    assert theirs.recv(1) == b"?"
    return ours, theirs


def assert_silent(*ends: socket.socket) -> None:
    """Assert that nothing arrives: no byte, no end of the stream, no reset."""
    for end in ends:
        end.settimeout(SILENT_SECONDS)
        with pytest.raises(TimeoutError):
            end.recv(1)
        end.settimeout(10)


# ── scenes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def passes_unchanged(folder: Path) -> None:
    with Asterisk() as asterisk, proxied(folder) as made:
        direct, through = Rest(ASTERISK), Rest(made.ports["a"])
        assert made.url("a", "http://127.0.0.1:8088/prefix") == f"http://127.0.0.1:{made.ports['a']}/prefix"
        assert (
            made.url("postgres", "postgresql://u:p@h:1/d") == f"postgresql://u:p@127.0.0.1:{made.ports['postgres']}/d"
        )
        for method in ("GET", "POST", "GET"):
            assert direct.ask(method)[0] == through.ask(method)[0] == 200
            plain, proxied_one = asterisk.requests[-2:]
            assert proxied_one[:3] == plain[:3]
            hosts = [("Host", f"127.0.0.1:{port}") for port in (ASTERISK, made.ports["a"])]
            assert [hosts[0] if field == hosts[1] else field for field in proxied_one[3]] == plain[3]
        through.connection.close()


def rest_modes(folder: Path) -> None:
    with Asterisk() as asterisk, proxied(folder) as made:
        kept, other = Rest(made.ports["a"]), Rest(made.ports["b"])
        assert kept.ask()[0] == other.ask()[0] == 200

        made.set_mode("a", "slow")
        assert kept.connection.sock.recv(1) == b"", "it still leads past the fault"
        kept.connection.close()
        status, seconds = kept.ask()
        assert (status, seconds >= proxy.SLOW_SECONDS) == (200, True)

        before = len(asterisk.requests)
        made.set_mode("a", "error")
        assert kept.ask("POST")[0] == 500
        made.set_mode("a", "hang")
        with pytest.raises(TimeoutError):
            kept.ask("POST")
        assert len(asterisk.requests) == before

        kept.connection.close()
        made.set_mode("a", "unanswered")
        with pytest.raises(TimeoutError):
            kept.ask("POST")
        assert [request[0] for request in asterisk.requests[before:]] == ["POST"]

        assert other.ask()[1] < SILENT_SECONDS, "the other tenant waits too"
        made.set_mode("a", "normal")
        kept.connection.close()
        assert kept.ask()[0] == kept.ask()[0] == 200


def event_socket(folder: Path) -> None:
    served: list[websocket_server.ServerConnection] = []
    rest_port = ASTERISK

    def serve(connection: websocket_server.ServerConnection) -> None:
        served.append(connection)
        with contextlib.suppress(websockets.exceptions.ConnectionClosed):
            for message in connection:
                connection.send(message)

    with contextlib.ExitStack() as open_until_end:
        asterisk = open_until_end.enter_context(websocket_server.serve(serve, "127.0.0.1", EVENTS))
        open_until_end.callback(asterisk.shutdown)
        threading.Thread(target=asterisk.serve_forever, daemon=True).start()
        open_until_end.enter_context(Asterisk())
        made = open_until_end.enter_context(proxied(folder, a=EVENTS, b=EVENTS, rest=rest_port))

        def connect(tenant: str) -> websocket_client.ClientConnection:
            url = f"ws://127.0.0.1:{made.ports[tenant]}/prefix/ari/events?app=x"
            found = open_until_end.enter_context(websocket_client.connect(url, ping_interval=None, close_timeout=0.1))
            found.send("hello")
            assert found.recv(5) == "hello"
            return found

        ours, others = connect("a"), connect("b")
        assert [connection.remote_address[0] for connection in served] == [made.event_address(name) for name in "ab"]

        silence = network.Firewall(tools.find().nft).silence("events of a", address=made.event_address("a"))
        with silence:
            ours.send("into the silence")
            served[0].send("an event")
            others.send("still there")
            assert others.recv(5) == "still there"
            with pytest.raises(TimeoutError):
                ours.recv(SILENT_SECONDS)
        assert [ours.recv(10), ours.recv(10)] == ["an event", "into the silence"]

        made.cut_event_socket("a")
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            ours.recv(5)
        others.send("and still")
        assert others.recv(5) == "and still"
        connect("a")


def port_silence(folder: Path) -> None:
    firewall = network.Firewall(tools.find().nft)
    with socket.create_server(("127.0.0.1", POSTGRES)) as listening, proxied(folder) as made:
        port = made.ports["postgres"]
        ours, theirs = pair(port, listening)
        silence = firewall.silence("postgres of the product", port=port)
        silence.strike()
        ours.sendall(b"a")
        theirs.sendall(b"b")
        assert_silent(ours, theirs)
        with pytest.raises(TimeoutError):
            socket.create_connection(("127.0.0.1", port), timeout=SILENT_SECONDS)
        # The server itself is not silent: judge and sampler reach it by its own port.
        socket.create_connection(("127.0.0.1", POSTGRES), timeout=5).close()
        silence.mend()
        assert (ours.recv(1), theirs.recv(1)) == (b"b", b"a")
        silence.strike(most_seconds=1)
        until(lambda: not _times_out(port))
        silence.mend()


def _times_out(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.2).close()
    except TimeoutError:
        return True
    return False


def server_ends(folder: Path) -> None:
    with proxied(folder) as made:
        port = made.ports["a"]
        assert refuses(port)
        for _ in range(2):
            with Asterisk():
                until(lambda: not refuses(port))
                assert Rest(port).ask()[0] == 200
            until(lambda: refuses(port))
        with socket.create_server(("127.0.0.1", POSTGRES)) as listening:
            until(lambda: not refuses(made.ports["postgres"]))
            listening.accept()
            ours, theirs = pair(made.ports["postgres"], listening)
            theirs.close()
            assert ours.recv(1) == b"", "the end of a server does not reach its client"


def loud_cut(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", POSTGRES)) as listening, proxied(folder) as made:
        port = made.ports["postgres"]
        ours, theirs = pair(port, listening)
        made.cut("postgres")
        assert (ours.recv(1), theirs.recv(1)) == (b"", b"")
        ours, theirs = pair(port, listening)
        made.refuse("postgres")
        assert (ours.recv(1), theirs.recv(1), refuses(port)) == (b"", b"", True)
        made.accept("postgres")
        pair(port, listening)
        made.set_mode("postgres", "slow")
        began = time.monotonic()
        pair(port, listening)
        assert time.monotonic() - began >= proxy.SLOW_SECONDS


def full_disk(folder: Path) -> None:
    owner = folders.server_user()
    with network.tmpfs(folder / "disk", megabytes=4, owner=owner) as disk:
        assert disk.owner() == owner
        file = disk / "data"
        file.write_bytes(b"1")
        network.fill(disk)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)), file.open("ab") as opened:
            opened.write(b"2" * 5000)
        network.free(disk)
        file.write_bytes(b"3" * 5000)
    assert list((folder / "disk").iterdir()) == []


SCENES = (
    passes_unchanged, rest_modes, event_socket, port_silence, server_ends, loud_cut, full_disk,
)  # fmt: skip


def main() -> None:
    network.enter()
    scenes = {scene.__name__: scene for scene in SCENES}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        scenes[sys.argv[1]](Path(folder))


if __name__ == "__main__":
    main()
