"""The demo of `make run`: a tenant in the platform's tables, and callers for a real Asterisk."""

import contextlib
import json
import random
import time

import requests

from devstack.asterisk import Switch
from devstack.tenants import closing_tenant
from shared import errors
from shared.operator import users
from shared.storage import database

TENANT = "ari-pipeline-demo"
APP = "demo"
MEDIA_CLIENT = "media"
CALLED = "5550100"
CALLERS = ("+4915550001", "+4915550002", "+4915550003", "+4915550004", "+4915550005")
TALK_SECONDS = (3.0, 8.0)
#: A number is an extension of the far ends that simulator and test Asterisk have.
DIAL_TEMPLATE = "Local/{number}@far"


def add_tenant(database_url: str, *, endpoint: str, password: str) -> int:
    """Write the demo tenant as the platform would, or update its connection; return its workflow."""
    with closing_tenant(database_url, TENANT) as tenant:
        tenant.configure(
            endpoint,
            app=APP,
            password=password,
            ws_client_name=MEDIA_CLIENT,
            from_numbers=[CALLED],
            numbers=[CALLED],
            ari_dial_template=DIAL_TEMPLATE,
            dial_string_template=DIAL_TEMPLATE,
        )
        return tenant.workflow_id


def add_console_user(database_url: str, name: str, password: str) -> None:
    """Add a user of the console who may do everything, or set the password."""
    db = database.Database(database_url, size=1)
    db.open()
    with contextlib.closing(db):
        known = users.Users(db)
        try:
            known.add(name, password, "operate")
        except errors.InvalidRequest:
            known.change_password(name, password)


def call_command(port: int, workflow_id: int) -> str:
    """Return a command by which the platform calls a far end that talks."""
    body = json.dumps({"workflow_id": workflow_id, "number": "tone"})
    return f"curl http://127.0.0.1:{port}/stand-in/calls -d '{body}'"


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
