"""When a message that failed is tried again: soon at first, and not for ever."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dramatiq
import dramatiq.errors

#: The pause before each further try, in ms; the last one is repeated.
DELAYS_MS = (100, 300, 1000, 3000, 5000)
#: How long a message is tried after it first failed, in ms.
FOR_MS = 20_000
#: Between two looks whether an outage is over, in ms.
OUTAGE_DELAY_MS = 1_000


class Retries(dramatiq.Middleware):
    """Enqueues what failed again; rejects what fails for too long, or by an error that its actor `throws`.

    Args:
        delays_ms: The pause before each further try; the last one is repeated.
        for_ms: How long after its first failure a message is still tried; an actor's `retry_for_ms` comes first.
        outages: Errors that are no fault of a message and say nothing of it: it waits for their end, looking every
            second, and is no older for it.
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
        """What an actor may say of itself."""
        return {"throws", "retry_for_ms"}

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """Judges a failure."""
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
        # A clock that is set back must not make it younger.
        if not 0 <= now_ms - failed_ms + delay_ms <= options.get("retry_for_ms", self._for_ms):
            message.fail()
            return
        message.options.update(tries=tries + 1, failed_ms=failed_ms)
        broker.enqueue(message, delay=delay_ms)
