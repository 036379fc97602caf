"""The verdict on a call: one sentence with its evidence, by rules. Pure, and never beyond what was seen.

The rules are tried in their order, and the first that applies gives the verdict: what happened around the call first
(an app that was taken, a dead worker), then how it failed, then how it came out. A sentence says what came of the call,
then the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from shared.call import faults
from shared.call.states import LIVE, Direction, Outcome, State
from shared.operator import audio, stories, waits
from shared.operator.call_queries import TimelineRow
from shared.operator.stories import CallStory, duration
from shared.operator.waits import Part, Wait

#: A set-up that takes longer is called slow, and the part that it waited for is named.
SLOW_SECONDS = 1.0
#: Of a party that has sent no audio in a call that was connected for less, nothing is said: it may come a moment later.
MUTE_SECONDS = 3.0
#: An event socket that was opened again so long before a call came, or so long after it ended, concerns the call.
_AROUND = timedelta(seconds=30)
#: Notes of a connection whose app another client has taken.
_PREEMPTIONS = ("AppPreempted", "Parked")


class Tone(StrEnum):
    """How the call stands."""

    #: It came out as it should.
    GOOD = "good"
    #: It was not served, and that is right: busy, refused by a limit, hung up early.
    FAIR = "fair"
    #: A part failed.
    BAD = "bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is to be said of a call.

    Args:
        rule: The name of the rule that applied.
        evidence: The rows of the timeline, of the call or of its connection, that show it.
        audio: What is known of the audio; empty for a call that was never connected.
    """

    rule: str
    sentence: str
    tone: Tone
    evidence: tuple[TimelineRow, ...] = ()
    audio: str = ""


_Rule = Callable[[CallStory], Verdict | None]


def of(story: CallStory) -> Verdict:
    """Return the verdict on a call. Some rule applies to each."""
    for rule in _RULES:
        verdict = rule(story)
        if verdict is not None:
            return verdict
    return _came_to(story)


# ── around the call ──────────────────────────────────────────────────────────────────────────────────────────────────


def _app_taken(story: CallStory) -> Verdict | None:
    taken = tuple(note for note in story.notes if note.name in _PREEMPTIONS and _is_around(story, note))
    if not taken or not (missed := _missed(story)):
        return None
    because = f"another client had taken the Stasis app at {taken[0].at:%H:%M:%S}, and {_told_by(missed)}"
    return _verdict("app-taken", story, because, Tone.BAD, (*taken, *missed))


def _socket_down(story: CallStory) -> Verdict | None:
    since, missed = story.socket.since, _missed(story)
    if since is None or not missed or not story.begun_at - _AROUND <= since <= story.until + _AROUND:
        return None
    error = f" ({story.socket.past_error})" if story.socket.past_error else ""
    because = f"the event socket was down until {since:%H:%M:%S}{error}, and {_told_by(missed)}"
    return _verdict("event-socket-down", story, because, Tone.BAD, missed)


def _event_missed(story: CallStory) -> Verdict | None:
    missed = _missed(story)
    if not missed:
        return None
    because = f"{_told_by(missed)}: most likely no event socket was open"
    return _verdict("event-missed", story, because, Tone.BAD, missed)


def _missed(story: CallStory) -> tuple[TimelineRow, ...]:
    """Return the rows of what no event told: a resync, or a look, has found it."""
    found = [row for row in story.rows if _is_found(row)]
    # A resync has no stamp of a StasisStart to give.
    is_adopted = story.call.direction == Direction.INBOUND and story.history.entered_stamp is None
    return (*story.named("CallReceived")[: int(is_adopted)], *found)


def _is_found(row: TimelineRow) -> bool:
    """True for a leg that a look found gone: an event would have brought its cause."""
    if row.name == "MediaGone":
        return "reason=media leg is gone" in row.detail
    return row.name == "CallerGone" and row.state_to == State.ENDING and "hangup_cause=" not in row.detail


_CALLER_S_END = "the end of the caller's leg"


def _told_by(missed: tuple[TimelineRow, ...]) -> str:
    what = {"CallReceived": "the caller's arrival", "MediaGone": "the end of the media leg"}
    return f"no event told of {what.get(missed[0].name, _CALLER_S_END)}: a resync found it"


def _is_around(story: CallStory, note: TimelineRow) -> bool:
    return story.begun_at - _AROUND <= note.at <= story.until + _AROUND


def _left_in_dialplan(story: CallStory) -> Verdict | None:
    if "goes on elsewhere" not in (story.call.reason or ""):
        return None
    left = story.named("CallerLeft", "CallerGone")[:1]
    because = "the caller's leg left Stasis and goes on elsewhere, in the dialplan or in another app: it is left alone"
    return _verdict("left-in-the-dialplan", story, because, _tone(story), left)


