"""The operator's command line: `arictl --help`."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Annotated

import typer

from arictl import call_commands, connection_commands, database_commands, doctor, installation_commands, quota_commands
from shared import errors

app = typer.Typer(
    name="arictl",
    help="Inspect and operate ari-pipeline. Reads DATABASE_URL and SECRET_KEY from the environment or .env.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    # Brackets in a help text are not markup.
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


app.add_typer(database_commands.app, name="db")
app.add_typer(connection_commands.app, name="connection")
app.add_typer(quota_commands.app, name="quota")
app.add_typer(installation_commands.app, name="installation")
app.command("calls")(call_commands.list_calls)
app.command("trace")(call_commands.trace)
app.command("call")(call_commands.call)
app.command("hangup")(call_commands.hang_up)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Run a command. Prints an error of ours as one line, without a traceback."""
    try:
        app()
    except errors.DatabaseUnavailable as exc:
        sys.stderr.write(f"arictl: {exc}: is it running, and is DATABASE_URL right? `arictl doctor` checks both\n")
        raise SystemExit(1) from None
    except errors.PipelineError as exc:
        sys.stderr.write(f"arictl: {exc}\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
