"""What an event socket's error says of whose fault it is: the listener reports the error, the scheduler judges it.

A report holds the error as words for operators. The words that decide are here, so that both sides have the same ones.
"""

from __future__ import annotations

from enum import Enum

#: Answers that stay until the configuration of the tenant or of its Asterisk changes, by HTTP status.
LASTING = {
    401: "wrong ARI user or password (401)",
    403: "permission denied for the ARI user (403)",
    404: "no ARI at this address: wrong port or prefix, or ARI is not enabled (404)",
}
NO_ANSWER = "no answer within"


class Fault(Enum):
    """Whose fault it is that an event socket is not open."""

    #: The Asterisk's, or its configuration's, for good.
    LASTING = "lasting"
    #: The Asterisk's: something at its address has answered.
    ANSWERED = "answered"
    #: The Asterisk's, or the network's in between.
    SILENT = "silent"
    #: Ours, or not to be told: names, the address guard, what we close ourselves.
    OURS = "ours"


#: How an error begins, in the words of `listener.websocket` and `shared.asterisk.tls`.
_BEGINNINGS = {
    **dict.fromkeys(LASTING.values(), Fault.LASTING),
    "Asterisk answered HTTP": Fault.ANSWERED,
    "Asterisk closed the socket": Fault.ANSWERED,
    "the server at this address does not speak websocket": Fault.ANSWERED,
    "the server there does not speak TLS": Fault.ANSWERED,
    "the TLS certificate": Fault.ANSWERED,
    "TLS failed": Fault.ANSWERED,
    "connection refused": Fault.ANSWERED,
    "websocket protocol violated by Asterisk": Fault.ANSWERED,
    "connection failed": Fault.SILENT,
    "connection lost": Fault.SILENT,
    "no answer to a ping": Fault.SILENT,
    NO_ANSWER: Fault.SILENT,
}


def judge(error: str) -> Fault:
    """Return whose fault an error is."""
    return next((fault for words, fault in _BEGINNINGS.items() if error.startswith(words)), Fault.OURS)
