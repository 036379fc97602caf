"""Every error of the product, in one place. Adapters translate a library's errors into these."""

from __future__ import annotations


class PipelineError(Exception):
    """The root of all errors raised by this project."""


class TransientError(PipelineError):
    """May succeed when tried again: the message is retried, and the call stays as it is."""


class PermanentError(PipelineError):
    """Will fail again however often it is tried: the message is dead-lettered at once."""


class InvalidSettings(PermanentError):
    """An environment variable is missing or wrong; the text names it and says what to do."""


class InvalidEvent(PermanentError):
    """An Asterisk sent something that is no readable event. `excerpt` holds its beginning."""

    def __init__(self, reason: str, excerpt: str = "") -> None:
        super().__init__(reason)
        self.excerpt = excerpt


class InvalidConfiguration(PermanentError):
    """A tenant's telephony configuration cannot be used; the text says which field and why. Holds no secret."""


class InvalidStasisArgs(PermanentError):
    """The arguments a leg brought into Stasis do not name a run as they should; the text says which and why."""


class InvalidRequest(PermanentError):
    """A request cannot be served as it is; the text says why, and what to change."""


class NotConnected(TransientError):
    """An organization's event socket is not open now: the product would not learn that a far end has answered."""


class InvalidMessage(PermanentError):
    """A broker message does not have the shape its actor reads, or another version."""


class SealBroken(PermanentError):
    """No SECRET_KEY of this process opens a sealed secret."""


class DatabaseUnavailable(TransientError):
    """Postgres did not do what was asked: it took too long, a lock was not free in time, or it is away."""


class DatabaseAway(DatabaseUnavailable):
    """Postgres could not be reached, or its connection was lost: an outage, for which no message is to blame."""


class PlatformUnserved(TransientError):
    """The platform's tables are none that this release serves; perhaps its upgrade is half done."""


class DatabaseRefused(PermanentError):
    """Postgres refused a statement for its content: data it cannot store, a constraint it violates."""


class DuplicateKey(DatabaseRefused):
    """There is a row of this identity already."""


class RowChanged(TransientError):
    """A row was written by another process since it was read: nothing of the transaction is stored."""


class CallUnreadable(PermanentError):
    """A call's row holds a value this release does not know: a newer release wrote it, and goes on with it."""


class TooBusy(TransientError):
    """So many of a costly operation are at work that one more would keep others from theirs."""


class QueueUnavailable(TransientError):
    """Redis could not be reached, or did not answer in time."""


class PlatformRedisAway(TransientError):
    """The platform's Redis could not be reached, did not answer in time, or refused. Holds no secret."""


class LeadershipLost(TransientError):
    """Another scheduler leads, or may: what a job was about to write is not written.

    `term` is the term that is known of the other one; 0 if none is.
    """

    def __init__(self, reason: str, *, term: int = 0) -> None:
        super().__init__(reason)
        self.term = term


class QuotaServiceUnreachable(TransientError):
    """No usable answer from the platform's quota service. Holds no service key."""


class OutOfTime(TransientError):
    """A step has used up its time: it starts no further request."""


class AsteriskUnreachable(TransientError):
    """No usable answer from an Asterisk: refused, timed out, 401, 403, 5xx, or a 404 that does not name the resource.

    It never ends a call and never proves that something is gone. `may_have_acted` tells whether the request may have
    taken, or may yet take, effect.
    """

    def __init__(self, reason: str, *, may_have_acted: bool = True) -> None:
        super().__init__(reason)
        self.may_have_acted = may_have_acted


class EndpointRefused(AsteriskUnreachable):
    """The endpoint leads to an address that the address guard refuses. Nothing was sent there."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, may_have_acted=False)


class AnswerUnreadable(AsteriskUnreachable):
    """An Asterisk's answer is not of the form that was asked for."""


class AnswerDoubtful(AnswerUnreadable):
    """A 404 for a channel that the app's list shows: a proxy has changed the request's path, perhaps."""


class AsteriskRefused(PermanentError):
    """An Asterisk refused a request: a 4xx with its message. The request had no effect."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status} {message}")
        self.status = status
        self.message = message


#: What a look at an Asterisk comes to when nothing is known by it: no usable answer, a refusal, or no time for it.
NO_ANSWER = (AsteriskUnreachable, AsteriskRefused, OutOfTime)
