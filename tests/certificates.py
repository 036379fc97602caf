"""Certificates as PBX owners have them, and a TLS proxy to put in front of an Asterisk."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit, urlunsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

LOOPBACK = ("localhost", "127.0.0.1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    #: Those above it, which a server sends along.
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def pem(self) -> str:
        """The certificate alone."""
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()


def issue(
    name: str, by: Issued | None = None, *, hosts: tuple[str, ...] = (), authority: bool = False, starts_days: int = -1,
    ends_days: int = 30,
) -> Issued:  # fmt: skip
    """A certificate, signed by another one or by itself; its days are counted from today."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    today = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today + timedelta(days=starts_days))
        .not_valid_after(today + timedelta(days=ends_days))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), False)
    certificate = builder.sign(by.key if by else key, hashes.SHA256())
    chain = (by.certificate, *by.chain) if by else ()
    return Issued(certificate=certificate, key=key, chain=chain)


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


class Proxy:
    """A TLS proxy: it forwards bytes to a plain server, requests and websockets alike.

    Args:
        inside: The URL of the plain server, path prefix included.
        shown: Its certificate.
    """

    def __init__(self, inside: str, shown: Issued) -> None:
        self._inside = urlsplit(inside)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.show(shown)
        #: True: cut each connection after its first bytes, without a TLS close.
        self.cuts = False
        #: Number of completed handshakes.
        self.accepted = 0
        self._port = 0
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tls-proxy", daemon=True)

    def url(self, host: str = "localhost") -> str:
        """Return the endpoint to configure."""
        return urlunsplit(("https", f"{host}:{self._port}", self._inside.path, "", ""))

    def show(self, shown: Issued) -> None:
        """Use another certificate from the next connection on."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "both.pem"
            encoding, bare = serialization.Encoding.PEM, serialization.NoEncryption()
            key = shown.key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, bare)
            path.write_bytes(key + b"".join(one.public_bytes(encoding) for one in (shown.certificate, *shown.chain)))
            self._context.load_cert_chain(path)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    def _work(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        # Clients that reject the certificate are expected here.
        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0, ssl=self._context)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopping.wait()
        server.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.cuts:
            await reader.read(65536)
            writer.transport.abort()
            return
        host, port = self._inside.hostname, self._inside.port
        onward, back = await asyncio.open_connection(host, port)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pass_on(reader, back))
                group.create_task(_pass_on(onward, writer))
        except* OSError:
            pass
        finally:
            back.transport.abort()
            writer.transport.abort()


async def _pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while chunk := await source.read(65536):
        sink.write(chunk)
        await sink.drain()
    # Ends the other direction, too.
    raise ConnectionResetError


@contextlib.contextmanager
def in_front_of(url: str, shown: Issued) -> Iterator[Proxy]:
    """Run a proxy for one test."""
    with Proxy(url, shown) as proxy:
        yield proxy
