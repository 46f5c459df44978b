"""The command line: one file per command, which parses, calls the library and prints."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Annotated, Any, TextIO

import click
import typer
from typer.core import TyperCommand, TyperGroup

from oneround.cli.console import err, say
from oneround.errors import OneRoundError, RenamedWarning

INTERRUPTED = 130
"""Exit code of typer after Ctrl-C."""

COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "study": "Write or check a study: what all sites agree on.",
        "keys": "Key pairs for signatures and encryption.",
        "tokens": "Who may log in to the page of `oneround serve`.",
        "train": "Train the client model on local images and write the one file to submit.",
        "inspect": "Show the manifest of a submission and every problem found; exit code "
        "1 if it is "
        "refused.",
        "seal": "Sign a submission, and encrypt it if the study has a key for that.",
        "submit": "Send a submission to a shared folder, an SFTP, S3 or WebDAV store, or "
        "by HTTPS PUT.",
        "collect": "Fetch all submissions that are new; nothing is removed there, and several may "
        "run at once.",
        "status": "Check everything that was submitted: who, when, what is wrong, who is missing.",
        "serve": "Serve a page: who has submitted, submit a file, watch the run, get report and "
        "global model.",
        "aggregate": "Make one global model from the submissions alone; no image is needed.",
        "evaluate": "Evaluate a model on local images: metrics with 95 % intervals, and no image "
        "leaves.",
        "predict": "Predict class probabilities of image files. Research only: not a "
        "medical device.",
        "simulate": "Train sites, aggregate and evaluate in one go; test images decide nothing.",
        "bench": "Compare methods on the same client models, with the same measurement of cost.",
        "report": "Write `RUN/report.html`, one file without external links, and "
        "`RUN/model-card.md`.",
        "demo": "Four sites, four files, one global model, on generated images of cells "
        "(no real ones).",
        "doctor": "Show versions, device, packages and which DICOM files can be read; exit code 1 "
        "if a required package is missing.",
    }
)
"""First line of the help of every command, in the order of the help; each is a module here, which
is imported when its command is run: most need torch, which takes seconds."""

HIDDEN: Mapping[str, str] = MappingProxyType({"distill": "aggregate"})
"""Names of the version before, and the module of each."""


class LazyGroup(TyperGroup):
    """The commands; the help and completion of names import none of their modules."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command with its name and the first line of its help alone."""
        if cmd_name in COMMANDS or cmd_name in HIDDEN:
            return TyperCommand(cmd_name, help=COMMANDS.get(cmd_name), hidden=cmd_name in HIDDEN)
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is to run, with all its options."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, None if command is None or name is None else command_of(name), rest


def _settings() -> dict[str, Any]:
    return {"pretty_exceptions_enable": False, "rich_markup_mode": "markdown"}


app = typer.Typer(
    name="oneround",
    cls=LazyGroup,
    help="One-shot federated learning on medical images: one file per hospital, one global model.",
    no_args_is_help=True,
    **_settings(),
)


def command_of(name: str) -> click.Command:
    """A command, or a group of them, with everything that it has; its module is imported."""
    module = import_module(f"oneround.cli.{HIDDEN.get(name, name)}")
    one = typer.Typer(add_completion=False, **_settings())
    if hasattr(module, "app"):
        one.add_typer(module.app, name=name)
    else:
        one.command(name, hidden=name in HIDDEN)(getattr(module, name))
    return typer.main.get_group(one).commands[name]


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"oneround {version('oneround')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """One-shot federated learning on medical images: one file per hospital, one global model."""


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
