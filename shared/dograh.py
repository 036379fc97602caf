"""The platform's tables (Dograh, layout 2026-02): configurations, routes, runs. Nothing else reads or writes them.

They belong to the platform: never altered, never locked but for the run being updated.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from shared import database, errors
from shared.core import configurations, serving, stasis_args
from shared.core.calls import Call, Cause, Direction, Outcome
from shared.core.stasis_args import RunArgs

_CONFIGURATION_KEY = "TELEPHONY_CONFIGURATION"
_LIMIT_KEY = "CONCURRENT_CALL_LIMIT"
#: The services of a user's configuration that may be the platform's own, and are then paid for in credits.
_SERVICES = ("llm", "stt", "tts")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationRow:
    """One organization's telephony configuration, as stored."""

    source_id: int
    organization_id: int
    value: object


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The workflow that serves a call, and by which terms."""

    workflow_id: int
    user_id: int
    terms: serving.Terms
    #: A caller who is refused for another reason goes on in the dialplan.
    goes_on: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NoRoute:
    """Why a call is not served, the Q.850 cause for it, and whether its caller goes on in the dialplan."""

    reason: str
    hangup_cause: int
    goes_on: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Who pays for a user's calls."""

    #: How the platform names the user to its services.
    provider_id: str
    #: Of the platform's own services that the user's calls go by, each once.
    service_keys: tuple[str, ...] = field(repr=False)


