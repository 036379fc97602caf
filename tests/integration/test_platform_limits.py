"""Whose limit of calls holds for callers, by the layout of the platform's tables and by the setting."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from shared.platform import dograh
from shared.platform.ports import Route
from shared.storage import database
from tests import dograh_tables
from tests.dograh_tables import VALUE, configure, connect, execute, publish

LAYOUTS = ["stand-alone", "2026-02"]
pytestmark = [pytest.mark.services, pytest.mark.parametrize("layout", LAYOUTS, indirect=True)]


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with dograh_tables.filled(database_url) as made:
        publish(made, 1)
        execute(
            made,
            "INSERT INTO organization_configurations (organization_id, key, value, created_at, updated_at)"
            " VALUES (1, 'CONCURRENT_CALL_LIMIT', '{\"value\": 5}', now(), now())",
        )
        yield made


def test_the_platform_of_2026_02_limits_its_campaigns_alone(db: database.Database, layout: str) -> None:
    connection_id = connect(db, configure(db, json.dumps(VALUE)))

    def limit(limits: dograh.CallLimits) -> tuple[int | None, bool]:
        route = dograh.Routes(db, limits=limits).inbound(connection_id, "2077")
        assert isinstance(route, Route)
        return route.concurrent_calls, route.shares_slots

    assert limit(dograh.CallLimits()) == (5 if layout == "stand-alone" else None, False)
    assert limit(dograh.CallLimits(setting="on")) == (5, True)
    assert limit(dograh.CallLimits(setting="off")) == (None, False)
