"""The demo of `make run`: a tenant in the platform's tables, and callers for a real Asterisk."""

import contextlib
import json
import random
import time

import psycopg
import requests

from devstack.asterisk import Switch

TENANT = "ari-pipeline-demo"
APP = "demo"
MEDIA_CLIENT = "media"
CALLED = "5550100"
CALLERS = ("+4915550001", "+4915550002", "+4915550003", "+4915550004", "+4915550005")
TALK_SECONDS = (3.0, 8.0)

ORGANIZATION = """
    INSERT INTO organizations (provider_id, created_at) VALUES (%s, now())
    ON CONFLICT (provider_id) DO UPDATE SET provider_id = excluded.provider_id RETURNING id
"""
USER = """
    INSERT INTO users (provider_id, selected_organization_id, created_at) VALUES (%s, %s, now())
    ON CONFLICT (provider_id) DO UPDATE SET provider_id = excluded.provider_id RETURNING id
"""
FIND_WORKFLOW = "SELECT id FROM workflows WHERE organization_id = %s AND name = %s"
WORKFLOW = """
    INSERT INTO workflows (name, user_id, organization_id, workflow_definition, template_context_variables,
                           call_disposition_codes, created_at)
    VALUES (%s, %s, %s, '{}', '{}', '{}', now()) RETURNING id
"""
CONFIGURATION = """
    INSERT INTO organization_configurations (organization_id, key, value, created_at, updated_at)
    VALUES (%s, 'TELEPHONY_CONFIGURATION', %s, now(), now())
    ON CONFLICT (organization_id, key) DO UPDATE SET value = excluded.value, updated_at = now()
"""


def add_tenant(database_url: str, *, endpoint: str, password: str) -> None:
    """Write the demo tenant as the platform would; update the connection of an existing one."""
    with contextlib.closing(psycopg.connect(database_url)) as connection, connection.transaction():
        organization_id = _id(connection.execute(ORGANIZATION, (TENANT,)))
        user_id = _id(connection.execute(USER, (TENANT, organization_id)))
        found = connection.execute(FIND_WORKFLOW, (organization_id, TENANT)).fetchone()
        workflow_id = found[0] if found else _id(connection.execute(WORKFLOW, (TENANT, user_id, organization_id)))
        value = {
            "provider": "ari",
            "ari_endpoint": endpoint,
            "app_name": APP,
            "app_password": password,
            "ws_client_name": MEDIA_CLIENT,
            "inbound_workflow_id": workflow_id,
            "from_numbers": [CALLED],
        }
        connection.execute(CONFIGURATION, (organization_id, json.dumps(value)))


def _id(cursor: psycopg.Cursor[tuple[int]] | psycopg.Cursor[tuple[object, ...]]) -> int:
    row = cursor.fetchone()
    assert row
    assert isinstance(row[0], int)
    return row[0]


def scenario(*, rate_per_second: float, count: int | None) -> str:
    """Return the demo callers as a scenario file of the simulator."""
    callers = {
        "app": APP,
        "wait_for_app": True,
        "rate_per_second": rate_per_second,
        "talk_seconds": TALK_SECONDS,
        "count": count,
        "caller_numbers": CALLERS,
        "called": CALLED,
    }
    return json.dumps({"callers": [callers]}, indent=2)


class Callers:
    """The demo callers of a real Asterisk; `step` is called repeatedly and does what is due."""

    def __init__(self, switch: Switch, *, rate_per_second: float, count: int | None) -> None:
        self._switch = switch
        self._interval_seconds = 1 / rate_per_second
        self._left = count
        self._next_at: float | None = None
        self._hang_ups: list[tuple[float, str]] = []

    def step(self) -> None:
        """Make the calls and hang-ups that are due. An Asterisk that does not answer gets no calls."""
        now = time.monotonic()
        with contextlib.suppress(requests.RequestException):
            if self._next_at is None:
                # No call is made before the pipeline is connected: the app exists only with its event socket.
                if self._switch.request("GET", f"/applications/{APP}").status_code != 200:
                    return
                self._next_at = now
            while self._next_at <= now and self._left != 0:
                self._next_at += self._interval_seconds
                leg = self._switch.dial(called=CALLED, caller=random.choice(CALLERS), far="tone")  # noqa: S311  # no secret
                self._hang_ups.append((now + random.uniform(*TALK_SECONDS), leg))  # noqa: S311  # no secret
                self._left = self._left - 1 if self._left is not None else None
            for due in [hang_up for hang_up in self._hang_ups if hang_up[0] <= now]:
                self._hang_ups.remove(due)
                self._switch.hang_up_caller(due[1])
