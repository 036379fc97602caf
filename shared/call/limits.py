"""Every bound on a call's life, in one table.

A state waits a queue allowance for its step to be taken up; a step claims the call for the sum of its time-outs, and
the sweep starts again only what is overdue and unclaimed. So a lost message costs the allowance, a killed worker its
claim. All numbers are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum


class Step(StrEnum):
    """The steps that claim a call; each has a queue of its own name."""

    ADMISSION = "admission"
    RUNS = "runs"
    MEDIA = "media"
    BRIDGE = "bridge"
    TEARDOWN = "teardown"
    ORIGINATE = "originate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds a call lives under."""

    #: To open a connection to an Asterisk.
    connect_seconds: float = 2.0
    #: For Asterisk to answer one request; asking for a media leg can block about 2 s (measured).
    read_seconds: float = 4.0
    #: For a message to wait in its queue before the sweep may take it for lost.
    queue_seconds: float = 3.0
    #: For the quota service and the platform's tables to answer.
    quota_seconds: float = 5.0
    #: For Postgres to answer one statement.
    database_seconds: float = 2.0
    #: How long a created media leg may take to become ready before we ask Asterisk for it, and again.
    media_check_seconds: float = 3.0
    #: How often to ask before giving the voice agent up.
    media_checks: int = 3
    #: How often a lost step is started again before the call is ended.
    max_step_retries: int = 2
    #: Media attempts: a second one only when the outcome of the first is unknown.
    attempts: int = 2
    #: For the far end of an originated leg to answer, unless its request says otherwise.
    ring_seconds: float = 60.0
    #: Asterisk ends the ringing by itself; this much later we do.
    ring_slack_seconds: float = 5.0
    #: A connected call is ended after this long.
    call_seconds: float = 4 * 3600.0
    #: The longest pause between two tries of a teardown.
    teardown_pause_seconds: float = 60.0
    #: A StasisStart picked up later than this is refused: its caller has waited too long. What was in a killed worker's
    #: hands is back before that.
    stale_start_seconds: float = 10.0

    @property
    def request_seconds(self) -> float:
        """The longest one request to an Asterisk can take."""
        return self.connect_seconds + self.read_seconds

    def claim(self, step: Step) -> timedelta:
        """How long a step may hold a call. It starts no request after that."""
        seconds = {
            Step.ADMISSION: self.quota_seconds + self.database_seconds,
            Step.RUNS: 2 * self.database_seconds,
            Step.MEDIA: self.request_seconds + self.database_seconds,
            Step.BRIDGE: self.request_seconds + self.database_seconds,
            Step.TEARDOWN: 2 * self.request_seconds + self.database_seconds,
            Step.ORIGINATE: self.quota_seconds + self.request_seconds + self.database_seconds,
        }[step]
        return timedelta(seconds=seconds)

    def queue_wait(self) -> timedelta:
        """How long a state may wait for its step to be taken up by a worker."""
        return timedelta(seconds=self.queue_seconds)

    def originate_wait(self) -> timedelta:
        """How long an originating request whose outcome nobody knows may still take effect."""
        return self.claim(Step.ORIGINATE) + timedelta(seconds=self.request_seconds)

    def ring_wait(self, ring_seconds: float | None) -> timedelta:
        """How long the far end may ring before we end it, should Asterisk not."""
        return timedelta(seconds=(ring_seconds or self.ring_seconds) + self.ring_slack_seconds)

    def attempt_wait(self) -> timedelta:
        """How long a begun attempt may go without a report."""
        return self.claim(Step.MEDIA) + self.queue_wait()

    def media_wait(self) -> timedelta:
        """How long a created media leg may stay silent before we ask for it."""
        return timedelta(seconds=self.media_check_seconds)

    def teardown_pause(self, tries: int) -> timedelta:
        """The pause after the `tries`-th teardown that could not finish: 1 s, doubling, bounded."""
        return timedelta(seconds=min(self.teardown_pause_seconds, 2.0 ** min(tries, 16)))
