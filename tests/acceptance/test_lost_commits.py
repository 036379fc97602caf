"""A standby without the last commits takes over: the real processes go on from the rows that it has.

Its rows are made as they would be there. The agents of the lost attempts are on the line meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.environment import Deploy, Deployment, Environment

pytestmark = pytest.mark.services

#: The call as it was received.
_AS_RECEIVED = """
UPDATE ari.calls SET state = 'received', state_since = received_at, deadline_at = received_at + interval '2 seconds',
    step_retries = 0, lock_version = 0, workflow_id = NULL, user_id = NULL, media_client = NULL, workflow_run_id = NULL,
    attempt = 0, attempt_nonces = '{}', attempt_in_doubt_until = NULL, legs_created = false, media_ready = false,
    connected_at = NULL
WHERE channel_id = %s
"""
_ATTEMPTS = "DELETE FROM ari.attempts WHERE call_id = (SELECT call_id FROM ari.calls WHERE channel_id = %s)"
_RUN = "DELETE FROM workflow_runs WHERE id = (SELECT workflow_run_id FROM ari.calls WHERE channel_id = %s)"


@pytest.fixture(scope="module")
def deployment(deploy: Deploy) -> Iterator[Deployment]:
    with deploy("lost-commits") as made:
        yield made


def test_no_media_leg_is_asked_for_again_and_every_caller_has_one_agent(env: Environment) -> None:
    received, forgotten = env.connect(2)
    lost = {name for leg in (received, forgotten) for name in (env.own(leg, "m"), env.own(leg, "b"))}
    for leg in (received, forgotten):
        env.pipeline.execute(_RUN, leg)
        env.pipeline.execute(_ATTEMPTS, leg)
    env.pipeline.execute(_AS_RECEIVED, received)
    env.pipeline.execute("DELETE FROM ari.calls WHERE channel_id = %s", forgotten)

    def is_well() -> bool:
        names = {found["id"] for found in (*env.control.channels(), *env.control.bridges())}
        return not names & lost and all(
            env.pipeline.state(leg) == "connected" and env.is_joined(leg) for leg in (received, forgotten)
        )

    env.until(is_well, seconds=30, what="both callers have another agent, and the lost ones are gone")
    assert {env.own(leg, "m") for leg in (received, forgotten)}.isdisjoint(lost)
    env.end(received, forgotten)


def test_ids_hold_a_nonce_which_is_stored_with_the_attempt(env: Environment) -> None:
    (leg,) = env.connect()
    (call,) = env.pipeline.calls(leg)
    (nonce,) = call["attempt_nonces"]
    assert env.own(leg, "m") == f"{call['id_prefix']}{call['call_id'].hex}-{nonce}-m1"
    assert env.is_joined(leg)
    assert env.run(leg)["gathered_context"]["ext_channel_id"] == env.own(leg, "m")
    env.end(leg)
