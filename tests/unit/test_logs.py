"""Logs: no secret in them, whatever was logged, and one line an entry."""

from __future__ import annotations

import faulthandler
import json
import logging
import signal
from collections.abc import Iterator

import pytest
import structlog

from shared import errors
from shared.process import logs, settings


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("postgresql://voiceai:hunter2@host/db", "postgresql://voiceai:[redacted]@host/db"),
        ("postgresql://voiceai:hun@ter2@host/db", "postgresql://voiceai:[redacted]@host/db"),
        ("redis://:hunter2@host:6379/0", "redis://:[redacted]@host:6379/0"),
        ("rediss://default:hunter2%21@host", "rediss://default:[redacted]@host"),
        ("see http://u:hunter2@a and http://u:hunter2@b", "see http://u:[redacted]@a and http://u:[redacted]@b"),
        ("http://host:8088/ari", "http://host:8088/ari"),
        ("mail@example.org at http://host/", "mail@example.org at http://host/"),
        ("Authorization: Basic dm9pY2VhaTpodW50ZXIy", "Authorization: Basic [redacted]"),
        ("'authorization': 'basic dm9pY2VhaTpodW50ZXIy=='", "'authorization': 'basic [redacted]'"),
        ("Bearer hunter2.hunter2", "Bearer [redacted]"),
        ("ws://agent/media?workflow_id=1&token=hunter2&x=1", "ws://agent/media?workflow_id=1&token=[redacted]&x=1"),
        ("v(workflow_id=1,token=hunter2)", "v(workflow_id=1,token=[redacted])"),
        ("transport_data=v%28a%3D1%2Ctoken%3Dhunter2%29", "transport_data=v%28a%3D1%2Ctoken%3D[redacted]"),
        ("v%2528token%253Dhunter2", "v%2528token%253D[redacted]"),
        ("?api_key=voiceai:hunter2", "?api_key=[redacted]"),
        ("password=hunter2 host=x", "password=[redacted] host=x"),
        ("app_password=hunter2", "app_password=[redacted]"),
        ("SECRET_KEY=hunter2", "SECRET_KEY=[redacted]"),
        ("PASSWORD=hunter2", "PASSWORD=[redacted]"),
        ("{'app_password': 'hunter2'}", "{'app_password': '[redacted]'}"),
        ('{"password":"hunter2","a":1}', '{"password":"[redacted]","a":1}'),
        ("Configuration(user='u', password='hun\\'ter2')", "Configuration(user='u', password='[redacted]')"),
        ("a token of no password", "a token of no password"),
        ("", ""),
    ],
)
def test_secrets_are_taken_out(text: str, clean: str) -> None:
    assert logs.redact(text) == clean


@pytest.fixture(params=["text", "json"])
def log_format(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both formats; the logging of the test run is put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("urllib3", "websockets", "apscheduler", "dramatiq")}
    yield request.param
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    faulthandler.unregister(signal.SIGUSR1)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def configured(log_format: str) -> None:
    config = settings.Base.model_construct(log_format=log_format, log_level="info")
    logs.configure(config, "worker")


def raise_with_secrets() -> None:
    try:
        raise ValueError("postgresql://u:hun@ter2@host refused")
    except ValueError as exc:
        raise RuntimeError("token=hunter2") from exc


def test_no_entry_shows_a_secret(log_format: str, capfd: pytest.CaptureFixture[str]) -> None:
    configured(log_format)
    ours, theirs = structlog.stdlib.get_logger("ours"), logging.getLogger("theirs")
    ours.info(
        "redis://:hunter2@host",
        url="http://u:hunter2@host",
        password="hunter2",
        Authorization="hunter2",
        app_password="hunter2",
    )
    ours.info("nested", what={"app_password": "hunter2"}, reason=ValueError("password=hunter2"), raw=b"token=hunter2")
    theirs.warning("could not connect to %s", "redis://:hunter2@host")
    theirs.warning("extra", extra={"url": "redis://:hunter2@host"})
    for logger in (ours, theirs):
        try:
            raise_with_secrets()
        except RuntimeError:
            logger.exception("a job failed")
    written = capfd.readouterr().err
    assert written.count("[redacted]") >= 12
    assert "hunter2" not in written
    assert "ter2" not in written
    assert written.count("Traceback") >= 2


def test_an_entry_is_one_line_whatever_is_in_it(log_format: str, capfd: pytest.CaptureFixture[str]) -> None:
    configured(log_format)
    structlog.stdlib.get_logger("ours").warning("a leg", leg="1\n2026-05-01 [info] forged entry\r\x1b[2J")
    written = capfd.readouterr().err
    assert len(written.splitlines()) == 1
    assert "\x1b[2J" not in written
    assert "forged entry" in written


def test_an_entry_says_which_process_and_how_grave(log_format: str, capfd: pytest.CaptureFixture[str]) -> None:
    configured(log_format)
    structlog.stdlib.get_logger("ours").info("hello", call="c1")
    structlog.stdlib.get_logger("ours").debug("not this")
    logging.getLogger("urllib3").info("nor this")
    (line,) = capfd.readouterr().err.splitlines()
    if log_format == "json":
        entry = json.loads(line)
        assert (entry["event"], entry["process"], entry["call"], entry["level"]) == ("hello", "worker", "c1", "info")
    else:
        assert all(part in line for part in ("hello", "process=worker", "call=c1", "[info"))


@pytest.mark.parametrize(
    ("logger", "failure", "is_shown"),
    [
        ("dramatiq.worker.WorkerThread", errors.QueueUnavailable("away"), False),
        ("dramatiq.worker.WorkerThread", KeyError("a fault of ours"), True),
        ("workers.step_ports", errors.QueueUnavailable("away"), True),
    ],
)
def test_no_traceback_of_what_is_tried_again(
    log_format: str, capfd: pytest.CaptureFixture[str], logger: str, failure: Exception, *, is_shown: bool
) -> None:
    configured(log_format)
    try:
        raise failure
    except (errors.TransientError, KeyError):
        logging.getLogger(logger).exception("failed to process a message")
    assert ("failed to process a message" in capfd.readouterr().err) == is_shown
