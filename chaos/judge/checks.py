"""The promises, each a function that yields what broke it: no server is asked, no clock is read."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from itertools import combinations

from chaos.judge import spans
from chaos.judge.evidence import Evidence
from chaos.judge.history import Kind, Leg, call_id_of
from chaos.judge.spans import FOREVER, Span
from chaos.judge.tables import CallRow, DeadLetter, RunRow

#: Within this time a resync finds what no event told: by documentation 15 s, and a few for the work.
RESYNC_SECONDS = 20
#: An event is tried again for 20 s before it becomes a dead letter, and a statement on the way may take 5 s.
RETRY_SECONDS = 25
#: After an outage an event socket is open again within this time: docs/failure-modes.md, "it restarts".
RECOVERY_SECONDS = 25.0
#: An admitted call that is ending keeps its slot so long.
ENDING_SLOT_SECONDS = 60
#: The judge's own socket may be down for so long.
BLIND_SECONDS = 5.0
#: How long after a fault a call may still be lost to it, if it was offered before or during that time.
LOSING_SECONDS = 30.0
#: The cause with which Asterisk begins the end of a channel that a request of ARI hangs up (measured).
REQUESTED = 32
#: A call that was bridged for less is not listened to.
LISTENED_SECONDS = 3
#: What an end must hear of the other's tone. Of the agent's end there is a second of audio at most.
CALLER_HEARS_SECONDS = 1.0
AGENT_HEARS_SECONDS = 0.2
#: What a caller may miss of the agent's tone in all, while both are in the bridge.
MISSED_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A promise that was not kept. `call_id` is 32 hexadecimal digits."""

    kind: str
    text: str
    leg: str | None = None
    call_id: str | None = None


def violations(evidence: Evidence) -> list[Violation]:
    """Return everything that breaks a promise."""
    return [violation for check in CHECKS for violation in check(evidence)]


def is_unseen(evidence: Evidence, leg: Leg) -> bool:
    """Whether a caller came and left while events could not be delivered, before a resync could find the leg.

    Such a call has no row, and that is no violation: nothing of it is left, and its caller waited for seconds only,
    beside the time of the outages.
    """
    since, until = leg.apps[0].since, min(leg.gone_at, leg.apps[-1].until)
    is_brief = until - since <= RESYNC_SECONDS + evidence.outage_seconds(leg.app, (since, until))
    return (
        is_brief
        and leg.id not in evidence.rows
        and any(fault.loses for fault in evidence.faults(leg.app, (since, until), after=RESYNC_SECONDS))
    )


def _left_behind(evidence: Evidence) -> Iterator[Violation]:
    left = evidence.left
    if left.problem:
        yield Violation(kind="not-observed", text=left.problem)
    for name in left.channels:
        yield Violation(kind="channel-left", text=f"channel {name} is still there", leg=name, call_id=call_id_of(name))
    for name in left.bridges:
        yield Violation(kind="bridge-left", text=f"bridge {name} is still there", call_id=call_id_of(name))
    if left.media_sockets:
        yield Violation(kind="media-socket-left", text=f"{left.media_sockets} media sockets are still open")


def _blind(evidence: Evidence) -> Iterator[Violation]:
    """The judge that sees no events does not see who was bridged with whom."""
    began = min((offer.at for offer in evidence.deeds.offers.values()), default=evidence.now)
    seen = [(since, until) for since, until in evidence.history.blind if until > began]
    for span in _too_long(evidence, None, seen, BLIND_SECONDS):
        yield Violation(kind="not-observed", text=f"the judge had no events for {_lasts(span)}")


def _waiting(evidence: Evidence) -> Iterator[Violation]:
    for leg in evidence.callers:
        waits = spans.subtract(evidence.in_app(leg), evidence.with_others(leg, Kind.MEDIA))
        for span in _too_long(evidence, leg.app, waits, evidence.waiting_seconds):
            yield _of_leg(evidence, "caller-waits", leg, f"the caller waits for an agent for {_lasts(span)}")


def _silence(evidence: Evidence) -> Iterator[Violation]:
    for leg in evidence.callers:
        answered = spans.intersect(evidence.in_app(leg), [(leg.up_at, FOREVER)])
        silent = spans.subtract(answered, evidence.with_others(leg))
        for span in _too_long(evidence, leg.app, silent, evidence.silence_seconds):
            yield _of_leg(evidence, "caller-in-silence", leg, f"the answered caller hears nothing for {_lasts(span)}")


