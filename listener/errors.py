"""What can befall an event socket."""

from __future__ import annotations

from shared import errors


class SocketBroken(errors.TransientError):
    """An event socket could not be opened, or was closed. The text is in plain words and holds no secret.

    Args:
        why: For the report and the log.
        lasting: Trying again soon will not help; somebody has to change something first.
        starting: An Asterisk that is just starting looks the same: it answers 404 for about
            10 ms before ARI is loaded, then 503 (measured, 22).
        unreadable: The peer sent what we refuse to read.
    """

    def __init__(self, reason: str, *, lasting: bool = False, starting: bool = False, unreadable: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.lasting = lasting
        self.starting = starting
        self.unreadable = unreadable
