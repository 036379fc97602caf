"""Records the events of an app as Asterisk sends them, one JSON object a line: `python -m simulator.record --help`.

Connecting takes the app over from its present event socket. The password is read from ARI_PASSWORD.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from typing import TextIO
from urllib.parse import urlencode

import aiohttp


async def record(url: str, user: str, password: str, app: str, out: TextIO) -> None:
    """Writes every event of the app until the socket closes or this is cancelled.

    Args:
        url: as configured for a tenant, without `/ari`.
    """
    address = f"{url.rstrip('/')}/ari/events?{urlencode({'app': app})}"
    auth = aiohttp.BasicAuth(user, password)
    async with aiohttp.ClientSession(auth=auth) as session, session.ws_connect(address, max_msg_size=0) as socket:
        sys.stderr.write(f"recording the app {app}\n")
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                out.write(f"{message.data.strip()}\n")
                out.flush()


async def _run(options: argparse.Namespace, password: str) -> None:
    task = asyncio.ensure_future(record(options.url, options.user, password, options.app, sys.stdout))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return


def main(arguments: Sequence[str] | None = None) -> int:
    """Records to standard output until SIGINT, SIGTERM or the end of the socket; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m simulator.record", description=__doc__)
    parser.add_argument("--url", required=True, help="http://host:port and the path prefix, without /ari")
    parser.add_argument("--user", required=True, help="ARI user; the password is read from ARI_PASSWORD")
    parser.add_argument("--app", required=True, help="Stasis app; taken over from its present event socket")
    options = parser.parse_args(arguments)
    password = os.environ.get("ARI_PASSWORD")
    if not password:
        sys.stderr.write("simulator.record: ARI_PASSWORD is not set\n")
        return 2
    try:
        asyncio.run(_run(options, password))
    except (aiohttp.ClientError, OSError) as exc:
        sys.stderr.write(f"simulator.record: {exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
