"""The tenants' telephony configurations: read by the scheduler, written as the platform's own API would."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from shared import errors
from shared.asterisk.endpoint import Configuration
from shared.platform.dograh import (
    accounts,
    deactivations,
    february_writes,
    json_values,
    layouts,
    newest,
    newest_writes,
    rules,
    telephony_configuration,
)
from shared.platform.dograh.layouts import Layout
from shared.storage import database

#: The platform's name for the configuration that its upgrade has made of an organization's only one.
DEFAULT_NAME = "Default"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationRow:
    """One telephony configuration, as stored."""

    source_id: int
    organization_id: int
    value: object = field(repr=False)
    #: Why the platform's configurations are of no use; None if they are.
    unserved: str | None = None
    #: Whether the layout has inactive configurations.
    can_be_inactive: bool = False

    @property
    def media_client(self) -> str | None:
        """The websocket client that connects to the voice agent; None if the configuration names none."""
        return telephony_configuration.media_client(self.value)

    @property
    def deactivation(self) -> str | None:
        """Why the platform deactivates such a configuration as soon as it sees it; None if it does not."""
        if not self.can_be_inactive or self.media_client:
            return None
        try:
            self.read()
        except errors.InvalidConfiguration:
            # It is passed over there, and refused here.
            return None
        return deactivations.NO_MEDIA_CLIENT

    def read(self) -> Configuration:
        """Return the configuration in its canonical form. Raises InvalidConfiguration if it cannot be used."""
        if self.unserved is not None:
            raise errors.InvalidConfiguration(self.unserved)
        return telephony_configuration.read(self.value)


class Configurations:
    """Telephony configurations of provider `ari`."""

    def __init__(self, db: database.Database, *, watch: layouts.Watch | None = None) -> None:
        self._db = db
        self._watch = watch or layouts.Watch(db, quiet=True)

    def all(self) -> list[ConfigurationRow]:
        """Return every configuration: all of them or, by an error, none.

        The column is JSON and need not hold an object. Each value is judged by itself, here and in `read`, so that one
        tenant's cannot spoil the others'. Beside a layout that this release does not serve, each is refused.

        Raises:
            PlatformUnserved: They cannot be read at all.
        """
        found = self._watch.look()
        found.require_configurations()
        layout = rules.of(found.layout)
        with self._db.connection() as connection:
            rows = connection.execute(layout.CONFIGURATIONS).fetchall()
        values = ((row, layout.value(row)) for row in rows)
        return [
            ConfigurationRow(
                source_id=row["source_id"],
                organization_id=row["organization_id"],
                value=value,
                unserved=found.unserved,
                can_be_inactive=found.layout is Layout.NEWEST,
            )
            for row, value in values
            if telephony_configuration.is_ari(value)
        ]

    def inactive(self) -> set[int]:
        """Return the ids of the inactive configurations, as the port says."""
        if self._watch.found().layout is not Layout.NEWEST:
            return set()
        with self._db.connection() as connection:
            rows = connection.execute(newest.INACTIVE).fetchall()
        return {row["source_id"] for row in rows}

    def fingerprint(self) -> str:
        """Return the fingerprint of what `all` would read."""
        found = self._watch.look()
        found.require_configurations()
        with self._db.connection() as connection:
            rows = database.fingerprint(connection, rules.of(found.layout).CONFIGURATIONS)
        return f"{rows} {found.layout} {found.unserved}"

    def deactivate(self, *, source_id: int, organization_id: int, reason: str) -> bool:
        """Deactivate a configuration, as the port says. There are no inactive ones in the layout of 2026-02."""
        if self._watch.found().layout is not Layout.NEWEST:
            return False
        return deactivations.deactivate(self._db, source_id=source_id, organization_id=organization_id, reason=reason)

    def numbers(self, rows: Collection[ConfigurationRow]) -> Mapping[int, list[str]] | None:
        """Return the phone numbers whose calls each configuration brings; None where they bring the calls to any."""
        if self._watch.found().layout is not Layout.NEWEST:
            return None
        numbers: dict[int, list[str]] = {row.source_id: [] for row in rows}
        with self._db.connection() as connection:
            found = connection.execute(newest.NUMBERS, {"row_ids": [-source_id for source_id in numbers]}).fetchall()
        for each in found:
            numbers[each["source_id"]].append(each["address_normalized"])
        return numbers

    def write(self, organization_id: int, value: Mapping[str, Any], *, replace: bool, name: str = DEFAULT_NAME) -> None:
        """Write an organization's configuration, as the platform's own API would.

        Args:
            value: As `telephony_configuration.write` returns it.
            name: On the newest layout: which of the organization's configurations.

        Raises:
            InvalidConfiguration: The organization does not exist, or has no such workflow, or already has a
                configuration and `replace` is not set; or the layout is not served.
        """
        found = self._served()
        with self._db.transaction() as connection:
            accounts.require_organization(connection, organization_id)
            workflow_id = json_values.whole_number(value.get("inbound_workflow_id"))
            workflow = connection.execute(
                "SELECT organization_id FROM workflows WHERE id = %s", [workflow_id]
            ).fetchone()
            if workflow_id is not None and (workflow is None or workflow["organization_id"] != organization_id):
                raise errors.InvalidConfiguration(f"organization {organization_id} has no workflow {workflow_id}")
            if found.layout is Layout.NEWEST:
                newest_writes.write(connection, organization_id, name, value, replace=replace)
            elif name != DEFAULT_NAME:
                raise errors.InvalidConfiguration(
                    "an organization has one configuration in this layout: it has no name"
                )
            else:
                february_writes.write(connection, organization_id, value, replace=replace)

    def remove(self, organization_id: int, *, name: str | None = None) -> None:
        """Remove an organization's configuration.

        Args:
            name: On the newest layout: which of the organization's configurations; None for its only one.

        Raises:
            InvalidConfiguration: It has none for an Asterisk, or several and none is named.
        """
        found = self._served()
        with self._db.transaction() as connection:
            if found.layout is Layout.NEWEST:
                newest_writes.remove(connection, organization_id, name)
            else:
                february_writes.remove(connection, organization_id)

    def _served(self) -> layouts.Found:
        found = self._watch.look()
        if found.unserved is not None:
            raise errors.InvalidConfiguration(found.unserved)
        return found
