"""What a worker is put together from: the adapters of its ports, and the handlers of its messages."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

from shared.call.calls import Call
from shared.call.legs import Naming
from shared.call.steps import STEPS, Step
from shared.outbound_calls import OutboundCalls
from shared.platform.ports import (
    NO_PLATFORM_SLOTS,
    NO_TRANSFER_EVENTS,
    MediaUrl,
    PlatformSlots,
    Routes,
    Runs,
    TransferEvents,
)
from shared.storage.call_writer import CallWriter
from workers.admission import Admission, RunCreation
from workers.app_question import AppHolders, AppQuestion
from workers.asterisks import Asterisks
from workers.attempts import Attempts
from workers.awaited_legs import Awaited
from workers.bridge import Join
from workers.call_allowance import CallAllowance
from workers.claims import Claim, StepWork
from workers.exclusive import Exclusive, Leases
from workers.flow import Flow
from workers.inbound import Inbound
from workers.leg_events import LegEvents
from workers.media import MediaCreation
from workers.outbound import Origination
from workers.replacements import Replacements
from workers.resync import Resync
from workers.step_ports import Connections, Handler, Lookup, Quota, SendLater, Slots
from workers.talk_detection import TalkDetection
from workers.teardown import Teardown
from workers.transfer_legs import TransferLegs
from workers.transfers import Transfers


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """One adapter for each port of a worker. Each step gets those it needs, and no others."""

    writer: CallWriter
    asterisks: Asterisks
    routes: Routes
    runs: Runs
    quota: Quota
    slots: Slots
    outbound_calls: OutboundCalls
    connections: Connections
    lookup: Lookup
    leases: Leases
    app_holders: AppHolders
    awaited_legs: Awaited[Claim]
    send_later: SendLater
    #: Returns how long ago a moment of Redis's clock was, in ms; 0 when unknown.
    age_ms: Callable[[int], float]
    naming: Naming
    allowance: CallAllowance
    media_url: MediaUrl
    refusal_causes: Callable[[Call], str]
    platform_slots: PlatformSlots = NO_PLATFORM_SLOTS
    #: A caller is refused while the platform's count of calls gives no answer.
    refuses_uncounted: bool = False
    transfer_events: TransferEvents = NO_TRANSFER_EVENTS
    #: Asterisk is asked to tell when the parties of a call send audio.
    detects_talking: bool = False


def handlers(adapters: Adapters, *, serves: Collection[Step], tag: Callable[[], str]) -> Mapping[str, Handler]:
    """Return the handler of each actor, for a pool that serves these steps.

    Args:
        tag: Returns the tag of the pool's broker session.
    """
    talk_detection = _talk_detection(adapters)
    steps = _steps(adapters, tag, talk_detection)
    flow = Flow(adapters.writer, adapters.asterisks, steps, serves=serves, awaited=adapters.awaited_legs)
    callers = Inbound(
        flow=flow,
        writer=adapters.writer,
        connections=adapters.connections,
        lookup=adapters.lookup,
        asterisks=adapters.asterisks,
        runs=adapters.runs,
        naming=adapters.naming,
        allowance=adapters.allowance,
        age_ms=adapters.age_ms,
        transfer_legs=TransferLegs(
            writer=adapters.writer,
            asterisks=adapters.asterisks,
            transfer_events=adapters.transfer_events,
            send_later=adapters.send_later,
        ),
        platform_slots=adapters.platform_slots,
        assumes=not adapters.quota.asks_network,
    )
    attempts = Attempts(
        flow=flow,
        writer=adapters.writer,
        asterisks=adapters.asterisks,
        naming=adapters.naming,
        send_later=adapters.send_later,
    )
    transfers = Transfers(
        flow=flow,
        writer=adapters.writer,
        asterisks=adapters.asterisks,
        runs=adapters.runs,
        naming=adapters.naming,
    )
    replacements = Replacements(
        flow=flow,
        writer=adapters.writer,
        asterisks=adapters.asterisks,
        runs=adapters.runs,
        naming=adapters.naming,
    )
    legs = LegEvents(
        flow=flow,
        writer=adapters.writer,
        inbound=callers,
        naming=adapters.naming,
        transfers=transfers,
        replacements=replacements,
        send_later=adapters.send_later,
        refusal_causes=adapters.refusal_causes,
        talk_detection=talk_detection,
    )
    resync = Resync(
        flow=flow,
        writer=adapters.writer,
        inbound=callers,
        replacements=replacements,
        connections=adapters.connections,
        asterisks=adapters.asterisks,
        exclusive=Exclusive(adapters.leases, adapters.writer),
        app_holders=adapters.app_holders,
        naming=adapters.naming,
        send_later=adapters.send_later,
        detects_talking=adapters.detects_talking,
    )
    question = AppQuestion(writer=adapters.writer, asterisks=adapters.asterisks, app_holders=adapters.app_holders)
    return {
        # The steps: each goes on where its command says. One of them begins an attempt first.
        **{row.actor: partial(flow.resume, step=step) for step, row in STEPS.items()},
        STEPS[Step.MEDIA].actor: attempts.start,
        "check_media": attempts.check,
        "remove_attempt": attempts.remove,
        "caller_entered": legs.caller_entered,
        "media_leg_ready": legs.media_leg_ready,
        "leg_ended": legs.leg_ended,
        "request_call": adapters.outbound_calls.request,
        "far_end_answered": legs.far_end_answered,
        "dial_ended": legs.dial_ended,
        "leg_unanswered": legs.leg_unanswered,
        "resync_connection": resync.resync_connection,
        "ask_for_app": question.answer,
        "party_heard": legs.party_heard,
    }


def _talk_detection(adapters: Adapters) -> TalkDetection | None:
    if not adapters.detects_talking:
        return None
    return TalkDetection(writer=adapters.writer, asterisks=adapters.asterisks, naming=adapters.naming)


def _steps(
    adapters: Adapters, tag: Callable[[], str], talk_detection: TalkDetection | None = None
) -> Mapping[Step, StepWork]:
    limits, store = adapters.writer.limits, adapters.writer.store
    return {
        Step.ADMISSION: Admission(
            connections=adapters.connections,
            routes=adapters.routes,
            quota=adapters.quota,
            slots=adapters.slots,
            slot_count=store,
            runs=adapters.runs,
            asterisks=adapters.asterisks,
            naming=adapters.naming,
            limits=limits,
            platform_slots=adapters.platform_slots,
            refuses_uncounted=adapters.refuses_uncounted,
        ),
        Step.RUNS: RunCreation(
            runs=adapters.runs, naming=adapters.naming, quota=adapters.quota, routes=adapters.routes
        ),
        Step.MEDIA: MediaCreation(
            asterisks=adapters.asterisks,
            naming=adapters.naming,
            media_url=adapters.media_url,
            tag=tag,
        ),
        Step.BRIDGE: Join(
            asterisks=adapters.asterisks,
            naming=adapters.naming,
            runs=adapters.runs,
            store=store,
            platform_slots=adapters.platform_slots,
            detect_talking=talk_detection.begin if talk_detection is not None else None,
        ),
        Step.ORIGINATE: Origination(asterisks=adapters.asterisks, quota=adapters.quota, limits=limits, store=store),
        Step.TEARDOWN: Teardown(
            asterisks=adapters.asterisks,
            naming=adapters.naming,
            runs=adapters.runs,
            store=store,
            platform_slots=adapters.platform_slots,
        ),
    }
