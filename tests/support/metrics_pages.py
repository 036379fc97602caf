"""The pages of the metrics servers of a running pipeline."""

from __future__ import annotations

import re

import requests

from devstack.pipeline import Pipeline, wait_until
from shared.process.metric_kinds import PREFIX


def address(pipeline: Pipeline, name: str) -> str:
    """Return where a process serves its pages, as its log tells once it has started."""
    log = pipeline.logs / f"{name}.log"

    def served() -> list[str]:
        return re.findall(r"metrics served.*?(127\.0\.0\.1:\d+)", log.read_text())

    wait_until(served, seconds=20, what=log.read_text)
    return served()[-1]


def got(pipeline: Pipeline, name: str, path: str) -> requests.Response:
    """Ask a process for a page."""
    return requests.get(f"http://{address(pipeline, name)}{path}", timeout=10)


def series(pipeline: Pipeline, name: str) -> dict[str, float]:
    """Return the series of a process, without their prefix."""
    lines = (line for line in got(pipeline, name, "/metrics").text.splitlines() if not line.startswith("#"))
    return {key.removeprefix(PREFIX): float(number) for key, _, number in (line.rpartition(" ") for line in lines)}


def away(pipeline: Pipeline, name: str) -> set[str]:
    """Return the servers that a process says are away. Its other pages go on."""
    assert got(pipeline, name, "/healthz").ok
    assert series(pipeline, name)["process_cpu_seconds_total"] > 0
    answer = got(pipeline, name, "/readyz")
    found = {server for server, said in answer.json()["dependencies"].items() if said != "ok"}
    assert answer.status_code == (503 if found else 200)
    assert answer.json()["ready"] is not bool(found)
    return found
