"""``oneround tokens``: who may log in to the coordinator's page."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from oneround.cli.console import AsJson, out, plain_table, print_json, say
from oneround.errors import OneRoundError
from oneround.study import Study
from oneround.web.database import State

app = typer.Typer(no_args_is_help=True, help="Who may log in to the page of `oneround serve`.")

Site = Annotated[str | None, typer.Argument(help="Name of the site.", show_default=False)]
Inbox = Annotated[Path, typer.Option(help="The folder of submissions.", show_default=False)]
Coordinator = Annotated[
    bool, typer.Option("--coordinator", help="For the coordinator, instead of a site.")
]


@app.command()
def new(
    inbox: Inbox, site: Site = None, coordinator: Coordinator = False, as_json: AsJson = False
) -> None:
    """Make a token for a site. It is shown once; give it to the site, as you would a password.

    Only its SHA-256 is kept. A site may have several.

    Example: `oneround tokens new north --inbox inbox`
    """
    whose = _whose(site, coordinator)
    with State(inbox) as state:
        token = state.new_token(whose)
    if as_json:
        print_json({"site": whose, "token": token})
        return
    say(token, "bold")
    say(f"  for {whose or 'the coordinator'}; it is not shown again")


@app.command("list")
def list_(inbox: Inbox, as_json: AsJson = False) -> None:
    """Show who has a token, and since when.

    Example: `oneround tokens list --inbox inbox`
    """
    with State(inbox) as state:
        tokens = state.tokens()
    if as_json:
        print_json([asdict(token) for token in tokens])
        return
    table = plain_table("site", ("made (UTC)",))
    for token in tokens:
        table.add_row(token.site or "(coordinator)", token.created[:16].replace("T", " "))
    out.print(table)


@app.command()
def revoke(
    inbox: Inbox, site: Site = None, coordinator: Coordinator = False, as_json: AsJson = False
) -> None:
    """End all tokens of a site, and log it out at once.

    Example: `oneround tokens revoke north --inbox inbox`
    """
    whose = _whose(site, coordinator)
    with State(inbox) as state:
        count = state.revoke(whose)
    if as_json:
        print_json({"site": whose, "revoked": count})
    else:
        say(f"{count} token(s) of {whose or 'the coordinator'} revoked", "bold")


def _whose(site: str | None, coordinator: bool) -> str | None:
    if (site is None) != coordinator:
        raise OneRoundError(
            "a token is of a site or of the coordinator.",
            remedy="Give the name of the site, or --coordinator.",
        )
    if site is not None:
        Study(name="any", classes=("a", "b")).require_site(site)
    return site
