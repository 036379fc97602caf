"""What attempts ask of an Asterisk that answers, the look at an overdue media leg, and the removal of what is left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from shared import errors, messages
from shared.call import facts
from shared.call.calls import Call
from shared.call.legs import Naming
from shared.call.steps import Step
from shared.storage.timeline import TimelineEntry
from tests.support.calls import CALL_ID, JOINING, LIMITS, NOW, PREPARED, WAITING, seconds
from tests.support.rounds import GONE, Rounds, channel
from workers.attempts import Attempts


class ReadOnly:
    """A store that only reads: nothing may be recorded."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def load(self, call_id: UUID) -> Call:
        return self._call

    def now(self) -> datetime:
        return NOW

    def append_timeline(self, timeline: Sequence[object], *, call: Call) -> None:
        pass


# ── with an Asterisk that answers ────────────────────────────────────────────────────────────────────────────────────

NAMING = Naming("aip-")
NONCE = "4f2a9c01"
MEDIA_ID, BRIDGE_ID = NAMING.media_id(WAITING), NAMING.bridge_id(WAITING)
LOOK = [f"GET /channels/{MEDIA_ID}", f"GET /bridges/{BRIDGE_ID}"]
CREATE = f"POST /bridges/{BRIDGE_ID}"
LEG, BRIDGE = channel(MEDIA_ID), {"id": BRIDGE_ID, "channels": []}
REFUSED, AWAY = errors.AsteriskRefused(500, "error"), errors.AsteriskUnreachable("no answer in time")
#: Its first attempt came to no known end.
IN_DOUBT = replace(WAITING, legs_created=False)


class Timeline(ReadOnly):
    """A store that keeps how often the requests of a step were written."""

    def __init__(self, call: Call | None) -> None:
        super().__init__(cast(Call, call))
        self.written: list[UUID] = []

    def append_timeline(self, timeline: Sequence[object], *, call: Call) -> None:
        assert all(isinstance(entry, TimelineEntry) for entry in timeline)
        self.written.append(call.call_id)


class Scene:
    """The handlers of attempts around one call, and what they report."""

    def __init__(self, call: Call | None, answers: dict[str, list[object]] | None = None) -> None:
        self.asterisk = Rounds(answers)
        self.store = Timeline(call)
        self.reported: list[tuple[facts.Fact, Step | None]] = []
        self.hindered: list[facts.Hindered] = []
        self.later: list[messages.Message] = []
        budgets: list[float] = []
        self.budgets = budgets
        asterisks = self.asterisk.asterisks

        def of(call: Call, budget: Any) -> object:
            budgets.append(round(budget.seconds_left()))
            return asterisks.of(call, budget)

        self.attempts = Attempts(
            flow=cast(Any, self),
            writer=cast(
                Any,
                SimpleNamespace(
                    store=self.store,
                    limits=LIMITS,
                    clock=time,
                    new_nonce=lambda _call: NONCE,
                    record=lambda _call, fact, **_how: self.hindered.append(fact),
                ),
            ),
            asterisks=cast(Any, SimpleNamespace(of=of)),
            naming=NAMING,
            send_later=lambda message, _wait: self.later.append(message),
        )

    def report(self, call: Call, *happened: facts.Fact, ordered: Step | None = None) -> None:
        self.reported += [(fact, ordered) for fact in happened]


def test_the_first_attempt_begins_without_a_look() -> None:
    scene = Scene(PREPARED)
    scene.attempts.start(call_id=CALL_ID, attempt=1)
    begun = facts.AttemptBegun(attempt=1, nonce=NONCE, in_doubt_until=NOW + seconds(14))
    assert scene.reported == [(begun, Step.MEDIA)]
    assert scene.asterisk.rounds == []


def test_a_leg_that_still_connects_is_found_and_not_ready() -> None:
    connecting = channel(NAMING.media_id(IN_DOUBT), app="")
    scene = Scene(IN_DOUBT, {LOOK[0]: [connecting], LOOK[1]: [BRIDGE]})
    scene.attempts.start(call_id=CALL_ID, attempt=2)
    assert scene.reported == [(facts.LegsFound(attempt=1, is_complete=True), None)]


def test_an_asterisk_that_is_half_open_is_probed_for_the_caller_s_leg(monkeypatch: pytest.MonkeyPatch) -> None:
    look = f"GET /channels/{PREPARED.channel_id}"
    scene = Scene(PREPARED, {look: [GONE]})
    monkeypatch.setattr(scene.asterisk, "must_probe", lambda _budget: True)
    scene.attempts.start(call_id=CALL_ID, attempt=1)
    assert scene.asterisk.rounds == [[look]]
    assert len(scene.reported) == 1
    assert scene.store.written == [CALL_ID]
    assert scene.budgets == [6.0]