class Dograh:
    """The one adapter of the platform port."""

    def __init__(
        self,
        db: database.Database,
        *,
        storage_backend: Literal["s3", "minio"] = "s3",
        run_completion: Literal["ours", "platform"] = "ours",
    ) -> None:
        self._db = db
        self._storage_backend = storage_backend
        self._completes_connected = run_completion == "ours"

    def configurations(self) -> list[ConfigurationRow]:
        """Every telephony configuration of provider `ari`, read whole or not at all.

        The column is JSON and may hold what is no object: each value is judged on its own, here and by the caller.
        """
        with self._db.connection() as connection:
            rows = connection.execute(
                "SELECT id, organization_id, value::text AS value FROM organization_configurations WHERE key = %s",
                [_CONFIGURATION_KEY],
            ).fetchall()
        found = []
        for row in rows:
            value = _load(row["value"])
            if configurations.is_ari(value):
                found.append(ConfigurationRow(source_id=row["id"], organization_id=row["organization_id"], value=value))
        return found

    def write_configuration(self, organization_id: int, value: Mapping[str, Any], *, replace: bool) -> None:
        """Writes an organization's telephony configuration, as the platform's own API would.

        Raises:
            InvalidConfiguration: There is no such organization, or no such workflow of it, or it has a configuration
                and `replace` is not set.
        """
        with self._db.transaction() as connection:
            _require_organization(connection, organization_id)
            workflow_id = _whole_number(value.get("inbound_workflow_id"))
            found = connection.execute("SELECT organization_id FROM workflows WHERE id = %s", [workflow_id]).fetchone()
            if workflow_id is not None and (found is None or found["organization_id"] != organization_id):
                raise errors.InvalidConfiguration(f"organization {organization_id} has no workflow {workflow_id}")
            written = connection.execute(
                "INSERT INTO organization_configurations AS c (organization_id, key, value, created_at)"
                " VALUES (%s, %s, %s, clock_timestamp()) ON CONFLICT (organization_id, key)"
                " DO UPDATE SET value = excluded.value WHERE %s RETURNING c.id",
                [organization_id, _CONFIGURATION_KEY, json.dumps(dict(value)), replace],
            ).fetchone()
            if written is None:
                raise errors.InvalidConfiguration(
                    f"organization {organization_id} has a configuration already: --replace changes it"
                )

    def remove_configuration(self, organization_id: int) -> None:
        """Removes an organization's telephony configuration. Raises InvalidConfiguration when it has none of ours."""
        with self._db.transaction() as connection:
            row = connection.execute(
                "SELECT id, value::text AS value FROM organization_configurations"
                " WHERE organization_id = %s AND key = %s FOR UPDATE",
                [organization_id, _CONFIGURATION_KEY],
            ).fetchone()
            if row is None or not configurations.is_ari(_load(row["value"])):
                raise errors.InvalidConfiguration(f"organization {organization_id} has no ARI configuration")
            connection.execute("DELETE FROM organization_configurations WHERE id = %s", [row["id"]])

    def require_organization(self, organization_id: int) -> None:
        """Raises InvalidConfiguration when there is no such organization."""
        with self._db.connection() as connection:
            _require_organization(connection, organization_id)

    def concurrent_calls(self, organization_id: int) -> int | None:
        """The platform's own limit of calls at the same time; None when it has none, or none that can be read."""
        with self._db.connection() as connection:
            row = connection.execute(
                "SELECT value::text AS value FROM organization_configurations WHERE organization_id = %s AND key = %s",
                [organization_id, _LIMIT_KEY],
            ).fetchone()
        return _whole_number(_object(row["value"]).get("value"), least=0) if row is not None else None

    def account(self, user_id: int) -> Account:
        """Who pays for a user's calls.

        Raises:
            InvalidConfiguration: There is no such user, or its configuration cannot be read.
        """
        with self._db.connection() as connection:
            row = connection.execute(
                "SELECT u.provider_id, c.configuration FROM users u LEFT JOIN LATERAL ("
                " SELECT configuration::text AS configuration FROM user_configurations WHERE user_id = u.id"
                " ORDER BY id DESC LIMIT 1) c ON true WHERE u.id = %s",
                [user_id],
            ).fetchone()
        if row is None:
            raise errors.InvalidConfiguration(f"there is no user {user_id}")
        configuration = _load(row["configuration"]) if row["configuration"] is not None else {}
        return Account(provider_id=row["provider_id"], service_keys=_service_keys(configuration))

    def route(self, *, source_id: int, organization_id: int) -> Route | NoRoute:
        """Where an inbound call of this connection goes, by the configuration as it is now."""
        with self._db.connection() as connection:
            value = _configuration(connection, source_id, organization_id)
            if isinstance(value, NoRoute):
                return value
            workflow_id = _whole_number(value.get("inbound_workflow_id"))
            if workflow_id is None:
                return _refusal(value, "no inbound workflow configured", Cause.UNALLOCATED)
            workflow = connection.execute(_WORKFLOW, [workflow_id]).fetchone()
        return _judge(value, workflow_id, workflow, organization_id, "inbound workflow")

    def outbound_route(self, *, source_id: int, organization_id: int, workflow_id: int) -> Route | NoRoute:
        """By which terms a call that we begin for a workflow is served."""
        with self._db.connection() as connection:
            value = _configuration(connection, source_id, organization_id)
            if isinstance(value, NoRoute):
                return value
            workflow = connection.execute(_WORKFLOW, [workflow_id]).fetchone()
        return _judge(value, workflow_id, workflow, organization_id, f"workflow {workflow_id}")

    def workflow_of(self, workflow_run_id: int, organization_id: int) -> int | None:
        """The workflow of an organization's run; None when the organization has no such run."""
        with self._db.connection() as connection:
            row = connection.execute(
                "SELECT w.id FROM workflow_runs r JOIN workflows w ON w.id = r.workflow_id"
                " WHERE r.id = %s AND w.organization_id = %s",
                [workflow_run_id, organization_id],
            ).fetchone()
        return int(row["id"]) if row is not None else None

    def take_run(
        self, connection: database.Connection, call: Call, args: RunArgs, *, source_id: int
    ) -> Route | NoRoute:
        """Takes a run that waits for a call, for this one, inside the caller's transaction.

        What names the call is in its gathered_context from here on: the voice agent looks for it.
        """
        value = _configuration(connection, source_id, call.organization_id)
        if isinstance(value, NoRoute):
            return value
        run = _waiting(connection, call, args)
        if isinstance(run, tuple):
            return _refusal(value, *run)
        workflow = connection.execute(_WORKFLOW, [args.workflow_id]).fetchone()
        route = _judge(value, args.workflow_id, workflow, call.organization_id, f"workflow {args.workflow_id}")
        if isinstance(route, NoRoute):
            return route
        if args.user_id is not None:
            route = replace(route, user_id=args.user_id)
        _write(connection, args.workflow_run_id, _object(run["gathered_context"]) | _names(call))
        return route

    def waiting_run(self, connection: database.Connection, *, organization_id: int, channel_id: str) -> int | None:
        """The run whose call the platform has begun under this channel id and that waits for it, locked; or None.

        Among the newest runs only: the platform's table has no index for it.
        """
        rows = connection.execute(_WAITING_RUNS, [organization_id, json.dumps(channel_id)]).fetchall()
        waiting = (row["id"] for row in rows if _object(row["gathered_context"]).get("call_id") == channel_id)
        return next(waiting, None)

    def completed(self, run_ids: Collection[int]) -> set[int]:
        """Which of these runs are completed."""
        with self._db.connection() as connection:
            rows = connection.execute(
                "SELECT id FROM workflow_runs WHERE id = ANY(%s) AND is_completed", [list(run_ids)]
            ).fetchall()
        return {row["id"] for row in rows}

    def create_run(self, connection: database.Connection, call: Call) -> int:
        """Inserts the workflow run of a call, inside the caller's transaction; returns its id.

        `call_id` is in gathered_context from the start: the voice agent looks for it when the media leg dials in.
        """
        definition = connection.execute(
            "SELECT id FROM workflow_definitions WHERE workflow_id = %s AND is_current ORDER BY id DESC LIMIT 1",
            [call.workflow_id],
        ).fetchone()
        initial = {
            "caller_number": call.caller_number,
            "called_number": call.called_number,
            "direction": str(call.direction),
            "provider": "ari",
        }
        row = connection.execute(
            "INSERT INTO workflow_runs (name, workflow_id, definition_id, mode, call_type, state, is_completed,"
            " storage_backend, usage_info, cost_info, initial_context, gathered_context, logs, annotations, created_at)"
            " VALUES (%s, %s, %s, 'ari', %s, 'initialized', false, %s, '{}', '{}', %s, %s, '{}', '{}',"
            " clock_timestamp()) RETURNING id",
            [
                _run_name(call),
                call.workflow_id,
                definition["id"] if definition else None,
                str(call.direction),
                self._storage_backend,
                json.dumps(initial),
                json.dumps(_names(call)),
            ],
        ).fetchone()
        assert row is not None
        return int(row["id"])

    def note_media(self, call: Call, *, media_id: str, bridge_id: str) -> None:
        """Writes the media leg's and the bridge's id into the run's gathered_context."""
        if call.workflow_run_id is None:
            return
        with self._db.transaction() as connection:
            run = _lock(connection, call.workflow_run_id)
            if run is not None:
                media = {"ext_channel_id": media_id, "bridge_id": bridge_id}
                # The name of a leg that we originate is not known before it has answered.
                gathered = _object(run["gathered_context"]) | _names(call) | media
                _write(connection, call.workflow_run_id, gathered)

    def end_run(self, call: Call, *, media_id: str, bridge_id: str) -> None:
        """Ends the call's run if that is ours to do; does nothing when it has ended already.

        A run that never connected is always ours to end. `is_completed` goes from false to true, never back.
        """
        if call.workflow_run_id is None:
            self._end_named(call)
            return
        connected = call.connected_at is not None
        if connected and not self._completes_connected:
            return
        media = {"ext_channel_id": media_id, "bridge_id": bridge_id} if connected else {}
        with self._db.transaction() as connection:
            self.end_run_in(connection, call, media)

    def _end_named(self, call: Call) -> None:
        """Ends the run that a leg of the platform's came for, and that its call was over too soon to take."""
        if call.direction is not Direction.OUTBOUND:
            return
        try:
            args = stasis_args.read(call.args)
        except errors.InvalidStasisArgs:
            return
        with self._db.transaction() as connection:
            if not isinstance(_waiting(connection, call, args), tuple):
                self.end_run_in(connection, replace(call, workflow_run_id=args.workflow_run_id), {})

    @staticmethod
    def end_run_in(connection: database.Connection, call: Call, media: Mapping[str, str]) -> None:
        """As `end_run`, inside a transaction and whoever's it is to do."""
        assert call.workflow_run_id is not None
        run = _lock(connection, call.workflow_run_id)
        if run is None or run["is_completed"]:
            return
        gathered = _object(run["gathered_context"]) | dict(media)
        if call.connected_at is None:
            gathered["error"] = call.reason or "never connected"
        for key in ("call_disposition", "mapped_call_disposition"):
            gathered.setdefault(key, _disposition(call))
        _write(connection, call.workflow_run_id, gathered)
        usage = _object(run["usage_info"]) | {"call_duration_seconds": round(call.talk_seconds)}
        connection.execute(
            "UPDATE workflow_runs SET state = 'completed', is_completed = true, usage_info = %s WHERE id = %s",
            [json.dumps(usage), call.workflow_run_id],
        )