def _worker_died(story: CallStory) -> Verdict | None:
    died = story.named("claim broken", "WorkerDied")
    if not died:
        return None
    lost = sum(wait.seconds for wait in waits.waits(story) if wait.before in died)
    worker = next((row.detail for row in died if row.detail), "a worker has died")
    cost = f", which cost {duration(lost)}" if lost else ""
    because = f"{worker} in the middle of a step{cost}; another worker went on"
    tone = Tone.BAD if story.call.outcome == Outcome.FAILED else _tone(story)
    return _verdict("worker-died", story, because, tone, died)


# ── how it failed ────────────────────────────────────────────────────────────────────────────────────────────────────


def _agent_refused(story: CallStory) -> Verdict | None:
    gone = _media_gone(story)
    if not _is_not_reached(story) or not gone or "cause 3" not in (story.call.reason or ""):
        return None
    because = f"the voice agent was not there, or refused the socket, in {_attempts(story)}{_in_brackets(story)}"
    return _verdict("agent-refused", story, because, Tone.BAD, gone)


def _agent_closed(story: CallStory) -> Verdict | None:
    gone = _media_gone(story)
    if not _is_not_reached(story) or not gone or "cause 16" not in (story.call.reason or ""):
        return None
    because = f"the voice agent accepted the socket and closed it at once, in {_attempts(story)}{_in_brackets(story)}"
    return _verdict("agent-closed", story, because, Tone.BAD, gone)


def _agent_never_ready(story: CallStory) -> Verdict | None:
    if not _is_not_reached(story) or "not ready in time" not in (story.call.reason or ""):
        return None
    agents = _of_part(story, Part.AGENT)
    because = f"media leg never ready: the agent did not accept the socket for {duration(_seconds(agents))}"
    return _verdict("agent-never-ready", story, because, Tone.BAD, _rows(agents))


def _asterisk_failed(story: CallStory) -> Verdict | None:
    reason = story.call.reason or ""
    if not reason.startswith(("media refused", "media not created", "legs not joined", "not originated")):
        return None
    answers = tuple(
        row for row in story.rows if row.kind == "request" and not stories.is_done(row) and row.at <= story.until
    )
    return _verdict("asterisk-refused", story, f"Asterisk did not do what it was asked ({reason})", Tone.BAD, answers)


def _lost_later(story: CallStory) -> Verdict | None:
    reason = story.call.reason or ""
    if reason.startswith("agent lost"):
        return _verdict("agent-lost", story, f"the connection to the voice agent broke ({reason})", Tone.BAD,
                        story.named("MediaGone"))  # fmt: skip
    if reason.startswith("bridge lost"):
        return _verdict("bridge-lost", story, f"a leg was no longer in the bridge ({reason})", Tone.BAD,
                        story.named("BridgeLost"))  # fmt: skip
    return None


def _step_lost(story: CallStory) -> Verdict | None:
    reason = story.call.reason or ""
    if not re.match(r"\w+ for too long", reason):
        return None
    waited = _of_part(story, Part.WORKER, Part.SCHEDULER)
    # An earlier release does not say what held it up.
    is_ours = reason.endswith(("for too long", faults.NOT_DONE))
    because = f"no worker brought it on for {duration(_seconds(waited))}" if is_ours else reason
    return _verdict("not-worked-on", story, because, Tone.BAD, (*_rows(waited), *_notes(story)))


def _dial_lost(story: CallStory) -> Verdict | None:
    if "what came of it is unknown" not in (story.call.reason or ""):
        return None
    dialled = story.named("DialBegun", "DialLost")
    because = "the far end was dialled once, what came of it is unknown, and it is not dialled again"
    return _verdict("dial-unknown", story, because, Tone.BAD, dialled)


# ── how it came out ──────────────────────────────────────────────────────────────────────────────────────────────────

#: Beginning of a refusal's reason → the rule's name, and whether it is a limit doing its work.
_REFUSALS: tuple[tuple[str, str, Tone], ...] = (
    ("too many concurrent calls", "limit-of-calls", Tone.FAIR),
    ("the month's", "limit-of-minutes", Tone.FAIR),
    ("the organization is blocked", "blocked", Tone.FAIR),
    ("the credits are used up", "no-credits", Tone.FAIR),
    ("the quota service declined", "no-credits", Tone.FAIR),
    ("quota service unreachable", "quota-service", Tone.BAD),
    ("received ", "too-late", Tone.BAD),
)
#: Words of a refusal for want of a route.
_NO_ROUTE = re.compile(r"workflow|ws_client_name|connection (refused|removed|moved)")


