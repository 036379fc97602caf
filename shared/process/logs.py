"""Logs of every process: structured, one line for each entry, and without secrets, whatever a library writes."""

from __future__ import annotations

import faulthandler
import logging
import re
import signal
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from shared import errors
from shared.process import settings

_REDACTED = "[redacted]"
_NAMED = r"(?:api_key|token|password|secret(?:_key)?)"
#: user:password@ in a URL, the credentials of an Authorization header, named secrets in a repr, in JSON and in a query.
#: A letter may precede a name, as in `ari_password` or `%2Ctoken%3D`.
_SECRETS = re.compile(
    r"(?P<url>://[^/\s:@]*:)[^/\s]*(?=@)"
    r"|(?P<auth>\b(?:Basic|Bearer)\s+)[A-Za-z0-9+/=._~-]{4,}"
    rf"|(?P<quoted>{_NAMED}[\"']?\s*[:=]\s*(?P<mark>[\"']))(?:\\.|(?!(?P=mark)).)*"
    rf"|(?P<query>{_NAMED}(?:=|%3D|%253D))[^&\s)\"']+",
    re.IGNORECASE,
)
#: How the keys of log entries end whose values are secrets.
_SECRET_KEYS = ("password", "secret", "token", "authorization", "secret_key", "api_key")


def redact(text: str) -> str:
    """Return the text without credentials."""
    return _SECRETS.sub(_without_secret, text)


def _without_secret(match: re.Match[str]) -> str:
    return (match["url"] or match["auth"] or match["quoted"] or match["query"]) + _REDACTED


def configure(config: settings.Base, process: str) -> None:
    """Send structlog's and the standard library's logs to standard error, in the format of the settings."""

    def add_process(_logger: object, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        entry["process"] = process
        return entry

    shared_steps: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        add_process,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared_steps,
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if config.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), sort_keys=False)
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared_steps, structlog.stdlib.ExtraAdder(), structlog.processors.format_exc_info],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _redact_entry, renderer],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    handler.addFilter(_is_worth_a_line)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.log_level.upper())
    for chatty in ("urllib3", "websockets", "dramatiq", "alembic"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
    # It warns of each tick at which the last run is still at work, as it is while a server is unreachable.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
    # kill -USR1 shows what every thread of a process is doing.
    faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """False for Dramatiq's traceback of an error that is retried: `workers.dead_letters` logs a line for it."""
    failure = record.exc_info[1] if record.exc_info else None
    return not (record.name.startswith("dramatiq.") and isinstance(failure, errors.TransientError))


def _redact_entry(_logger: object, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in entry.items():
        if key.lower().endswith(_SECRET_KEYS):
            entry[key] = _REDACTED
        elif isinstance(value, str):
            entry[key] = redact(value)
        elif not isinstance(value, int | float | bool | type(None)):
            entry[key] = redact(str(value))
    return entry