_WORKFLOW = "SELECT organization_id, user_id, status::text AS status FROM workflows WHERE id = %s"

_RUN_OF_ORGANIZATION = """
SELECT r.workflow_id, r.state::text AS state, r.is_completed, r.gathered_context::text AS gathered_context, w.user_id
FROM workflow_runs r JOIN workflows w ON w.id = r.workflow_id
WHERE r.id = %s AND w.organization_id = %s FOR UPDATE OF r
"""

_OTHER_CALL = "SELECT 1 FROM ari.calls WHERE workflow_run_id = %s AND call_id <> %s"

_USER_OF = "SELECT 1 FROM users WHERE id = %s AND selected_organization_id = %s"

#: The platform's calls are young: a bound by the key keeps this cheap however many runs there are. The context is
#: searched as text: one tenant's that JSON may hold, and Postgres cannot read, must not fail another's.
_WAITING_RUNS = """
SELECT r.id, r.gathered_context::text AS gathered_context
FROM workflow_runs r JOIN workflows w ON w.id = r.workflow_id
WHERE r.id > (SELECT coalesce(max(id), 0) - 10000 FROM workflow_runs) AND w.organization_id = %s
  AND r.mode::text = 'ari' AND r.call_type::text = 'outbound' AND r.state::text = 'initialized' AND NOT r.is_completed
  AND position(%s::text in r.gathered_context::text) > 0
ORDER BY r.id DESC LIMIT 10 FOR UPDATE OF r
"""


