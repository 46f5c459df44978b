"""The command line: one file per command. They parse, call the library and print."""

from __future__ import annotations

import os
import sys

import typer

from oneround.cli import (
    demo,
    distill,
    doctor,
    evaluate,
    inspect,
    predict,
    report,
    simulate,
    study,
    train,
)
from oneround.cli.console import err
from oneround.errors import OneRoundError

app = typer.Typer(
    name="oneround",
    help="One-shot federated learning on medical images: one file per hospital, one global model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(study.app, name="study")
for command in (train, inspect, distill, evaluate, predict, simulate, report, demo, doctor):
    name = command.__name__.rpartition(".")[2]
    app.command(name)(getattr(command, name))


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code: 0 only when all is well, 1 for an error that was told."""
    try:
        app(arguments, standalone_mode=True)
    except OneRoundError as error:
        if error.file:
            err.print(f"[bold red]error[/] in {_plain(error.file)}", highlight=False)
        else:
            err.print("[bold red]error[/]", highlight=False)
        err.print(f"  {error.reason}", markup=False, highlight=False, soft_wrap=True)
        if error.remedy:
            err.print(f"  Remedy: {error.remedy}", markup=False, highlight=False, soft_wrap=True)
        return 1
    except OSError as error:
        err.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        err.print("  Remedy: check the path, its permissions and the free space.", highlight=False)
        return 1
    except KeyboardInterrupt:
        err.print("interrupted; run the same command again with --resume to go on", style="yellow")
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


def _plain(path: str) -> str:
    """A path that Rich does not take for markup."""
    return os.fspath(path).replace("[", r"\[")


if __name__ == "__main__":
    sys.exit(main())
