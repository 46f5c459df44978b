"""Tables of a benchmark, as text for both Markdown and HTML."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from oneround.report.units import decimal, duration, percent, plus_minus, points, si
from oneround.research.benchmark import statistics
from oneround.research.benchmark.cells import Cell
from oneround.research.benchmark.statistics import Measure, Spread
from oneround.research.benchmark.summary import (
    by_merit,
    expected,
    final_points,
    mean_note,
    progress,
    reference,
    setting_names,
)

NONE = "–"


@dataclass(frozen=True)
class Text:
    """One field of a table; ``strong``: the best of its column, or a certain difference."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table with title and note; the first field of each row is its name."""

    title: str
    note: str
    header: list[str]
    rows: list[list[Text]]


@dataclass(frozen=True)
class _Column:
    """Format of a measure, which end of it is best, and whether its deviation is shown."""

    title: str
    number: Callable[[float], str]
    best: Callable[[list[float]], float]
    deviation: bool = True


_COLUMNS: dict[Measure, _Column] = {
    "accuracy": _Column("Accuracy", percent, max),
    "balanced_accuracy": _Column("Balanced accuracy", percent, max),
    "auroc": _Column("AUROC", decimal, max),
    "ece": _Column("Calibration error", decimal, min),
    "worst_class": _Column("Worst class", percent, max),
    "flops": _Column("Operations", lambda value: si(value, "FLOP"), min, deviation=False),
    "seconds": _Column("Time", duration, min),
    "peak_memory_bytes": _Column("Peak memory", lambda value: si(value, "B"), min, deviation=False),
    "bytes_sent": _Column("Sent", lambda value: si(value, "B"), min, deviation=False),
}


def tables(cells: Sequence[Cell]) -> list[Table]:
    """All tables of one comparison, with entries by falling mean balanced accuracy."""
    order = by_merit(cells)
    found = [_overall(cells, order), _settings(cells, order), _reliability(cells, order)]
    if len(order) > 1:
        found += [_differences(cells, order), _ranks(cells, order)]
    return [*found, _costs(cells, order)]


def _overall(cells: Sequence[Cell], order: Sequence[str]) -> Table:
    measures: list[Measure] = ["balanced_accuracy", "accuracy", "auroc", "flops", "seconds"]
    header, columns = _means(cells, order, measures)
    ranks = statistics.mean_ranks(statistics.ranks(cells))
    whole = expected(cells) // len(order)
    counts = {name: sum(cell.entry == name for cell in cells) for name in order}
    columns.insert(1, _column(ranks, "{:.2f}".format, min))
    columns.append({name: Text(f"{counts[name]} of {whole}") for name in order})
    header = [header[0], "Mean rank", *header[1:], "Cells"]
    return Table("Overall", f"{progress(cells)} {mean_note(cells)}", *_rows(order, header, columns))


def _settings(cells: Sequence[Cell], order: Sequence[str]) -> Table:
    names = setting_names(statistics.settings(cells))
    table = statistics.by_setting(cells, "balanced_accuracy")
    seeds = len({cell.seed for cell in cells})
    columns = []
    for setting in names:
        row = table[setting]
        means = {name: value.mean for name, value in row.items()}
        best = _best(means, max) if len(row) == len(order) else None
        columns.append({name: _in_setting(row.get(name), best, seeds) for name in order})
    note = "Mean over seeds ± sample standard deviation." if seeds > 1 else "One seed."
    if any("(" in text.text for column in columns for text in column.values()):
        note += " In brackets: the number of finished seeds, if not all are finished."
    return Table("Balanced accuracy by setting", note, *_rows(order, list(names.values()), columns))


def _in_setting(value: Spread | None, best: float | None, seeds: int) -> Text:
    if value is None:
        return Text(NONE)
    some = f" ({value.count} of {seeds})" if value.count < seeds else ""
    return Text(_written("balanced_accuracy", value) + some, value.mean == best)


def _reliability(cells: Sequence[Cell], order: Sequence[str]) -> Table:
    header, columns = _means(cells, order, ["balanced_accuracy", "auroc", "ece", "worst_class"])
    note = f"{mean_note(cells)} Worst class: the smallest recall of a class."
    return Table("Reliability", note, *_rows(order, header, columns))


