"""A form that is sent twice, as by a double click, acts once: the second time is answered as the first was.

Only what has acted is kept, and a wrong password: what has failed, or has shown something, is done again.
"""

from __future__ import annotations

import copy
import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from starlette.responses import Response

from shared import errors

#: For so long after it was first sent, a form's answer is kept.
KEPT_SECONDS = 30.0
#: Answers that are kept; beyond it the oldest is forgotten.
MOST = 500
#: What has acted redirects. A wrong password counts once, however often it is sent.
_KEPT = (303, 401)
_NOT_DONE = "it was sent twice, and is not done yet: look again in a moment"


@dataclass(eq=False, slots=True, kw_only=True)
class _Sent:
    """A form that was sent."""

    answer: Future[Response] = field(default_factory=Future)
    #: When it was first sent, by the monotonic clock.
    at: float = field(default_factory=time.monotonic)
    #: Whether a second request waits for the answer: each that waits holds a thread.
    is_awaited: bool = False


class Submissions:
    """The answers to forms, for a short time. Each page has forms of its own, so what is meant twice is done twice.

    Thread-safe. In memory, as the console is one process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: In the order in which they were first sent.
        self._answers: OrderedDict[bytes, _Sent] = OrderedDict()

    def once(self, path: str, form: Mapping[str, str], act: Callable[[], Response]) -> Response:
        """Return what `act` returns, or raise what it raises; of one form, it is called once.

        Args:
            form: With the field that proves it: no two pages, and no two sessions, have the same.

        Raises:
            TransientError: The form was sent before, and `act` has not returned yet. One request waits for it; further
                ones are told at once.
        """
        key = hashlib.sha256(repr((path, sorted(form.items()))).encode()).digest()
        sent, is_first = self._sent(key)
        if not is_first:
            return _answer_of(sent)
        try:
            answer = act()
        except BaseException as exc:
            # The one that waits is told the same; sent again later, it is tried again.
            self._drop(key, sent)
            sent.answer.set_exception(exc)
            raise
        if answer.status_code not in _KEPT:
            self._drop(key, sent)
        sent.answer.set_result(answer)
        return _copy(answer)

    def _sent(self, key: bytes) -> tuple[_Sent, bool]:
        """Return the form, and whether it is sent for the first time. Raises TransientError if another waits for it."""
        with self._lock:
            self._forget()
            known = self._answers.get(key)
            if known is None:
                self._answers[key] = sent = _Sent()
                return sent, True
            if known.is_awaited and not known.answer.done():
                raise errors.TransientError(_NOT_DONE)
            known.is_awaited = True
            return known, False

    def _drop(self, key: bytes, sent: _Sent) -> None:
        with self._lock:
            if self._answers.get(key) is sent:
                del self._answers[key]

    def _forget(self) -> None:
        since = time.monotonic() - KEPT_SECONDS
        while self._answers:
            key, sent = next(iter(self._answers.items()))
            if sent.at >= since and len(self._answers) < MOST:
                break
            del self._answers[key]


def _answer_of(sent: _Sent) -> Response:
    try:
        return _copy(sent.answer.result(KEPT_SECONDS))
    except TimeoutError:
        raise errors.TransientError(_NOT_DONE) from None


def _copy(answer: Response) -> Response:
    """Return an answer that can be sent: what sends one compresses it, and says so in its headers."""
    copied = copy.copy(answer)
    copied.raw_headers = list(answer.raw_headers)
    return copied
