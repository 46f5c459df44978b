"""The command line: one file per command, which parses, calls the library and prints."""

from __future__ import annotations

import io
import sys
import warnings
from typing import TextIO

import typer

from oneround.cli import (
    aggregate,
    bench,
    collect,
    demo,
    doctor,
    evaluate,
    inspect,
    keys,
    predict,
    report,
    seal,
    serve,
    simulate,
    status,
    study,
    submit,
    tokens,
    train,
)
from oneround.cli.console import err, say
from oneround.errors import OneRoundError, RenamedWarning

INTERRUPTED = 130
"""Exit code of typer after Ctrl-C."""

app = typer.Typer(
    name="oneround",
    help="One-shot federated learning on medical images: one file per hospital, one global model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(study.app, name="study")
app.add_typer(keys.app, name="keys")
app.add_typer(tokens.app, name="tokens")
for command in (
    train, inspect, seal, submit, collect, status, serve, aggregate, evaluate, predict, simulate,
    bench, report, demo, doctor,
):  # fmt: skip
    name = command.__name__.rpartition(".")[2]
    app.command(name)(getattr(command, name))
app.command("distill", hidden=True)(aggregate.distill)


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: words of the command line; ``None``: those of this process.

    Returns:
        The exit code; 0: success, 1: an error that was reported.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # show what the terminal has no letters for
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", RenamedWarning)
            warnings.showwarning = _show_warning
            app(arguments, standalone_mode=True)
    except OneRoundError as error:
        return _show_error(error)
    except OSError as error:
        file = None if error.filename is None else str(error.filename)
        remedy = "Check the path, its permissions and the free space."
        return _show_error(OneRoundError(f"{error.strerror or error}.", file=file, remedy=remedy))
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            say("interrupted; to continue, run the same command again (aggregate, simulate and "
                "demo: with --resume)", "yellow", err)  # fmt: skip
        return stop.code if isinstance(stop.code, int) else 1
    return 0


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning; where it comes from is shown for those of other packages alone."""
    if issubclass(category, RenamedWarning):
        say(f"note: {message}", "yellow", err)
    else:
        err.print(warnings.formatwarning(message, category, filename, lineno), markup=False)


def _show_error(error: OneRoundError) -> int:
    """Print file, reason and remedy on standard error; the exit code."""
    say(f"error in {error.file}" if error.file else "error", "bold red", err)
    say(f"  {error.reason}", console=err)
    if error.remedy:
        say(f"  Remedy: {error.remedy}", console=err)
    return 1
