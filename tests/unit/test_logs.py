"""Logs: no secret in them, whatever was logged, and one line an entry."""

from __future__ import annotations

import faulthandler
import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
import structlog

from shared import errors, redaction
from shared.process import logs, sealing, settings


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
def log_format(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both formats; the logging of the test run is put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # The secrets of a test are its own.
    monkeypatch.setattr(redaction, "SECRETS", redaction.Secrets())
    levels = {name: logging.getLogger(name).level for name in ("urllib3", "websockets", "apscheduler", "dramatiq")}
    yield request.param
    root.handlers[:] = handlers
    root.setLevel(level)
    monkeypatch.undo()
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    faulthandler.unregister(signal.SIGUSR1)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def configured(log_format: str, **more: Any) -> None:
    values = {
        "REDIS_URL": "redis://:red1s-password@host",
        "SECRET_KEY": "a-first-key-of-tests, a-second-key-of-tests",
        "LOG_FORMAT": log_format,
        "PROCESS_NAME": "worker-1",
        **more,
    }
    config = settings.Base.model_validate({name.lower(): value for name, value in values.items()})
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


def test_an_error_that_nothing_has_caught_is_an_entry(
    log_format: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    configured(log_format)
    logs.catch_all()
    thread = threading.Thread(target=raise_with_secrets, name="prober")
    thread.start()
    thread.join()
    try:
        raise_with_secrets()
    except RuntimeError as exc:
        sys.excepthook(RuntimeError, exc, exc.__traceback__)
    written = capfd.readouterr().err
    assert "hunter2" not in written
    assert "ter2" not in written
    assert written.count("Traceback") == 4
    if log_format == "json":
        first, second = map(json.loads, written.splitlines())
        assert (first["event_name"], first["thread"], first["severity_text"]) == ("thread failed", "prober", "FATAL")
        assert second["event_name"] == "process failed"


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
        assert (entry["event_name"], entry["process"], entry["call"]) == ("hello", "worker", "c1")
        assert (entry["instance"], entry["severity_text"], entry["severity_number"]) == ("worker-1", "INFO", 9)
        assert datetime.fromisoformat(entry["timestamp"]).tzinfo is not None
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


def test_no_entry_shows_a_secret_of_the_process_or_of_a_tenant(
    log_format: str, capfd: pytest.CaptureFixture[str]
) -> None:
    configured(log_format, MEDIA_TOKEN_SECRET="a-media-secret")
    sealer = sealing.Sealer(("a-first-key-of-tests",))
    sealed = sealer.seal('ten"ant pässword')
    redaction.SECRETS = redaction.Secrets()
    configured(log_format)
    assert sealer.open(sealed) == 'ten"ant pässword'
    secrets = ("red1s-password", "a-second-key-of-tests", sealing.media_secret("a-first-key-of-tests"))
    logger = structlog.stdlib.get_logger("ours")
    for secret in (*secrets, 'ten"ant pässword'):
        logger.info("a line", reason=f"said {secret}!", nested={"x": [secret]}, raw=secret.encode())
        logging.getLogger("theirs").warning("said %s", secret)
        try:
            raise ValueError(secret)
        except ValueError:
            logger.exception("a job failed")
    written = capfd.readouterr().err
    assert not [secret for secret in (*secrets, "pässword", "p\\u00e4ssword", "ant p") if secret in written]
    assert written.count("[redacted]") >= 16


def test_a_weak_password_costs_no_event_its_name(log_format: str, capfd: pytest.CaptureFixture[str]) -> None:
    configured(log_format)
    redaction.SECRETS.add("postgres")
    structlog.stdlib.get_logger("shared.postgres").error("postgres unavailable", reason="postgres refused")
    written = capfd.readouterr().err
    assert "postgres unavailable" in written
    assert "postgres refused" not in written


@pytest.mark.parametrize(("numbers", "shown"), [("masked", False), ("full", True)])
def test_telephone_numbers_are_masked_unless_they_are_wished_for(
    log_format: str, capfd: pytest.CaptureFixture[str], numbers: str, *, shown: bool
) -> None:
    configured(log_format, LOG_NUMBERS=numbers)
    logger = structlog.stdlib.get_logger("ours")
    logger.warning("a leg", caller_number="5551234", called="100", reason="5550199 is busy", what={"number": "5557777"})
    logger.warning("a leg", caller_number=5551234, number=12, run=5550199, call="99912345", took_ms=1234567.0)
    written = capfd.readouterr().err
    for number in ("5551234", "5550199 is", "5557777"):
        assert (number in written) == shown, number
    for kept in ("99912345", "1234567.0", "5550199", "12"):
        assert kept in written
    kept_errors, kept_warnings = logs.recent_errors().take()
    assert not kept_errors
    assert "5557777" not in "".join(kept_warnings)


def test_a_library_s_line_has_its_template_for_an_event_and_its_text_for_a_body(
    log_format: str, capfd: pytest.CaptureFixture[str]
) -> None:
    configured(log_format)
    logging.getLogger("theirs").warning("could not connect to %s", "host")
    (line,) = capfd.readouterr().err.splitlines()
    assert "could not connect to host" in line
    if log_format == "json":
        entry = json.loads(line)
        assert (entry["event_name"], entry["body"]) == ("could not connect to %s", "could not connect to host")


def test_a_file_gets_json_and_a_terminal_text(
    log_format: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configured("auto")
    structlog.stdlib.get_logger("ours").info("hello")
    assert json.loads(capfd.readouterr().err)["event_name"] == "hello"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    configured("auto")
    structlog.stdlib.get_logger("ours").info("hello")
    assert not capfd.readouterr().err.startswith("{")


def test_an_error_is_kept_for_the_operator_with_what_it_concerns(
    log_format: str, capfd: pytest.CaptureFixture[str]
) -> None:
    configured(log_format)
    with structlog.contextvars.bound_contextvars(call="c1", connection="7:2"):
        try:
            raise_with_secrets()
        except RuntimeError:
            structlog.stdlib.get_logger("ours").exception("a job failed", job="sweep", numbers="+49301234567")
        structlog.stdlib.get_logger("ours").info("not this")
    (text,), warnings = logs.recent_errors().take()
    entry = json.loads(text)
    assert warnings == []
    assert {name: entry[name] for name in ("event_name", "call", "connection", "severity_text")} == {
        "event_name": "a job failed",
        "call": "c1",
        "connection": "7:2",
        "severity_text": "ERROR",
    }
    assert "job=sweep" in entry["detail"]
    assert "numbers=+*******4567" in entry["detail"]
    assert "token=[redacted]" in entry["exception"]
    assert "hunter2" not in text
    capfd.readouterr()


def test_what_is_bound_is_on_every_line_also_on_a_library_s(log_format: str, capfd: pytest.CaptureFixture[str]) -> None:
    configured(log_format)
    with structlog.contextvars.bound_contextvars(call="c1", connection="7:2"):
        structlog.stdlib.get_logger("ours").info("hello")
        logging.getLogger("theirs").warning("hello")
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert all(part in line.replace('": "', "=") for part in ("call=c1", "connection=7:2"))
