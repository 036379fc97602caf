"""Seals secrets for Redis and Postgres. Of several keys the first seals, any opens."""

from __future__ import annotations

import base64
import hashlib
import hmac

from cryptography import fernet

from shared import errors, redaction


class Sealer:
    """Seals and opens text with the SECRET_KEYs, given as any text of at least 16 characters."""

    def __init__(self, secret_keys: tuple[str, ...]) -> None:
        self._fernet = fernet.MultiFernet([fernet.Fernet(_derived(key)) for key in secret_keys])

    def seal(self, secret: str) -> str:
        """Encrypt and authenticate a secret; the result is safe to store, and differs each time."""
        redaction.SECRETS.add(secret)
        return self._fernet.encrypt(secret.encode()).decode()

    def open(self, sealed: str) -> str:
        """Return the secret.

        Raises:
            SealBroken: None of the keys opens it.
        """
        try:
            secret = self._fernet.decrypt(sealed.encode()).decode()
        except fernet.InvalidToken as exc:
            raise errors.SealBroken(
                "none of the SECRET_KEYs opens a sealed secret: list the key it was sealed with again, behind the first"
            ) from exc
        # From now on no log line, error or trace shows it.
        redaction.SECRETS.add(secret)
        return secret


class Cipher:
    """Encrypts what is no credential, such as a number in an address: no key of another purpose opens it."""

    def __init__(self, secret_key: str, purpose: str) -> None:
        digest = hashlib.sha256(f"ari-pipeline/{purpose}/{secret_key}".encode()).digest()
        self._fernet = fernet.Fernet(base64.urlsafe_b64encode(digest))

    def encrypted(self, text: str) -> str:
        """Return the text encrypted, in letters that an address may have."""
        return self._fernet.encrypt(text.encode()).decode()

    def decrypted(self, given: str) -> str:
        """Return the text. Raises SealBroken where it was encrypted with another key."""
        try:
            return self._fernet.decrypt(given.encode()).decode()
        except fernet.InvalidToken as exc:
            raise errors.SealBroken("encrypted with another SECRET_KEY") from exc


def _derived(secret_key: str) -> bytes:
    digest = hashlib.sha256(b"ari-pipeline/seal/" + secret_key.encode()).digest()
    return base64.urlsafe_b64encode(digest)


def media_secret(secret_key: str) -> str:
    """Return the media token secret of an installation that sets none."""
    return hmac.new(secret_key.encode(), b"ari-pipeline/media-token", hashlib.sha256).hexdigest()
