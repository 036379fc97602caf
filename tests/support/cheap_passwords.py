"""Passwords whose hashes cost nothing: what Argon2 costs is its own business."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import argon2

from shared.operator import passwords


@contextlib.contextmanager
def hashed_cheaply() -> Iterator[None]:
    """What is hashed meanwhile is verified as cheaply, in whichever process: a hash names its costs."""
    hasher = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    with mock.patch.multiple(passwords, _hasher=hasher, _NO_USER=hasher.hash("no password")):
        yield
