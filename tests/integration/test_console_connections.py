"""Connections that ask for nothing do not keep operators out."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from console import http_protocol, pages

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


async def answer(_request: Request) -> Response:
    return PlainTextResponse("here")


async def read(request: Request) -> Response:
    return PlainTextResponse(str(await pages.read_form(request)))


async def stream(_request: Request) -> Response:
    async def ticks() -> AsyncIterator[str]:
        for _ in range(20):
            yield "tick"
            await asyncio.sleep(0.05)

    return StreamingResponse(ticks())


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as listening:
        patch.setattr(http_protocol, "SILENT_SECONDS", 0.2)
        patch.setattr(pages, "BODY_SECONDS", 0.2)
        app = Starlette(routes=[Route("/", answer), Route("/form", read, methods=["POST"]), Route("/live", stream)])
        server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, lifespan="off", ws="none", http=http_protocol.Protocol)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(5)


def said(port: int, *sent: bytes) -> bytes:
    """Return all that is answered until the connection is closed, by the other end."""
    with socket.create_connection(("127.0.0.1", port), timeout=4) as client:
        received = b""
        for piece in sent:
            client.sendall(piece)
        while more := client.recv(65_536):
            received += more
        return received


@pytest.mark.parametrize("sent", [b"", GET + b"X-", b"GET /"])
def test_a_connection_without_a_request_is_closed(port: int, sent: bytes) -> None:
    assert said(port, sent) == b""


def test_a_connection_that_stops_within_its_second_request_is_closed(port: int) -> None:
    assert said(port, GET + b"\r\n" + GET).count(b"200 OK") == 1


def test_a_form_that_does_not_arrive_is_not_waited_for(port: int) -> None:
    assert b" 408 " in said(port, b"POST /form HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\na=")


def test_a_stream_is_not_silent(port: int) -> None:
    head = b"GET /live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert said(port, head).count(b"tick") == 20
