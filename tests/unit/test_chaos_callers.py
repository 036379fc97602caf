"""What the callers of a chaos run tell the judge."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from chaos.callers import Callers
from chaos.deeds import Deeds


class Switch:
    """An Asterisk that takes a moment to hang up."""

    def __init__(self) -> None:
        self.gone_at = 0.0

    def request(self, *_words: str) -> Any:
        self.gone_at = time.time()
        time.sleep(0.02)
        return SimpleNamespace(status_code=204)


def test_a_caller_has_hung_up_before_the_leg_is_gone(tmp_path: Path) -> None:
    """Else the pipeline would seem to have ended the call."""
    switch, deeds = Switch(), Deeds(tmp_path / "deeds.jsonl")
    callers = Callers(
        lambda: cast(Any, switch),
        [],
        deeds,
        rate=1,
        chance=random.Random(1),
        database_url="",
        redis_url="redis://127.0.0.1:1",
    )
    callers._open.add("call-1")
    callers._hang_up("call-1")
    deeds.close()
    (told,) = [json.loads(line) for line in (tmp_path / "deeds.jsonl").read_text().splitlines()]
    assert (told["deed"], told["leg"]) == ("hang-up", "call-1")
    assert told["at"] <= switch.gone_at
