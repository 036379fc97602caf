"""The retry policy: a message that failed is retried soon at first, then with growing delays, within a time limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dramatiq
import dramatiq.errors

#: The delay before each retry, in ms; the last one repeats.
DELAYS_MS = (100, 300, 1000, 3000, 5000)
#: How long a message is retried after its first failure, in ms.
FOR_MS = 20_000
#: The delay between two retries during an outage, in ms.
OUTAGE_DELAY_MS = 1_000


class Retries(dramatiq.Middleware):
    """Enqueues a failed message again. Rejects it after the time limit, or for an error that its actor `throws`.

    Args:
        delays_ms: The delay before each retry; the last one repeats.
        for_ms: How long a message is retried after its first failure; an actor's `retry_for_ms` takes precedence.
        outages: Errors of a backing service that is away, for which the message is not to blame: it is retried every
            second until the outage ends, without counting as a failure. A request that the service could not serve in
            time is none: the message may be what makes it slow.
    """

    def __init__(
        self,
        delays_ms: Sequence[int] = DELAYS_MS,
        for_ms: int = FOR_MS,
        outages: tuple[type[BaseException], ...] = (),
    ) -> None:
        self._delays_ms = delays_ms
        self._for_ms = for_ms
        self._outages = outages

    @property
    def actor_options(self) -> set[str]:
        """The options an actor may declare."""
        return {"throws", "retry_for_ms"}

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """Retry or reject a message that failed."""
        if exception is None or message.failed:
            return
        options = broker.get_actor(message.actor_name).options
        throws = options.get("throws")
        if throws and isinstance(exception, throws):
            message.fail()
            return
        if isinstance(exception, self._outages):
            broker.enqueue(message, delay=OUTAGE_DELAY_MS)
            return
        now_ms = broker.now_ms()
        tries = message.options.get("tries", 0)
        failed_ms = message.options.get("failed_ms", now_ms)
        delay_ms = self._delays_ms[min(tries, len(self._delays_ms) - 1)]
        if isinstance(exception, dramatiq.errors.Retry) and exception.delay is not None:
            delay_ms = exception.delay
        # A negative age means that the clock was set back: without this bound the message would be retried for longer.
        if not 0 <= now_ms - failed_ms + delay_ms <= options.get("retry_for_ms", self._for_ms):
            message.fail()
            return
        message.options.update(tries=tries + 1, failed_ms=failed_ms)
        broker.enqueue(message, delay=delay_ms)
