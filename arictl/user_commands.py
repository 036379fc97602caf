"""`arictl user`: the console's users."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import typer
from rich.console import RenderableType

from arictl import operators, options, output, tools
from shared import errors
from shared.operator import users
from shared.operator.users import Role
from shared.platform import dograh

app = typer.Typer(help="The console's users.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(help="The user's name: small letters, digits and ._@-")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedUser:
    """A user of the console."""

    name: str
    #: `view` or `operate`.
    role: str
    #: The one whose calls the user sees; null for all.
    organization_id: int | None
    created_at: datetime
    #: When its last session was used; null for never.
    seen_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UserList:
    """The console's users."""

    users: tuple[ListedUser, ...]


@app.command()
def add(
    name: Name,
    role: Annotated[str, typer.Option(metavar="|".join(users.ROLES), help="May look, or act as well.")] = "view",
    organization: Annotated[
        int | None, options.organization("The one organization whose calls the user sees; all by default.")
    ] = None,
    as_json: output.AsJson = False,
) -> None:
    """Add a user. Asks for a password, or reads it from standard input."""
    chosen = _role(role)
    detail = {"role": chosen}
    with (
        tools.opened() as (_, db),
        operators.recorded(db, "user add", f"user {name}", organization=organization, detail=detail) as recording,
    ):
        if organization is not None:
            dograh.Accounts(db).require_organization(organization)
        password = _password()
        users.Users(recording).add(name, password, chosen, organization)
    output.done(f"User {name} added, role {chosen}.", as_json=as_json)


@app.command()
def remove(name: Name, as_json: output.AsJson = False) -> None:
    """Remove a user. Its sessions end at once."""
    with tools.opened() as (_, db), operators.recorded(db, "user remove", f"user {name}") as recording:
        users.Users(recording).remove(name)
    output.done(f"User {name} removed.", as_json=as_json)


@app.command()
def passwd(name: Name, as_json: output.AsJson = False) -> None:
    """Set a user's password. Asks for it, or reads it from standard input. The user's sessions end."""
    with tools.opened() as (_, db):
        password = _password()
        with operators.recorded(db, "user passwd", f"user {name}") as recording:
            users.Users(recording).change_password(name, password)
    output.done(f"Password of {name} changed; its sessions have ended.", as_json=as_json)


@app.command("list")
def list_users(as_json: output.AsJson = False) -> None:
    """List the users, and when each was last seen."""
    with tools.opened() as (_, db):
        found = users.Users(db).all()
    listed = tuple(
        ListedUser(
            name=each.user.name,
            role=each.user.role,
            organization_id=each.user.organization_id,
            created_at=each.user.created_at,
            seen_at=each.seen_at,
        )
        for each in found
    )
    output.answer(UserList(users=listed), lambda: tools.out.print(_table(listed)), as_json=as_json)


def _table(listed: Sequence[ListedUser]) -> RenderableType:
    if not listed:
        return "No users. Add one: arictl user add --help"
    table = tools.table("name", "role", "organization", "added", "last seen")
    for each in listed:
        table.add_row(
            each.name,
            each.role,
            "all" if each.organization_id is None else str(each.organization_id),
            tools.moment(each.created_at),
            tools.moment(each.seen_at),
        )
    return table


def _role(text: str) -> Role:
    for role in users.ROLES:
        if role == text:
            return role
    raise errors.InvalidRequest(f"--role must be one of {', '.join(users.ROLES)}")


def _password() -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    return password
