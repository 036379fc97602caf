"""A site on which something has happened: good calls and bad ones, hostile texts, dead letters, actions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import dramatiq

from devstack.pipeline import wait_until
from shared import queues
from tests.browser.conftest import Site

SCRIPT = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
#: Turns the direction of what follows, in whatever it is put.
RIGHT_TO_LEFT = "\N{RIGHT-TO-LEFT OVERRIDE}drawkcab\N{RIGHT-TO-LEFT ISOLATE}"
LONG = "x" * 10_000
NUMBER = "+4915551234567"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seeded:
    """A site, and the ids of its calls."""

    site: Site
    #: What a call is for → its id.
    calls: Mapping[str, str]
    connection_id: int
    organization_id: int


def seed(site: Site) -> Seeded:
    """Make calls and dead letters on a site."""
    env = site.env
    legs = {name: env.dial(caller=NUMBER, called="5551234") for name in ("good", "hostile", "live")}
    for leg in legs.values():
        env.wait_state(leg, "connected")
    for name in ("good", "hostile"):
        env.end_one(legs[name])
    site.deployment.agent.behaviour.refuse = 409
    legs["refused"] = env.dial(caller=NUMBER, called="5551234")
    env.wait_state(legs["refused"], "ended", seconds=20)
    site.deployment.agent.behaviour.refuse = None
    made = {name: str(env.pipeline.call(leg)["call_id"]) for name, leg in legs.items()}
    _write_hostile(site, made["hostile"])
    _dead_letters(site, made["good"])
    return Seeded(
        site=site,
        calls=made,
        connection_id=env.connection["connection_id"],
        organization_id=env.tenant.organization_id,
    )


def _write_hostile(site: Site, call_id: str) -> None:
    """Write what a PBX, a caller or an agent could have sent into every text of a call that is shown."""
    hostile = f"{SCRIPT}{RIGHT_TO_LEFT}{LONG}"
    pipeline = site.env.pipeline
    pipeline.execute(
        "UPDATE ari.calls SET caller_number = %s, called_number = %s, reason = %s WHERE call_id = %s",
        SCRIPT, f"{RIGHT_TO_LEFT}5551234", hostile, call_id,
    )  # fmt: skip
    pipeline.execute(
        "INSERT INTO ari.timeline (call_id, kind, name, who, detail) VALUES (%s, 'note', %s, %s, %s)",
        call_id, hostile, SCRIPT, hostile,
    )  # fmt: skip
    pipeline.execute(
        "INSERT INTO ari.timeline (connection_id, kind, name, who, detail) VALUES (%s, 'note', %s, %s, %s)",
        site.env.connection["connection_id"], SCRIPT, SCRIPT, hostile,
    )  # fmt: skip


def _dead_letters(site: Site, call_id: str) -> None:
    """Send messages that no worker can read: each becomes a dead letter at once."""
    pipeline = site.env.pipeline
    queue = queues.BrokerCommandQueue(queues.broker(pipeline.redis_url))
    for version in (99, 99, 98):
        body = {"v": version, "call_id": call_id, "attempt": 1, "note": SCRIPT}
        connection_id = site.env.connection["connection_id"]
        queue.send(
            dramatiq.Message(queue_name="bridge", actor_name="join_legs", args=(), kwargs=body,
                             options={"group": connection_id})
        )  # fmt: skip
    is_there = "SELECT count(*) >= 3 FROM ari.timeline WHERE kind = 'dead-letter'"
    wait_until(lambda: pipeline.value(is_there), seconds=10, what=pipeline.log_tail)


def clean(seeded: Seeded) -> None:
    """Remove what the site's own checks would take for a fault."""
    env = seeded.site.env
    env.pipeline.execute("DELETE FROM ari.timeline WHERE kind = 'dead-letter'")
    for call in env.calls():
        if call["state"] != "ended":
            env.control.hang_up(call["channel_id"])