def _lonely_agent(evidence: Evidence) -> Iterator[Violation]:
    rows = {row.call_id: row for row in evidence.tables.calls}
    for leg in evidence.media:
        call_id = call_id_of(leg.id)
        row = rows.get(call_id or "")
        # A leg that is not up connects to the agent; one that does so for ever is left over as well.
        there = [(leg.up_at if leg.up_at < FOREVER else leg.created_at, min(leg.gone_at, evidence.now))]
        alone = spans.subtract(there, evidence.with_others(leg, Kind.CALLER))
        app = evidence.app_of(row.channel_id) if row else None
        for span in _too_long(evidence, app, alone, evidence.silence_seconds):
            text = f"media leg {leg.id} is in no bridge with its caller for {_lasts(span)}"
            yield Violation(kind="agent-alone", text=text, leg=row.channel_id if row else leg.id, call_id=call_id)


def _two_agents(evidence: Evidence) -> Iterator[Violation]:
    for leg in evidence.callers:
        met = [(other, span) for other, span in evidence.meetings(leg) if other.kind is Kind.MEDIA]
        for (one, first), (other, second) in combinations(met, 2):
            if spans.intersect([first], [second]):
                yield _of_leg(evidence, "two-agents", leg, f"{one.id} and {other.id} are bridged with one caller")


def _dialled_again(evidence: Evidence) -> Iterator[Violation]:
    for leg in evidence.history.dialled_again:
        text = "the request was dialled again when its first leg was gone: the far end is rung twice"
        yield _of_leg(evidence, "dialled-again", leg, text)


def _wrong_company(evidence: Evidence) -> Iterator[Violation]:
    """A caller in a bridge with another call's agent, or with another caller."""
    callers = {leg.id for leg in evidence.callers}
    for leg in evidence.callers:
        own = {row.call_id for row in evidence.rows.get(leg.id, ())}
        for other in {other.id: other for other, _ in evidence.meetings(leg)}.values():
            if other.kind is Kind.MEDIA and call_id_of(other.id) not in own:
                yield _of_leg(evidence, "wrong-agent", leg, f"bridged with {other.id}, which is of another call")
            # Told once, with the first of the two.
            if other.id in callers and leg.id < other.id:
                yield _of_leg(evidence, "two-callers", leg, f"bridged with the caller {other.id}")


def _tenants(evidence: Evidence) -> Iterator[Violation]:
    """A call belongs to the tenant whose app its leg entered, and its run to the same one."""
    for row in evidence.tables.calls:
        app = evidence.app_of(row.channel_id)
        wanted = evidence.organizations.get(app or "", row.organization_id)
        if row.organization_id != wanted:
            text = f"a leg of {app} is a call of organization {row.organization_id}, not {wanted}"
            yield _of_row("wrong-tenant", row, text)
        run = evidence.runs.get(row.workflow_run_id or 0)
        if run is not None and run.organization_id != row.organization_id:
            text = f"run {run.id} of the call is of organization {run.organization_id}, not {row.organization_id}"
            yield _of_row("wrong-tenant", row, text)


def _lost(evidence: Evidence) -> Iterator[Violation]:
    """A call that no one has hung up, and that no fault can have ended."""
    for leg_id, offer in evidence.deeds.offers.items():
        leg, rows = evidence.history.legs.get(leg_id), evidence.rows.get(leg_id, ())
        if leg_id in evidence.deeds.hang_ups or leg_id in evidence.deeds.not_offered:
            continue
        if (leg and (leg.is_lost or leg.gone_at == FOREVER)) or _agent_hung_up(evidence, leg_id):
            continue
        until = max(offer.at, leg.gone_at) if leg else offer.at + evidence.waiting_seconds
        faults = evidence.faults(offer.app, (offer.at, until), after=LOSING_SECONDS)
        if not any(fault.loses for fault in faults):
            reason = (rows[-1].reason if rows else None) or ("it ended" if leg else "it never came")
            text = f"the call of a caller who did not hang up was lost without a fault that explains it: {reason}"
            yield Violation(kind="call-lost", text=text, leg=leg_id, call_id=rows[-1].call_id if rows else None)


def _agent_hung_up(evidence: Evidence, leg_id: str) -> bool:
    """Whether an agent that had accepted a call closed its media leg itself, joined or not."""
    calls = {row.call_id for row in evidence.rows.get(leg_id, ())}
    return any(
        leg.up_at < FOREVER and leg.causes[:1] not in ([], [REQUESTED])
        for leg in evidence.media
        if call_id_of(leg.id) in calls
    )


def _rows_of_channels(evidence: Evidence) -> Iterator[Violation]:
    """One row for each time that a leg entered an app, and one for a leg that ended before it entered any."""
    for leg in evidence.callers:
        rows, entries = len(evidence.rows.get(leg.id, ())), len(leg.apps)
        if rows < entries and not leg.is_lost and not is_unseen(evidence, leg):
            text = f"{rows} rows of ari.calls for {entries} entries into {leg.app}"
            yield _of_leg(evidence, "call-without-row", leg, text)
    for channel_id, found in evidence.rows.items():
        known = evidence.history.legs.get(channel_id)
        entries = max(1, len(known.apps)) if known else 1
        if len(found) > entries:
            yield _of_row("row-twice", found[-1], f"{len(found)} rows of ari.calls for {entries} entries into an app")


