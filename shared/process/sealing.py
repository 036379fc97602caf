"""Seals secrets for Redis and Postgres. Several keys may be in use: the first seals, any opens."""

from __future__ import annotations

import base64
import hashlib
import hmac

from cryptography import fernet

from shared import errors


class Sealer:
    """Seals and opens text with the SECRET_KEYs, given as any text of at least 16 characters."""

    def __init__(self, secret_keys: tuple[str, ...]) -> None:
        self._fernet = fernet.MultiFernet([fernet.Fernet(_derived(key)) for key in secret_keys])

    def seal(self, secret: str) -> str:
        """Encrypts and authenticates; safe to store. Twice the same secret gives two different texts."""
        return self._fernet.encrypt(secret.encode()).decode()

    def open(self, sealed: str) -> str:
        """Gives the secret back.

        Raises:
            SealBroken: No key of ours opens it.
        """
        try:
            return self._fernet.decrypt(sealed.encode()).decode()
        except fernet.InvalidToken as exc:
            raise errors.SealBroken(
                "a sealed secret opens with none of the SECRET_KEYs: is the key it was sealed with still listed?"
            ) from exc


def _derived(secret_key: str) -> bytes:
    digest = hashlib.sha256(b"ari-pipeline/seal/" + secret_key.encode()).digest()
    return base64.urlsafe_b64encode(digest)


def media_secret(secret_key: str) -> str:
    """The media token secret of an installation that sets none of its own."""
    return hmac.new(secret_key.encode(), b"ari-pipeline/media-token", hashlib.sha256).hexdigest()
