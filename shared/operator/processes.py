"""What the operator asks of the processes: which there are, what they last failed at, at which level they log."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import redis

from shared import errors, keys
from shared.broker import redis_clients

#: Most levels wished for at a time: every process reads them every few seconds.
MOST_WISHES = 100
#: Longest time for which a level is wished for, and the usual one, in seconds.
LONGEST_SECONDS = 86_400
USUAL_SECONDS = 3_600
LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process that runs, or has run within the last day."""

    #: `listener`, `worker`, `scheduler` or `web`.
    kind: str
    name: str
    #: It writes its entry; if not, it was stopped or killed, or is cut off from Redis.
    is_there: bool
    #: Since its last entry, by Redis's clock.
    silent_seconds: float
    #: The rest is unknown of a process that is not there.
    version: str = ""
    host: str = ""
    pid: int | None = None
    #: ISO 8601, by its host's clock.
    started_at: str = ""
    #: `host:port`; None if it serves none.
    metrics: str | None = None
    log_level: str = ""
    #: Connection id → level, for the connections whose lines have their own.
    log_levels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedError:
    """An error or a warning that a process has logged, without secrets, and with telephone numbers masked."""

    process: str
    #: ISO 8601, by its host's clock.
    at: str
    #: `WARN`, `ERROR` or `FATAL`.
    severity: str
    event: str
    call: str = ""
    connection: str = ""
    detail: str = ""
    #: The end of its traceback.
    exception: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelWish:
    """A log level that holds for a while, for the lines of some processes and of some connection."""

    level: str
    #: Empty for every process.
    process: str = ""
    #: 0 for the lines of every connection, and of none.
    connection_id: int = 0
    seconds: float


class Processes:
    """What the processes have written to Redis.

    Raises (every operation):
        QueueUnavailable: Redis failed or did not answer in time.
    """

    def __init__(self, redis_url: str) -> None:
        try:
            self._redis = redis_clients.client(redis_url, decodes=True)
        except ValueError:
            # Not chained: its text may show the URL.
            raise errors.InvalidSettings("  REDIS_URL: is not a usable URL") from None

    def all(self) -> list[Process]:
        """Return the processes of the last day, by kind and name; those that are there first."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.time()
        pipe.zrange(keys.PROCESSES, 0, -1, withscores=True)
        (seconds, micros), seen = self._executed(pipe)
        if not seen:
            return []
        now_ms = seconds * 1000 + micros / 1000
        entries = self._asked("mget", [keys.process(process_id) for process_id, _ in seen])
        found = [
            _process(process_id, entry, max(0.0, (now_ms - at_ms) / 1000))
            for (process_id, at_ms), entry in zip(seen, entries, strict=True)
        ]
        return sorted(found, key=lambda each: (not each.is_there, each.kind, each.name))

    def errors(
        self, name: str | None = None, *, with_warnings: bool = False, limit: int = 200, each: int | None = None
    ) -> list[LoggedError]:
        """Return the last errors of every process, or of those of a name, the newest first.

        Args:
            name: Of a process of the last day, as `all` tells it, or `<kind>/<name>`.
            with_warnings: Add the warnings.
            limit: At most so many in all.
            each: At most so many of each process. Each one's newest is then taken before the second one of any: a
                process that fails all the time hides no other.
        """
        ids = [one for one in self._asked("zrange", keys.PROCESSES, 0, -1) if _is_named(one, name)]
        kinds = (keys.errors, keys.warnings) if with_warnings else (keys.errors,)
        read = [(one, key(one)) for one in ids for key in kinds]
        pipe = self._redis.pipeline(transaction=False)
        for _, key in read:
            # Where an answer of Redis was lost, some were written twice.
            pipe.lrange(key, -2 * (each or limit), -1)
        # With the place among its own list's, from the newest on: of one moment the later entry is the newer one.
        found: list[tuple[int, LoggedError]] = []
        for (process, _), texts in zip(read, self._executed(pipe) if read else (), strict=True):
            told = filter(None, (_logged(process, text) for text in dict.fromkeys(reversed(texts))))
            found += itertools.islice(enumerate(told), each)
        found.sort(key=lambda one: one[1].at, reverse=True)
        if each is not None:
            found = sorted(found, key=lambda one: one[0])[:limit]
        return sorted((one for _, one in found), key=lambda one: one.at, reverse=True)[:limit]

    def wish(self, wish: LevelWish) -> None:
        """Have a level for a while. It is there within 5 s, and ends by itself.

        Raises:
            PermanentError: There are as many wishes as there may be.
        """
        pipe = self._redis.pipeline(transaction=False)
        pipe.time()
        pipe.hgetall(keys.LOG_LEVELS)
        (seconds, micros), stored = self._executed(pipe)
        now_ms = int(seconds * 1000 + micros / 1000)
        ends = {field: _until_ms(value) for field, value in stored.items()}
        over = [field for field, until_ms in ends.items() if until_ms <= now_ms]
        field = _field(wish.process, wish.connection_id)
        if len({*ends, field} - {*over}) > MOST_WISHES:
            raise errors.PermanentError(f"{MOST_WISHES} levels are wished for: arictl log-level default takes one back")
        until_ms = now_ms + int(min(wish.seconds, LONGEST_SECONDS) * 1000)
        pipe = self._redis.pipeline(transaction=True)
        if over:
            pipe.hdel(keys.LOG_LEVELS, *over)
        pipe.hset(keys.LOG_LEVELS, field, json.dumps({"level": wish.level, "until_ms": until_ms}))
        pipe.expire(keys.LOG_LEVELS, LONGEST_SECONDS)
        self._executed(pipe)

    def take_back(self, *, process: str = "", connection_id: int = 0) -> bool:
        """Take a wish back before its time; return False if there is none."""
        return bool(self._asked("hdel", keys.LOG_LEVELS, _field(process, connection_id)))

    def wishes(self) -> list[LevelWish]:
        """Return the levels that hold now."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.time()
        pipe.hgetall(keys.LOG_LEVELS)
        (seconds, micros), stored = self._executed(pipe)
        now_ms = seconds * 1000 + micros / 1000
        found = []
        for field, value in stored.items():
            left = (_until_ms(value) - now_ms) / 1000
            try:
                process, connection_id = json.loads(field)
                level = str(json.loads(value)["level"])
            except (ValueError, TypeError, KeyError):
                continue
            if left > 0:
                found.append(LevelWish(level=level, process=process, connection_id=connection_id, seconds=left))
        return found

    def close(self) -> None:
        """Close the connection to Redis."""
        self._redis.close()

    def _asked(self, command: str, *arguments: Any) -> Any:
        try:
            return getattr(self._redis, command)(*arguments)
        except (redis.RedisError, OSError) as exc:
            raise _unavailable(exc) from exc

    def _executed(self, pipe: Any) -> Any:
        try:
            return pipe.execute()
        except (redis.RedisError, OSError) as exc:
            raise _unavailable(exc) from exc


