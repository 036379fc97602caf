"""The one table of steps: what each works on, what starts it, and what its claim is made of.

Queues, actors, claims, the state a step works in and the tables of the documentation derive from it. A new step is a
row here and a command class in `commands.py`; `workers/wiring.py` adds the code of the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from shared.call import commands
from shared.call.commands import Command
from shared.call.states import State


class Step(StrEnum):
    """The steps that claim a call. Each has a queue of its own name."""

    BRIDGE = "bridge"
    MEDIA = "media"
    RUNS = "runs"
    ADMISSION = "admission"
    ORIGINATE = "originate"
    TEARDOWN = "teardown"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One step. The time-outs of these parts add up to its claim, which bounds the step in any case."""

    #: The state in which it has work to do.
    state: State
    #: What the core orders to start it, and the actor that reads that message.
    command: type[Command]
    actor: str
    #: Requests to the Asterisk, one after the other; those made in parallel count once.
    requests: int = 0
    #: Statements on top of the one that stores the result.
    statements: int = 0
    #: The quota service, or the platform's tables, are asked.
    asks_quota: bool = False


#: Ordered by need: where queues share threads, the first is served first. A call that has begun is finished before
#: another one begins.
STEPS: dict[Step, StepRow] = {
    Step.BRIDGE: StepRow(state=State.JOINING, command=commands.JoinLegs, actor="join_legs", requests=1),
    Step.MEDIA: StepRow(state=State.PREPARED, command=commands.StartMedia, actor="start_media", requests=1),
    Step.RUNS: StepRow(
        state=State.ADMITTED, command=commands.CreateRun, actor="create_run", statements=1, asks_quota=True
    ),
    Step.ADMISSION: StepRow(
        state=State.RECEIVED, command=commands.DecideAdmission, actor="decide_admission", asks_quota=True
    ),
    Step.ORIGINATE: StepRow(
        state=State.ORIGINATING, command=commands.OriginateLeg, actor="originate_leg", requests=1, asks_quota=True
    ),
    Step.TEARDOWN: StepRow(state=State.ENDING, command=commands.TearDown, actor="tear_down", requests=2),
}

#: Commands that start no step, with their actor and the step whose queue they share.
_OTHER_COMMANDS: dict[type[Command], tuple[str, Step]] = {
    commands.CheckMedia: ("check_media", Step.BRIDGE),
    commands.RemoveAttempt: ("remove_attempt", Step.TEARDOWN),
}

_STEP_OF_STATE = {row.state: step for step, row in STEPS.items()}
_STATE_OF_COMMAND = {row.command: row.state for row in STEPS.values()}
#: Command → its actor, and the queue it waits in.
ACTORS: dict[type[Command], tuple[str, Step]] = {
    **{row.command: (row.actor, step) for step, row in STEPS.items()},
    **_OTHER_COMMANDS,
}


def step_of(state: State) -> Step | None:
    """Return the step that works in a state; None for a state that waits for something else."""
    return _STEP_OF_STATE.get(state)


def state_of(command: Command) -> State | None:
    """Return the state in which a command is still due; None for a command that is due in any state."""
    return _STATE_OF_COMMAND.get(type(command))
