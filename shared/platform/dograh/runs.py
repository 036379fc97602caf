"""The workflow runs of calls: creates them, attaches waiting ones to calls, records their legs, ends them."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Literal

from shared import errors
from shared.call import call_settings, calls, stasis_args
from shared.call.calls import Call
from shared.call.legs import Attempt, Role
from shared.call.stasis_args import RunArgs
from shared.call.states import Cause, Direction, Outcome
from shared.platform.dograh import json_values, layouts, rules, run_endings, workflows
from shared.platform.dograh.rules import Rules
from shared.platform.ports import NoRoute, Route
from shared.storage import database


class Runs:
    """Reads and writes runs; each write takes the run's lock.

    Args:
        tells_platform: Whether the platform's own processes are told of runs that are ended here.
    """

    def __init__(
        self,
        db: database.Database,
        *,
        storage_backend: Literal["s3", "minio"] = "s3",
        run_completion: Literal["auto", "ours", "platform"] = "auto",
        watch: layouts.Watch | None = None,
        tells_platform: bool = False,
    ) -> None:
        self._db = db
        self._tells = tells_platform
        self._watch = watch or layouts.Watch(db, quiet=True)
        self._storage_backend = storage_backend
        self._run_completion = run_completion

    def workflow_of(self, workflow_run_id: int, organization_id: int) -> int | None:
        """Return the workflow of an organization's run; None if the organization has no such run."""
        with self._db.connection() as connection:
            row = connection.execute(
                "SELECT w.id FROM workflow_runs r JOIN workflows w ON w.id = r.workflow_id"
                " WHERE r.id = %s AND w.organization_id = %s",
                [workflow_run_id, organization_id],
            ).fetchone()
        return int(row["id"]) if row is not None else None

    def attach(self, connection: database.Connection, call: Call, args: RunArgs) -> Route | NoRoute:
        """Attach a run that waits for a call to this call, within the caller's transaction.

        The call's names are in the run's gathered_context from here on: the voice agent reads them there.
        """
        layout, value = self._configuration(connection, call)
        if isinstance(value, NoRoute):
            return value
        run = _waiting(connection, call, args)
        if isinstance(run, tuple):
            return workflows.refusal(value, *run)
        if layout.NEEDS_DEFINITION and run["definition_id"] is None:
            reason = f"run {args.workflow_run_id} has no definition: the voice agent would end its call"
            return workflows.refusal(value, reason, Cause.REJECTED)
        workflow = connection.execute(layout.WORKFLOW, {"workflow_id": args.workflow_id}).fetchone()
        if workflow is not None:
            # The run has its own already: the workflow may have a draft only.
            workflow.pop("definition_id", None)
        route = workflows.judge(workflow, value, call.organization_id, f"workflow {args.workflow_id}")
        if isinstance(route, NoRoute):
            return route
        if args.user_id is not None:
            route = replace(route, user_id=args.user_id)
        gathered = json_values.fields(run["gathered_context"]) | json_values.encoded(_names(call))
        _write(connection, args.workflow_run_id, gathered)
        initial = json_values.load_object(run["initial_context"])
        caller, called = (_number(initial, *keys) for keys in _NUMBERS)
        return replace(route, caller_number=caller, called_number=called)

    def _configuration(self, connection: database.Connection, call: Call) -> tuple[Rules, dict[str, Any] | NoRoute]:
        """Return the layout and the configuration of a call's connection, or why there is none."""
        layout = rules.of(self._watch.assumed(connection))
        row = connection.execute(layout.CONFIGURATION, {"connection_id": call.connection_id}).fetchone()
        if row is None or not self._watch.is_still(layout.LAYOUT, is_newest=row["is_newest"]):
            layout = rules.of(self._watch.look(connection).served())
            row = connection.execute(layout.CONFIGURATION, {"connection_id": call.connection_id}).fetchone()
        return layout, layout.configuration(row)

    def waiting(self, connection: database.Connection, *, organization_id: int, channel_id: str) -> int | None:
        """Return and lock the run that waits for a call which the platform began with this channel id; or None."""
        rows = connection.execute(_WAITING_RUNS, [channel_id, organization_id]).fetchall()
        return max((row["id"] for row in rows), default=None)

    def completed(self, run_ids: Collection[int]) -> set[int]:
        """Return those of these runs that are completed. A run is completed, too, when its caller is handed over."""
        with self._db.connection() as connection:
            rows = connection.execute(
                "SELECT id, gathered_context::text AS gathered_context FROM workflow_runs"
                " WHERE id = ANY(%s) AND is_completed",
                [list(run_ids)],
            ).fetchall()
        return {row["id"] for row in rows if not _names_transfer(row)}

    def create(
        self,
        connection: database.Connection,
        call: Call,
        *,
        first_attempt: Attempt | None = None,
        reserved_id: int | None = None,
    ) -> int:
        """Insert the workflow run of a call, within the caller's transaction; return its id.

        `call_id` is in gathered_context from the start: the voice agent reads it when the media leg connects.

        Args:
            first_attempt: Its ids are in gathered_context from the start: one write less once the legs are joined.
            reserved_id: An id of the table's own sequence: the INSERT then needs no answer, and goes with the commit.
        """
        initial = {
            "caller_number": call.caller_number,
            "called_number": call.called_number or calls.UNKNOWN_NUMBER,
            "direction": str(call.direction),
            "provider": "ari",
        }
        media = {}
        if first_attempt is not None:
            media = _media(media_id=first_attempt.legs[Role.MEDIA], bridge_id=first_attempt.bridge_id)
        layout = rules.of(self._watch.found(connection).layout)
        values = {
            "id": reserved_id,
            "name": _run_name(call),
            "workflow_id": call.workflow_id,
            "connection_id": call.connection_id,
            "call_type": str(call.direction),
            "storage_backend": self._storage_backend,
            "initial": json.dumps(initial),
            "gathered": json.dumps(_names(call) | media),
        }
        if reserved_id is not None:
            connection.send(_insert(layout.LAYOUT, reserved=True), values)
            return reserved_id
        row = connection.execute(_insert(layout.LAYOUT, reserved=False), values).fetchone()
        assert row is not None
        return int(row["id"])

    def note_media(self, call: Call, *, media_id: str, bridge_id: str) -> None:
        """Write the ids of the media leg and the bridge into the run's gathered_context, if they are not there."""
        if call.workflow_run_id is None:
            return
        # The channel name of a leg that we originate is unknown until it has answered.
        named = _names(call) | _media(media_id=media_id, bridge_id=bridge_id)
        # A worker of an earlier release has not written them with the run.
        if call.direction is Direction.INBOUND and call.attempt == 1 and self._has(call.workflow_run_id, named):
            return
        with self._db.transaction() as connection:
            run = run_endings.lock(connection, call.workflow_run_id)
            if run is not None:
                gathered = json_values.fields(run["gathered_context"]) | json_values.encoded(named)
                _write(connection, call.workflow_run_id, gathered)

    def _has(self, run_id: int, named: Mapping[str, str]) -> bool:
        with self._db.connection() as connection:
            row = self._gathered(connection, run_id)
        return row is not None and json_values.load_object(row["gathered_context"]).items() >= named.items()

    @staticmethod
    def _gathered(connection: database.Connection, run_id: int) -> database.Row | None:
        return connection.execute(
            "SELECT gathered_context::text AS gathered_context FROM workflow_runs WHERE id = %s", [run_id]
        ).fetchone()

    def is_begun(self, call: Call) -> bool:
        """Return whether the platform's voice agent has begun a joined call's run, as the port says."""
        with self._db.connection() as connection:
            return self._is_begun(connection, call)

    def _is_begun(self, connection: database.Connection, call: Call) -> bool:
        if call.workflow_run_id is None or self._completes_connected(connection):
            return True
        row = connection.execute(
            "SELECT state::text AS state, is_completed FROM workflow_runs WHERE id = %s", [call.workflow_run_id]
        ).fetchone()
        return row is None or bool(row["is_completed"]) or row["state"] != "initialized"

    def has_transfer(self, call: Call) -> bool:
        """Return whether the platform has begun to transfer the call's caller."""
        with self._db.connection() as connection:
            return self._has_transfer(connection, call)

    def _has_transfer(self, connection: database.Connection, call: Call) -> bool:
        row = self._gathered(connection, call.workflow_run_id) if call.workflow_run_id is not None else None
        return row is not None and _names_transfer(row)

    def note_transfer(self, call: Call) -> None:
        """Write that a transfer which the platform has begun is made. One that is over stays so."""
        if call.workflow_run_id is not None:
            with self._db.transaction() as connection:
                _move_transfer(connection, call.workflow_run_id, ("in-progress",), "complete")

    def end(self, call: Call, *, media_id: str, bridge_id: str, within: database.Connection | None = None) -> None:
        """End the call's run, unless RUN_COMPLETION leaves that to the platform. A run that has ended stays as it is.

        A run whose call never connected is always ended here, and so is one that the voice agent has refused.
        `is_completed` goes from false to true, never back.

        Args:
            within: As the port says.
        """
        with self._db.transaction() if within is None else contextlib.nullcontext(within) as connection:
            self._end(connection, call, _media(media_id=media_id, bridge_id=bridge_id))

    def _end(self, connection: database.Connection, call: Call, media: Mapping[str, str]) -> None:
        if call.workflow_run_id is None:
            self._end_named(connection, call)
            return
        # In one that the voice agent has refused was nothing of the platform's.
        has_failed = call.outcome is Outcome.FAILED and call.connected_at is not None
        was_refused = has_failed and not self._is_begun(connection, call)
        connected = call.connected_at is not None and not was_refused
        is_left_to_platform = connected and not self._completes_connected(connection)
        # A destination may have left again before it was found.
        if call.destination_id is not None or (is_left_to_platform and self._has_transfer(connection, call)):
            _move_transfer(connection, call.workflow_run_id, ("in-progress", "complete"), "terminated")
        if not is_left_to_platform:
            self.end_in(
                connection, replace(call, connected_at=None) if was_refused else call, media if connected else {}
            )

    def _completes_connected(self, connection: database.Connection) -> bool:
        if self._run_completion == "auto":
            # By the connection at hand: it may be the pool's last one.
            return not self._watch.found(connection).platform_completes_runs
        return self._run_completion == "ours"

    def _end_named(self, connection: database.Connection, call: Call) -> None:
        """End the run that a leg of the platform came for, if its call was over before the run was attached."""
        if call.direction is not Direction.OUTBOUND:
            return
        try:
            args = stasis_args.read(call.args)
        except errors.InvalidStasisArgs:
            return
        if not isinstance(_waiting(connection, call, args), tuple):
            self.end_in(connection, replace(call, workflow_run_id=args.workflow_run_id), {})

    def end_in(self, connection: database.Connection, call: Call, media: Mapping[str, str]) -> None:
        """Like `end`, but within the caller's transaction and regardless of RUN_COMPLETION."""
        run_endings.end(connection, call, media, tells=self._tells)


