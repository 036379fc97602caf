"""The platform's Redis: its keys, and requests that a caller can wait for.

Its database is the one that the platform's API uses, and other programs' keys are in it: only those named here are
touched. It holds nothing that a call depends on. While it is away, each request costs a caller nothing after the first.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import redis
import structlog

from shared import errors
from shared.broker import redis_clients

log = structlog.stdlib.get_logger(__name__)

_T = TypeVar("_T")
_FOLDER = Path(__file__).parent

#: zset `organization:slot` → when it was taken: what the platform's autoscaling counts.
FLEET = "concurrent_calls_fleet"
#: Hash slot → when it was taken, and of which call: ours, to find those that no call has any more; 2 days.
REGISTRY = "ari-pipeline:slots"

#: After a failure nothing is asked for this time.
_PAUSE_SECONDS = 1.0
#: Requests at the same time: each is a thread, which may hang in looking a name up.
_AT_ONCE = 16


def slots(organization_id: int) -> str:
    """Zset slot → when it was taken, in seconds; 1 h. The platform drops what is older than 20 minutes."""
    return f"concurrent_calls:{organization_id}"


def binding(workflow_run_id: int) -> str:
    """Hash org_id, slot_id[, scope_key]: the slot of a run, given back by it; 20 minutes."""
    return f"workflow_slot_mapping:{workflow_run_id}"


def channel(channel_id: str) -> str:
    """String, the id of the run that a channel is of; 1 h. The platform's transfers and hang-ups read it."""
    return f"ari:channel:{channel_id}"


def transfer_context(transfer_id: str) -> str:
    """String, JSON: original_call_sid (the caller's channel), workflow_run_id, …; the platform's; 5 minutes."""
    return f"transfer:context:{transfer_id}"


def transfer_channel(channel_id: str) -> str:
    """String, the id of the transfer that a channel was originated for; 5 minutes."""
    return f"ari:transfer_channel:{channel_id}"


def transfer_events(transfer_id: str) -> str:
    """Pub/sub channel on which the platform waits for what becomes of a transfer's destination."""
    return f"transfer:events:{transfer_id}"


class Script:
    """One Lua script, of files of this folder, run by digest."""

    def __init__(self, *names: str) -> None:
        self._text = "\n".join((_FOLDER / f"{name}.lua").read_text() for name in names)
        self._script: Any = None

    def run(self, client: redis.Redis, keys: list[str], arguments: list[str | int | float]) -> Any:
        """Run it; a Redis that was restarted gets the text. Raises redis.RedisError."""
        if self._script is None:
            self._script = client.register_script(self._text)
        return self._script(keys=keys, args=arguments, client=client)


class PlatformRedis:
    """Asks the platform's Redis, within a bound that also holds for looking its name up.

    Args:
        url: Of the database that the platform's API uses.
        seconds: The bound of each request.
    """

    def __init__(self, url: str, *, seconds: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._client = redis_clients.client(url, seconds=seconds, decodes=True)
        self._seconds = seconds
        self._monotonic = monotonic
        self._threads = concurrent.futures.ThreadPoolExecutor(_AT_ONCE, "platform-redis")
        self._lock = threading.Lock()
        self._paused_until = float("-inf")
        self._is_away = False

    def ask(self, ask: Callable[[redis.Redis], _T]) -> _T:
        """Return the answer.

        Raises:
            PlatformRedisAway: There is none in time, it is an error, or there was none a moment ago.
        """
        if self._monotonic() < self._paused_until:
            raise errors.PlatformRedisAway("the platform's Redis gave no answer a moment ago")
        asked = self._threads.submit(ask, self._client)
        try:
            answer = asked.result(self._seconds)
        except TimeoutError:
            asked.cancel()
            raise self._failed(f"no answer within {self._seconds:g} s") from None
        except (redis.RedisError, OSError) as exc:
            raise self._failed(f"{type(exc).__name__}: {exc}") from None
        self._answered()
        return answer

    def close(self) -> None:
        """Ask nothing any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _failed(self, reason: str) -> errors.PlatformRedisAway:
        with self._lock:
            self._paused_until = self._monotonic() + _PAUSE_SECONDS
            told, self._is_away = self._is_away, True
        if not told:
            log.warning("the platform's Redis is away: calls are counted from our own alone", reason=reason)
        return errors.PlatformRedisAway(f"the platform's Redis: {reason}")

    def _answered(self) -> None:
        if not self._is_away:
            return
        with self._lock:
            told, self._is_away = self._is_away, False
        if told:
            log.info("the platform's Redis answers again")
