"""Whose fault it is that a call did not end well. Each reason that the product can write is read out of its code."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.call import dialling, faults
from shared.call.faults import fault_of
from shared.call.states import Cause, Fault, Outcome
from tests.support.statements import statements

ROOT = Path(__file__).parents[2]

REFUSED, FAILED, ABANDONED, CANCELED = Outcome.REFUSED, Outcome.FAILED, Outcome.ABANDONED, Outcome.CANCELED
US, ASTERISK, AGENT, PLATFORM = Fault.US, Fault.ASTERISK, Fault.AGENT, Fault.PLATFORM
WAITED = "caller hung up before an agent was on the line: "

#: Each reason of the code, and each part of one → how a call comes out by it, an example as stored, and its class.
CLASSES: dict[str, tuple[Outcome, str, Fault | None]] = {
    # It ended well, or as it was wanted.
    "agent hung up": (Outcome.COMPLETED, "agent hung up", None),
    "agent found gone": (Outcome.COMPLETED, "agent found gone", None),
    "caller {how}": (Outcome.COMPLETED, "caller left Stasis, and goes on elsewhere", None),
    "longest call time reached": (Outcome.COMPLETED, "longest call time reached", None),
    "the leg it was transferred to hung up": (Outcome.COMPLETED, "the leg it was transferred to hung up", None),
    "ended by an operator": (CANCELED, "ended by an operator", None),
    "SUSPENDED.get(row['suspension'], 'suspended')": (REFUSED, "connection parked by an operator", None),
    # Of the caller and the far end.
    "caller hung up before the call was received: {obstacle}": (
        ABANDONED, f"caller hung up before the call was received: {faults.NOT_DONE}", US
    ),
    "caller hung up before the call was received": (
        ABANDONED, "caller hung up before the call was received", Fault.CALLER
    ),
    "{party} {how} before an agent was on the line": (
        ABANDONED, "caller hung up before an agent was on the line", Fault.CALLER
    ),
    "{party}": (
        CANCELED, "far end hung up before an agent was on the line", Fault.FAR_END
    ),
    "not answered in time": (Outcome.NO_ANSWER, "not answered in time", Fault.FAR_END),
    # Of the tenant's Asterisk.
    "{how}": (ABANDONED, "caller left Stasis, and goes on elsewhere before an agent was on the line", ASTERISK),
    "the caller's leg was replaced too often": (FAILED, "the caller's leg was replaced too often", ASTERISK),
    "media refused: {fact.reason}": (FAILED, "media refused: 400 no such client", ASTERISK),
    "_explained(refusals[0], client)": (FAILED, "media refused: 500 Internal Server Error", ASTERISK),
    "legs not joined: {fact.reason}": (FAILED, "legs not joined: a leg is not in the bridge", ASTERISK),
    "answer": (FAILED, "legs not joined: 422 Channel not in Stasis application", ASTERISK),
    "the bridge is gone": (FAILED, "legs not joined: the bridge is gone", ASTERISK),
    "bridge lost: {fact.reason}": (FAILED, "bridge lost: the bridge is gone", ASTERISK),
    "not in the bridge: {missing}": (FAILED, "bridge lost: not in the bridge: caller", ASTERISK),
    "not originated: {fact.reason}": (FAILED, "not originated: 400 Bad channel", ASTERISK),
    "str(unknown[0])": (FAILED, "media not created: answered 503", ASTERISK),
    "no request can name a channel of the id {leg.id}": (
        REFUSED, "no request can name a channel of the id create", ASTERISK
    ),
    "the called number is longer than {_TEXT_LENGTH} characters": (
        REFUSED, "the called number is longer than 512 characters", ASTERISK
    ),
    "the arguments of Stasis() are longer than {ARGS_BYTES} bytes together": (
        REFUSED, "the arguments of Stasis() are longer than 8192 bytes together", ASTERISK
    ),
    "the arguments of Stasis() are not text alone": (
        REFUSED, "the arguments of Stasis() are not text alone", ASTERISK
    ),
    "{key} is given twice": (REFUSED, "workflow_run_id is given twice", ASTERISK),
    "{key} is missing": (REFUSED, "workflow_id is missing", ASTERISK),
    "{key} is not the number of one": (REFUSED, "user_id is not the number of one", ASTERISK),
    "the far end has not answered: {leg.state}": (REFUSED, "the far end has not answered: Ringing", ASTERISK),
    # Of the voice agent.
    "agent lost: {fact.reason}": (FAILED, "agent lost: media leg ended, cause 38 Network out of order", AGENT),
    "voice agent not reached: {fact.reason}": (
        FAILED, "voice agent not reached: media leg ended, cause 3 No route to destination", AGENT
    ),
    "f'{reason}, cause {event.cause} {event.cause_text}'.strip()": (
        FAILED, "voice agent not reached: media leg ended, cause 38 Network out of order", AGENT
    ),
    "f'{reason}: {_AGENT_DID[event.cause]}' + (f' ({causes})' if causes else '')": (
        FAILED,
        "voice agent not reached: media leg ended, cause 16 Normal Clearing: the voice agent closed the socket at once",
        AGENT,
    ),
    "media leg ended while being joined": (
        FAILED, "voice agent not reached: media leg ended while being joined", AGENT
    ),
    "voice agent not reached: {reason}": (FAILED, "voice agent not reached: media leg not ready in time", AGENT),
    # Of the platform, and of what is set there.
    "its run was completed": (CANCELED, "its run was completed", PLATFORM),
    "configuration inactive": (REFUSED, "configuration inactive", PLATFORM),
    "configuration removed": (REFUSED, "configuration removed", PLATFORM),
    "configuration unreadable": (REFUSED, "configuration unreadable", PLATFORM),
    "connection moved to another endpoint or app": (REFUSED, "connection moved to another endpoint or app", PLATFORM),
    "connection {reason}": (REFUSED, "connection suspended", None),
    "{row['state']}: {row['reason']}": (REFUSED, "connection refused: app_name is missing", PLATFORM),
    "endpoint and app are another organization's now": (
        REFUSED, "endpoint and app are another organization's now", PLATFORM
    ),
    "no active phone number {called} in this organization": (
        REFUSED, "no active phone number 12 in this organization", PLATFORM
    ),
    "no inbound workflow configured": (REFUSED, "no inbound workflow configured", PLATFORM),
    "phone number {called} belongs to another configuration, {row['configuration_of_number']}": (
        REFUSED, "phone number 12 belongs to another configuration, 3", PLATFORM
    ),
    "phone number {called} has no inbound workflow": (REFUSED, "phone number 12 has no inbound workflow", PLATFORM),
    "{what} {reason}": (REFUSED, "workflow 3 is archived", PLATFORM),
    "does not exist": (REFUSED, "inbound workflow does not exist", PLATFORM),
    "belongs to another organization": (REFUSED, "inbound workflow belongs to another organization", PLATFORM),
    "is archived": (REFUSED, "inbound workflow is archived", PLATFORM),
    "has no user": (REFUSED, "inbound workflow has no user", PLATFORM),
    "has no definition: publish it": (REFUSED, "inbound workflow has no definition: publish it", PLATFORM),
    "run {args.workflow_run_id} has no definition: the voice agent would end its call": (
        REFUSED, "run 9 has no definition: the voice agent would end its call", PLATFORM
    ),
    "run {args.workflow_run_id} does not belong to this organization": (
        REFUSED, "run 9 does not belong to this organization", PLATFORM
    ),
    "run {args.workflow_run_id} does not belong to workflow {args.workflow_id}": (
        REFUSED, "run 9 does not belong to workflow 3", PLATFORM
    ),
    "run {args.workflow_run_id} does not wait for a call": (REFUSED, "run 9 does not wait for a call", PLATFORM),
    "run {args.workflow_run_id} already has a call": (REFUSED, "run 9 already has a call", PLATFORM),
    "user {args.user_id} does not belong to this organization": (
        REFUSED, "user 5 does not belong to this organization", PLATFORM
    ),
    "the organization is blocked": (REFUSED, "the organization is blocked", PLATFORM),
    "the month's {minutes} minutes are used up": (REFUSED, "the month's 100 minutes are used up", PLATFORM),
    "too many concurrent calls: {used} of {limit} slots in use": (
        REFUSED, "too many concurrent calls: 2 of 2 slots in use", PLATFORM
    ),
    "too many concurrent calls: the platform's {route.concurrent_calls} slots are in use": (
        REFUSED, "too many concurrent calls: the platform's 2 slots are in use", PLATFORM
    ),
    "the platform's Redis gives no answer (PLATFORM_SLOTS_UNREACHABLE)": (
        REFUSED, "the platform's Redis gives no answer (PLATFORM_SLOTS_UNREACHABLE)", PLATFORM
    ),
    "the credits are used up": (REFUSED, "the credits are used up", PLATFORM),
    "the model configuration is the platform's own and has no api_key": (
        REFUSED, "the model configuration is the platform's own and has no api_key", PLATFORM
    ),
    "the quota service declined: {reply.status}": (REFUSED, "the quota service declined: 403", PLATFORM),
    "quota service unreachable: {failure}": (REFUSED, "quota service unreachable: answered 500", PLATFORM),
    # A configuration or an account that cannot be used.
    "str(exc)": (REFUSED, "ws_client_name is missing", PLATFORM),
    # Our own.
    "received {waited_seconds} s late{asked}": (REFUSED, "received 12.5 s late", US),
    "{asked}": (REFUSED, "received 12.5 s late, its Asterisk was asked first", Fault.UNKNOWN),
    "{call.state} for too long: {obstacle}": (FAILED, "received for too long: no worker has done its step", US),
    "{reason}: {call.obstacle or faults.NOT_DONE}": (
        FAILED, "media leg not ready in time: no worker has done its step", US
    ),
    "the worker did not report back": (FAILED, "media not created: the worker did not report back", US),
    "faults.WORKER_DIED": (ABANDONED, f"{WAITED}its worker died", US),
    # Not known.
    "media not created: {reason}": (FAILED, "media not created: the step ran out of its time", Fault.UNKNOWN),
    "media leg ended": (FAILED, "voice agent not reached: media leg ended", Fault.UNKNOWN),
    "media leg is gone": (FAILED, "voice agent not reached: media leg is gone", Fault.UNKNOWN),
    "dialled, and what came of it is unknown": (FAILED, "dialled, and what came of it is unknown", Fault.UNKNOWN),
}  # fmt: skip
#: Passed on from where it is read out of the code, or told by an obstacle.
PASSED_ON = {
    "*run", "obstacle_of(reason)", "fact.reason", "obstacle", "reason", "route.reason", "target.reason",
    "moves.with_obstacle(call, 'dialled, and what came of it is unknown')",
    "moves.with_obstacle(call, f'{party} {how} before an agent was on the line')",
}  # fmt: skip

#: Function → where it takes a reason, or a part of one: by which name, or at which position.
_NAMED = dict.fromkeys(
    (
        "Refused", "NoRoute", "InboundTarget", "EndRequested", "LegsRefused", "LegsUnknown", "MediaGone", "JoinRefused",
        "BridgeLost", "OriginateRefused", "end", "replace",
    ), "reason",
) | {"Hindered": "obstacle"}  # fmt: skip
_AT = {"fail": 3, "refusal": 1, "next_attempt": 3, "_order_next": 4, "with_obstacle": 1, "InvalidStasisArgs": 0}
#: Functions that return one.
_RETURNING = {"unusable", "_waiting", "_unfit"}


def functions() -> Iterator[ast.FunctionDef | ast.Module]:
    for folder in ("shared/call", "shared/platform", "shared/storage", "shared/operator", "workers", "scheduler"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text())
            yield from (node for node in statements(tree) if isinstance(node, ast.FunctionDef))
            yield ast.Module(body=[node for node in tree.body if isinstance(node, ast.Assign)], type_ignores=[])
    yield from (
        node
        for node in statements(ast.parse((ROOT / "shared/asterisk/events.py").read_text()))
        if isinstance(node, ast.FunctionDef)
    )


@functools.cache
def written() -> set[str]:
    """Return every reason of the code; what it puts in stands in braces, and what is no text as it stands there."""
    found: set[str] = set()
    for function in functions():
        for node in ast.walk(function):
            if isinstance(node, ast.Call):
                found |= texts(argument(node), function)
            elif isinstance(node, ast.Return) and getattr(function, "name", "") in _RETURNING:
                value = node.value.elts[0] if isinstance(node.value, ast.Tuple) else node.value
                found |= texts(value, function) if isinstance(value, ast.Constant | ast.JoinedStr) else set()
    return found - {"", "None"}


def argument(call: ast.Call) -> ast.expr | None:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in _AT and len(call.args) > _AT[name]:
        return call.args[_AT[name]]
    return next((keyword.value for keyword in call.keywords if keyword.arg == _NAMED.get(name, "-")), None)


def texts(node: ast.expr | None, function: ast.AST) -> set[str]:
    match node:
        case None:
            return set()
        case ast.Constant():
            return {str(node.value)}
        case ast.JoinedStr():
            parts = (part.value if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"  # type: ignore[attr-defined]
                     for part in node.values)  # fmt: skip
            return {"".join(map(str, parts))}
        case ast.IfExp():
            return texts(node.body, function) | texts(node.orelse, function)
        case ast.Name():
            assigned = [text for value in values_of(node.id, function) for text in texts(value, function)]
            return set(assigned) or {node.id}
    return {ast.unparse(node)}


def values_of(name: str, function: ast.AST) -> Iterator[ast.expr]:
    for node in statements(function):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            if isinstance(target, ast.Name) and target.id == name:
                yield node.value
            elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = zip(target.elts, node.value.elts, strict=True)
                yield from (value for one, value in pairs if isinstance(one, ast.Name) and one.id == name)


def test_every_reason_that_the_product_writes_has_a_class_here() -> None:
    unclassed = written() - set(CLASSES) - PASSED_ON
    assert unclassed == set(), "whose fault is it? Say it here, and see that `fault_of` says the same"
    # Of these, reasons are put together.
    assert (set(CLASSES) | PASSED_ON) - written() == {"{how}", "{party}", "{asked}"}, "no longer written"


@pytest.mark.parametrize(("outcome", "reason", "fault"), CLASSES.values())
def test_the_class_of_a_reason(outcome: Outcome, reason: str, fault: Fault | None) -> None:
    assert fault_of(outcome, reason) is fault
    assert fault_of(outcome, f"{reason}; not verified") is fault


@pytest.mark.parametrize(
    ("obstacle", "fault"),
    [
        (f"{faults.NO_ANSWER}: answered 503", ASTERISK),
        (f"{faults.NOT_SERVED}: the tables are of no layout", PLATFORM),
        (faults.NOT_ACCEPTED, AGENT),
        (faults.NOT_DONE, US),
        (faults.WORKER_DIED, US),
        ("media not created: answered 503", ASTERISK),
        ("media not created: the worker did not report back", US),
        ("voice agent not reached: media leg ended, cause 3 No route to destination", AGENT),
        ("voice agent not reached: media leg is gone", Fault.UNKNOWN),
    ],
)
def test_what_has_held_a_call_up_tells_whose_fault_it_is_that_it_was_not_waited_for(
    obstacle: str, fault: Fault
) -> None:
    for outcome, reason in (
        (ABANDONED, "caller hung up before an agent was on the line"),
        (CANCELED, "far end hung up before an agent was on the line"),
        (FAILED, "joining for too long"),
        (FAILED, "media leg not ready in time"),
        (FAILED, "dialled, and what came of it is unknown"),
    ):
        assert fault_of(outcome, f"{reason}: {obstacle}") is fault, reason


@pytest.mark.parametrize("status", [None, *sorted(dialling.UNANSWERED_STATUSES)])
def test_a_leg_that_is_not_answered_is_the_far_end_s(status: str | None) -> None:
    for cause in (None, 0, *Cause, 20, 127):
        outcome, reason, _ = dialling.dial_outcome(status, cause)
        assert fault_of(outcome, reason) is Fault.FAR_END, cause


@pytest.mark.parametrize("reason", [None, "", "anything", "joining for too long", "(", "\n: : "])
def test_it_is_total_and_what_is_not_known_is_not_ours(reason: str | None) -> None:
    for outcome in (None, *Outcome):
        assert fault_of(outcome, reason) is not US, outcome
        assert (fault_of(outcome, reason) is None) == (outcome in (None, Outcome.COMPLETED)), outcome
    assert fault_of(FAILED, reason) is Fault.UNKNOWN


def test_the_platform_that_has_completed_the_run_is_why_the_agent_refused() -> None:
    ended = "voice agent not reached: media leg ended, cause 16: the voice agent closed the socket at once"
    assert fault_of(FAILED, f"{ended} (its run is completed, no media token was sent)") is PLATFORM
    assert fault_of(FAILED, f"{ended} (configuration inactive)") is PLATFORM
    assert fault_of(FAILED, f"{ended} (no media token was sent)") is AGENT
