"""Write ``report.md`` and ``report.html`` from the tables of a benchmark."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from oneround.errors import OneRoundError
from oneround.files import write_atomic
from oneround.report.html import environment
from oneround.research.benchmark import statistics
from oneround.research.benchmark.cells import CELLS, Cell, read_cells, read_curves
from oneround.research.benchmark.curves import Spent
from oneround.research.benchmark.figures import Figure, overall_figure, setting_figures
from oneround.research.benchmark.summary import REFERENCE, expected, setting_names, verdict
from oneround.research.benchmark.tables import Table, Text, tables

SPENT: dict[Spent, str] = {"flops": "operations", "seconds": "time"}


@dataclass(frozen=True)
class Part:
    """One comparison on the page.

    Attributes:
        name: Name of the comparison.
        verdict: Its best entries, in one sentence.
        tables: Its tables.
        overall: Charts of the means over settings.
        settings: Charts of the single settings, by title.
        entries: Names of its entries.
        cells: Its cells, each with a name.
    """

    name: str
    verdict: str
    tables: list[Table]
    overall: list[Figure]
    settings: dict[str, list[Figure]]
    entries: list[str]
    cells: list[tuple[str, Cell]]


def write_page(folder: Path, title: str) -> Path:
    """Write ``report.md`` and ``report.html`` from ``cells.csv`` and ``curves.csv``.

    The grid may be partly finished. The HTML page has neither scripts nor external links.

    Returns:
        The path of the HTML page.

    Raises:
        OneRoundError: no cell is finished, or a table is damaged.
    """
    rows, curves = read_cells(folder), read_curves(folder)
    if not rows:
        raise OneRoundError(
            "there are no finished cells here.",
            file=folder / CELLS,
            remedy="Give the folder of `oneround bench`, once its first cell is finished.",
        )
    groups = statistics.comparisons(rows)
    names = sorted(statistics.entries(rows), key=lambda name: name != REFERENCE)
    parts = [
        Part(
            name=name,
            verdict=verdict(cells),
            tables=tables(cells),
            overall=[
                figure
                for spent in SPENT
                if (figure := overall_figure(cells, curves, spent, names)) is not None
            ],
            settings={
                f"Accuracy over {what} by setting": setting_figures(cells, curves, spent, names)
                for spent, what in SPENT.items()
            },
            entries=statistics.entries(cells),
            cells=_named(cells),
        )
        for name, cells in groups.items()
    ]
    write_atomic(folder / "report.md", _markdown(title, parts).encode())
    path = folder / "report.html"
    write_atomic(path, _html(title, groups, parts, names).encode())
    return path


def _html(
    title: str, groups: dict[str, list[Cell]], parts: Sequence[Part], names: Sequence[str]
) -> str:
    cells = [cell for group in groups.values() for cell in group]
    return (
        environment(Path(__file__).parent)
        .get_template("page.html.j2")
        .render(
            title=title,
            parts=parts,
            names=names,
            cells=cells,
            expected=sum(map(expected, groups.values())),
            settings=statistics.settings(cells),
            seeds={cell.seed for cell in cells},
        )
    )


def _named(cells: Sequence[Cell]) -> list[tuple[str, Cell]]:
    places = setting_names(statistics.settings(cells))
    named = sorted(cells, key=lambda c: (statistics.setting_of(c), c.seed))
    return [
        (f"{places[statistics.setting_of(cell)]} · seed {cell.seed} · {cell.entry}", cell)
        for cell in named
    ]


def _markdown(title: str, parts: Sequence[Part]) -> str:
    blocks = [f"# {_escaped(title)}"]
    for part in parts:
        blocks += [f"## {_escaped(part.name)}", _escaped(part.verdict)]
        for table in part.tables:
            blocks += [f"### {_escaped(table.title)}", _escaped(table.note), _pipes(table)]
    blocks.append(f"The command that repeats a cell is in the last column of `{CELLS}`.")
    return "\n\n".join(blocks) + "\n"


def _pipes(table: Table) -> str:
    lines = [
        _line(map(_escaped, table.header)),
        _line([":--", *["--:"] * (len(table.header) - 1)]),
        *(_line(map(_field, row)) for row in table.rows),
    ]
    return "\n".join(lines)


def _line(fields: Iterable[str]) -> str:
    return f"| {' | '.join(fields)} |"


def _field(text: Text) -> str:
    return f"**{_escaped(text.text)}**" if text.strong else _escaped(text.text)


def _escaped(text: str) -> str:
    """Text on one line with Markdown escaped."""
    return re.sub(r"([\\`*_\[\]<>|~#])", r"\\\1", text.replace("\n", " "))
