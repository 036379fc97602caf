"""What both creating requests come to: a refusal decides nothing while the other may yet take effect."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from shared import errors
from shared.call import facts
from shared.call.calls import Call
from shared.call.legs import Naming
from shared.call.states import Direction, State
from shared.platform import dograh
from workers.media import MediaCreation
from workers.parallel import ParallelRequests

NAMING = Naming("aip-")
NOW = datetime(2026, 5, 1, tzinfo=UTC)
CALL = Call(
    call_id=UUID(int=1),
    connection_id=1,
    connection_version=1,
    organization_id=1,
    channel_id="1.1",
    channel_created="c",
    entry=1,
    direction=Direction.INBOUND,
    state=State.PREPARED,
    received_at=NOW,
    state_since=NOW,
    deadline_at=NOW,
    attempt=1,
    workflow_id=1,
    user_id=2,
    workflow_run_id=3,
    media_client="media",
)
REFUSED = errors.AsteriskRefused(400, "no such client")
UNKNOWN = errors.AsteriskUnreachable("no answer in time")


class Asterisk:
    """Answers each creating request as told, and remembers it."""

    def __init__(self, of_media: errors.PipelineError | None, of_bridge: errors.PipelineError | None) -> None:
        self._media, self._bridge = of_media, of_bridge
        self.requests: list[tuple[str, dict[str, str]]] = []

    def create_media(self, channel_id: str, *, client: str, parameters: dict[str, str]) -> None:
        self.requests.append((channel_id, parameters))
        if self._media is not None:
            raise self._media

    def create_bridge(self, bridge_id: str) -> None:
        self.requests.append((bridge_id, {}))
        if self._bridge is not None:
            raise self._bridge


class Everywhere:
    """The same Asterisk for every call."""

    def __init__(self, asterisk: Asterisk) -> None:
        self._asterisk = asterisk

    def of(self, call: Call, budget: object) -> Asterisk:
        return self._asterisk


@pytest.mark.parametrize(
    ("of_media", "of_bridge", "fact"),
    [
        (None, None, facts.LegsCreated),
        (REFUSED, None, facts.LegsRefused),
        (None, REFUSED, facts.LegsRefused),
        (REFUSED, REFUSED, facts.LegsRefused),
        (UNKNOWN, None, facts.LegsUnknown),
        (None, UNKNOWN, facts.LegsUnknown),
        (UNKNOWN, REFUSED, facts.LegsUnknown),
        (REFUSED, UNKNOWN, facts.LegsUnknown),
    ],
)
def test_what_both_answers_come_to(
    of_media: errors.PipelineError | None, of_bridge: errors.PipelineError | None, fact: type[facts.Fact]
) -> None:
    asterisk, in_parallel = Asterisk(of_media, of_bridge), ParallelRequests(2)
    step = MediaCreation(
        asterisks=cast(Any, Everywhere(asterisk)),
        in_parallel=in_parallel,
        naming=NAMING,
        media_url=dograh.MediaUrl(None),
    )
    try:
        (reported,) = step.work(cast(Any, SimpleNamespace(call=CALL)))
    finally:
        in_parallel.close()
    assert type(reported) is fact
    run = {"workflow_id": "1", "user_id": "2", "workflow_run_id": "3"}
    assert sorted(asterisk.requests) == [(NAMING.bridge_id(CALL), {}), (NAMING.media_id(CALL), run)]
