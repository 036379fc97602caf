"""The files of an installation (compose.yaml, Dockerfile, systemd units) agree with Procfile and settings.

compose.yaml is also checked by the Compose Specification, the units by systemd. Nothing is run: no Docker engine was
available.
"""

from __future__ import annotations

import ipaddress
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from shared.process import settings

ROOT = Path(__file__).parents[2]
PROCFILE = dict(re.findall(r"^(\w+): (.+)$", (ROOT / "Procfile").read_text(), re.MULTILINE))
SETTINGS: dict[str, type[settings.Base]] = {
    "listener": settings.Listener,
    "worker": settings.Worker,
    "scheduler": settings.Scheduler,
    "web": settings.Web,
}
#: How the console's container is reached.
CONSOLE = {"CONSOLE_HOST", "CONSOLE_URL", "CONSOLE_PROXIES"}
UNITS = {path.name.removeprefix("ari-pipeline-"): path for path in (ROOT / "docs/systemd").iterdir()}
#: A worker waits up to DRAIN_SECONDS for its steps, then as long for its consumers; a listener exits at the latest 10 s
#: after its drain.
LONGEST_STOP_SECONDS = max(2 * settings.Base.model_fields["drain_seconds"].default + 5, 15 + 10)


def mapping(yaml: str) -> dict[str, Any]:
    """Parse the part of YAML that compose.yaml uses: mappings, lists of plain values, comments on their own lines."""
    root: dict[str, Any] = {}
    open_at: list[tuple[int, Any]] = [(-1, root)]
    lines = [line for line in yaml.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        assert "\t" not in line
        indent = len(line) - len(line.lstrip())
        while open_at[-1][0] >= indent:
            open_at.pop()
        if line.lstrip().startswith("- "):
            open_at[-1][1].append(line.strip()[2:])
            continue
        key, colon, value = line.strip().partition(":")
        assert colon, line
        assert key not in open_at[-1][1], f"twice: {key}"
        made: Any = value.strip() or ([] if following.lstrip().startswith("- ") else {})
        open_at[-1][1][key] = made
        if not value.strip():
            open_at.append((indent, made))
    return root


COMPOSE = mapping((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def words(listed: str) -> list[str]:
    """Return the words of a list in one line."""
    return re.findall(r'"([^"]*)"', listed)


# ── compose.yaml ─────────────────────────────────────────────────────────────────────────────────────────────────────


def errors_by_the_specification(path: Path) -> str:
    """Return the errors of a compose file by the schema of the Compose Specification; empty if there are none."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 1), done
    return done.stdout if done.returncode else ""


def test_compose_keeps_to_the_compose_specification(tmp_path: Path) -> None:
    assert errors_by_the_specification(ROOT / "compose.yaml") == ""
    mistaken = tmp_path / "compose.yaml"
    mistaken.write_text((ROOT / "compose.yaml").read_text().replace("stop_grace_period", "stop_grace"))
    assert "'stop_grace' was unexpected" in errors_by_the_specification(mistaken)


def test_compose_has_the_procfile_s_processes_and_their_servers() -> None:
    assert set(SERVICES) == {"redis", "postgres", "migrate", "asterisk", "prometheus", *PROCFILE}
    for name, command in PROCFILE.items():
        assert " ".join(words(SERVICES[name]["command"])) == command
    assert words(SERVICES["migrate"]["command"]) == ["arictl", "db", "upgrade"]
    images = {SERVICES[name]["image"] for name in (*PROCFILE, "migrate")}
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert images == {f"ari-pipeline:{version[1]}"}


def test_only_the_asterisk_has_a_profile() -> None:
    assert {name for name, service in SERVICES.items() if "profiles" in service} == {"asterisk"}


def test_every_service_but_the_one_shot_is_health_checked_and_restarted() -> None:
    for name, service in SERVICES.items():
        if name == "migrate":
            assert service["restart"] == '"no"'
            continue
        assert service["restart"] == "unless-stopped"
        assert {"test", "interval", "timeout", "retries"} <= set(service["healthcheck"])
        for port in service.get("ports", ()):
            assert port.startswith('"127.0.0.1:'), "on loopback only"


def test_redis_never_evicts_and_postgres_keeps_its_data() -> None:
    assert '"--maxmemory-policy", "noeviction"' in SERVICES["redis"]["command"]
    mounted = {volume.partition(":")[0] for volume in SERVICES["postgres"]["volumes"]}
    assert mounted <= set(COMPOSE["volumes"])


@pytest.mark.parametrize("name", PROCFILE)
def test_a_process_gets_what_it_must_have_and_time_to_drain(name: str) -> None:
    service, kind = SERVICES[name], SETTINGS[name]
    required = {field.upper() for field, about in kind.model_fields.items() if about.is_required()}
    assert required <= set(service["environment"])
    given = {variable for variable, value in service["environment"].items() if value != '""'}
    assert given == {*required, "METRICS_HOST", "METRICS_PORT"} | (CONSOLE if name == "web" else set())
    assert words(service["healthcheck"]["test"]) == ["CMD", "python", "-m", "shared.process.health"]
    assert int(service["stop_grace_period"].removesuffix("s")) >= LONGEST_STOP_SECONDS
    waits = {other: about["condition"] for other, about in service["depends_on"].items()}
    assert waits["redis"] == "service_healthy"
    assert ("migrate" in waits) == ("DATABASE_URL" in required)
    assert "container_name" not in service
    assert ("ports" in service) == (name == "web"), "the others have to be scalable"


def test_the_console_is_reached_from_the_host_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    service = SERVICES["web"]
    for variable in CONSOLE:
        monkeypatch.setenv(variable, re.sub(r"\$\{\w+:-(.*)\}", r"\1", service["environment"][variable]))
    for variable in ("REDIS_URL", "DATABASE_URL", "SECRET_KEY"):
        monkeypatch.setenv(
            variable, "postgresql://a" if variable == "DATABASE_URL" else "redis://a-key-of-16-characters"
        )
    config = settings.load(settings.Web)
    (subnet,) = COMPOSE["networks"]["default"]["ipam"]["config"]
    gateway = next(ipaddress.ip_network(subnet.removeprefix("subnet: ")).hosts())
    assert str(gateway) == config.console_proxies
    port = urlsplit(config.console_url).port
    assert service["ports"] == [f'"127.0.0.1:{port}:{config.console_port}"']


def test_prometheus_asks_every_process_however_many_there_are() -> None:
    asked = (ROOT / "monitoring/prometheus.yaml").read_text()
    assert f"names: [{', '.join(PROCFILE)}]" in asked
    (port,) = {SERVICES[name]["environment"]["METRICS_PORT"] for name in PROCFILE}
    assert f"port: {port}\n" in asked


def test_no_secret_is_in_the_file() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if "SECRET" in variable or "PASSWORD" in variable:
                assert value == '""' or re.fullmatch(rf"\$\{{{variable}:\?.+\}}", value), (name, variable)
            elif "@" in value:
                assert re.search(r":\$\{POSTGRES_PASSWORD:\?[^}]+\}@", value), (name, variable)


# ── Dockerfile ───────────────────────────────────────────────────────────────────────────────────────────────────────

STAGES = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]


def test_the_image_is_slim_and_runs_as_an_unprivileged_user() -> None:
    build, final = STAGES[-2:]
    assert build.startswith("python:3.11-slim")
    assert final.startswith("python:3.11-slim")
    assert re.search(r"^USER (?!0\b)\d+$", final, re.MULTILINE)
    assert "[dev]" not in build
    assert "apt-get" not in build + final
    (health_file,) = re.findall(r"HEALTH_FILE=(\S+)", final)
    assert health_file.startswith("/dev/shm/")


def test_the_image_has_the_product_and_nothing_else() -> None:
    copied = set(re.findall(r"^COPY (\w+) \1$", STAGES[-2], re.MULTILINE))
    started = {command.split()[2].partition(".")[0] for command in PROCFILE.values()}
    assert started | {"arictl", "shared"} <= copied
    assert not copied & {"devstack", "simulator", "tests", "bench"}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert "*" in ignored
    assert let_in == copied | {"pyproject.toml", "README.md", "LICENSE"}


def test_the_asterisk_is_a_stage_of_its_own() -> None:
    assert SERVICES["asterisk"]["build"]["target"] == "asterisk"
    assert STAGES[0].startswith("debian:sid-slim AS asterisk\n")


# ── systemd ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_there_is_a_unit_for_each_process() -> None:
    assert set(UNITS) == {"listener.service", "worker@.service", "scheduler.service", "web.service"}


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_starts_its_process_and_restarts_it(name: str) -> None:
    lines = [line.partition("=") for line in UNITS[name].read_text().splitlines() if "=" in line and line[0] != "#"]
    unit = {key: value for key, _, value in lines}
    process = re.sub(r"@?\.service$", "", name)
    assert unit["ExecStart"] == f"/opt/ari-pipeline/bin/{PROCFILE[process]}"
    assert unit["Restart"] == "always"
    assert int(unit["TimeoutStopSec"]) >= LONGEST_STOP_SECONDS
    assert unit["DynamicUser"] == "yes"
    assert unit["StartLimitIntervalSec"] == "0"
    if process == "listener":
        assert int(unit["LimitNOFILE"]) > settings.Listener.model_fields["listener_capacity"].default + 200


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for path in UNITS.values():
        # The program has to exist.
        text = path.read_text().replace("/opt/ari-pipeline/bin/python", sys.executable)
        (tmp_path / path.name).write_text(text)
    units = sorted(str(path) for path in tmp_path.iterdir())
    done = subprocess.run(
        ["systemd-analyze", "verify", *units], check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
