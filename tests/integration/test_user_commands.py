"""`arictl user`, as the program it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.operator.users import Sessions, Users
from shared.storage import database
from tests import arictl_program
from tests.arictl_program import Arictl, failed
from tests.support.cheap_passwords import hashed_cheaply

pytestmark = pytest.mark.services

PASSWORD = "correct horse battery"


@pytest.fixture
def arictl(database_url: str, tmp_path: Path) -> Iterator[Arictl]:
    with hashed_cheaply():
        yield arictl_program.runner(database_url, tmp_path)


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with arictl_program.filled(database_url) as made:
        yield made


def test_a_user_is_added_listed_and_removed(arictl: Arictl, db: database.Database) -> None:
    assert "No users." in arictl("user", "list").stdout
    assert arictl("user", "add", "olga", "--role", "operate", stdin=f"{PASSWORD}\n").returncode == 0
    assert arictl("user", "add", "tom", "--organization", "2", stdin=PASSWORD).returncode == 0
    listed = arictl("user", "list").stdout.splitlines()
    assert [line.split()[:3] for line in listed[1:]] == [["olga", "operate", "all"], ["tom", "view", "2"]]
    answer = json.loads(arictl("user", "list", "--json").stdout)
    assert [each["name"] for each in answer["users"]] == ["olga", "tom"]
    user = Users(db).with_password("olga", PASSWORD)
    assert user is not None
    assert user.may_act
    assert arictl("user", "remove", "olga").returncode == 0
    assert Users(db).with_password("olga", PASSWORD) is None


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_password_ends_before_the_end_of_its_line(arictl: Arictl, db: database.Database, end: str) -> None:
    assert arictl("user", "add", "olga", stdin=f"{PASSWORD}{end}").returncode == 0
    assert Users(db).with_password("olga", PASSWORD) is not None


def test_a_new_password_ends_the_sessions(arictl: Arictl, db: database.Database) -> None:
    arictl("user", "add", "olga", stdin=PASSWORD)
    user, sessions = Users(db).with_password("olga", PASSWORD), Sessions(db, idle_seconds=60, absolute_seconds=600)
    assert user is not None
    token = sessions.begin(user)
    assert arictl("user", "passwd", "olga", stdin="another password\n").returncode == 0
    assert sessions.user_of(token) is None
    assert Users(db).with_password("olga", PASSWORD) is None
    assert Users(db).with_password("olga", "another password") is not None


def test_what_cannot_be_is_said_in_a_line(arictl: Arictl, db: database.Database) -> None:
    arictl("user", "add", "olga", stdin=PASSWORD)
    failed(arictl("user", "add", "olga", stdin=PASSWORD), "there is a user olga already")
    failed(arictl("user", "add", "vera", stdin="short"), "10 to 200 characters")
    failed(arictl("user", "add", "Vera!", stdin=PASSWORD), "a user's name has")
    failed(arictl("user", "add", "vera", "--role", "admin", stdin=PASSWORD), "--role must be one of view, operate")
    failed(arictl("user", "add", "vera", "--organization", "99", stdin=PASSWORD), "99")
    failed(arictl("user", "remove", "vera"), "there is no user vera")
    failed(arictl("user", "passwd", "vera", stdin=PASSWORD), "there is no user vera")


def test_each_is_in_the_audit_and_no_password_is(arictl: Arictl, db: database.Database) -> None:
    arictl("user", "add", "olga", "--role", "operate", stdin=PASSWORD)
    arictl("user", "passwd", "olga", stdin=PASSWORD)
    arictl("user", "remove", "olga")
    with db.connection() as connection:
        rows = connection.execute("SELECT action, subject, outcome, detail::text AS detail FROM ari.audit ORDER BY id")
        found = [tuple(row.values()) for row in rows.fetchall()]
    assert [row[:3] for row in found] == [(f"user {act}", "user olga", "done") for act in ("add", "passwd", "remove")]
    assert PASSWORD not in str(found)
    assert '"role": "operate"' in found[0][3]
