"""Users of the console, and the sessions in which they use it."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias, get_args

from shared import errors
from shared.operator import passwords
from shared.storage import database

#: What a user may do: look, or act as well.
Role: TypeAlias = Literal["view", "operate"]
ROLES: tuple[Role, ...] = get_args(Role)

_NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")
#: A user signs in on so many browsers; with a further one the oldest session ends.
_MOST_SESSIONS = 20
#: A session's last use is written this often.
_SEEN_SECONDS = 60

_COLUMNS = "name, role, organization_id, created_at, changed_at"
_ADD = f"""
INSERT INTO ari.console_users (name, password_hash, role, organization_id)
VALUES (%s, %s, %s, %s) RETURNING {_COLUMNS}
"""  # noqa: S608 - built from constants
_CHANGE = (
    "UPDATE ari.console_users SET password_hash = %s, changed_at = clock_timestamp() WHERE name = %s RETURNING name"
)
_LIST = f"""
SELECT {_COLUMNS}, (SELECT max(seen_at) FROM ari.console_sessions WHERE user_name = name) AS seen_at
FROM ari.console_users ORDER BY name
"""  # noqa: S608 - built from constants
_WITH_PASSWORD = f"SELECT {_COLUMNS}, password_hash FROM ari.console_users WHERE name = %s"  # noqa: S608 - built from constants
_IS_THERE = "SELECT 1 FROM ari.console_users WHERE name = %s"

#: A session that lives: neither idle for too long nor too old. The clock is Postgres's; what lies ahead of it was
#: written before it was set back.
_LIVES = """
seen_at BETWEEN clock_timestamp() - make_interval(secs => %(idle)s) AND clock_timestamp() + interval '60 seconds'
AND created_at > clock_timestamp() - make_interval(secs => %(absolute)s)
"""
_BEGIN = "INSERT INTO ari.console_sessions (token_hash, user_name) VALUES (%s, %s)"
_TIDY = f"DELETE FROM ari.console_sessions WHERE NOT ({_LIVES})"  # noqa: S608 - built from constants
_OLDEST = """
DELETE FROM ari.console_sessions WHERE token_hash IN (
    SELECT token_hash FROM ari.console_sessions WHERE user_name = %s ORDER BY created_at DESC OFFSET %s)
"""
_FIND = f"""
SELECT name, role, organization_id, console_users.created_at, console_users.changed_at,
       seen_at < clock_timestamp() - interval '{_SEEN_SECONDS} seconds' AS is_stale
FROM ari.console_sessions JOIN ari.console_users ON name = user_name
WHERE token_hash = %(token_hash)s AND {_LIVES.replace("created_at >", "console_sessions.created_at >")}
"""  # noqa: S608 - built from constants
_SEEN = "UPDATE ari.console_sessions SET seen_at = clock_timestamp() WHERE token_hash = %s"
_KEEP = f"""
UPDATE ari.console_sessions SET seen_at = clock_timestamp() WHERE token_hash = ANY(%(hashes)s) AND {_LIVES}
RETURNING token_hash
"""  # noqa: S608 - built from constants


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A user of the console."""

    name: str
    role: Role
    #: The one organization whose calls this user sees; None for all.
    organization_id: int | None
    created_at: datetime
    changed_at: datetime

    @property
    def may_act(self) -> bool:
        """Whether the user may act, and not only look."""
        return self.role == "operate"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedUser:
    """A user, and when one of the sessions was last used."""

    user: User
    #: None without a session.
    seen_at: datetime | None


