"""Finds a Prometheus with promtool for the tests: an installed one, or Debian's package, unpacked in the cache.

It is unpacked and not installed: an installation would start a server and its exporters.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import requests

from devstack import debian, folders, monitoring, processes
from devstack.debian import Unavailable

_PACKAGE = "prometheus"


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """The paths of the programs."""

    prometheus: str
    promtool: str


def find() -> Programs:
    """Return the programs, fetched if there are none.

    Raises:
        Unavailable: With the reason.
    """
    server, tool = shutil.which("prometheus"), shutil.which("promtool")
    if server is not None and tool is not None:
        return Programs(prometheus=server, promtool=tool)
    tree = folders.cache() / _PACKAGE
    with folders.lock(folders.cache() / f"{_PACKAGE}.lock"):
        if not (tree / "finished").exists():
            _fetch(tree)
    return Programs(prometheus=str(tree / "usr/bin/prometheus"), promtool=str(tree / "usr/bin/promtool"))


def _fetch(tree: Path) -> None:
    unpack = shutil.which("dpkg-deb")
    if not debian.may_install() or unpack is None:
        raise Unavailable("there is no prometheus with promtool, and only root on a Debian can fetch it")
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    package = debian.download(_PACKAGE, tree)
    try:
        processes.run([unpack, "-x", package, tree])
    except processes.ProcessError as exc:
        raise Unavailable(f"the package cannot be unpacked: {exc}") from exc
    package.unlink()
    (tree / "finished").touch()


@contextlib.contextmanager
def running(programs: Programs, folder: Path, targets: Sequence[str]) -> Iterator[str]:
    """Run a server that scrapes these `host:port` each second, with the alert rules of monitoring/; yield its URL."""
    folder.mkdir()
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(monitoring.FOLDER / "rules.yaml")],
        "scrape_configs": [{"job_name": "ari-pipeline", "static_configs": [{"targets": list(targets)}]}],
    }
    # JSON is YAML.
    (folder / "prometheus.yaml").write_text(json.dumps(configuration))
    port = processes.free_port()
    server = processes.GuardedProcess(
        [
            programs.prometheus,
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        log=folder / "log",
        cwd=folder,
    )
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        try:
            return requests.get(f"{url}/-/ready", timeout=1).ok
        except requests.RequestException:
            return False

    try:
        server.wait_until(ready, timeout_seconds=20)
        yield url
    finally:
        server.stop()
