"""The ladder and the waterfall of a call."""

from __future__ import annotations

from shared.operator import ladder, waits, waterfall
from shared.operator.ladder import Kind
from shared.operator.waits import Part
from shared.storage.timeline import MESSAGE_BEGUN, MessageBegun
from tests.support.call_stories import ARRIVED, ASKED, at, ended, joined, row, story

SLOW = story(*ARRIVED, *ASKED, row(0.25, "LegsCreated", attempt=1), *joined(5.1), *ended(12, "CallerLeft"),
             outcome="completed", reason="caller hung up")  # fmt: skip


def test_rungs_are_ordered_and_a_gap_names_the_part_that_owes_the_next_message() -> None:
    rungs = ladder.rungs(SLOW)
    assert [rung.at for rung in rungs] == sorted(rung.at for rung in rungs)
    gaps = [rung for rung in rungs if rung.kind is Kind.GAP]
    owed = "the voice agent owes the next message: to accept the media leg"
    assert [rung.text for rung in gaps] == [
        f"245 ms: {owed}", f"4.8 s: {owed}", "6.9 s: caller and agent are connected: no message is due",
    ]  # fmt: skip
    assert [rung.is_bad for rung in gaps] == [True, True, False]


def test_a_request_goes_to_asterisk_and_its_answer_comes_back() -> None:
    of_media = [rung for rung in ladder.rungs(SLOW) if rung.row is ASKED[1]]
    assert [(rung.kind, rung.source, rung.target) for rung in of_media] == [
        (Kind.REQUEST, Part.WORKER, Part.ASTERISK),
        (Kind.ANSWER, Part.ASTERISK, Part.WORKER),
        (Kind.MESSAGE, Part.ASTERISK, Part.AGENT),
    ]
    assert of_media[1].text == "200 after 1 ms"


def test_every_row_of_the_timeline_is_a_rung() -> None:
    shown = {id(rung.row) for rung in ladder.rungs(SLOW)}
    assert {id(each) for each in SLOW.rows} <= shown


def test_the_waterfall_has_states_attempts_and_requests_and_leaves_out_the_talk() -> None:
    setup, end = waterfall.parts(SLOW)
    assert [bar.text for bar in setup if bar.depth == waterfall.STATE] == ["received", "admitted", "prepared"]
    (attempt,) = [bar for bar in setup if bar.depth == waterfall.ATTEMPT]
    assert (attempt.text, attempt.ended_at) == ("attempt 1", at(5.104))
    assert sum(bar.depth == waterfall.REQUEST for bar in setup) == 5
    assert [bar.text for bar in end] == ["ending", "DELETE /channels/m1 204"]


def test_an_attempt_ends_with_what_failed_it() -> None:
    gone = row(0.5, "MediaGone", "hangup_cause=3", attempt=1)
    told = story(*ARRIVED, *ASKED, gone, row(1.0, "AttemptBegun", attempt=2), *joined(1.2, attempt=2))
    first, second = (bar for bar in waterfall.bars(told) if bar.depth == waterfall.ATTEMPT)
    assert (first.text, first.ended_at, first.is_bad) == ("attempt 1: MediaGone", at(0.5), True)
    assert (second.text, second.is_bad) == ("attempt 2", False)


def test_a_message_tells_which_of_listener_queue_and_worker_was_slow() -> None:
    begun = MessageBegun(actor="caller_entered", pushed_ms=300, begun_ms=1300, tries=1, about="StasisStart 1.1")
    message = row(-1.3, MESSAGE_BEGUN, begun.detail(), kind="note", took_ms=1300.0)
    rungs = [rung for rung in ladder.rungs(story(message, *ARRIVED, *ASKED)) if rung.row is message]
    passed = [(rung.kind, rung.source, rung.target, rung.at) for rung in rungs if rung.kind is not Kind.GAP]
    assert passed == [
        (Kind.EVENT, Part.ASTERISK, Part.LISTENER, at(-1.3)),
        (Kind.MESSAGE, Part.LISTENER, Part.QUEUE, at(-1.0)),
        (Kind.MESSAGE, Part.QUEUE, Part.WORKER, at(0)),
    ]
    texts = {rung.kind: rung.text for rung in rungs if rung.kind is not Kind.GAP}
    assert texts == {Kind.EVENT: "StasisStart 1.1", Kind.MESSAGE: "caller_entered, try 2"}
    gaps = [(rung.source, rung.seconds) for rung in rungs if rung.kind is Kind.GAP]
    assert gaps == [(Part.LISTENER, 0.3), (Part.QUEUE, 1.0)]


def test_a_message_that_is_tried_again_owes_the_pause_before_it() -> None:
    begun = MessageBegun(actor="leg_ended", pushed_ms=1, due_ms=2000, begun_ms=2300, about="StasisEnd 1.1")
    message = row(0.01, MESSAGE_BEGUN, begun.detail(), kind="note", took_ms=2300.0)
    gaps = [rung for rung in ladder.rungs(story(*ARRIVED, message)) if rung.kind is Kind.GAP]
    assert [(rung.source, round(rung.seconds, 1)) for rung in gaps][:2] == [(Part.QUEUE, 2.0), (Part.QUEUE, 0.3)]
    assert "failed" in gaps[0].text
    assert "failed" not in gaps[1].text


def test_what_is_written_after_the_end_was_waited_for_by_no_part() -> None:
    letter = row(60, "join_legs", "InvalidMessage: …", kind="dead-letter")
    told = story(*ARRIVED, *ASKED, *joined(0.05), *ended(0.2, "CallerLeft"), letter, outcome="completed", reason="x")
    rungs = ladder.rungs(told)
    assert [rung.text for rung in rungs if rung.kind is Kind.GAP] == [
        "146 ms: caller and agent are connected: no message is due"
    ]
    assert rungs[-1].row is letter


def test_a_pause_between_attempts_is_told_as_the_pause_and_not_as_a_message_on_its_way() -> None:
    # Its row begins when it was due.
    begun = MessageBegun(actor="start_media", due_ms=0, begun_ms=10)
    ordered = row(0.529, MESSAGE_BEGUN, begun.detail(), kind="note", took_ms=10.0)
    gone = row(0.03, "MediaGone", "hangup_cause=3", attempt=1)
    again = row(0.54, "AttemptBegun", attempt=2)
    (pause, *_) = waits.waits(story(*ARRIVED, *ASKED, ordered, gone, again, *joined(0.6, attempt=2)))
    assert (pause.debt.part, pause.debt.what) == (Part.WORKER, "to try again, after a pause for the agent's sake")
    assert pause.after is gone
