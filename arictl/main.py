"""The operator's command line: `arictl --help`."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Annotated

import typer

from arictl import calls, connection, db, doctor, quota
from shared import errors

app = typer.Typer(
    name="arictl",
    help="Look at ari-pipeline and act on it. Reads DATABASE_URL and SECRET_KEY from the environment or .env.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    # What stands in brackets in a help text is no markup.
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"arictl {metadata.version('ari-pipeline')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


app.add_typer(db.app, name="db")
app.add_typer(connection.app, name="connection")
app.add_typer(quota.app, name="quota")
app.command("calls")(calls.list_calls)
app.command("trace")(calls.trace)
app.command("call")(calls.call)
app.command("hangup")(calls.hang_up)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Runs a command; an error of ours is one clear line, not a traceback."""
    try:
        app()
    except errors.PipelineError as exc:
        sys.stderr.write(f"arictl: {exc}\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