def _configuration(connection: database.Connection, source_id: int, organization_id: int) -> dict[str, Any] | NoRoute:
    row = connection.execute(
        "SELECT value::text AS value FROM organization_configurations"
        " WHERE id = %s AND organization_id = %s AND key = %s",
        [source_id, organization_id, _CONFIGURATION_KEY],
    ).fetchone()
    if row is None:
        return NoRoute(reason="configuration removed", hangup_cause=Cause.NETWORK_OUT_OF_ORDER)
    value = _load(row["value"])
    if not isinstance(value, dict):
        return NoRoute(reason="configuration unreadable", hangup_cause=Cause.NETWORK_OUT_OF_ORDER)
    return value


def _refusal(value: object, reason: str, hangup_cause: int) -> NoRoute:
    return NoRoute(reason=reason, hangup_cause=hangup_cause, goes_on=serving.goes_on(value))


def _waiting(connection: database.Connection, call: Call, args: RunArgs) -> database.Row | tuple[str, Cause]:
    """The run that a leg names and that waits for it, locked; otherwise why it may not have it, and the hang-up cause.

    Looked up within the call's organization: a run of another is neither read nor locked.
    """
    run = connection.execute(_RUN_OF_ORGANIZATION, [args.workflow_run_id, call.organization_id]).fetchone()
    if run is None:
        return f"run {args.workflow_run_id} is not of this organization", Cause.NOT_ALLOWED
    if run["workflow_id"] != args.workflow_id:
        return f"run {args.workflow_run_id} is not of workflow {args.workflow_id}", Cause.NOT_ALLOWED
    if run["state"] != "initialized" or run["is_completed"]:
        return f"run {args.workflow_run_id} does not wait for a call", Cause.REJECTED
    # Asked behind the run's lock: two legs that name one run come one after the other.
    if connection.execute(_OTHER_CALL, [args.workflow_run_id, call.call_id]).fetchone() is not None:
        return f"run {args.workflow_run_id} has a call already", Cause.REJECTED
    # The platform may call in the name of another of the organization's users.
    is_other = args.user_id is not None and args.user_id != run["user_id"]
    if is_other and connection.execute(_USER_OF, [args.user_id, call.organization_id]).fetchone() is None:
        return f"user {args.user_id} is not of this organization", Cause.NOT_ALLOWED
    return run


