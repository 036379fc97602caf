"""Organizations and users: whether there are such, how many calls they may have, and who pays for them."""

from __future__ import annotations

from dataclasses import dataclass, field

from shared import errors
from shared.platform.dograh import json_values
from shared.storage import database

_LIMIT_KEY = "CONCURRENT_CALL_LIMIT"
#: The services of a user's configuration that may be the platform's own, and are then paid for in credits.
_SERVICES = ("llm", "stt", "tts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Who pays for a user's calls."""

    #: How the platform names the user to its services.
    provider_id: str
    #: Of the platform's own services that the user's calls go by, each once.
    service_keys: tuple[str, ...] = field(repr=False)


class Accounts:
    """Reads of organizations and users."""

    def __init__(self, db: database.Database) -> None:
        self._db = db

    def require_organization(self, organization_id: int) -> None:
        """Raises InvalidConfiguration when there is no such organization."""
        with self._db.connection() as connection:
            require_organization(connection, organization_id)

    def concurrent_calls(self, organization_id: int) -> int | None:
        """The platform's own limit of calls at the same time; None when it has none, or none that can be read."""
        with self._db.connection() as connection:
            row = connection.execute(
                "SELECT value::text AS value FROM organization_configurations WHERE organization_id = %s AND key = %s",
                [organization_id, _LIMIT_KEY],
            ).fetchone()
        return (
            json_values.whole_number(json_values.load_object(row["value"]).get("value"), least=0)
            if row is not None
            else None
        )

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
        configuration = json_values.load(row["configuration"]) if row["configuration"] is not None else {}
        return Account(provider_id=row["provider_id"], service_keys=_service_keys(configuration))


def require_organization(connection: database.Connection, organization_id: int) -> None:
    """As `Accounts.require_organization`, inside the caller's transaction."""
    if connection.execute("SELECT 1 FROM organizations WHERE id = %s", [organization_id]).fetchone() is None:
        raise errors.InvalidConfiguration(f"there is no organization {organization_id}")


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