def _refused(story: CallStory) -> Verdict | None:
    if story.call.outcome != Outcome.REFUSED:
        return None
    reason = story.call.reason or ""
    known = next(((rule, tone) for start, rule, tone in _REFUSALS if reason.startswith(start)), None)
    rule, tone = known or (("no-route", Tone.BAD) if _NO_ROUTE.search(reason) else ("refused", Tone.BAD))
    return _verdict(rule, story, reason, tone, story.named("Refused"))


#: Outcome of an outbound call that was not answered → the rule, and what the far end did.
_UNANSWERED: dict[str, tuple[str, str]] = {
    Outcome.BUSY: ("busy", "the far end was busy"),
    Outcome.NO_ANSWER: ("no-answer", "the far end did not answer"),
}


def _unanswered(story: CallStory) -> Verdict | None:
    call, reason = story.call, story.call.reason or ""
    told = story.named("Dialled", "CallerGone", "CallerHangingUp")
    if (known := _UNANSWERED.get(call.outcome or "")) is not None:
        rule, what = known
        return _verdict(rule, story, f"{what}{_rang(story)}", Tone.FAIR, told)
    if call.outcome == Outcome.FAILED and call.direction == Direction.OUTBOUND and told and not story.attempts:
        return _verdict("not-reached", story, f"the far end was not reached: {reason}", Tone.BAD, told)
    return None


def _abandoned(story: CallStory) -> Verdict | None:
    if story.call.outcome not in (Outcome.ABANDONED, Outcome.CANCELED):
        return None
    who = "the caller" if story.call.direction == Direction.INBOUND else "the far end, or an operator,"
    waited = _main_wait(story)
    owed = f"; it waited {_waited(waited)}" if waited else ""
    after = duration(((story.call.ending_at or story.until) - story.begun_at).total_seconds())
    ended = story.named("CallerHangingUp", "CallerLeft", "CallerGone", "EndRequested")[:1]
    rows = (*_rows([waited] if waited else []), *ended)
    return _verdict("hung-up-early", story, f"{who} ended it after {after}{owed}", Tone.FAIR, rows)


def _transferred(story: CallStory) -> Verdict | None:
    moved = story.named("Transferred")
    if not moved:
        return None
    because = f"the platform transferred the caller to another leg; ended: {story.call.reason or 'not yet'}"
    return _verdict("transferred", story, because, _tone(story), moved)


def _replaced(story: CallStory) -> Verdict | None:
    moved = story.named("LegReplaced")
    if not moved:
        return None
    because = f"another channel took a leg's place, and the call followed; ended: {story.call.reason or 'not yet'}"
    return _verdict("leg-replaced", story, because, _tone(story), moved)


def _mute(story: CallStory) -> Verdict | None:
    silent = next(iter(audio.silent(story)), None)
    if silent is None or story.call.ending_at is None or (story.call.talk_seconds or 0.0) < MUTE_SECONDS:
        return None
    because = f"the {audio.name(story, silent)} sent no audio"
    return _verdict(f"{silent}-mute", story, because, Tone.BAD, (*story.named("Joined"), *audio.evidence(story)))


def _not_verified(story: CallStory) -> Verdict | None:
    if not story.history.unverified:
        return None
    pending = story.named("RemovalPending")[-1:]
    because = f"its Asterisk gave no answer, so nothing proves that its legs are gone ({story.call.reason})"
    return _verdict("not-verified", story, because, Tone.BAD, pending)


def _slow(story: CallStory) -> Verdict | None:
    waited, setup = _main_wait(story), story.setup_seconds
    if setup is None or setup < SLOW_SECONDS or waited is None:
        return None
    seconds = _seconds(_of_part(story, waited.debt.part, before_connected=True))
    rule = "agent-slow" if waited.debt.part is Part.AGENT else "slow"
    because = f"the set-up waited {duration(seconds)} for {waited.debt.part.named} {waited.debt.what}"
    return _verdict(rule, story, because, Tone.BAD if story.call.outcome == Outcome.FAILED else Tone.FAIR,
                    _rows(_of_part(story, waited.debt.part, before_connected=True)))  # fmt: skip


def _in_progress(story: CallStory) -> Verdict | None:
    call = story.call
    if call.ended_at is not None:
        return None
    if call.state == State.CONNECTED:
        return _verdict("connected", story, "caller and agent are in the bridge", Tone.GOOD, story.named("Joined"))
    now = next((wait for wait in waits.waits(story) if wait.before is None), None)
    owed = f": it has waited {_waited(now)}" if now else ""
    is_late = now is not None and now.seconds >= SLOW_SECONDS and call.state != State.RINGING
    return Verdict(
        rule="in-progress",
        sentence=f"The call is {'being set up' if call.state in LIVE else 'ending'}{owed}.",
        tone=Tone.BAD if is_late else Tone.GOOD,
        evidence=_rows([now] if now else []),
    )


