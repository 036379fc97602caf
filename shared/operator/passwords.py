"""Passwords of the console's users, as Argon2id hashes."""

from __future__ import annotations

import threading

import argon2

from shared import errors

#: In characters. What a person remembers is a sentence; what a manager of passwords makes is longer.
SHORTEST = 10
LONGEST = 200
#: Each verification takes 64 MiB of memory and some 50 ms of a core. Further ones wait for so many, and not for long:
#: a flood of them must leave threads for those who have signed in.
_AT_ONCE = 2
_WAIT_SECONDS = 1.0

_hasher = argon2.PasswordHasher()
_turns = threading.BoundedSemaphore(_AT_ONCE)
#: Compared where no user has the name, so that the answer takes as long.
_NO_USER = "$argon2id$v=19$m=65536,t=3,p=4$Ael0Q7z734DtFgmTe3uKSw$qt+tcObFMfiHD52vORIQaeTaj2lYEnLto7KiwS5uUsY"


def hashed(password: str) -> str:
    """Return the hash of a new password.

    Raises:
        InvalidRequest: It is too short or too long.
    """
    if not SHORTEST <= len(password) <= LONGEST:
        raise errors.InvalidRequest(f"a password has {SHORTEST} to {LONGEST} characters")
    return _hasher.hash(password)


def fits(password: str, stored: str | None) -> bool:
    """Return whether a password is the one of a hash; takes as long where there is none.

    Raises:
        TooBusy: Too many are being verified.
    """
    if len(password) > LONGEST:
        return False
    if not _turns.acquire(timeout=_WAIT_SECONDS):
        raise errors.TooBusy("too many passwords are being verified")
    try:
        return _hasher.verify(stored or _NO_USER, password) and stored is not None
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
        return False
    finally:
        _turns.release()
