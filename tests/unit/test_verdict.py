"""The verdict on a call: each kind of bad call has its rule, and none says more than was seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shared.operator import audio, ladder, verdict, waits, waterfall
from shared.operator.stories import CallStory, SocketSeen
from shared.operator.verdict import Tone
from shared.operator.waits import Part
from tests.support.call_stories import (
    ARRIVED,
    ASKED,
    BRIDGE,
    MEDIA,
    asked,
    at,
    ended,
    joined,
    note,
    row,
    story,
)  # fmt: skip

CALLER_HUNG_UP = ended(12, "CallerLeft", "hangup_cause=16, → completed: caller hung up")
COMPLETED: dict[str, Any] = {"outcome": "completed", "reason": "caller hung up"}
GOOD = story(*ARRIVED, *ASKED, *joined(0.05), *CALLER_HUNG_UP, **COMPLETED)
REFUSED_SOCKET = (
    "voice agent not reached: media leg ended, cause 3 No route to destination: the voice agent was not there"
)
TAKEN = note(4, "AppPreempted", "another ARI client has taken the Stasis app over")


def refused_socket() -> CallStory:
    rows = [*ARRIVED[:3]]
    for attempt, begun in enumerate((0.003, 0.53, 1.6, 3.6), 1):
        rows += [row(begun, "AttemptBegun", attempt=attempt), asked(begun + 0.001, MEDIA),
                 row(begun + 0.02, "LegsCreated", attempt=attempt)]  # fmt: skip
        rows += [row(begun + 0.03, "MediaGone", "hangup_cause=3", attempt=attempt)] if attempt < 4 else []
    return story(*rows, *ended(3.63, "MediaGone", "hangup_cause=3", out_of="prepared"), outcome="failed",
                 reason=REFUSED_SOCKET)  # fmt: skip


def never_ready() -> CallStory:
    looks = [row(3 * number, "DeadlinePassed") for number in (1, 2, 3)]
    end = ended(12, "DeadlinePassed", out_of="prepared")
    return story(*ARRIVED, *ASKED, row(0.25, "LegsCreated", attempt=1), *looks, *end, outcome="failed",
                 reason="voice agent not reached: media leg not ready in time")  # fmt: skip


def found_gone(**more: Any) -> CallStory:
    gone = ended(12, "CallerGone", "→ completed: caller hung up")
    return story(*ARRIVED, *ASKED, *joined(0.05), *gone, **COMPLETED, **more)


def worker_died() -> CallStory:
    died = (note(2.1, "claim broken", "worker-1 has died"), row(2.1, "WorkerDied"))
    again = (row(2.2, "AttemptBegun", attempt=2), asked(2.21, BRIDGE), asked(2.21, MEDIA))
    return story(*ARRIVED, *died, *again, *joined(2.3, attempt=2), *CALLER_HUNG_UP, **COMPLETED)


def refusal(reason: str) -> CallStory:
    end = ended(0.004, "Refused", f"reason={reason}", out_of="received")
    return story(ARRIVED[0], *end, outcome="refused", reason=reason)


def dialled(outcome: str, reason: str) -> CallStory:
    rows = (row(0, "CallRequested", to="→originating"), row(0.01, "Originated", to="originating→ringing"))
    end = ended(8, "CallerGone", "hangup_cause=17", out_of="ringing")
    return story(*rows, row(7.9, "Dialled", "status=BUSY"), *end, direction="outbound", outcome=outcome, reason=reason,
                 stamp=None)  # fmt: skip


#: What happened → the rule, how it stands, and what its sentence has to say.
KINDS: list[tuple[CallStory, str, Tone, str]] = [
    (GOOD, "completed", Tone.GOOD, "Connected after 54 ms, for 11.9 s: caller hung up."),
    (refused_socket(), "agent-refused", Tone.BAD, "refused the socket, in 4 attempts within 3.6 s"),
    (never_ready(), "agent-never-ready", Tone.BAD, "never ready: the agent did not accept the socket for 12.0 s"),
    (
        story(*ARRIVED, *ASKED, row(0.25, "LegsCreated", attempt=1), *joined(5.1), *CALLER_HUNG_UP, **COMPLETED),
        "agent-slow", Tone.FAIR, "the set-up waited 5.1 s for the voice agent to accept the media leg",
    ),
    (
        # Asterisk let the request for the bridge wait until the leg had connected.
        story(*ARRIVED, asked(0.004, BRIDGE, took=2.0), asked(0.004, MEDIA), *joined(2.05), *CALLER_HUNG_UP,
              **COMPLETED),
        "agent-slow", Tone.FAIR, "the set-up waited 2.0 s for the voice agent to accept the media leg",
    ),
    (
        # The leg was ready long before.
        story(*ARRIVED, asked(0.004, BRIDGE, took=2.0), asked(0.004, MEDIA), row(0.5, "MediaReady", attempt=1),
              *joined(2.05), *CALLER_HUNG_UP, **COMPLETED),
        "slow", Tone.FAIR, "the set-up waited 2.0 s for Asterisk to answer POST bridges",
    ),
    (
        found_gone(notes=(TAKEN,)), "app-taken", Tone.BAD,
        "another client had taken the Stasis app at 13:33:38, and no event told of the end of the caller's leg",
    ),
    (
        found_gone(socket=SocketSeen(since=at(11.5), past_error="connection refused")), "event-socket-down", Tone.BAD,
        "the event socket was down until 13:33:45 (connection refused)",
    ),
    (found_gone(socket=SocketSeen(since=at(-3600))), "event-missed", Tone.BAD, "a resync found it"),
    (
        story(*ARRIVED, *ASKED, *joined(0.05), *CALLER_HUNG_UP, stamp=None, **COMPLETED), "event-missed", Tone.BAD,
        "no event told of the caller's arrival",
    ),
    (
        story(*ARRIVED, *ASKED, *joined(0.05), *ended(9, "CallerLeft"), outcome="completed",
              reason="caller left Stasis, and goes on elsewhere"),
        "left-in-the-dialplan", Tone.GOOD, "it is left alone",
    ),
    (worker_died(), "worker-died", Tone.GOOD, "worker-1 has died in the middle of a step, which cost 2.1 s"),
    (refusal("too many concurrent calls: 2 of 2 slots in use"), "limit-of-calls", Tone.FAIR, "2 of 2 slots"),
    (refusal("the month's 1000 minutes are used up"), "limit-of-minutes", Tone.FAIR, "1000 minutes"),
    (refusal("the organization is blocked"), "blocked", Tone.FAIR, "Refused: the organization is blocked."),
    (refusal("no inbound workflow configured"), "no-route", Tone.BAD, "no inbound workflow"),
    (refusal("received 12.4 s late"), "too-late", Tone.BAD, "12.4 s late"),
    (refusal("a reason of a later release"), "refused", Tone.BAD, "a reason of a later release"),
    (dialled("busy", "busy"), "busy", Tone.FAIR, "Not answered: the far end was busy (it rang for 8.0 s)."),
    (dialled("no-answer", "not answered"), "no-answer", Tone.FAIR, "the far end did not answer"),
    (dialled("failed", "congestion"), "not-reached", Tone.BAD, "the far end was not reached: congestion"),
    (
        story(*ARRIVED, *ASKED, row(0.25, "LegsCreated"), *ended(2.3, "CallerLeft", out_of="prepared"),
              outcome="abandoned", reason="caller hung up before an agent was on the line"),
        "hung-up-early", Tone.FAIR, "the caller ended it after 2.3 s; it waited",
    ),
    (
        story(*ARRIVED, *ASKED, *joined(0.05), row(5, "Transferred"), *ended(9, "DestinationGone"),
              outcome="completed", reason="the leg it was transferred to hung up"),
        "transferred", Tone.GOOD, "transferred the caller to another leg",
    ),
    (
        story(*ARRIVED, *ASKED, *joined(0.05), row(5, "LegReplaced"), *CALLER_HUNG_UP, **COMPLETED),
        "leg-replaced", Tone.GOOD, "the call followed",
    ),
    (
        story(*ARRIVED, *ASKED, *joined(0.05), *ended(9, "MediaGone", "hangup_cause=38"), outcome="failed",
              reason="agent lost: media leg ended, cause 38"),
        "agent-lost", Tone.BAD, "the connection to the voice agent broke",
    ),
    (
        story(*ARRIVED, asked(0.004, MEDIA, "400 Bad Request"), *ended(0.1, "LegsRefused", out_of="prepared"),
              outcome="failed", reason="media refused: 400"),
        "asterisk-refused", Tone.BAD, "Asterisk did not do what it was asked (media refused: 400)",
    ),
    (
        story(ARRIVED[0], row(3, "DeadlinePassed"), row(6, "DeadlinePassed"),
              *ended(9, "DeadlinePassed", out_of="received"), outcome="failed", reason="received for too long"),
        "not-worked-on", Tone.BAD, "no worker brought it on for 9.0 s",
    ),
    (
        story(*ARRIVED, *ASKED, *joined(0.05), *CALLER_HUNG_UP, unverified=True, outcome="completed",
              reason="caller hung up; not verified"),
        "not-verified", Tone.BAD, "nothing proves that its legs are gone",
    ),
    (story(*ARRIVED, *ASKED, *joined(0.05)), "connected", Tone.GOOD, "so far for 5.0 s"),
    (
        story(*ARRIVED, *ASKED, row(0.25, "LegsCreated", attempt=1)), "in-progress", Tone.BAD,
        "The call is being set up: it has waited 5.0 s for the voice agent to accept the media leg.",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("told", "rule", "tone", "says"), KINDS, ids=[kind[1] for kind in KINDS])
def test_a_call_is_judged_by_what_was_seen(told: CallStory, rule: str, tone: Tone, says: str) -> None:
    found = verdict.of(told)
    assert (found.rule, found.tone) == (rule, tone), found.sentence
    assert says in found.sentence


def test_each_kind_of_call_has_its_evidence() -> None:
    without = {rule for told, rule, _, _ in KINDS if not verdict.of(told).evidence}
    assert without == {"not-verified"}, "its call has no row of a removal that is pending"


def test_evidence_is_rows_that_the_operator_sees() -> None:
    for told, rule, _, _ in KINDS:
        assert set(map(id, verdict.of(told).evidence)) <= set(map(id, (*told.rows, *told.notes))), rule


def test_of_the_audio_of_a_connected_call_it_is_said_that_it_is_not_measurable_and_of_no_other() -> None:
    for told, rule, _, _ in KINDS:
        is_said = verdict.of(told).audio == audio.NOT_MEASURABLE
        assert is_said == (told.call.connected_at is not None), rule


def test_a_client_that_took_the_app_an_hour_ago_is_not_to_blame() -> None:
    assert verdict.of(found_gone(notes=(note(-3600, "AppPreempted"),))).rule == "event-missed"


def test_an_app_that_was_taken_is_no_matter_for_a_call_whose_events_came() -> None:
    told = story(*ARRIVED, *ASKED, *joined(0.05), *CALLER_HUNG_UP, notes=(TAKEN,), **COMPLETED)
    assert verdict.of(told).rule == "completed"


def test_the_part_that_owes_the_next_message_is_named_for_each_wait() -> None:
    parts = [(wait.debt.part, round(wait.seconds, 1)) for wait in waits.waits(refused_socket())]
    assert parts == [(Part.WORKER, 0.5), (Part.WORKER, 1.0), (Part.WORKER, 2.0)], "the pauses between the attempts"
    assert [wait.debt.part for wait in waits.waits(never_ready())] == [Part.AGENT] * 5
    assert next(wait.debt.what for wait in waits.waits(worker_died())) == "worker-1 has died"


def test_a_request_without_an_answer_is_asterisk_s() -> None:
    slow = story(*ARRIVED, asked(0.004, MEDIA, "no answer in time", took=4.0))
    first, now = waits.waits(slow)
    assert (first.debt.part, first.debt.what) == (Part.ASTERISK, "to answer POST channels/externalMedia")
    assert (now.debt.part, now.before) == (Part.WORKER, None)


def test_a_call_has_a_verdict_and_is_drawn_however_much_of_its_timeline_was_written() -> None:
    """The rules are total: a page of a call that goes on, or whose rows were lost, is a page."""
    for told, rule, _, _ in KINDS:
        for number in range(len(told.rows) + 1):
            part = replace(told, history=replace(told.history, timeline=told.rows[:number]))
            assert verdict.of(part).sentence.endswith("."), rule
            assert [rung.row for rung in ladder.rungs(part) if rung.row is not None and rung.row not in part.rows] == []
            assert all(bar.seconds >= 0 for bars in waterfall.parts(part) for bar in bars), rule
