"""Runs the stand-in of the platform's API until SIGINT or SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys

import redis

from devstack import platform_tables
from devstack.platform_api import media, server


async def serve(options: server.Options, behaviour: server.Behaviour, *, port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with server.serving(options, behaviour, port=port) as (_, bound):
        sys.stdout.write(f"the platform ({options.layout}) listens on http://127.0.0.1:{bound}, media {media.PATH}\n")
        sys.stdout.flush()
        await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m devstack.platform_api",
        description="The stand-in of the platform's API. Its tables are made if the database has none.",
    )
    parser.add_argument("--layout", choices=["2026-02", "newest"], default="newest")
    parser.add_argument("--port", type=int, default=0, help="loopback port, 0 for any")
    parser.add_argument("--database-url", default=os.environ.get("DATABASE_URL"), help="default: env DATABASE_URL")
    parser.add_argument(
        "--redis-url",
        default=os.environ.get("PLATFORM_REDIS_URL") or os.environ.get("REDIS_URL"),
        help="of the platform; default: env PLATFORM_REDIS_URL, else REDIS_URL",
    )
    parser.add_argument("--mode", choices=["echo", "tone"], default="echo")
    parser.add_argument("--hang-up-after", type=float, metavar="SECONDS", help="the agent ends each call")
    parser.add_argument("--call-id-after", type=float, default=0, metavar="SECONDS", help="delay of the write")
    parser.add_argument("--limit", type=int, default=10, help="concurrent calls of an organization")
    parser.add_argument("--dial-template", default="PJSIP/{number}")
    parser.add_argument("--token-not-enforced", action="store_true", help="a wrong token is let through")
    options = parser.parse_args()
    if not options.database_url or not options.redis_url:
        parser.error("DATABASE_URL and REDIS_URL are needed")
    platform_tables.create(options.database_url, options.layout, exists_ok=True)
    with contextlib.closing(redis.Redis.from_url(options.redis_url, socket_timeout=5)) as client:
        # The API's job worker says there that it is alive: a platform's Redis is known by such keys.
        client.set("arq:queue:health-check", "the stand-in runs no jobs")
    asyncio.run(
        serve(
            server.Options(
                layout=options.layout,
                database_url=options.database_url,
                redis_url=options.redis_url,
                token_secret=os.environ.get("TELEPHONY_WS_TOKEN_SECRET") or os.environ.get("MEDIA_TOKEN_SECRET"),
                enforces_token=not options.token_not_enforced,
                default_limit=options.limit,
                dial_template=options.dial_template,
                credit_secret=os.environ.get("MPS_SECRET_KEY"),
            ),
            server.Behaviour(
                mode=options.mode,
                close_after_seconds=options.hang_up_after,
                call_id_after_seconds=options.call_id_after,
            ),
            port=options.port,
        )
    )


if __name__ == "__main__":
    main()
