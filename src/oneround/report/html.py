"""What every HTML page shares: style, repeated parts, numbers as people write them."""

from __future__ import annotations

from pathlib import Path

from jinja2 import ChainableUndefined, Environment, FileSystemLoader

from oneround.report import units


def environment(folder: Path) -> Environment:
    """For the templates in ``folder``, with ``page.css`` and ``parts.html.j2`` of this package."""
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
