"""The simulator as a process: options, signals, and one line per Asterisk with its address."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from simulator import errors, scenarios, server, settings

#: Each needs a port, and a few file descriptors once it is used.
_MOST = 5000


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs until SIGTERM or SIGINT; returns the exit status."""
    options = _parser().parse_args(arguments)
    if len(options.user or []) != len(options.password or []):
        sys.stderr.write("simulator: give one --password for each --user\n")
        return 2
    try:
        scenario = None if options.scenario == "none" else scenarios.load(Path(options.scenario))
        asyncio.run(_run(options, scenario))
    except (errors.ScenarioError, OSError) as exc:
        sys.stderr.write(f"simulator: {exc}\n")
        return 2
    return 0


async def _run(options: argparse.Namespace, scenario: scenarios.Scenario | None) -> None:
    stopping = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stopping.set)
    running: list[server.Server] = []
    try:
        for number in range(options.count):
            one = server.Server(_settings(options), scenario)
            await one.start(options.host, options.port + number if options.port else 0)
            running.append(one)
            sys.stdout.write(f"simulator: ARI at http://{options.host}:{one.port}{one.settings.path_prefix}/ari\n")
        sys.stdout.flush()
        await stopping.wait()
    finally:
        await asyncio.gather(*(one.stop() for one in running))


def _settings(options: argparse.Namespace) -> settings.Settings:
    users = dict(zip(options.user or ["demo"], options.password or ["demo"], strict=True))
    return settings.Settings(
        users=users,
        media_urls=dict(options.media_url),
        path_prefix=_prefix(options.path_prefix),
        session_limit=options.session_limit,
        inbound_app=options.inbound_app,
        audio=not options.no_audio,
        restart_after_seconds=options.restart_after,
    )


def _prefix(text: str) -> str:
    return f"/{text.strip('/')}" if text.strip("/") else ""


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= _MOST:
        raise argparse.ArgumentTypeError(f"expected 1 to {_MOST}")
    return int(text)


def _media_client(text: str) -> tuple[str, str]:
    """Parses `URL` or `NAME=URL`; the URL's query may have an equals sign, too."""
    name, _, url = text.partition("=")
    if ":" in name or not url:
        name, url = "media", text
    if not url.startswith(("ws://", "wss://")):
        raise argparse.ArgumentTypeError("expected ws://... or NAME=ws://...")
    return name, url


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m simulator", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8088, help="0: any free port (default: %(default)s)")
    parser.add_argument(
        "--count",
        type=_count,
        default=1,
        help="number of Asterisks, on consecutive ports (default: %(default)s)",
    )
    parser.add_argument("--user", action="append", help="ARI user; repeatable (default: demo)")
    parser.add_argument("--password", action="append", help="password of the --user in the same place (default: demo)")
    parser.add_argument(
        "--media-url",
        action="append",
        default=[],
        type=_media_client,
        metavar="[NAME=]URL",
        help="URL of a websocket client; repeatable (default name: media)",
    )
    parser.add_argument("--path-prefix", default="", help="path before /ari")
    parser.add_argument("--scenario", default="none", help="JSON file with callers and faults (default: %(default)s)")
    parser.add_argument("--inbound-app", default="voiceai", help="app of Local/NUMBER@inbound (default: %(default)s)")
    parser.add_argument("--session-limit", type=int, default=100, help="TCP connections to /ari (default: %(default)s)")
    parser.add_argument("--restart-after", type=float, metavar="SECONDS", help="come back this long after a crash")
    parser.add_argument("--no-audio", action="store_true", help="media legs are silent")
    return parser