def _rows_without_channel(evidence: Evidence) -> Iterator[Violation]:
    """A row that names no channel; one of an outbound call is written before anything is dialled."""
    for row in evidence.tables.calls:
        was_blind = any(
            spans.overlap((row.received_at - 2, row.received_at), blind) for blind in evidence.history.blind
        )
        if row.channel_id not in evidence.history.legs and row.request_id is None and not was_blind:
            yield _of_row("row-without-channel", row, "a row of ari.calls for a channel that Asterisk never had")


def _rows_end(evidence: Evidence) -> Iterator[Violation]:
    for row in evidence.tables.calls:
        if row.state != "ended":
            yield _of_row("call-not-ended", row, f"the call is {row.state} at the end")
        yield from _ended_early(evidence, row)


def _ended_early(evidence: Evidence, row: CallRow) -> Iterator[Violation]:
    """A call that is `ended` has no caller in the app any more. Which entry a row is of is known of an only one."""
    leg = evidence.history.legs.get(row.channel_id)
    if row.ended_at is None or leg is None or len(leg.apps) != 1 or len(evidence.rows[leg.id]) != 1:
        return
    still = [(row.ended_at, min(leg.apps[0].until, evidence.now))]
    for span in _too_long(evidence, leg.app, still, RESYNC_SECONDS):
        yield _of_row("ended-early", row, f"the call is ended, and its caller is in {leg.app} for {_lasts(span)} more")


def _slots(evidence: Evidence) -> Iterator[Violation]:
    """A call has a slot from its admission until it has ended; one that is ending, for 60 s at most."""
    used = Counter(row.organization_id for row in evidence.tables.calls if _uses_slot(row, evidence.now))
    for organization_id, count in sorted(used.items()):
        text = f"organization {organization_id} uses {count} slots at the end"
        yield Violation(kind="slot-in-use", text=text)


def _runs(evidence: Evidence) -> Iterator[Violation]:
    rows: dict[int, list[CallRow]] = defaultdict(list)
    for row in evidence.tables.calls:
        if row.workflow_run_id is not None:
            rows[row.workflow_run_id].append(row)
        elif row.connected_at is not None:
            yield _of_row("run-missing", row, "the call was connected and has no run")
    for run_id in rows.keys() - evidence.runs.keys():
        yield _of_row("run-missing", rows[run_id][0], f"its run {run_id} does not exist")
    for run_id, found in rows.items():
        if len(found) > 1:
            yield _of_row("run-shared", found[0], f"run {run_id} is that of {len(found)} calls")
        if run_id in evidence.runs and not evidence.runs[run_id].is_completed:
            yield _of_row("run-not-ended", found[0], f"run {run_id} is not completed at the end")
        elif run_id in evidence.runs:
            yield from _disposition(evidence, found[0], evidence.runs[run_id])
    yield from _runs_without_call(evidence, rows.keys())


def _disposition(evidence: Evidence, row: CallRow, run: RunRow) -> Iterator[Violation]:
    """A run says `completed` if the caller had an agent, and only then. A fault may have kept that from being known.

    Which entry a row is of is known of an only one.
    """
    if len(evidence.rows[row.channel_id]) != 1:
        return
    leg = evidence.history.legs.get(row.channel_id)
    talk = evidence.with_others(leg, Kind.MEDIA) if leg else []
    is_disturbed = bool(talk) and bool(
        evidence.faults(leg.app if leg else None, (talk[0][0], talk[-1][1]), after=RECOVERY_SECONDS)
    )
    if not talk and run.disposition == "completed":
        yield _of_row("run-outcome", row, f"run {run.id} is completed, and its caller had no agent")
    elif spans.seconds(talk) >= LISTENED_SECONDS and run.disposition != "completed" and not is_disturbed:
        text = f"the caller had an agent for {spans.seconds(talk):.1f} s, and run {run.id} is {run.disposition}"
        yield _of_row("run-outcome", row, text)


def _runs_without_call(evidence: Evidence, with_call: Container[int]) -> Iterator[Violation]:
    """Runs that no row names.

    Those of the platform's own calls are created by the harness. A run whose leg never reached the pipeline is not the
    pipeline's to end, and one that the harness could not finish names no channel.
    """
    unnamed = 0
    for run in evidence.tables.runs:
        rows = evidence.rows.get(run.channel_id or "", [])
        if run.id in with_call:
            continue
        if any(row.workflow_run_id is not None for row in rows):
            yield _of_row("run-twice", rows[-1], f"run {run.id} is a second one for the call")
        elif _is_platform_call(evidence, run.channel_id):
            if rows and not run.is_completed:
                yield _of_row("run-not-ended", rows[-1], f"the platform's run {run.id} is not completed at the end")
        elif run.channel_id is None:
            unnamed += 1
        else:
            text = f"run {run.id} belongs to no call"
            yield Violation(kind="run-without-call", text=text, leg=run.channel_id)
    if unnamed > sum(_is_platform_call(evidence, leg) for leg in evidence.deeds.not_offered):
        yield Violation(kind="run-without-call", text=f"{unnamed} runs belong to no call and name no channel")