@pytest.mark.parametrize(
    ("leg", "bridge", "created", "is_whole", "rounds"),
    [
        pytest.param(LEG, BRIDGE, None, True, [LOOK], id="both are there"),
        pytest.param(LEG, GONE, None, True, [LOOK, [CREATE]], id="only the bridge is missing"),
        pytest.param(LEG, GONE, REFUSED, False, [LOOK, [CREATE]], id="no bridge can be had"),
        pytest.param(GONE, BRIDGE, None, False, [LOOK], id="the leg is missing"),
        pytest.param(GONE, GONE, None, False, [LOOK], id="both are missing"),
        pytest.param(REFUSED, BRIDGE, None, False, [LOOK], id="the leg cannot be looked at"),
        pytest.param(LEG, REFUSED, None, False, [LOOK], id="the bridge cannot be looked at"),
    ],
)
def test_a_second_attempt_begins_only_if_the_first_took_no_effect(
    leg: object, bridge: object, created: object, rounds: list[list[str]], *, is_whole: bool
) -> None:
    scene = Scene(IN_DOUBT, {LOOK[0]: [leg], LOOK[1]: [bridge], CREATE: [created]})
    scene.attempts.start(call_id=CALL_ID, attempt=2)
    begun = facts.AttemptBegun(attempt=2, nonce=NONCE, in_doubt_until=NOW + seconds(14))
    found: list[tuple[facts.Fact, Step | None]] = [
        (facts.LegsFound(attempt=1, is_complete=len(rounds) == 1), None),
        (facts.MediaReady(attempt=1), None),
    ]
    assert scene.reported == (found if is_whole else [(begun, Step.MEDIA)])
    assert scene.asterisk.rounds == rounds
    # A look that finds nothing of the attempt has no row: the next attempt tells it.
    assert scene.store.written == ([] if leg is GONE else [CALL_ID])
    # The look is short.
    assert scene.budgets[-1] == 2.0


@pytest.mark.parametrize(
    ("leg", "bridge", "created"),
    [(AWAY, BRIDGE, None), (LEG, AWAY, None), pytest.param(LEG, GONE, AWAY, id="its bridge may be there by now")],
)
def test_a_second_attempt_waits_while_nothing_is_known_of_the_first(
    leg: object, bridge: object, created: object
) -> None:
    answers = {LOOK[0]: [leg], LOOK[1]: [bridge], CREATE: [created]}
    scene = Scene(replace(IN_DOUBT, deadline_at=NOW + seconds(5)), answers)
    scene.attempts.start(call_id=CALL_ID, attempt=2)
    assert scene.reported == []
    ((message),) = scene.later
    assert (message.actor_name, message.kwargs["attempt"], message.kwargs["call_id"]) == (
        "start_media",
        2,
        str(CALL_ID),
    )
    assert message.options["group"] == 7
    assert scene.store.written == [CALL_ID]
    assert [told.obstacle for told in scene.hindered] == ["Asterisk gave no answer: no answer in time"]


def test_a_call_that_is_gone_or_without_a_deadline_is_not_postponed() -> None:
    gone = Scene(None)
    gone.attempts.start(call_id=CALL_ID, attempt=1)
    without = Scene(replace(IN_DOUBT, deadline_at=None), {LOOK[0]: [AWAY]})
    without.attempts.start(call_id=CALL_ID, attempt=2)
    assert (gone.reported, gone.later, without.later) == ([], [], [])


# ── a media leg that is overdue ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (channel(MEDIA_ID), [facts.MediaReady(attempt=1)]),
        (channel(MEDIA_ID, app="other"), []),
        (GONE, [facts.MediaGone(attempt=1, reason="media leg is gone", is_found=True)]),
        (AWAY, []),
    ],
    ids=["ready", "connecting", "gone", "no answer"],
)
def test_a_media_leg_that_is_overdue_is_asked_for(answer: object, expected: list[facts.Fact]) -> None:
    scene = Scene(WAITING, {LOOK[0]: [answer]})
    scene.attempts.check(call_id=CALL_ID, attempt=1)
    assert scene.reported == [(fact, None) for fact in expected]
    assert (scene.asterisk.rounds, scene.store.written, scene.budgets) == ([LOOK[:1]], [CALL_ID], [6.0])


@pytest.mark.parametrize(
    ("call", "attempt"),
    [(None, 1), (JOINING, 1), (WAITING, 2), (replace(WAITING, legs_created=False), 1)],
    ids=["no call", "ready", "another attempt", "not created"],
)
def test_a_check_that_no_longer_applies_makes_no_request(call: Call | None, attempt: int) -> None:
    scene = Scene(call)
    scene.attempts.check(call_id=CALL_ID, attempt=attempt)
    assert (scene.asterisk.rounds, scene.reported) == ([], [])


# ── what an attempt has left ─────────────────────────────────────────────────────────────────────────────────────────


def test_leg_and_bridge_of_an_attempt_that_counts_no_more_are_removed() -> None:
    scene = Scene(replace(WAITING, attempt=2))
    scene.attempts.remove(call_id=CALL_ID, attempt=1)
    assert scene.asterisk.rounds == [[f"DELETE /channels/{MEDIA_ID}", f"DELETE /bridges/{BRIDGE_ID}"]]
    assert (scene.store.written, scene.budgets) == ([CALL_ID], [12.0])


def test_nothing_is_removed_for_a_call_that_is_gone() -> None:
    scene = Scene(None)
    scene.attempts.remove(call_id=CALL_ID, attempt=1)
    assert scene.asterisk.rounds == []