class Users:
    """The table of users."""

    def __init__(self, db: database.Database) -> None:
        self._db = db

    def add(self, name: str, password: str, role: Role, organization_id: int | None = None) -> User:
        """Add a user.

        Raises:
            InvalidRequest: Name or password cannot be used, or the name is taken.
        """
        if not _NAME.fullmatch(name):
            raise errors.InvalidRequest(
                "a user's name has 1 to 64 of a-z, 0-9 and ._@-, and begins with one of a-z, 0-9"
            )
        stored = passwords.hashed(password)
        try:
            with self._db.transaction() as connection:
                row = connection.execute(_ADD, [name, stored, role, organization_id]).fetchone()
        except errors.DuplicateKey:
            raise errors.InvalidRequest(f"there is a user {name} already") from None
        assert row is not None
        return User(**row)

    def remove(self, name: str) -> None:
        """Remove a user, whose sessions end. Raises InvalidRequest if there is none."""
        with self._db.transaction() as connection:
            removed = connection.execute("DELETE FROM ari.console_users WHERE name = %s", [name]).rowcount
        if not removed:
            raise errors.InvalidRequest(f"there is no user {name}")

    def change_password(self, name: str, password: str) -> None:
        """Set a user's password; the sessions end. Raises InvalidRequest if there is no such user."""
        stored = passwords.hashed(password)
        with self._db.transaction() as connection:
            if connection.execute(_CHANGE, [stored, name]).fetchone() is None:
                raise errors.InvalidRequest(f"there is no user {name}")
            connection.execute("DELETE FROM ari.console_sessions WHERE user_name = %s", [name])

    def all(self) -> list[ListedUser]:
        """Return the users by name."""
        with self._db.connection() as connection:
            rows = connection.execute(_LIST).fetchall()
        last = [row.pop("seen_at") for row in rows]
        return [ListedUser(user=User(**row), seen_at=seen_at) for row, seen_at in zip(rows, last, strict=True)]

    def is_there(self, name: str) -> bool:
        """Return whether there is a user of this name."""
        with self._db.connection() as connection:
            return connection.execute(_IS_THERE, [_searched(name)]).fetchone() is not None

    def with_password(self, name: str, password: str) -> User | None:
        """Return the user of a name and password; None if they do not fit. Takes as long either way.

        Raises:
            TooBusy: Too many passwords are being verified.
        """
        with self._db.connection() as connection:
            row = connection.execute(_WITH_PASSWORD, [_searched(name)]).fetchone()
        stored = row.pop("password_hash") if row is not None else None
        if not passwords.fits(password, stored):
            return None
        assert row is not None
        return User(**row)


def _searched(name: str) -> str:
    """Return a name as Postgres is asked for it: one with a NUL, which it refuses, is no user's.

    It is not taken out: who signs in by another spelling would have another lock.
    """
    return "" if "\0" in name else name


class Sessions:
    """The sessions of signed-in users.

    Args:
        idle_seconds: A session that asks for nothing for this time ends.
        absolute_seconds: A session ends after this time, whatever it does.
    """

    def __init__(self, db: database.Database, *, idle_seconds: float, absolute_seconds: float) -> None:
        self._db = db
        self._bounds = {"idle": idle_seconds, "absolute": absolute_seconds}

    def through(self, db: database.Database) -> Sessions:
        """Return the same sessions, written through another database: one that records what is done."""
        return Sessions(db, idle_seconds=self._bounds["idle"], absolute_seconds=self._bounds["absolute"])

    def begin(self, user: User) -> str:
        """Begin a session, and return the token that names it. Sessions that have ended are deleted."""
        token = secrets.token_urlsafe(32)
        with self._db.transaction() as connection:
            connection.execute(_TIDY, self._bounds)
            connection.execute(_BEGIN, [hash_of(token), user.name])
            connection.execute(_OLDEST, [user.name, _MOST_SESSIONS])
        return token

    def user_of(self, token: str) -> User | None:
        """Return the user of a session that lives; None if it has ended. It counts as used."""
        with self._db.connection() as connection:
            row = connection.execute(_FIND, {"token_hash": hash_of(token), **self._bounds}).fetchone()
            if row is None:
                return None
            if row.pop("is_stale"):
                connection.execute(_SEEN, [hash_of(token)])
        return User(**row)

    def keep(self, hashes: Iterable[bytes]) -> set[bytes]:
        """Count sessions as used, given by their hashes, and return those that live."""
        with self._db.connection() as connection:
            rows = connection.execute(_KEEP, {"hashes": list(hashes), **self._bounds}).fetchall()
        return {bytes(row["token_hash"]) for row in rows}

    def end(self, token: str) -> None:
        """End a session."""
        with self._db.connection() as connection:
            connection.execute("DELETE FROM ari.console_sessions WHERE token_hash = %s", [hash_of(token)])


def hash_of(token: str) -> bytes:
    """Return what the table has of a token."""
    return hashlib.sha256(token.encode()).digest()
