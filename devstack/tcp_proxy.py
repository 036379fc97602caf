"""A TCP proxy between a client and a server, which can cut the connections, leave them half open and lose an answer."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit


class TcpProxy:
    """Listens on a free port and forwards to the server of `url`; `self.url` is the URL through the proxy."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.lead_to(url)
        self._listening = socket.create_server(("127.0.0.1", 0))
        port = self._listening.getsockname()[1]
        self.url = urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{port}"))
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        #: The servers' ends of those whose answers are swallowed.
        self._swallowed: set[socket.socket] = set()
        self._is_cut = False
        #: Called for each connection; returns what hears all that its client sends, before the server gets it.
        self.hears: Callable[[], Callable[[bytes], None]] = lambda: lambda data: None
        #: Called with the last request and its answer; True cuts the connection instead of forwarding the answer.
        self.loses: Callable[[bytes, bytes], bool] = lambda request, answer: False
        self.lost = 0
        #: Called with the last request; True leaves the connection half open: no answer on it is forwarded any more.
        self.silences: Callable[[bytes], bool] = lambda request: False

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cut()
        self._listening.close()

    def lead_to(self, url: str) -> None:
        """Forward new connections to the server of this URL."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._server = (parts.hostname, parts.port)

    def cut(self) -> None:
        """Make the server unreachable and cut all connections."""
        with self._lock:
            self._is_cut = True
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            _close(*pair)

    def swallow(self) -> None:
        """Keep the connections that there are, and forward no answer on them any more."""
        with self._lock:
            self._swallowed.update(server for _, server in self._pairs)

    def mend(self) -> None:
        """Make the server reachable again."""
        with self._lock:
            self._is_cut = False

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._server, timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            with self._lock:
                is_cut = self._is_cut
                if not is_cut:
                    self._pairs.append((client, server))
            if is_cut:
                _close(client, server)
                continue
            asked = [b""]
            threading.Thread(target=self._requests, args=(client, server, asked), daemon=True).start()
            threading.Thread(target=self._answers, args=(client, server, asked), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket, asked: list[bytes]) -> None:
        hear = self.hears()
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                hear(data)
                asked[0] = data
                server.sendall(data)
        _close(client, server)

    def _answers(self, client: socket.socket, server: socket.socket, asked: list[bytes]) -> None:
        is_silent = False
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                is_silent = is_silent or server in self._swallowed or self.silences(asked[0])
                if is_silent:
                    continue
                if self.loses(asked[0], data):
                    self.lost += 1
                    break
                client.sendall(data)
        _close(client, server)


def _close(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
