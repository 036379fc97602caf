"""Answers of HTTP as any Asterisk, any proxy and any enemy may send them, whole or byte by byte."""

from __future__ import annotations

import http.client
import io
import itertools
import random
from collections.abc import Iterable, Iterator
from typing import Any, cast

import pytest

from shared import errors
from shared.asterisk import http_answer
from shared.asterisk.http_answer import AnswerReader, HttpAnswer

LARGEST = 1_000_000


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def read(parts: Iterable[bytes], largest: int = LARGEST) -> HttpAnswer:
    """Read one answer from what is received piece by piece; then the connection ends."""
    received = itertools.chain(parts, itertools.repeat(b""))
    return AnswerReader(lambda: next(received), largest_body=largest).read()


WHOLE = {
    "a length": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", 200, b"{}", True),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 200, b"", True),
    "odd case": (b"HTTP/1.1 200 \r\ncOnTENT-length:2  \r\nX:\r\n\r\n{}", 200, b"{}", True),
    "204": (b"HTTP/1.1 204 No Content\r\nContent-type: application/json\r\n\r\n", 204, b"", True),
    "204 with a length of 0": (b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", 204, b"", True),
    "204 with a length": (b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n", 204, b"", False),
    "204 in chunks": (b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", 204, b"", False),
    "a length twice": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 200, b"{}", True),
    "a length twice in a field": (b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\n{}", 200, b"{}", True),
    "304": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", 304, b"", True),
    "until the end": (b"HTTP/1.1 200 OK\r\n\r\n{}", 200, b"{}", False),
    "closing": (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", 200, b"{}", False),
    "closing, in a list": (b"HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 0\r\n\r\n", 200, b"", False),
    "closing, said later": (
        b"HTTP/1.1 200 OK\r\nConnection: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", 200, b"", False,
    ),
    "1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", 200, b"{}", False),
    "1.0, kept": (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\n{}", 200, b"{}", True),
    "interim": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 404 Not Found\r\n"
        b"Content-Length: 2\r\n\r\n{}", 404, b"{}", True,
    ),
    "folded": (b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\tc\r\nContent-Length:\r\n 2\r\n\r\n{}", 200, b"{}", True),
    "chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[1\r\n1;a=b\r\n]\r\n0\r\n\r\n", 200, b"[1]", True,
    ),
    "chunks and trailers": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\nA\r\n0123456789\r\n000\r\nX: y\r\nZ: a\r\n\r\n",
        200, b"0123456789", True,
    ),
    "chunks count more than a length": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        200, b"{}", True,
    ),
    "more than was asked for": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\n", 200, b"{}", False,
    ),
    "a body of a 204": (b"HTTP/1.1 204 OK\r\nContent-Length: 2\r\n\r\n{}", 204, b"", False),
}  # fmt: skip


@pytest.mark.parametrize("case", WHOLE)
def test_an_answer_is_read_as_it_is_sent(case: str) -> None:
    data, status, body, keeps = WHOLE[case]
    assert read([data]) == HttpAnswer(status=status, body=body, keeps_connection=keeps)


@pytest.mark.parametrize("case", [case for case in WHOLE if case not in ("more than was asked for", "a body of a 204")])
def test_an_answer_may_come_in_pieces(case: str) -> None:
    data, status, body, keeps = WHOLE[case]
    for size in (1, 2, 3, 7, 40):
        answer = read(pieces(data, size))
        assert answer == HttpAnswer(status=status, body=body, keeps_connection=keeps), size


@pytest.mark.parametrize("case", [case for case in WHOLE if case != "until the end"])
def test_an_answer_that_ends_too_soon_is_none(case: str) -> None:
    data = WHOLE[case][0].removesuffix(b"HTTP/1.1 200 OK\r\n")
    end = data.index(b"\r\n\r\n") + 4 if case in ("304", "a body of a 204") else len(data)
    for length in range(end):
        with pytest.raises(ConnectionResetError):
            read([data[:length]])


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.2 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1 +20 OK\r\n\r\n",
        b" HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: no name\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2_0\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 02\r\n\r\n{} ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2,\r\n\r\n{} ",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 16 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}0\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused(data: bytes) -> None:
    for parts in ([data], pieces(data, 1)):
        with pytest.raises(errors.AsteriskUnreachable, match="the answer is not HTTP"):
            read(parts)


