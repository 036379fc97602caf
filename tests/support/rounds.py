"""An Asterisk for a step of a test: it answers as told, and remembers what was asked in which round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

from shared import errors
from shared.asterisk import ari, rest
from shared.asterisk.endpoint import Configuration
from workers.asterisks import Asterisks

APP = "voiceai"
#: The request for what is in the app.
LOOK_AT_APP = f"GET /applications/{APP}"
GONE = errors.AsteriskRefused(404, "Channel not found")


class Rounds:
    """The requests of a step, round by round.

    Its app lists the channels that are answered as in it, unless told otherwise.

    Args:
        answers: Request (`GET /channels/1`) → its answers, one after the other, the last for ever: JSON or an error.
    """

    configuration = Configuration(endpoint="http://pbx", app=APP, user="user", password="secret")

    def __init__(self, answers: Mapping[str, Sequence[object]] | None = None) -> None:
        self._answers = {what: list(said) for what, said in (answers or {}).items()}
        self._answers.setdefault(LOOK_AT_APP, [{"channel_ids": list(self._in_app())}])
        self.rounds: list[list[str]] = []
        self.requests: list[rest.Request[Any]] = []

    def request_all(self, budget: rest.RequestBudget, requests: Sequence[rest.Request[Any]]) -> list[Any]:
        self.rounds.append([request.what for request in requests])
        self.requests += requests
        return [self._answer(request.what) for request in requests]

    def must_probe(self, budget: rest.RequestBudget) -> bool:
        return False

    @property
    def asterisks(self) -> Asterisks:
        """As a step takes it: this Asterisk for every call."""
        return cast(Asterisks, SimpleNamespace(of=lambda _call, budget: ari.Ari(self, budget)))

    def _in_app(self) -> Iterator[str]:
        said: list[Any] = [answer for answers in self._answers.values() for answer in answers]
        for leg in said:
            dialplan = leg.get("dialplan") if isinstance(leg, dict) else None
            if dialplan and dialplan["app_name"] == "Stasis" and dialplan["app_data"].split(",")[0] == APP:
                yield leg["id"]

    def _answer(self, what: str) -> object:
        answers = self._answers.get(what, [None])
        return answers[0] if len(answers) == 1 else answers.pop(0)


def channel(channel_id: str, *, app: str = APP, created: str = "2026-05-01T12:00:00.000+0000") -> dict[str, object]:
    """Return a channel in an app as Asterisk shows it."""
    return {
        "id": channel_id,
        "name": f"PJSIP/{channel_id}",
        "state": "Up",
        "creationtime": created,
        "caller": {"name": "", "number": "+49151"},
        "dialplan": {"context": "in", "exten": "1", "priority": 1, "app_name": "Stasis", "app_data": app},
    }
