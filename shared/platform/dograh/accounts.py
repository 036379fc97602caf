"""Organizations and users: whether they exist, how many calls they may have, and what their calls are paid from."""

from __future__ import annotations

from shared import errors
from shared.platform.dograh import json_values
from shared.platform.ports import Account
from shared.storage import database

#: The organization_configurations row with the limit of concurrent calls.
LIMIT_KEY = "CONCURRENT_CALL_LIMIT"
#: The services in a user's configuration that may be the platform's own; those are paid for in credits.
_SERVICES = ("llm", "stt", "tts")


class Accounts:
    """Reads of organizations and users."""

    def __init__(self, db: database.Database) -> None:
        self._db = db

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
