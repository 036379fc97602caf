"""What the judge of chaos runs makes of a channel id that is used twice."""

from __future__ import annotations

from typing import Any

from chaos.judge.history import History

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
    history = History([APP])
    entered = {"variable": "STASISSTATUS", "value": ""}
    history.event(event("ChannelCreated", "01:42", "01:42"))
    history.event(event("ChannelVarset", "01:42", "01:43", **entered))
    history.event(event("ChannelDestroyed", "01:42", "01:47", cause=16))
    history.event(event("ChannelCreated", "02:05", "02:05"))
    history.event(event("ChannelVarset", "02:05", "02:06", **entered))
    assert [leg.id for leg in history.dialled_again] == [LEG]
    assert [len(leg.apps) for leg in (history.dialled_again[0], history.legs[LEG])] == [1, 1]
    history.event(event("ChannelDestroyed", "02:05", "02:12", cause=16))
    assert history.legs[LEG].gone_at - history.legs[LEG].created_at == 7
    assert history.in_setup() == []