#: Of initial_context: the caller's number, and by which names the platform knows the one that it calls.
_NUMBERS = (("caller_number",), ("called_number", "phone_number"))
#: Of gathered_context: what has become of a transfer.
_TRANSFER = "transfer_state"
_COLUMNS = (
    "name, workflow_id, definition_id, mode, call_type, state, is_completed, storage_backend, usage_info, cost_info,"
    " initial_context, gathered_context, logs, annotations, created_at"
)


@functools.cache
def _insert(layout: layouts.Layout, *, reserved: bool) -> str:
    """Return the statement that inserts a run, with an id of the table's sequence that was drawn before, or without.

    OVERRIDING: for an id that is GENERATED ALWAYS. It means nothing for the platform's SERIAL.
    """
    by = rules.of(layout)
    values = (
        f"%(name)s, %(workflow_id)s, {by.RUN_DEFINITION}, 'ari', %(call_type)s, 'initialized', false,"
        f" %(storage_backend)s, '{{}}', '{{}}', {by.RUN_INITIAL}, %(gathered)s, '{{}}', '{{}}', clock_timestamp()"
    )
    if reserved:
        return f"INSERT INTO workflow_runs (id, {_COLUMNS}) OVERRIDING SYSTEM VALUE VALUES (%(id)s, {values})"  # noqa: S608 - built from constants
    return f"INSERT INTO workflow_runs ({_COLUMNS}) VALUES ({values}) RETURNING id"  # noqa: S608 - built from constants


