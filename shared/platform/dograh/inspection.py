"""What is odd in the platform's rows, for `arictl doctor`: by most of it callers are refused."""

from __future__ import annotations

from shared.platform.dograh import february, phone_numbers
from shared.storage import database

#: So many phone numbers are looked at.
_NUMBERS = 10_000

_STALE = "SELECT count(*) AS number FROM organization_configurations WHERE key = %s"
#: Workflows that a phone number leads to, and whose runs would have no definition.
_UNDEFINED = """
SELECT DISTINCT w.id FROM telephony_phone_numbers p
JOIN telephony_configurations c ON c.id = p.telephony_configuration_id AND c.provider = 'ari' AND NOT c.inactive
JOIN workflows w ON w.id = p.inbound_workflow_id
WHERE p.is_active AND w.released_definition_id IS NULL
  AND NOT EXISTS (SELECT 1 FROM workflow_definitions d WHERE d.workflow_id = w.id AND d.is_current)
ORDER BY w.id
"""
_ADDRESSES = f"""
SELECT p.address_normalized FROM telephony_phone_numbers p
JOIN telephony_configurations c ON c.id = p.telephony_configuration_id AND c.provider = 'ari'
WHERE p.is_active ORDER BY p.id LIMIT {_NUMBERS}
"""  # noqa: S608 - built from constants
_INACTIVE = """
SELECT id, organization_id, inactive_reason FROM telephony_configurations
WHERE provider = 'ari' AND inactive ORDER BY id
"""

#: Of each there is one, by a partial unique index, which a restore may have lost.
_DEFAULTS = """
SELECT 'outbound configuration of organization ' || organization_id AS what FROM telephony_configurations
WHERE is_default_outbound GROUP BY organization_id HAVING count(*) > 1
UNION ALL
SELECT 'caller id of configuration ' || telephony_configuration_id FROM telephony_phone_numbers
WHERE is_default_caller_id GROUP BY telephony_configuration_id HAVING count(*) > 1
ORDER BY what
"""


def stale_configurations(db: database.Database) -> int:
    """Return how many configurations of the layout of 2026-02 there are."""
    with db.connection() as connection:
        row = connection.execute(_STALE, [february.KEY]).fetchone()
    assert row is not None
    return int(row["number"])


def undefined_workflows(db: database.Database) -> list[int]:
    """Return the workflows of phone numbers that have no definition (newest layout)."""
    with db.connection() as connection:
        return [row["id"] for row in connection.execute(_UNDEFINED).fetchall()]


def odd_numbers(db: database.Database) -> list[str]:
    """Return the phone numbers that no call finds: they are stored in another form than calls are looked up by."""
    with db.connection() as connection:
        stored = [row["address_normalized"] for row in connection.execute(_ADDRESSES).fetchall()]
    return [address for address in stored if phone_numbers.canonical(address) != address]


def repeated_defaults(db: database.Database) -> list[str]:
    """Return the defaults of which there are several (newest layout)."""
    with db.connection() as connection:
        return [row["what"] for row in connection.execute(_DEFAULTS).fetchall()]


def inactive_configurations(db: database.Database) -> list[database.Row]:
    """Return `id`, `organization_id` and `inactive_reason` of each configuration that is inactive (newest layout)."""
    with db.connection() as connection:
        return connection.execute(_INACTIVE).fetchall()
