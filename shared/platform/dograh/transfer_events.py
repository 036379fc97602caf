"""What the platform's API is told of the legs to which it transfers callers, by pub/sub in its Redis.

It originates such a leg, writes the transfer's context, and only then subscribes to the transfer's channel: what is
published before that is heard by none, and has to be published again.
"""

from __future__ import annotations

import json
import time
from typing import Any

import redis

from shared import errors
from shared.platform.dograh import layouts, platform_redis
from shared.platform.dograh.platform_redis import PlatformRedis
from shared.platform.ports import Transfer

#: How long the platform keeps the transfer of a channel, in seconds.
_KEPT_SECONDS = 300
#: An id of the platform's is no longer.
_LONGEST_ID = 128


class TransferEvents:
    """The port `TransferEvents`.

    Args:
        asked: The platform's Redis; None if it is not named.
    """

    def __init__(self, asked: PlatformRedis | None, *, watch: layouts.Watch) -> None:
        self._redis = asked
        self._watch = watch

    def is_served(self) -> bool:
        """Return whether there may be transfers, as the port says."""
        if self._redis is not None:
            return True
        found = self._watch.look()
        return found.layout is layouts.Layout.NEWEST or found.platform_completes_runs

    def refusal(self) -> str | None:
        """Return why no transfer can be made, as the port says."""
        found = self._watch.look()
        if found.layout is layouts.Layout.FEBRUARY_2026 and found.platform_completes_runs:
            return "the platform's layout of 2026-02 makes no transfers"
        return "PLATFORM_REDIS_URL is not set, so the platform cannot be told" if self._redis is None else None

    def transfer(self, transfer_id: str) -> Transfer | None:
        """Return a transfer by its id, as the port says."""
        if len(transfer_id) > _LONGEST_ID:
            return None
        return _read(transfer_id, self._ask(lambda client: client.get(platform_redis.transfer_context(transfer_id))))

    def transfer_to(self, channel_id: str) -> Transfer | None:
        """Return the transfer that a channel was originated for, as the port says."""
        transfer_id = self._ask(lambda client: client.get(platform_redis.transfer_channel(channel_id)))
        return self.transfer(transfer_id) if transfer_id else None

    def answered(self, transfer: Transfer, channel_id: str) -> bool:
        """Tell that the destination has answered, as the port says."""
        event = _event(
            transfer, channel_id, kind="destination_answered", status="success",
            message="Transfer destination answered", reason=None,
        )  # fmt: skip

        def tell(client: redis.Redis) -> bool:
            # First: a Redis that is full takes no key.
            is_heard = _publish(client, transfer, event)
            client.set(platform_redis.transfer_channel(channel_id), transfer.transfer_id, ex=_KEPT_SECONDS)
            return is_heard

        return bool(self._ask(tell))

    def failed(self, transfer: Transfer, channel_id: str, reason: str) -> bool:
        """Tell that the destination was not reached, as the port says."""
        event = _event(
            transfer, channel_id, kind="transfer_failed", status="failed", message=f"Transfer failed: {reason}",
            reason=reason,
        )  # fmt: skip
        return bool(self._ask(lambda client: _publish(client, transfer, event)))

    def forget(self, channel_id: str) -> None:
        """Remove the notes of a destination that is gone, as the port says."""
        keys = [platform_redis.transfer_channel(channel_id), platform_redis.channel(channel_id)]
        self._ask(lambda client: client.delete(*keys))

    def _ask(self, ask: Any) -> Any:
        if self._redis is None:
            raise errors.PlatformRedisAway("PLATFORM_REDIS_URL is not set")
        return self._redis.ask(ask)


def _publish(client: redis.Redis, transfer: Transfer, event: str) -> bool:
    """Publish an event; return False if the platform did not hear it.

    PUBLISH also counts who listens by a pattern: an operator's tool that shows everything. The platform does not.
    """
    channel = platform_redis.transfer_events(transfer.transfer_id)
    # No transaction: a Redis that is full takes none.
    with client.pipeline(transaction=False) as pipeline:
        pipeline.pubsub_numsub(channel)
        pipeline.publish(channel, event)
        [(_, listeners)], _ = pipeline.execute()
    return bool(listeners)


def _read(transfer_id: str, text: str | None) -> Transfer | None:
    """Read a transfer's context; None for one that is none, or names no caller."""
    try:
        context = json.loads(text or "null")
    except ValueError:
        return None
    if not isinstance(context, dict) or not isinstance(context.get("original_call_sid"), str):
        return None
    run_id, name = context.get("workflow_run_id"), context.get("conference_name")
    return Transfer(
        transfer_id=transfer_id,
        caller_id=context["original_call_sid"],
        workflow_run_id=run_id if type(run_id) is int else None,
        conference_name=name if isinstance(name, str) else None,
    )


def _event(transfer: Transfer, channel_id: str, *, kind: str, status: str, message: str, reason: str | None) -> str:
    """Return an event as the API reads it: it drops one with a name that it does not know."""
    return json.dumps({
        "type": kind,
        "transfer_id": transfer.transfer_id,
        "original_call_sid": transfer.caller_id,
        "transfer_call_sid": channel_id,
        "target_number": None,
        "conference_name": transfer.conference_name,
        "message": message,
        "status": status,
        "action": kind,
        "reason": reason,
        "end_call": False,
        "timestamp": time.time(),
    })  # fmt: skip
