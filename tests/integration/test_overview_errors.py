"""The errors on the overview: few are read of each process, and none is hidden by one that fails all the time."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest

from console import overview
from shared import keys
from shared.broker import redis_clients
from shared.operator.processes import Processes
from shared.process.recent_errors import MOST
from shared.storage import database
from tests.integration import test_console
from tests.integration.test_console import sign_in

pytestmark = pytest.mark.services

db = test_console.db
NOISY = 50


def logged(event: str, at: str) -> str:
    return json.dumps({"timestamp": at, "severity_text": "ERROR", "event_name": event})


def fill(url: str) -> None:
    """Write what the registries of many processes would that fail all the time, and of one that has failed before."""
    with contextlib.closing(redis_clients.client(url, decodes=True)) as client:
        client.flushdb()
        pipe = client.pipeline(transaction=False)
        pipe.zadd(keys.PROCESSES, {f"worker/w{number}": time.time() * 1000 for number in range(NOISY + 1)})
        for number in range(NOISY):
            entries = [logged(f"noise {entry}", f"2026-11-30T01:00:00.{entry:06}Z") for entry in range(MOST)]
            pipe.rpush(keys.errors(f"worker/w{number}"), *entries)
        pipe.rpush(keys.errors(f"worker/w{NOISY}"), logged("the quiet one", "2026-11-30T00:00:00.000000Z"))
        pipe.execute()


def test_few_errors_of_each_process_are_read_and_the_only_one_of_a_quiet_process_is_shown(
    db: database.Database, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(redis_url)
    read: list[int] = []
    executed = Processes._executed

    def counted(self: Processes, pipe: Any) -> Any:
        answers = executed(self, pipe)
        read.append(sum(len(each) for each in answers if isinstance(each, list)))
        return answers

    monkeypatch.setattr(Processes, "_executed", counted)
    with test_console.serving(db, redis_url=redis_url) as browser:
        olga = browser()
        sign_in(olga, "olga")
        text = olga.get("/").text
    assert "the quiet one" in text
    assert max(read) == 2 * NOISY * overview._ERRORS_OF_EACH + 1
    assert text.count(f"noise {MOST - 1}") >= NOISY
    with contextlib.closing(Processes(redis_url)) as known:
        found = known.errors(limit=overview._ERRORS, each=overview._ERRORS_OF_EACH)
        assert (len(found), found[0].event, found[-1].event) == (overview._ERRORS, f"noise {MOST - 1}", "the quiet one")
        alone = known.errors("w0", limit=overview._ERRORS, each=overview._ERRORS_OF_EACH)
        assert [each.event for each in alone] == [f"noise {MOST - number}" for number in range(1, 6)]