def _run_name(call: Call) -> str:
    """As the platform names its runs."""
    if call.direction is Direction.INBOUND:
        return f"ARI Inbound {call.caller_number}"
    return f"WR-TEL-OUT-{call.call_id.int % 10**8:08d}"


def _names(call: Call) -> dict[str, str]:
    return {"call_id": call.channel_id, "provider": "ari", "channel_name": call.channel_name}


def _judge(
    value: dict[str, Any], workflow_id: int, workflow: database.Row | None, organization_id: int, what: str
) -> Route | NoRoute:
    if workflow is None:
        return _refusal(value, f"{what} does not exist", Cause.UNALLOCATED)
    if workflow["organization_id"] != organization_id:
        return _refusal(value, f"{what} is of another organization", Cause.NOT_ALLOWED)
    if workflow["status"] == "archived":
        return _refusal(value, f"{what} is archived", Cause.UNALLOCATED)
    if workflow["user_id"] is None:
        return _refusal(value, f"{what} has no user", Cause.NOT_ALLOWED)
    try:
        terms = serving.terms(value)
    except errors.InvalidConfiguration as exc:
        return _refusal(value, str(exc), Cause.NETWORK_OUT_OF_ORDER)
    return Route(workflow_id=workflow_id, user_id=workflow["user_id"], terms=terms, goes_on=serving.goes_on(value))


def _service_keys(configuration: object) -> tuple[str, ...]:
    if not isinstance(configuration, dict):
        raise errors.InvalidConfiguration("the user's configuration is no object")
    keys: dict[str, None] = {}
    for name in _SERVICES:
        service = configuration.get(name)
        if not isinstance(service, dict) or service.get("provider") != "dograh":
            continue
        key = service.get("api_key")
        if not isinstance(key, str) or not key:
            raise errors.InvalidConfiguration(f"the user's {name} is the platform's own and has no api_key")
        keys[key] = None
    return tuple(keys)


def _require_organization(connection: database.Connection, organization_id: int) -> None:
    if connection.execute("SELECT 1 FROM organizations WHERE id = %s", [organization_id]).fetchone() is None:
        raise errors.InvalidConfiguration(f"there is no organization {organization_id}")


def _disposition(call: Call) -> str:
    match call.outcome:
        case Outcome.COMPLETED:
            return "completed"
        case Outcome.BUSY | Outcome.NO_ANSWER:
            return str(call.outcome)
        case Outcome.CANCELED | Outcome.ABANDONED:
            return "canceled"
        case Outcome.REFUSED:
            return "failed"
        case Outcome.FAILED if call.direction is Direction.OUTBOUND and call.attempt == 0:
            # The far end was not reached.
            return "failed"
        case _:
            return "error"


def _write(connection: database.Connection, run_id: int, gathered: Mapping[str, Any]) -> None:
    """Writes gathered_context, read under the run's lock: no key another process wrote is lost."""
    connection.execute("UPDATE workflow_runs SET gathered_context = %s WHERE id = %s", [json.dumps(gathered), run_id])


def _lock(connection: database.Connection, run_id: int) -> database.Row | None:
    return connection.execute(
        "SELECT is_completed, gathered_context::text AS gathered_context, usage_info::text AS usage_info"
        " FROM workflow_runs WHERE id = %s FOR UPDATE",
        [run_id],
    ).fetchone()


def _object(text: str | None) -> dict[str, Any]:
    value = _load(text)
    return value if isinstance(value, dict) else {}


def _load(text: str | None) -> object:
    """JSON columns are JSON, not JSONB: read as text, so that whatever the platform could store can be read."""
    try:
        return json.loads(text) if text is not None else None
    except (ValueError, RecursionError):
        return None


def _whole_number(value: object, *, least: int = 1) -> int | None:
    """An id or a limit: an int, or the digits of one. The platform's are INTEGER."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 10:
        value = int(value)
    return value if isinstance(value, int) and least <= value < 2**31 else None