_RUN_OF_ORGANIZATION = """
SELECT r.workflow_id, r.state::text AS state, r.is_completed, r.definition_id,
       r.gathered_context::text AS gathered_context, r.initial_context::text AS initial_context, w.user_id
FROM workflow_runs r JOIN workflows w ON w.id = r.workflow_id
WHERE r.id = %s AND w.organization_id = %s FOR UPDATE OF r
"""

_OTHER_CALL = "SELECT 1 FROM ari.calls WHERE workflow_run_id = %s AND call_id <> %s"

_USER_OF = "SELECT 1 FROM users WHERE id = %s AND selected_organization_id = %s"

#: By the platform's index of this expression, which keeps out of the table what Postgres cannot convert. As an
#: array: else it might read all runs of the organization, or walk the primary key.
_WAITING_RUNS = """
SELECT r.id FROM workflow_runs r JOIN workflows w ON w.id = r.workflow_id
WHERE r.id = ANY(ARRAY(SELECT id FROM workflow_runs WHERE gathered_context ->> 'call_id' = %s))
  AND w.organization_id = %s
  AND r.mode::text = 'ari' AND r.call_type::text = 'outbound' AND r.state::text = 'initialized'
  AND r.is_completed IS NOT TRUE
FOR UPDATE OF r
"""


