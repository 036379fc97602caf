"""Every bound on a call's life, in one table. All numbers are seconds.

A state waits a queue allowance for a worker to start its step; the step claims the call for the sum of its time-outs;
the sweep starts a step again only when the call is overdue and unclaimed. So a lost message costs the allowance. A
worker that dies costs a few seconds (`scheduler/dead_workers.py`), and its claim at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from shared.call.steps import STEPS, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of a call."""

    #: To open a connection to an Asterisk.
    connect_seconds: float = 2.0
    #: For Asterisk to answer one request; asking for a media leg waits while another one connects (measured).
    read_seconds: float = 4.0
    #: How long a message may wait in its queue before the sweep counts it as lost.
    queue_seconds: float = 3.0
    #: For the quota service and the platform's tables to answer.
    quota_seconds: float = 5.0
    #: For Postgres to answer one statement.
    database_seconds: float = 2.0
    #: How long a created media leg may take to become ready before Asterisk is asked for it; also between two checks.
    media_check_seconds: float = 3.0
    #: Checks before the voice agent counts as not reached.
    media_checks: int = 3
    #: How often the sweep starts a lost step again before it ends the call.
    max_step_retries: int = 2
    #: Media attempts in all, each with ids of its own.
    attempts: int = 4
    #: Of these, attempts that may come to an unknown outcome: after that many the next one is not begun.
    unknown_attempts: int = 2
    #: The pause before a second attempt at a voice agent that was not reached. It doubles with each further one.
    reach_pause_seconds: float = 0.5
    #: So long after the call was prepared an attempt may follow one whose voice agent was not reached.
    reach_seconds: float = 8.0
    #: For the far end of an originated leg to answer, unless the request names another time.
    ring_seconds: float = 60.0
    #: Asterisk ends the ringing by itself; the product does it this much later.
    ring_slack_seconds: float = 5.0
    #: A connected call is ended after this long.
    call_seconds: float = 4 * 3600.0
    #: The longest pause between two tries of a teardown.
    teardown_pause_seconds: float = 60.0
    #: A teardown is tried for this long; then the call has ended without proof that its legs are gone.
    teardown_seconds: float = 24 * 3600.0
    #: How often other channels may take the place of a caller's leg: a PBX could go on for ever, and each is written.
    replacements: int = 20
    #: A StasisStart received later than this is refused: its caller has waited too long. Messages of a killed worker
    #: are delivered again before that.
    stale_start_seconds: float = 10.0

    @property
    def request_seconds(self) -> float:
        """The longest time one request to an Asterisk can take."""
        return self.connect_seconds + self.read_seconds

    def claim(self, step: Step) -> timedelta:
        """Return how long a step may claim a call: its parts, and the statement that stores its result."""
        row = STEPS[step]
        seconds = row.requests * self.request_seconds + (1 + row.statements) * self.database_seconds
        return timedelta(seconds=seconds + (self.quota_seconds if row.asks_quota else 0.0))

    def queue_wait(self) -> timedelta:
        """Return how long a state may wait for a worker to start its step."""
        return timedelta(seconds=self.queue_seconds)

    def longest_wait(self) -> timedelta:
        """Return more than any claim lasts, and than any state waits, but `ringing` and `connected`."""
        return 2 * max(map(self.claim, STEPS)) + self.queue_wait() + timedelta(seconds=self.teardown_pause_seconds)

    def originate_wait(self) -> timedelta:
        """Return how long an originating request of unknown outcome may still take effect."""
        return self.claim(Step.ORIGINATE) + timedelta(seconds=self.request_seconds)

    def ring_wait(self, ring_seconds: float | None) -> timedelta:
        """Return how long the far end may ring before the product ends the call, should Asterisk not."""
        return timedelta(seconds=(ring_seconds or self.ring_seconds) + self.ring_slack_seconds)

    def attempt_wait(self) -> timedelta:
        """Return how long a begun attempt may go without a report."""
        return self.claim(Step.MEDIA) + self.queue_wait()

    def reach_pause(self, attempt: int) -> timedelta:
        """Return the pause after the `attempt`-th attempt, if its voice agent was not reached."""
        return timedelta(seconds=self.reach_pause_seconds * 2 ** (attempt - 1))

    def reach_wait(self) -> timedelta:
        """Return how long after a call was prepared a voice agent that is not reached is tried again."""
        return timedelta(seconds=self.reach_seconds)

    def media_wait(self) -> timedelta:
        """Return how long a created media leg may take to become ready before Asterisk is asked for it."""
        return timedelta(seconds=self.media_check_seconds)

    def teardown_wait(self) -> timedelta:
        """Return how long a teardown is tried."""
        return timedelta(seconds=self.teardown_seconds)

    def teardown_pause(self, tries: int) -> timedelta:
        """Return the pause after the `tries`-th unfinished teardown: 1 s, doubling, bounded."""
        return timedelta(seconds=min(self.teardown_pause_seconds, 2.0 ** min(tries, 16)))