def _came_to(story: CallStory) -> Verdict:
    ended, tone = tuple(row for row in story.rows if row.state_to == State.ENDING)[:1], _tone(story)
    return _verdict("completed" if tone is Tone.GOOD else "other", story, story.call.reason or "", tone, ended)


_RULES: tuple[_Rule, ...] = (
    _not_verified,
    _app_taken,
    _socket_down,
    _agent_refused,
    _agent_closed,
    _agent_never_ready,
    _asterisk_failed,
    _lost_later,
    _dial_lost,
    _step_lost,
    _worker_died,
    _event_missed,
    _left_in_dialplan,
    _refused,
    _unanswered,
    _abandoned,
    _transferred,
    _replaced,
    _mute,
    _slow,
    _in_progress,
)


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _verdict(rule: str, story: CallStory, because: str, tone: Tone, evidence: tuple[TimelineRow, ...]) -> Verdict:
    came_to = _result(story)
    sentence = f"{came_to}: {because}." if because else f"{came_to}."
    return Verdict(rule=rule, sentence=sentence, tone=tone, evidence=evidence, audio=audio.told(story))


def _result(story: CallStory) -> str:
    """Return what came of the call: the beginning of its sentence."""
    call, setup = story.call, story.setup_seconds
    if call.connected_at is not None and setup is not None:
        until = call.ending_at or story.call.read_at
        talked = duration((until - call.connected_at).total_seconds())
        return f"Connected after {duration(setup)}, {'for' if call.ending_at else 'so far for'} {talked}"
    match call.outcome:
        case Outcome.REFUSED:
            return "Refused"
        case Outcome.BUSY | Outcome.NO_ANSWER:
            return "Not answered"
        case None:
            return "Not connected yet"
    return "Not connected"


def _tone(story: CallStory) -> Tone:
    if story.call.outcome in (None, Outcome.COMPLETED):
        return Tone.GOOD
    return Tone.BAD if story.call.outcome == Outcome.FAILED else Tone.FAIR


def _is_not_reached(story: CallStory) -> bool:
    return (story.call.reason or "").startswith("voice agent not reached")


def _media_gone(story: CallStory) -> tuple[TimelineRow, ...]:
    return story.named("MediaGone")


def _attempts(story: CallStory) -> str:
    count, rows = max(1, story.attempts), story.named("AttemptBegun")
    over = duration(((story.call.ending_at or story.until) - rows[0].at).total_seconds()) if rows else ""
    return f"{count} attempt{'s' if count > 1 else ''}" + (f" within {over}" if over else "")


def _in_brackets(story: CallStory) -> str:
    """Return what of ours makes the agent refuse, which the reason has in brackets at its end."""
    found = re.search(r"\(([^()]*)\)$", story.call.reason or "")
    return f": {found.group(1)}" if found else ""


def _rang(story: CallStory) -> str:
    ringing = next((row.at for row in story.rows if row.state_to == State.RINGING), None)
    if ringing is None or story.call.ending_at is None:
        return ""
    return f" (it rang for {duration((story.call.ending_at - ringing).total_seconds())})"


def _notes(story: CallStory) -> tuple[TimelineRow, ...]:
    return tuple(row for row in story.rows if row.kind in ("note", "dead-letter"))


def _of_part(story: CallStory, *parts: Part, before_connected: bool = False) -> list[Wait]:
    until = story.call.connected_at if before_connected else None
    return [wait for wait in waits.waits(story) if wait.debt.part in parts and (until is None or wait.begun_at < until)]


def _waited(wait: Wait) -> str:
    return f"{duration(wait.seconds)} for {wait.debt.part.named} {wait.debt.what}"


def _main_wait(story: CallStory) -> Wait | None:
    """Return the longest wait before the call was connected or ended, of the part that was waited for the longest."""
    until = story.call.connected_at or story.call.ending_at or story.until
    before = [wait for wait in waits.waits(story) if wait.begun_at < until and wait.debt.part is not Part.PARTIES]
    if not before:
        return None
    total = {part: sum(wait.seconds for wait in before if wait.debt.part is part) for part in Part}
    slowest = max(total, key=lambda part: total[part])
    return max((wait for wait in before if wait.debt.part is slowest), key=lambda wait: wait.seconds)


def _seconds(found: list[Wait]) -> float:
    return sum(wait.seconds for wait in found)


def _rows(found: list[Wait] | tuple[Wait, ...]) -> tuple[TimelineRow, ...]:
    """Return the rows between which these waits lie."""
    rows = [row for wait in found for row in (wait.after, wait.before) if row is not None]
    return tuple({id(row): row for row in rows}.values())
