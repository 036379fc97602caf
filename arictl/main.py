"""The operator's command line: `arictl --help`."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Annotated

import typer

from arictl import (
    audit_command,
    call_commands,
    calls_command,
    connection_commands,
    database_commands,
    dead_letter_commands,
    doctor,
    installation_commands,
    process_commands,
    question_commands,
    quota_commands,
    tools,
    top,
    usage_command,
    user_commands,
)
from shared import errors

#: The exit status for wrong usage.
_USAGE = 2
#: The exit status for what may succeed when it is tried again.
_AWAY = 3

app = typer.Typer(
    name="arictl",
    help="Inspect and operate ari-pipeline. Reads DATABASE_URL, REDIS_URL and SECRET_KEY from the environment or .env.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Brackets in a help text are not markup.
    rich_markup_mode=None,
)


def _is_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


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
app.add_typer(dead_letter_commands.app, name="dlq")
app.add_typer(user_commands.app, name="user")
app.add_typer(installation_commands.app, name="installation")
app.command("calls")(calls_command.list_calls)
app.command("trace")(call_commands.trace)
app.command("call")(call_commands.call)
app.command("hangup")(call_commands.hang_up)
app.command("losses")(question_commands.list_losses)
app.command("steps")(question_commands.list_steps)
app.command("changes")(question_commands.list_changes)
app.command("processes")(process_commands.list_processes)
app.command("errors")(process_commands.list_errors)
app.command("log-level")(process_commands.log_level)
app.command("audit")(audit_command.show_audit)
app.command("usage")(usage_command.show_usage)
app.command("top")(top.top)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Run a command. Prints an error of ours as one line, without a traceback.

    Exit status: 0 done; 1 refused or failed, or `doctor` has found something wrong; 2 wrong usage; 3 a server is away
    or too slow, and the same may succeed later; 130 ended by Ctrl-C.
    """
    if not all(_is_text(word) for word in sys.argv):
        # No id, name or number is: and neither Postgres nor Redis takes it.
        sys.stderr.write("arictl: an argument is not UTF-8\n")
        raise SystemExit(_USAGE)
    try:
        app(prog_name="arictl")
    except errors.PipelineError as exc:
        # The texts of a peer may be in it.
        told = "\n".join(map(tools.printable, str(exc).split("\n")))
        if isinstance(exc, errors.DatabaseAway):
            told += ": is it running, and is DATABASE_URL right? `arictl doctor` checks both"
        sys.stderr.write(f"arictl: {told}\n")
        raise SystemExit(_AWAY if isinstance(exc, errors.TransientError) else 1) from None


if __name__ == "__main__":
    main()
