"""What the judge of chaos runs makes of a channel id that is used twice."""

from __future__ import annotations

from typing import Any

from chaos.judge import history
from chaos.judge.history import History
from tests.support.judged_scenes import CALL_ID, FAR, MEDIA

APP = "voiceai"
LEG = "aip-e421903d9b205b6fb348ace489b7592a-o"


def event(kind: str, created: str, at: str, **details: Any) -> dict[str, Any]:
    channel = {
        "id": LEG,
        "state": "Up",
        "creationtime": f"2026-11-29T10:{created}.000+0000",
        "dialplan": {"app_name": "Stasis", "app_data": APP},
    }
    return {"type": kind, "timestamp": f"2026-11-29T10:{at}.000+0000", "channel": channel} | details


def test_a_leg_that_is_dialled_again_is_another_one() -> None:
    seen = History([APP])
    entered = {"variable": "STASISSTATUS", "value": ""}
    seen.event(event("ChannelCreated", "01:42", "01:42"))
    seen.event(event("ChannelVarset", "01:42", "01:43", **entered))
    seen.event(event("ChannelDestroyed", "01:42", "01:47", cause=16))
    seen.event(event("ChannelCreated", "02:05", "02:05"))
    seen.event(event("ChannelVarset", "02:05", "02:06", **entered))
    assert [leg.id for leg in seen.dialled_again] == [LEG]
    assert [len(leg.apps) for leg in (seen.dialled_again[0], seen.legs[LEG])] == [1, 1]
    seen.event(event("ChannelDestroyed", "02:05", "02:12", cause=16))
    assert seen.legs[LEG].gone_at - seen.legs[LEG].created_at == 7
    assert seen.in_setup() == {}


def test_a_channel_is_what_its_id_says() -> None:
    ids = ("call-1", f"aip-{CALL_ID}-o", FAR, f"aip-{CALL_ID}-o;2", MEDIA)
    assert [history.kind(name) for name in ids] == ["caller", "caller", "other half", "other half", "media"]
