"""A worker of arq, in an environment of its own: it needs a client of Redis that is older than the project's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

#: The platform's.
VERSION = "0.26.3"

#: Runs what waits in the queue, and prints each job's arguments. Every function of a platform's worker takes `ctx`.
_WORKER = """
import asyncio, json, sys
from arq.connections import RedisSettings
from arq.worker import Worker, func

host, port, password, name = sys.argv[1:]

async def job(ctx, *args, **given):
    print(json.dumps({"id": ctx["job_id"], "try": ctx["job_try"], "args": args, "given": given}), flush=True)

async def main():
    settings = RedisSettings(host=host, port=int(port), password=password or None)
    worker = Worker([func(job, name=name)], redis_settings=settings, burst=True, poll_delay=0.05, handle_signals=False)
    try:
        await worker.main()
    finally:
        await worker.close()

asyncio.run(main())
"""


class Unavailable(Exception):
    """arq cannot be installed here; the text says why."""


def python() -> Path:
    """Return a Python that has arq; it is installed on first use, outside the checkout. Raises Unavailable."""
    cache = Path(os.environ.get("ARI_PIPELINE_CACHE", "/var/cache/ari-pipeline"))
    folder = cache / f"arq-{VERSION}-py{sys.version_info.major}.{sys.version_info.minor}"
    made, marker = folder / "bin" / "python", folder / "installed"
    if not marker.exists():
        try:
            venv.create(folder, clear=True, with_pip=False)
        except OSError as exc:
            raise Unavailable(f"no environment at {folder}: {exc}") from exc
        command = [sys.executable, "-m", "pip", "--python", str(made), "install", "--quiet", f"arq=={VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode:
            raise Unavailable(f"pip: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        marker.touch()
    return made


def run(python: Path, host: str, port: int, password: str, *, function: str) -> list[dict[str, object]]:
    """Run every job that waits in arq's default queue; return what each was given."""
    command = [str(python), "-c", _WORKER, host, str(port), password, function]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return [json.loads(line) for line in done.stdout.splitlines()]
