"""The process `web`: serves the console until it is told to stop."""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time

import structlog
import uvicorn

from console.app import Application
from console.http_protocol import Protocol
from console.pages import Platform
from shared import dependencies, errors
from shared.asterisk import tcp_connector
from shared.operator import connection_tests
from shared.platform import dograh
from shared.process import health, lifecycle, process_metrics, settings
from shared.storage import database

log = structlog.stdlib.get_logger(__name__)

#: A connection whose other end takes nothing for this time is cut by the kernel.
_SILENT_MS = 20_000
#: A server that is told to stop lets answers end for this time.
_GRACE_SECONDS = 3
#: An event loop that has not come round for this time is stuck: nothing in it waits.
_STUCK_SECONDS = 5
#: Requests at once, streams besides: further ones are answered with 503.
_MOST_REQUESTS = 200


def main() -> int:
    """Run the console. Returns its exit status."""
    try:
        return lifecycle.main("web", settings.Web, run, dependencies.of)
    except errors.InvalidSettings as exc:
        sys.stderr.write(f"web: {exc}\n")
        return 2


def run(config: settings.Web, stop: threading.Event) -> None:
    """Serve until `stop` is set.

    Raises:
        InvalidSettings: The address or port cannot be listened on.
    """
    listening = _listen(config.console_host, config.console_port)
    db = database.Database(
        config.database_url.get_secret_value(),
        size=config.database_pool,
        statement_seconds=config.database_seconds,
        idle_seconds=config.database_idle_seconds,
        name=config.name,
    )
    db.open()
    process_metrics.read_database(db.usage, most=config.database_pool)
    application = Application(config, db, platform=platform(config, db))
    # What it would tell at a level below is in our own log, or no one's business: it names addresses and queries.
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    server = uvicorn.Server(
        uvicorn.Config(
            application.asgi,
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            ws="none",
            http=Protocol,
            limit_concurrency=_MOST_REQUESTS + config.console_streams,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
    )
    server_thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="web server")
    server_thread.start()
    log.info("console started", url=config.console_url or _url(listening))
    liveness = health.Liveness(config.health_file)

    def is_alive() -> None:
        if server_thread.is_alive() and time.monotonic() - application.streams.ticked_at < _STUCK_SECONDS:
            liveness.touch()

    lifecycle.wait(stop, is_alive)
    server.should_exit = True
    application.streams.close_soon()
    server_thread.join()
    db.close()
    log.info("console stopped")


def platform(config: settings.Web, db: database.Database) -> Platform:
    """Return what pages ask of the platform's adapter."""
    watch = dograh.Watch(db, config.platform_layout, quiet=True)
    connector = tcp_connector.TcpConnector(config.guard())
    return Platform(
        limits=dograh.Accounts(db),
        configurations=dograh.Configurations(db, watch=watch),
        test=lambda meant: connection_tests.run(db, config.sealer(), connector, watch, meant),
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections that are accepted inherit it.
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENT_MS)
    try:
        made.bind((host, port))
        made.listen(256)
    except OSError as exc:
        made.close()
        raise errors.InvalidSettings(
            f"the console cannot listen on {host}:{port}: {exc.strerror or exc}; CONSOLE_PORT=0 takes a free port"
        ) from None
    return made


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


if __name__ == "__main__":
    sys.exit(main())