def _waiting(connection: database.Connection, call: Call, args: RunArgs) -> database.Row | tuple[str, Cause]:
    """Return and lock the run that a leg names; or the reason why it may not have that run, and the hang-up cause.

    Looked up within the call's organization: another organization's run is neither read nor locked.
    """
    run = connection.execute(_RUN_OF_ORGANIZATION, [args.workflow_run_id, call.organization_id]).fetchone()
    if run is None:
        return f"run {args.workflow_run_id} does not belong to this organization", Cause.NOT_ALLOWED
    if run["workflow_id"] != args.workflow_id:
        return f"run {args.workflow_run_id} does not belong to workflow {args.workflow_id}", Cause.NOT_ALLOWED
    if run["state"] != "initialized" or run["is_completed"]:
        return f"run {args.workflow_run_id} does not wait for a call", Cause.REJECTED
    # Read under the run's lock, so that two legs which name one run are judged one after the other.
    if connection.execute(_OTHER_CALL, [args.workflow_run_id, call.call_id]).fetchone() is not None:
        return f"run {args.workflow_run_id} already has a call", Cause.REJECTED
    # The platform may place a call for another user of the organization.
    is_other = args.user_id is not None and args.user_id != run["user_id"]
    if is_other and connection.execute(_USER_OF, [args.user_id, call.organization_id]).fetchone() is None:
        return f"user {args.user_id} does not belong to this organization", Cause.NOT_ALLOWED
    return run


def _run_name(call: Call) -> str:
    """Return the name the platform would give the run."""
    if call.direction is Direction.INBOUND:
        return f"ARI Inbound {call.caller_number}"
    return f"WR-TEL-OUT-{call.call_id.int % 10**8:08d}"


def _number(initial: Mapping[str, object], *keys: str) -> str | None:
    found = (initial.get(key) for key in keys)
    return next((number for number in found if isinstance(number, str) and call_settings.is_number(number)), None)


def _names(call: Call) -> dict[str, str]:
    return {"call_id": call.leg_id, "provider": "ari", "channel_name": call.channel_name}


def _media(*, media_id: str, bridge_id: str) -> dict[str, str]:
    return {"ext_channel_id": media_id, "bridge_id": bridge_id}


def _names_transfer(run: database.Row) -> bool:
    return _TRANSFER in json_values.load_object(run["gathered_context"])


def _move_transfer(connection: database.Connection, run_id: int, before: tuple[str, ...], after: str) -> None:
    run = run_endings.lock(connection, run_id)
    gathered = json_values.fields(run["gathered_context"]) if run is not None else {}
    if json_values.load(gathered.get(_TRANSFER)) in before:
        _write(connection, run_id, gathered | json_values.encoded({_TRANSFER: after}))


def _write(connection: database.Connection, run_id: int, gathered: Mapping[str, str]) -> None:
    """Write gathered_context, with the commit. It was read under the run's lock: no other process's key is lost."""
    values = [json_values.document(gathered), run_id]
    connection.send("UPDATE workflow_runs SET gathered_context = %s WHERE id = %s", values)
