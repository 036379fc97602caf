"""Organizations and users: whether they exist, how many calls they may have, and what their calls are paid from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from shared import errors
from shared.platform.dograh import json_values, layouts, model_configurations
from shared.platform.ports import Account, Route, RunAccount
from shared.storage import database

#: The organization_configurations row with the limit of concurrent calls.
LIMIT_KEY = "CONCURRENT_CALL_LIMIT"
#: The services in a user's configuration that may be the platform's own; those are paid for in credits.
_SERVICES = ("llm", "stt", "tts")
#: Of a run's initial_context: by this the platform's services bill it.
_CORRELATION = "mps_correlation_id"

#: The configuration of the definition that the run is pinned to counts; without one the workflow's.
_RUN_ACCOUNT = """
SELECT r.workflow_id, w.organization_id, u.id AS user_id, c.value::text AS organization_models,
       coalesce(d.workflow_configurations, w.workflow_configurations)::text AS workflow_models
FROM workflow_runs r JOIN workflows w ON w.id = r.workflow_id
LEFT JOIN users u ON u.id = w.user_id
LEFT JOIN workflow_definitions d ON d.id = r.definition_id
LEFT JOIN organization_configurations c ON c.organization_id = w.organization_id AND c.key = %(key)s
WHERE r.id = %(run_id)s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLimits:
    """Whether the platform's limit of concurrent calls holds for callers, by layout."""

    #: `auto`: as the platform does it. Stand-alone it always does.
    setting: Literal["auto", "on", "off"] = "auto"
    #: Of an organization without a limit of its own, in the newest layout.
    default: int = 10

    @property
    def shares_slots(self) -> bool:
        """Whether callers take slots at the platform in the layout of 2026-02, too: in the newest they always do."""
        return self.setting == "on"

    def shares_slots_of(self, found: layouts.Found) -> bool:
        """Return whether callers take slots at the platform in the layout that was found."""
        return self.shares_slots or found.layout is layouts.Layout.NEWEST

    def applied(self, route: Route, found: layouts.Found) -> Route:
        """Return a route with the limit that holds in the layout that was found."""
        limit = (
            self.of_newest(route.concurrent_calls)
            if found.layout is layouts.Layout.NEWEST
            else self.of_february(route.concurrent_calls, is_stand_alone=not found.platform_completes_runs)
        )
        return replace(route, concurrent_calls=limit, shares_slots=self.shares_slots_of(found))

    def of_february(self, limit: int | None, *, is_stand_alone: bool) -> int | None:
        """Return the limit of callers in the layout of 2026-02, whose platform limits campaigns alone."""
        holds = self.setting == "on" or (self.setting == "auto" and is_stand_alone)
        return limit if holds else None

    def of_newest(self, limit: int | None) -> int | None:
        """Return the limit of callers in the newest layout; None for none.

        Args:
            limit: The organization's own; None if it has none that can be read.
        """
        if self.setting == "off":
            return None
        return max(1, self.default if limit is None else limit)


class Accounts:
    """Reads of organizations and users."""

    def __init__(self, db: database.Database, *, watch: layouts.Watch | None = None) -> None:
        self._db = db
        self._watch = watch or layouts.Watch(db, quiet=True)

    def require_organization(self, organization_id: int) -> None:
        """Raise InvalidConfiguration if the organization does not exist."""
        with self._db.connection() as connection:
            require_organization(connection, organization_id)

    def concurrent_calls(self, organization_id: int) -> int | None:
        """Return the platform's limit of calls at the same time; None if it sets none, or none that can be read."""
        with self._db.connection() as connection:
            row = connection.execute(
                "SELECT value::text AS value FROM organization_configurations WHERE organization_id = %s AND key = %s",
                [organization_id, LIMIT_KEY],
            ).fetchone()
        return call_limit(row["value"]) if row is not None else None

    def concurrent_calls_of(self, organization_ids: Collection[int]) -> dict[int, int | None]:
        """Return the platform's limits of organizations, by one statement; none of one that has no row."""
        with self._db.connection() as connection:
            rows = connection.execute(
                "SELECT organization_id, value::text AS value FROM organization_configurations"
                " WHERE organization_id = ANY(%s) AND key = %s",
                [list(organization_ids), LIMIT_KEY],
            ).fetchall()
        return {row["organization_id"]: call_limit(row["value"]) for row in rows}

    def account(self, user_id: int) -> Account:
        """Return the account that a user's calls are paid from.

        Raises:
            InvalidConfiguration: The user does not exist, or its configuration cannot be read.
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
        configuration = json_values.load(row["configuration"]) if row["configuration"] is not None else {}
        return Account(provider_id=row["provider_id"], service_keys=_service_keys(configuration))

    def is_newest(self) -> bool:
        """Return whether the platform's tables have the newest layout."""
        return self._watch.found().layout is layouts.Layout.NEWEST

    def run_account(self, workflow_run_id: int) -> RunAccount:
        """Return the account that a run is paid from, in the newest layout.

        Raises:
            InvalidConfiguration: The run does not exist, or its workflow has no organization or no owner.
        """
        with self._db.connection() as connection:
            values = {"run_id": workflow_run_id, "key": model_configurations.KEY}
            row = connection.execute(_RUN_ACCOUNT, values).fetchone()
        if row is None or row["organization_id"] is None:
            raise errors.InvalidConfiguration(f"there is no run {workflow_run_id} of an organization")
        if row["user_id"] is None:
            raise errors.InvalidConfiguration(f"workflow {row['workflow_id']} has no owner")
        models = model_configurations.read(
            json_values.load(row["organization_models"]), json_values.load(row["workflow_models"])
        )
        return RunAccount(
            workflow_run_id=workflow_run_id,
            workflow_id=row["workflow_id"],
            organization_id=row["organization_id"],
            user_id=row["user_id"],
            service_keys=models.service_keys,
            is_managed=models.is_managed,
        )

    def note_correlation(self, workflow_run_id: int, correlation_id: str) -> None:
        """Merge the correlation id into a run's initial_context."""
        with self._db.transaction() as connection:
            row = connection.execute(
                "SELECT initial_context::text AS initial_context FROM workflow_runs WHERE id = %s FOR UPDATE",
                [workflow_run_id],
            ).fetchone()
            if row is not None:
                initial = json_values.fields(row["initial_context"])
                initial |= json_values.encoded({_CORRELATION: correlation_id})
                connection.execute(
                    "UPDATE workflow_runs SET initial_context = %s WHERE id = %s",
                    [json_values.document(initial), workflow_run_id],
                )


def call_limit(text: str | None) -> int | None:
    """Read a limit of concurrent calls from its row's value; None if it cannot be read."""
    return json_values.whole_number(json_values.load_object(text).get("value"), least=0)


def require_organization(connection: database.Connection, organization_id: int) -> None:
    """Like `Accounts.require_organization`, within the caller's transaction."""
    if connection.execute("SELECT 1 FROM organizations WHERE id = %s", [organization_id]).fetchone() is None:
        raise errors.InvalidConfiguration(f"there is no organization {organization_id}")


def _service_keys(configuration: object) -> tuple[str, ...]:
    if not isinstance(configuration, dict):
        raise errors.InvalidConfiguration("the user's configuration is not a JSON object")
    keys: dict[str, None] = {}
    for name in _SERVICES:
        service = configuration.get(name)
        if not isinstance(service, dict) or service.get("provider") != "dograh":
            continue
        key = service.get("api_key")
        if not isinstance(key, str) or not key:
            raise errors.InvalidConfiguration(f"the user's {name} is a service of the platform and has no api_key")
        keys[key] = None
    return tuple(keys)
