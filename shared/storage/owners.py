"""Owners of claims and leases. One is named `<process>/<claim>`: what it owns ends with its process."""

from __future__ import annotations

from uuid import UUID


def name(process: str, claim: UUID) -> str:
    """Return the name of an owner that no other claim of the process has."""
    return f"{process}/{claim.hex[:8]}"


def process_of(owner: str) -> str:
    """Return the process of an owner."""
    return owner.rpartition("/")[0]


def process_in_sql(column: str) -> str:
    """Return the expression that is the process of the owner in a column."""
    return f"regexp_replace({column}, '/[^/]*$', '')"
