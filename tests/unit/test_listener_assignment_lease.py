"""When sockets may be opened."""

import asyncio

from listener.assignment_lease import AssignmentLease


class Monotonic:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_lease_expires_and_can_be_revoked() -> None:
    monotonic = Monotonic()
    lease = AssignmentLease(2.0, monotonic)
    assert not lease.valid
    lease.renew(100.0)
    monotonic.now = 102.0
    assert lease.valid
    monotonic.now = 102.1
    assert not lease.valid
    lease.renew(102.0)
    assert lease.valid
    lease.revoke()
    assert not lease.valid


def test_a_valid_lease_is_waited_for() -> None:
    async def scene() -> None:
        monotonic = Monotonic()
        lease = AssignmentLease(2.0, monotonic)
        waiting = asyncio.create_task(lease.wait_valid())
        await asyncio.sleep(0)
        # A renewal that is already too old opens nothing.
        lease.renew(97.0)
        for _ in range(3):
            await asyncio.sleep(0)
        assert not waiting.done()
        lease.renew(100.0)
        await asyncio.wait_for(waiting, 1)

    asyncio.run(scene())