@pytest.mark.parametrize(
    ("beginning", "what"),
    [
        (b"H", "headers are"),
        (b"HTTP/1.1 200 OK\r\nX: ", "headers are"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;", "headers are"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ", "headers are"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "answer is"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n", "answer is"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"8000\r\n" + b"x" * 0x8000, "answer is"),
    ],
)
def test_an_answer_without_end_is_bounded(beginning: bytes, what: str) -> None:
    count = 0

    def endless() -> Iterator[bytes]:
        nonlocal count
        yield beginning
        for part in itertools.cycle([b"\r\n8000\r\n" + b"x" * 0x8000] if b"8000" in beginning else [b"x" * 1000]):
            count += len(part)
            yield part

    with pytest.raises(errors.AsteriskUnreachable, match=f"{what} too large"):
        read(endless())
    assert count < 1_200_000


@pytest.mark.parametrize(
    ("beginning", "repeated"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1;" + b"x" * 1000 + b"\r\n \r\n"),
    ],
    ids=["interim answers", "trailers", "sizes of chunks"],
)
def test_what_comes_beside_a_body_is_bounded_too(beginning: bytes, repeated: bytes) -> None:
    received, largest = 0, LARGEST // 20

    def endless() -> Iterator[bytes]:
        nonlocal received
        yield beginning
        while received < 4 * largest:
            received += len(repeated)
            yield repeated

    with pytest.raises(errors.AsteriskUnreachable, match="the answer is too large"):
        read(endless() if beginning else itertools.islice(endless(), 1, None), largest)
    assert received <= 2 * (largest + http_answer.LARGEST_HEAD) + 2000


def test_a_body_whose_length_is_told_is_refused_before_it_comes() -> None:
    with pytest.raises(errors.AsteriskUnreachable, match="the answer is too large"):
        read([b"HTTP/1.1 200 OK\r\nContent-Length: 1000001\r\n\r\n"])


class Recorded:
    """A socket that has received it all, for the standard library."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def test_the_standard_library_reads_the_same() -> None:
    """Answers made at random: what both accept they read alike, and what the standard library refuses is refused."""
    for seed in range(300):
        reads_the_same(seed)


def reads_the_same(seed: int) -> None:
    data = made_at_random(random.Random(seed))
    expected = http.client.HTTPResponse(cast(Any, Recorded(data)), method="GET")
    try:
        expected.begin()
        body = expected.read()
    except (http.client.HTTPException, ValueError):
        with pytest.raises((errors.AsteriskUnreachable, ConnectionResetError)):
            read([data])
        return
    answer = read([data])
    assert (answer.status, answer.body) == (expected.status, body)
    assert not (answer.keeps_connection and expected.will_close)


def made_at_random(choose: random.Random) -> bytes:
    lines = [choose.choice(["HTTP/1.1 200 OK", "HTTP/1.1 404 Not Found", "HTTP/1.0 500 x", "HTTP/1.1 204 None", "HTP"])]
    # The standard library reads chunks even after a 204, which has no body.
    body = b"" if " 204 " in lines[0] else choose.randbytes(choose.choice([0, 1, 17, 300]))
    lines += choose.choices(["Server: Asterisk/22.10.1", "X: a: b", "Cache-Control: no-cache, no-store", "Y:"], k=2)
    lines += choose.choice([[], [], ["Connection: close"], ["Connection: keep-alive"]])
    match choose.choice(["length", "length", "chunks", "end", "short"]) if body else "length":
        case "length":
            lines.append(f"Content-Length: {len(body)}")
        case "short":
            lines.append(f"Content-Length: {len(body) + 3}")
        case "chunks":
            lines.append("Transfer-Encoding: chunked")
            parts = [part for part in pieces(body, choose.choice([1, 7, 200])) if part]
            body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    choose.shuffle(headers := lines[1:])
    return "\r\n".join([lines[0], *headers, "", ""]).encode() + body
