"""JSON that no Asterisk gives: each request comes to a result or to an error of ours, and `arictl doctor` goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, cast

import pytest

from shared import errors
from shared.asterisk import ari
from shared.asterisk.endpoint import Configuration

VALUES: tuple[object, ...] = (None, True, 0, 1.5, 10**400, float("nan"), "", "x", "\x00", "\ud800", [], {})
NAMES = ("id", "channels", "attribute", "value", "name", "status", "system", "channel_ids", "events_allowed", "caller")
ODD: list[object] = [
    *VALUES,
    *([value] for value in VALUES),
    *({"id": "x", "creationtime": "now", name: value} for name in NAMES for value in VALUES),
    *([{"id": "x", name: [value]}] for name in NAMES for value in VALUES),
    {"system": {"version": []}},
    {"channel_ids": [[], {}], "events_allowed": [{"type": []}, 3]},
]
ASK: dict[str, Callable[[ari.Ari], object]] = {
    "channel": lambda asterisk: asterisk.channel("x"),
    "bridge": lambda asterisk: asterisk.bridge("x"),
    "bridges": ari.Ari.bridges,
    "application": ari.Ari.application,
    "version": ari.Ari.version,
    "modules": ari.Ari.modules,
    "websocket client": lambda asterisk: asterisk.websocket_client("media"),
    "hang up": lambda asterisk: asterisk.hang_up("x"),
}


class Odd:
    """Answers everything with one document."""

    configuration = Configuration(endpoint="http://pbx", app="a", user="u", password="p")

    def __init__(self, document: object) -> None:
        self._document = document

    def request_all(self, budget: Any, requests: Any) -> list[Any]:
        return [self._document for _ in requests]


@pytest.mark.parametrize("ask", ASK.values(), ids=ASK)
def test_an_odd_answer_is_read_or_refused(ask: Callable[[ari.Ari], object]) -> None:
    for document in ODD:
        with contextlib.suppress(errors.PipelineError):
            ask(ari.Ari(cast(Any, Odd(document)), cast(Any, None)))