def _dead_letters(evidence: Evidence) -> Iterator[Violation]:
    for letter in evidence.tables.dead_letters:
        if not explained(evidence, letter):
            text = f"dead letter {letter.name}: {letter.detail.partition(chr(10))[0]}"
            yield Violation(kind="dead-letter", text=text, call_id=letter.call_id)


def explained(evidence: Evidence, letter: DeadLetter) -> bool:
    """Whether an outage can be the reason of a dead letter: it, or what followed it, lasted while it was retried."""
    row = next((row for row in evidence.tables.calls if row.call_id == letter.call_id), None)
    app = evidence.app_of(row.channel_id) if row else None
    span = (letter.at - RETRY_SECONDS, letter.at)
    return any(fault.outage for fault in evidence.faults(app, span, after=RECOVERY_SECONDS))


def _audio(evidence: Evidence) -> Iterator[Violation]:
    for leg in evidence.callers:
        heard = evidence.heard.get(leg.id)
        talk = evidence.with_others(leg, Kind.MEDIA)
        if heard is None or spans.seconds(talk) < LISTENED_SECONDS:
            continue
        if _is_audio_disturbed(evidence, leg, (talk[0][0], talk[-1][1])):
            continue
        if heard.by_caller < CALLER_HEARS_SECONDS:
            text = f"bridged for {spans.seconds(talk):.1f} s, the caller hears the agent for {heard.by_caller:.1f} s"
            yield _of_leg(evidence, "caller-hears-nothing", leg, text)
        elif spans.seconds(talk) - heard.by_caller > MISSED_SECONDS:
            text = (
                f"bridged for {spans.seconds(talk):.1f} s, the caller hears the agent for {heard.by_caller:.1f} s only"
            )
            yield _of_leg(evidence, "caller-hears-gaps", leg, text)
        # The agent writes its recording when the media leg ends, which may be long after the caller has gone.
        written_at = max(other.gone_at for other, _ in evidence.meetings(leg) if other.kind is Kind.MEDIA)
        if heard.by_agent < AGENT_HEARS_SECONDS and not _is_audio_disturbed(evidence, leg, (talk[-1][1], written_at)):
            text = f"bridged for {spans.seconds(talk):.1f} s, the agent hears the caller for {heard.by_agent:.1f} s"
            yield _of_leg(evidence, "agent-hears-nothing", leg, text)


def _is_audio_disturbed(evidence: Evidence, leg: Leg, span: Span) -> bool:
    return any(fault.audio for fault in evidence.faults(leg.app, span))


CHECKS: tuple[Callable[[Evidence], Iterator[Violation]], ...] = (
    _left_behind, _blind, _waiting, _silence, _lonely_agent, _two_agents, _dialled_again, _wrong_company, _tenants,
    _lost, _rows_of_channels, _rows_without_channel, _rows_end, _slots, _runs, _dead_letters, _audio,
)  # fmt: skip


def _too_long(evidence: Evidence, app: str | None, found: list[Span], limit: float) -> Iterator[Span]:
    """The spans that last longer than a limit, which outages extend by the time that they overlap."""
    for span in found:
        if span[1] - span[0] > limit + evidence.outage_seconds(app, span):
            yield span


def _lasts(span: Span) -> str:
    return f"{span[1] - span[0]:.1f} s"


def _uses_slot(row: CallRow, now: float) -> bool:
    if row.state in ("received", "ended"):
        return False
    if row.state == "ending":
        was_admitted = row.workflow_id is not None and row.outcome != "refused"
        return was_admitted and row.ending_at is not None and now - row.ending_at < ENDING_SLOT_SECONDS
    return True


def _is_platform_call(evidence: Evidence, channel_id: str | None) -> bool:
    offer = evidence.deeds.offers.get(channel_id or "")
    return offer is not None and offer.direction == "platform"


def _of_leg(evidence: Evidence, kind: str, leg: Leg, text: str) -> Violation:
    rows = evidence.rows.get(leg.id)
    return Violation(kind=kind, text=text, leg=leg.id, call_id=rows[-1].call_id if rows else None)


def _of_row(kind: str, row: CallRow, text: str) -> Violation:
    return Violation(kind=kind, text=text, leg=row.channel_id, call_id=row.call_id)
