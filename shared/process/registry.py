"""This process's entry in Redis, for the operator: what runs where, its last errors, and the log levels wished for.

A daemon thread writes it every few seconds, and at once when there is an error. Redis away changes nothing else: the
entry expires, the errors wait, and a level that was wished for ends by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from typing import Any

import redis
import structlog

from shared import errors, keys, redaction
from shared.broker import redis_clients
from shared.process import logs, metrics_server, release, settings
from shared.process.log_levels import LogLevels, Wish
from shared.process.recent_errors import MOST, RecentErrors

_log = structlog.stdlib.get_logger(__name__)

#: Between two entries: a level that is wished for is there within 5 s, a request included.
EVERY_SECONDS = 4.0
#: How long an entry is kept, and the errors.
ENTRY_SECONDS = 30
ERRORS_SECONDS = 86_400
MOST_PROCESSES = 1_000
#: Least pause between two writes, however many errors there are.
_PAUSE_SECONDS = 0.5
#: Bounds connecting, and each answer: a process that ends waits for them.
_REDIS_SECONDS = 1.0

#: KEYS processes, the process's entry, wished levels; ARGV the process, its entry, its seconds, those of the others,
#: most processes → [Redis's time in ms, the wished levels, the entry before].
_WRITE = """
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local before = redis.call('GET', KEYS[2])
redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[3])
redis.call('ZADD', KEYS[1], now_ms, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now_ms - ARGV[4] * 1000)
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - ARGV[5])
redis.call('EXPIRE', KEYS[1], ARGV[4])
return {now_ms, redis.call('HGETALL', KEYS[3]), before}
"""


class Registry:
    """Writes the entry of one process, until it is stopped.

    Args:
        client: Redis, with answers as text.
        kind: `listener`, `worker`, `scheduler` or `web`.
        metrics_address: Returns where its metrics are served; None while they are not.
    """

    def __init__(
        self,
        client: redis.Redis,
        *,
        kind: str,
        name: str,
        levels: LogLevels,
        errors: RecentErrors,
        metrics_address: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._client = client
        self._id = f"{kind}/{name}"
        self._name = name
        self._levels = levels
        self._errors = errors
        self._metrics_address = metrics_address
        self._about = {
            "kind": kind,
            "name": name,
            "version": release.VERSION,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        self._fails = False
        self._writes = 0
        self._has_another = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="registry", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Write what is left, within a bound, and end; the entry is removed, the errors stay."""
        self._stop.set()
        self._errors.wakeup.set()
        self._thread.join(1.5 * _REDIS_SECONDS)

    def write(self) -> bool:
        """Write the entry and the errors, and take the levels wished for; return False when Redis was away."""
        errors, warnings = self._errors.take()
        self._levels.expire()
        pipe = self._client.pipeline(transaction=True)
        touched = (keys.PROCESSES, keys.process(self._id), keys.LOG_LEVELS)
        entry = json.dumps(self._entry())
        pipe.eval(_WRITE, len(touched), *touched, self._id, entry, ENTRY_SECONDS, ERRORS_SECONDS, MOST_PROCESSES)
        for key, entries in ((keys.errors(self._id), errors), (keys.warnings(self._id), warnings)):
            if entries:
                pipe.rpush(key, *entries)
                pipe.ltrim(key, -MOST, -1)
            pipe.expire(key, ERRORS_SECONDS)
        try:
            (now_ms, wished, before), *_ = pipe.execute()
        except (redis.RedisError, OSError) as exc:
            self._errors.put_back(errors, warnings)
            self._note(redaction.redact(f"{type(exc).__name__}: {exc}"))
            return False
        self._note("")
        self._look_for_another(before)
        if self._levels.set(wishes((self._name, self._id), wished, now_ms=int(now_ms))):
            # The entry tells of it.
            self._errors.wakeup.set()
        return True

    def _entry(self) -> dict[str, Any]:
        of_connections = {str(each): level for each, level in self._levels.of_connections.items()}
        return {
            **self._about,
            "metrics": self._metrics_address(),
            "log_level": self._levels.level,
            "log_levels": of_connections,
        }

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.write()
            except Exception:  # noqa: BLE001 - whatever is wrong, the process goes on without its entry
                _log.exception("registry thread failing, a bug")
            self._stop.wait(_PAUSE_SECONDS)
            self._errors.wakeup.wait(EVERY_SECONDS - _PAUSE_SECONDS)
        if self.write():
            with contextlib.suppress(redis.RedisError, OSError):
                self._client.delete(keys.process(self._id))
        self._client.close()

    def _look_for_another(self, before: str | None) -> None:
        """Warn once if another process writes under this name; the first entry found is of the one before this."""
        self._writes += 1
        if self._writes == 1 or before is None or self._has_another:
            return
        # What cannot be read is of another release.
        with contextlib.suppress(ValueError, TypeError, KeyError):
            other = json.loads(before)
            if (other["host"], other["pid"]) != (self._about["host"], self._about["pid"]):
                self._has_another = True
                _log.warning("another process has this name, set PROCESS_NAME", host=other["host"], pid=other["pid"])

    def _note(self, reason: str) -> None:
        """Log that Redis is away, and that it is back: one line each."""
        if reason and not self._fails:
            _log.warning("registry not written, redis is away", reason=reason)
        elif not reason and self._fails:
            _log.info("registry written again")
        self._fails = bool(reason)


def wishes(names: Collection[str], wished: list[str], *, now_ms: int) -> list[Wish]:
    """Return the levels wished for a process: those for every process first, as those for this one hold instead.

    Args:
        names: Of this process.
        wished: Fields and values of the hash, in turn. What cannot be read is left out.
        now_ms: Redis's time.
    """
    found = []
    for field, value in zip(wished[::2], wished[1::2], strict=False):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            process, connection_id = json.loads(field)
            wish = json.loads(value)
            seconds = (int(wish["until_ms"]) - now_ms) / 1000
            if process in ("", *names) and seconds > 0:
                found.append(
                    (process, Wish(level=str(wish["level"]), connection_id=int(connection_id), seconds=seconds))
                )
    return [wish for _, wish in sorted(found, key=lambda each: each[0] != "")]


@contextlib.contextmanager
def running(config: settings.Base, kind: str) -> Iterator[None]:
    """Keep the entry of a process whose logs are configured, and log what it fails at."""
    made = _made(config, kind)
    if made is not None:
        made.start()
    try:
        yield
    except errors.InvalidSettings:
        raise
    except Exception:
        _log.critical("process failed", exc_info=True)
        raise
    finally:
        if made is not None:
            made.stop()


def _made(config: settings.Base, kind: str) -> Registry | None:
    try:
        client = redis_clients.client(config.redis_url.get_secret_value(), seconds=_REDIS_SECONDS, decodes=True)
    except ValueError:
        # What uses Redis for the product says what is wrong with the URL.
        return None
    return Registry(
        client,
        kind=kind,
        name=config.name,
        levels=logs.levels(),
        errors=logs.recent_errors(),
        metrics_address=metrics_server.address,
    )
