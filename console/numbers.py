"""Telephone numbers as pages show them: masked, and short; and as addresses carry them: encrypted."""

from __future__ import annotations

import re

from shared import errors, redaction
from shared.process import sealing

#: How many digits are masked is of no use to the reader.
_MASKED = re.compile(r"\*{4,}")
_SHORT = "****"


def masked(number: str) -> str:
    """Return a number of which the last digits are shown."""
    return _MASKED.sub(_SHORT, redaction.mask_number(number))


def masked_in(text: str) -> str:
    """Return running text with its numbers masked."""
    return _MASKED.sub(_SHORT, redaction.mask_numbers(text))


class Keyed:
    """Numbers as the addresses of pages carry them: histories, logs of proxies and links that are sent tell none.

    Args:
        secret: An address is good as long as this is the same.
    """

    def __init__(self, secret: str) -> None:
        self._cipher = sealing.Cipher(secret, "console-number")

    def keyed(self, number: str) -> str:
        """Return a number as an address may carry it; one that is so already as it is."""
        if not number or self.is_keyed(number):
            return number
        return _KEYED + self._cipher.encrypted(number[:_LONGEST])

    def is_keyed(self, text: str) -> bool:
        """Return whether a text of an address is no plain number."""
        return text.startswith(_KEYED)

    def number(self, keyed: str) -> str:
        """Return the number. Raises InvalidRequest where it was encrypted with another key."""
        try:
            return self._cipher.decrypted(keyed.removeprefix(_KEYED))
        except errors.SealBroken:
            raise errors.InvalidRequest(
                "this address has a number of another SECRET_KEY: search for it again"
            ) from None


_KEYED = "~"
_LONGEST = 100