def _unavailable(exc: Exception) -> errors.QueueUnavailable:
    return errors.QueueUnavailable(f"Redis gives no answer: {type(exc).__name__}")


def _field(process: str, connection_id: int) -> str:
    return json.dumps([process, connection_id])


def _until_ms(value: str) -> int:
    try:
        return int(json.loads(value)["until_ms"])
    except (ValueError, TypeError, KeyError):
        return 0


def _is_named(process_id: str, name: str | None) -> bool:
    return name is None or name in (process_id, process_id.partition("/")[2])


def _process(process_id: str, entry: str | None, silent_seconds: float) -> Process:
    kind, _, name = process_id.partition("/")
    about = _object(entry)
    pid, levels = about.get("pid"), about.get("log_levels")
    metrics = about.get("metrics")
    return Process(
        kind=kind,
        name=name,
        is_there=entry is not None,
        silent_seconds=silent_seconds,
        version=str(about.get("version", "")),
        host=str(about.get("host", "")),
        pid=pid if isinstance(pid, int) else None,
        started_at=str(about.get("started_at", "")),
        metrics=str(metrics) if metrics else None,
        log_level=str(about.get("log_level", "")),
        log_levels=_texts(levels.items()) if isinstance(levels, dict) else {},
    )


def _logged(process_id: str, text: str) -> LoggedError | None:
    told = _object(text)
    if not told:
        return None
    names = {"timestamp": "at", "severity_text": "severity", "event_name": "event"}
    known = _texts((names.get(key, key), value) for key, value in told.items())
    fields = {name: known.get(name, "") for name in ("at", "severity", "event", "call", "connection", "detail")}
    return LoggedError(process=process_id, exception=known.get("exception", ""), **fields)


def _texts(items: Iterable[tuple[object, object]]) -> dict[str, str]:
    return {str(key): str(value) for key, value in items}


def _object(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
