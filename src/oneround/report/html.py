"""Shared by all HTML pages: style sheet, template parts and number formats."""

from __future__ import annotations

from pathlib import Path

from jinja2 import ChainableUndefined, Environment, FileSystemLoader

from oneround.report import units


def environment(folder: Path) -> Environment:
    """Jinja environment for the templates in ``folder``, with this package's ``page.css`` and
    ``parts.html.j2``."""
    environment = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = {"percent": units.percent, "decimal": units.decimal, "points": units.points}
    environment.globals |= {**formats, "interval": units.interval}
    environment.filters |= {**formats, "si": units.si, "duration": units.duration}
    return environment