def _differences(cells: Sequence[Cell], order: Sequence[str]) -> Table:
    other = reference(cells)
    note = (
        "Over pairs of equal setting and seed, in percentage points, with the 95 % interval of "
        "Student's t; bold if it excludes zero. Pairs of one setting are not independent, and no "
        "interval is corrected for the number of entries, so read small differences with care."
    )
    header = ["Entry", "Balanced accuracy", "95 % interval", "Wins", "Accuracy", "95 % interval"]
    rows = [[Text(name), *_difference(cells, name, other)] for name in order if name != other]
    return Table(f"Difference to {other}", note, header, rows)


def _difference(cells: Sequence[Cell], name: str, other: str) -> list[Text]:
    balanced = statistics.paired(cells, name, other, "balanced_accuracy")
    plain = statistics.paired(cells, name, other, "accuracy")
    if balanced is None or plain is None:
        return [Text(NONE)] * 5
    ties = f", {balanced.ties} tied" if balanced.ties else ""
    wins = Text(f"{balanced.wins} of {balanced.pairs}{ties}")
    return [*_points(balanced), wins, *_points(plain)]


def _points(difference: statistics.Difference) -> list[Text]:
    if difference.interval is None:
        return [Text(points(difference.mean)), Text(NONE)]
    low, high = difference.interval
    certain = low > 0 or high < 0
    return [Text(points(difference.mean), certain), Text(f"{points(low)} to {points(high)}")]


def _ranks(cells: Sequence[Cell], order: Sequence[str]) -> Table:
    table = statistics.ranks(cells)
    names = setting_names(statistics.settings(cells))
    mean = _column(statistics.mean_ranks(table), "{:.2f}".format, min)
    columns = [_column(table.get(setting, {}), "{:g}".format, min) for setting in names]
    note = (
        "By mean balanced accuracy, 1 is the best; ties share the mean of their ranks. "
        "Only settings in which every entry has cells are ranked."
    )
    return Table("Ranks", note, *_rows(order, ["Mean rank", *names.values()], [mean, *columns]))


def _costs(cells: Sequence[Cell], order: Sequence[str]) -> Table:
    measures: list[Measure] = ["flops", "seconds", "peak_memory_bytes", "bytes_sent"]
    header, columns = _means(cells, order, measures)
    for measure in measures[:2]:
        front = statistics.pareto_front(final_points(cells, measure))
        columns.append({name: Text("yes" if name in front else "") for name in order})
    header += ["On front of operations", "On front of time"]
    note = (
        f"{mean_note(cells)} On the front: no other entry is at least as cheap and as accurate, "
        "and better in one of the two."
    )
    return Table("Costs", note, *_rows(order, header, columns))


_Fields = Mapping[str, Text]


def _means(
    cells: Sequence[Cell], order: Sequence[str], measures: Sequence[Measure]
) -> tuple[list[str], list[_Fields]]:
    """Titles and columns of overall means; a title names the settings if they are fewer."""
    usual = statistics.overall(cells, "balanced_accuracy").settings
    header: list[str] = []
    columns: list[_Fields] = []
    for measure in measures:
        result, column = statistics.overall(cells, measure), _COLUMNS[measure]
        less = f" ({len(result.settings)} of {len(usual)} settings)"
        header.append(column.title + less * (result.settings != usual))
        means = {name: value.mean for name, value in result.entries.items()}
        best = _best(means, column.best)
        columns.append(
            {name: Text(_written(measure, v), v.mean == best) for name, v in result.entries.items()}
        )
    return header, columns


def _best(values: Mapping[str, float], best: Callable[[list[float]], float]) -> float | None:
    """The best value; ``None`` if all are equal."""
    return best(list(values.values())) if len(set(values.values())) > 1 else None


def _written(measure: Measure, value: Spread) -> str:
    column = _COLUMNS[measure]
    return plus_minus(value.mean, value.deviation if column.deviation else None, column.number)


def _column(
    values: Mapping[str, float],
    number: Callable[[float], str],
    best: Callable[[list[float]], float],
) -> _Fields:
    top = _best(values, best)
    return {name: Text(number(values[name]), values[name] == top) for name in values}


def _rows(
    order: Sequence[str], header: list[str], columns: Sequence[_Fields]
) -> tuple[list[str], list[list[Text]]]:
    rows = [[Text(n), *(column.get(n, Text(NONE)) for column in columns)] for n in order]
    return ["Entry", *header], rows
