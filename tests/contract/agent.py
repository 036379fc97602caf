"""A media server for the contract suite. The query of each leg says how to treat it, so one server is enough.

`leg` names it; `delay` and `close` are the seconds until it is accepted and closed, `refuse` is an HTTP status, `tone`
is the tone that the agent says, in Hz.
"""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

from simulator import audio


def _reset(connection: ServerConnection) -> None:
    # What is closed with a lingering time of 0 sends a TCP reset.
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.socket.shutdown(socket.SHUT_RD)


#: How the agent ends a leg: in good order, or as a process or a machine that dies, or one that has gone mad.
ENDS: dict[str, Callable[[ServerConnection], object]] = {
    "close": lambda connection: connection.close(),
    "error": lambda connection: connection.close(1011, "internal error"),
    # The platform's: no token, no such run, one that does not wait. Each comes after the socket was accepted.
    "4401": lambda connection: connection.close(4401, "token"),
    "4404": lambda connection: connection.close(4404, "run"),
    "4409": lambda connection: connection.close(4409, "state"),
    "hangup": lambda connection: connection.send("HANGUP"),
    "eof": lambda connection: connection.socket.shutdown(socket.SHUT_WR),
    "reset": _reset,
    "half": lambda connection: _raw(connection, b"\x82\x7e\x03\xe8abc"),
    "opcode": lambda connection: connection.socket.sendall(b"\x83\x03abc"),
    "garbage": lambda connection: connection.socket.sendall(b"\xff" * 32),
}


def _raw(connection: ServerConnection, sent: bytes) -> None:
    """Send bytes and end the stream."""
    connection.socket.sendall(sent)
    connection.socket.shutdown(socket.SHUT_WR)


@dataclass
class Leg:
    """A connection of a media leg, from its handshake on."""

    path: str
    query: dict[str, str]
    socket: ServerConnection
    texts: list[str] = field(default_factory=list)
    heard: bytearray = field(default_factory=bytearray)

    @property
    def is_open(self) -> bool:
        return self.socket.state.name == "OPEN"

    @property
    def dominant_hz(self) -> int | None:
        """The strongest frequency of the last 80 ms."""
        return audio.dominant_hz(bytes(self.heard[-4 * audio.FRAME_BYTES :]))


class Agent:
    """Listens on loopback, on a free port, until `close()`."""

    def __init__(self) -> None:
        #: Every handshake, oldest first.
        self.legs: list[Leg] = []
        self._server = serve(
            self._talk,
            "127.0.0.1",
            0,
            process_request=self._meet,
            subprotocols=[Subprotocol("media")],
            compression=None,
        )
        self.url = f"ws://127.0.0.1:{self._server.socket.getsockname()[1]}/ws/ari"
        self._thread = threading.Thread(target=self._server.serve_forever, name="contract-agent")
        self._thread.start()

    def of(self, leg: str) -> list[Leg]:
        """Return the connections of a media leg."""
        return [found for found in self.legs if found.query.get("leg") == leg]

    def close(self) -> None:
        """Close every socket and the port."""
        self._server.shutdown()
        for leg in self.legs:
            leg.socket.close()
        self._thread.join()

    def _meet(self, socket: ServerConnection, request: Request) -> Response | None:
        query = {name: values[0] for name, values in parse_qs(urlsplit(request.path).query).items()}
        # Before the handshake is answered, so that a test that has seen the leg's StasisStart finds it here.
        self.legs.append(Leg(request.path, query, socket))
        time.sleep(float(query.get("delay", 0)))
        return socket.respond(int(query["refuse"]), "refused\n") if "refuse" in query else None

    def _talk(self, socket: ServerConnection) -> None:
        leg = next(found for found in self.legs if found.socket is socket)
        frame = audio.tone(int(leg.query["tone"])) if "tone" in leg.query else b""
        closes_at = time.monotonic() + float(leg.query.get("close", 3600))
        due = time.monotonic()
        with contextlib.suppress(ConnectionClosed):
            while time.monotonic() < closes_at:
                with contextlib.suppress(TimeoutError):
                    message = socket.recv(timeout=max(0.0, due - time.monotonic()))
                    if isinstance(message, str):
                        leg.texts.append(message)
                    else:
                        leg.heard += message
                if time.monotonic() >= due:
                    due += audio.FRAME_SECONDS
                    if frame:
                        socket.send(frame)
