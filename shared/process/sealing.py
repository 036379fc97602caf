"""Seals secrets for Redis and Postgres. Of several keys the first seals, any opens."""

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
        """Encrypt and authenticate a secret; the result is safe to store, and differs each time."""
        return self._fernet.encrypt(secret.encode()).decode()

    def open(self, sealed: str) -> str:
        """Return the secret.

        Raises:
            SealBroken: None of the keys opens it.
        """
        try:
            return self._fernet.decrypt(sealed.encode()).decode()
        except fernet.InvalidToken as exc:
            raise errors.SealBroken(
                "none of the SECRET_KEYs opens a sealed secret: list the key it was sealed with again, behind the first"
            ) from exc


def _derived(secret_key: str) -> bytes:
    digest = hashlib.sha256(b"ari-pipeline/seal/" + secret_key.encode()).digest()
    return base64.urlsafe_b64encode(digest)


def media_secret(secret_key: str) -> str:
    """Return the media token secret of an installation that sets none."""
    return hmac.new(secret_key.encode(), b"ari-pipeline/media-token", hashlib.sha256).hexdigest()
