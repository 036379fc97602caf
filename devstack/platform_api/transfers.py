"""Transfers as the agent's tool makes them in the newest layout: dial, wait for the answer, swap legs in the bridge.

The keys and the message are the contract with the product, which answers for the destination's leg.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import redis.asyncio

from devstack.platform_api.asterisk_client import AsteriskClient, NotDone
from devstack.platform_api.pipelines import Pipeline
from devstack.platform_api.runs import Runs

#: Of the contexts, and of the mapping of the destination, in seconds.
_CONTEXT_SECONDS = 300
#: Of the keys that name a channel's run.
CHANNEL_SECONDS = 3600
#: A message with any other field is dropped: the API reads it into a class that has no others.
EVENT_FIELDS = frozenset({
    "type", "transfer_id", "original_call_sid", "transfer_call_sid", "target_number", "conference_name", "message",
    "status", "action", "reason", "end_call", "timestamp",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a transfer."""

    transfer_id: str
    #: The destination's channel; None if it was not dialled.
    destination: str | None = None
    #: The destination has answered: the agent is out, whatever came of the swap.
    is_answered: bool = False
    is_made: bool = False
    reason: str = ""


class Transfers:
    """Makes transfers.

    Attributes:
        dropped: messages that the API would not have understood.
    """

    def __init__(self, client: redis.asyncio.Redis, runs: Runs) -> None:
        self._client = client
        self._runs = runs
        self.dropped: list[str] = []

    async def make(
        self, pipeline: Pipeline, asterisk: AsteriskClient, *, dial: str, seconds: int, subscribe_after: float
    ) -> Result:
        """Transfer the caller of a pipeline.

        Args:
            dial: The destination, as Asterisk dials it.
            seconds: How long it may ring; 5 to 120.
            subscribe_after: The time between the POST and the subscription, in seconds: the answer may be earlier.
        """
        result = Result(transfer_id=str(uuid.uuid4()))
        context = _context(result.transfer_id, pipeline, target=dial)
        await self._set(f"transfer:by_call_sid:{pipeline.call_id}", result.transfer_id)
        await self._set(f"transfer:context:{result.transfer_id}", json.dumps(context))
        try:
            made = await asterisk.originate(
                endpoint=dial,
                app=pipeline.configuration.app,
                appArgs=f"transfer,{result.transfer_id}",
                timeout=str(seconds),
            )
        except NotDone as exc:
            await self._forget(result, pipeline.call_id)
            return replace(result, reason=str(exc))
        result = replace(result, destination=str(made["id"]))
        await self._set(f"ari:transfer_channel:{result.destination}", result.transfer_id)
        await self._set(
            f"transfer:context:{result.transfer_id}", json.dumps(context | {"call_sid": result.destination})
        )
        await asyncio.sleep(subscribe_after)
        failure = await self._answer(result, pipeline, seconds)
        if failure:
            if failure != _CALLER_LEFT:
                await self._forget(result, pipeline.call_id)
            return replace(result, reason=failure)
        pipeline.end = "transferred"
        failure = await self._swap(result, pipeline, asterisk)
        if not failure:
            await self._forget(result, pipeline.call_id)
        return replace(result, is_answered=True, is_made=not failure, reason=failure)

    async def _answer(self, result: Result, pipeline: Pipeline, seconds: float) -> str:
        """Wait for the destination's answer; return why there is none, or an empty text."""
        answer = asyncio.ensure_future(self._message(result.transfer_id))
        over = asyncio.ensure_future(pipeline.over.wait())
        try:
            await asyncio.wait([answer, over], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                message = answer.result()
                return "" if message["type"] == "destination_answered" else str(message.get("reason") or "failed")
            return _CALLER_LEFT if over.done() else "no answer in time"
        finally:
            for task in (answer, over):
                task.cancel()
            await asyncio.gather(answer, over, return_exceptions=True)

    async def _message(self, transfer_id: str) -> Mapping[str, Any]:
        async with self._client.pubsub() as subscription:
            await subscription.subscribe(f"transfer:events:{transfer_id}")
            async for message in subscription.listen():
                if message["type"] == "message":
                    read = json.loads(message["data"])
                    if set(read) <= EVENT_FIELDS and "type" in read:
                        return cast(Mapping[str, Any], read)
                    self.dropped.append(message["data"])
        raise NotDone("the subscription ended")

    async def _swap(self, result: Result, pipeline: Pipeline, asterisk: AsteriskClient) -> str:
        """Put the destination in the media leg's place; return why that was not possible, or an empty text."""
        caller, destination = pipeline.call_id, cast(str, result.destination)
        run_id = await cast(Awaitable[str | None], self._client.get(f"ari:channel:{caller}"))
        run = await self._runs.of(int(run_id)) if run_id is not None else None
        bridge_id, media_id = (run.gathered.get(name) if run else None for name in ("bridge_id", "ext_channel_id"))
        if run is None or not bridge_id or not media_id:
            return "the caller's channel, bridge or media leg is not known"
        state = {
            "transfer_state": "in-progress",
            "transfer_bridge_id": bridge_id,
            "transfer_caller_channel_id": caller,
            "transfer_destination_channel_id": destination,
        }
        await self._runs.note(run.id, state)
        try:
            await asterisk.add(bridge_id, destination)
        except NotDone as exc:
            return str(exc)
        await self._client.set(f"ari:channel:{destination}", run.id, ex=CHANNEL_SECONDS)
        for act in (asterisk.remove(bridge_id, media_id), asterisk.hang_up(media_id)):
            # The API logs a failure of these, and goes on.
            with contextlib.suppress(NotDone):
                await act
        return ""

    async def _forget(self, result: Result, caller: str) -> None:
        keys = [f"transfer:context:{result.transfer_id}", f"transfer:by_call_sid:{caller}"]
        if result.destination is not None:
            keys.append(f"ari:transfer_channel:{result.destination}")
        await self._client.delete(*keys)

    async def _set(self, key: str, value: str) -> None:
        await self._client.set(key, value, ex=_CONTEXT_SECONDS)


_CALLER_LEFT = "the caller left"


def _context(transfer_id: str, pipeline: Pipeline, *, target: str) -> dict[str, Any]:
    return {
        "transfer_id": transfer_id,
        "call_sid": None,
        "target_number": target,
        "tool_uuid": str(uuid.uuid4()),
        "original_call_sid": pipeline.call_id,
        "conference_name": f"transfer-{transfer_id}",
        "initiated_at": time.time(),
        "workflow_run_id": pipeline.run.id,
        "conference_id": None,
    }
