"""What both creating requests come to: a refusal decides nothing while the other may yet take effect."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from shared import errors
from shared.asterisk import ari_requests
from shared.call import facts
from shared.call.calls import Call
from shared.call.legs import Naming
from shared.call.states import Direction, State
from shared.platform import dograh
from tests.support.rounds import GONE, Rounds
from workers.media import MediaCreation

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
    bridge_id = NAMING.bridge_id(CALL)
    asterisk = Rounds({"POST /channels/externalMedia": [of_media], f"POST /bridges/{bridge_id}": [of_bridge]})
    step = MediaCreation(
        asterisks=asterisk.asterisks, naming=NAMING, media_url=dograh.MediaUrl(None), tag=lambda: "a1b2c3d4"
    )
    (reported,) = step.work(cast(Any, SimpleNamespace(call=CALL)))
    assert type(reported) is fact
    run = {"workflow_id": "1", "user_id": "2", "workflow_run_id": "3"}
    media = ari_requests.create_media(
        NAMING.media_id(CALL), app="voiceai", client="media", parameters=run, args="a1b2c3d4"
    )
    assert asterisk.requests == [media, ari_requests.create_bridge(bridge_id)]
    assert len(asterisk.rounds) == 1


@pytest.mark.parametrize(
    ("of_media", "of_bridge", "media_client", "reason"),
    [
        (REFUSED, None, "media", "400 no such client (is the websocket client 'media' in websocket_client.conf?)"),
        (REFUSED, None, None, "400 no such client (is the websocket client '' in websocket_client.conf?)"),
        (errors.AsteriskRefused(500, "error"), None, "media", "500 error"),
        (errors.PermanentError("bad answer"), REFUSED, "media", "bad answer"),
        (REFUSED, UNKNOWN, "media", "no answer in time"),
        (UNKNOWN, errors.AsteriskUnreachable("another"), "media", "no answer in time"),
    ],
)
def test_the_reason_is_that_of_what_decides(
    of_media: errors.PipelineError, of_bridge: errors.PipelineError | None, media_client: str | None, reason: str
) -> None:
    answers: dict[str, list[object]] = {
        "POST /channels/externalMedia": [of_media],
        f"POST /bridges/{NAMING.bridge_id(CALL)}": [of_bridge],
    }
    (reported,) = created(replace(CALL, media_client=media_client), Rounds(answers))
    assert isinstance(reported, facts.LegsRefused | facts.LegsUnknown)
    assert (reported.attempt, reported.reason) == (1, reason)


def test_a_second_attempt_removes_what_the_first_may_have_left() -> None:
    """Its agent would refuse a second leg for the run; whatever does not go now is removed by the teardown."""
    second, leg, bridge = (
        replace(CALL, attempt=2),
        f"/channels/{NAMING.media_id(CALL)}",
        f"/bridges/{NAMING.bridge_id(CALL)}",
    )
    asterisk = Rounds({f"DELETE {leg}": [UNKNOWN], f"DELETE {bridge}": [GONE]})
    assert created(second, asterisk) == (facts.LegsCreated(attempt=2),)
    assert asterisk.rounds == [
        [f"DELETE {leg}", f"DELETE {bridge}"],
        ["POST /channels/externalMedia", f"POST /bridges/{NAMING.bridge_id(second)}"],
    ]


def created(call: Call, asterisk: Rounds) -> Any:
    step = MediaCreation(asterisks=asterisk.asterisks, naming=NAMING, media_url=dograh.MediaUrl(None), tag=lambda: "")
    return step.work(cast(Any, SimpleNamespace(call=call)))
