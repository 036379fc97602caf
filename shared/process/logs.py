"""Logs of every process: structured, one line for each entry, without secrets, and with telephone numbers masked.

On a terminal an entry is readable; elsewhere it is JSON, with the names of OpenTelemetry's log data model.
"""

from __future__ import annotations

import faulthandler
import logging
import signal
import sys
import threading
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any

import structlog

from shared import errors, redaction, spans
from shared.process import recent_errors as recent
from shared.process import settings
from shared.process.log_levels import LogLevels

_log = structlog.stdlib.get_logger(__name__)

redact = redaction.redact

#: Level → text and number of OpenTelemetry's severity.
_SEVERITIES = {
    "debug": ("DEBUG", 5),
    "info": ("INFO", 9),
    "warning": ("WARN", 13),
    "error": ("ERROR", 17),
    "critical": ("FATAL", 21),
}
#: Keys whose values are ids, times and names of ours, which may look like a number.
_IDS = ("timestamp", "call", "connection", "run", "level", "logger", "process", "instance", "trace_id", "span_id")
_Entry = MutableMapping[str, Any]


class _State:
    """The logs of this process. There is one, for whatever is logged before it is configured too."""

    levels: LogLevels | None = None
    recent: recent.RecentErrors | None = None


def levels() -> LogLevels:
    """Return the levels of this process, whose logs are configured."""
    assert _State.levels is not None
    return _State.levels


def recent_errors() -> recent.RecentErrors:
    """Return the errors of this process, whose logs are configured."""
    assert _State.recent is not None
    return _State.recent


def configure(config: settings.Base, process: str) -> None:
    """Send structlog's and the standard library's logs to standard error, in the format of the settings."""
    for secret in config.secrets():
        redaction.SECRETS.add_url(secret) if "://" in secret else redaction.SECRETS.add(secret)
    made_steps = _steps(process, config.name)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *made_steps,
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    shows_text = sys.stderr.isatty() if config.log_format == "auto" else config.log_format == "text"
    render = _as_text if shows_text else _as_json
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(made_steps, render(), masks=config.log_numbers == "masked"))
    handler.addFilter(_is_worth_a_line)
    root = logging.getLogger()
    _State.levels = LogLevels(config.log_level)
    handler.addFilter(_State.levels)
    # What the operator is shown away from this host is masked, whatever this host's own log is for.
    _State.recent = recent.RecentErrors()
    _State.recent.setFormatter(_formatter(made_steps, _as_recent(config.error_bytes), masks=True))
    _State.recent.addFilter(_is_worth_a_line)
    root.handlers[:] = [handler, _State.recent]
    for chatty in ("urllib3", "websockets", "dramatiq", "alembic"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
    # It warns of each tick at which the last run is still at work, as it is while a server is unreachable.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
    # kill -USR1 shows what every thread of a process is doing.
    faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)


def catch_all() -> None:
    """Have an error that nothing has caught be an entry as any other: without secrets, and in the same format."""
    sys.excepthook, threading.excepthook = _log_uncaught, _log_uncaught_of_thread


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        _log.critical("process failed", exc_info=(kind, error, trace))


def _log_uncaught_of_thread(told: threading.ExceptHookArgs) -> None:
    name = told.thread.name if told.thread is not None else ""
    _log.critical("thread failed", thread=name, exc_info=(told.exc_type, told.exc_value, told.exc_traceback))


def _steps(process: str, instance: str) -> list[structlog.typing.Processor]:
    """Return what completes every entry, ours or a library's."""

    def add_process(_logger: object, _method: str, entry: _Entry) -> _Entry:
        entry["process"], entry["instance"] = process, instance
        return entry

    return [
        structlog.contextvars.merge_contextvars,
        add_process,
        _add_trace,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _add_trace(_logger: object, _method: str, entry: _Entry) -> _Entry:
    """Name the trace of the entry's call, and the span, while traces are kept."""
    if spans.is_on() and entry.get("call"):
        entry["trace_id"] = str(entry["call"]).replace("-", "")
        kept = spans.recording()
        if kept is not None and kept.open:
            entry["span_id"] = f"{kept.open[-1].span_id:016x}"
    return entry


def _formatter(
    made_steps: list[structlog.typing.Processor], render: list[structlog.typing.Processor], *, masks: bool
) -> structlog.stdlib.ProcessorFormatter:
    def clean(_logger: object, _method: str, entry: _Entry) -> _Entry:
        return _cleaned(entry, masks=masks)

    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*made_steps, structlog.stdlib.ExtraAdder(), structlog.processors.format_exc_info],
        processors=[clean, *render],
    )


def _as_text() -> list[structlog.typing.Processor]:
    def without_instance(_logger: object, _method: str, entry: _Entry) -> _Entry:
        entry.pop("instance", None)
        return entry

    return [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        without_instance,
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), sort_keys=False),
    ]


def _as_json() -> list[structlog.typing.Processor]:
    return [
        _with_opentelemetry_names,
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.JSONRenderer(),
    ]


def _as_recent(most_bytes: int) -> list[structlog.typing.Processor]:
    def render(_logger: object, _method: str, entry: _Entry) -> str:
        return recent.as_json(entry, most_bytes=most_bytes)

    return [_with_opentelemetry_names, render]


def _with_opentelemetry_names(_logger: object, _method: str, entry: _Entry) -> _Entry:
    """Name an entry's time, severity and event as OpenTelemetry does.

    The event of a library's line is its template: the same for all lines of its kind. Its text is the body.
    """
    text, number = _SEVERITIES.get(str(entry.pop("level", "info")), ("INFO", 9))
    event = str(entry.pop("event", ""))
    named = {"timestamp": entry.pop("timestamp", ""), "severity_text": text, "severity_number": number}
    record = entry.get("_record")
    if isinstance(record, logging.LogRecord) and isinstance(record.msg, str) and "%" in record.msg:
        named |= {"event_name": redact(record.msg), "body": event}
    else:
        named["event_name"] = event
    # Ours go first, also by name.
    return named | {key: value for key, value in entry.items() if key not in named}


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """False for Dramatiq's traceback of an error that is retried: `workers.dead_letters` logs a line for it."""
    failure = record.exc_info[1] if record.exc_info else None
    return not (record.name.startswith("dramatiq.") and isinstance(failure, errors.TransientError))


def _cleaned(entry: _Entry, *, masks: bool) -> _Entry:
    """Take the secrets out of an entry, and the telephone numbers if it `masks` them."""
    is_ours = bool(entry.get("_from_structlog"))
    for key, value in entry.items():
        if key.startswith("_") or key in _IDS:
            continue
        if key == "event" and is_ours:
            # A constant. A weak password may be a word of it, which is no reason to lose the event.
            entry[key] = redaction.redact_named(value)
        elif redaction.SECRET_KEY.fullmatch(key):
            entry[key] = redaction.REDACTED
        elif masks and redaction.NUMBER_KEY.fullmatch(key) and not (key == "number" and isinstance(value, int)):
            entry[key] = redaction.mask_number(redact(str(value)))
        elif isinstance(value, str):
            entry[key] = _clean_text(value, masks=masks)
        elif not isinstance(value, int | float | bool | type(None)):
            entry[key] = _clean_text(str(value), masks=masks)
    return entry


def _clean_text(text: str, *, masks: bool) -> str:
    clean = redact(text)
    return redaction.mask_numbers(clean) if masks else clean
