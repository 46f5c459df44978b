"""Summary of a comparison: order and names of its entries, its progress, its verdict."""

from __future__ import annotations

from collections.abc import Sequence

from oneround.report.units import SPACE, percent, plus_minus
from oneround.research.benchmark import statistics
from oneround.research.benchmark.cells import Cell
from oneround.research.benchmark.statistics import Measure, Setting

REFERENCE = "kang2025"


def by_merit(cells: Sequence[Cell]) -> list[str]:
    """Entries by falling mean balanced accuracy; by name as long as no setting has all of them."""
    means = statistics.overall(cells, "balanced_accuracy").entries
    names = statistics.entries(cells)
    return sorted(names, key=lambda name: -means[name].mean if means else 0)


def reference(cells: Sequence[Cell]) -> str:
    """The entry that others are compared with: ``kang2025`` or, without it, the best."""
    order = by_merit(cells)
    return REFERENCE if REFERENCE in order else order[0]


def setting_names(settings: Sequence[Setting]) -> dict[Setting, str]:
    """Name of each setting: data and partition, and sites and architecture if they differ."""
    sites = len({setting.sites for setting in settings}) > 1
    networks = len({setting.architecture for setting in settings}) > 1
    return {
        setting: " · ".join(
            [setting.data, setting.partition]
            + [f"{setting.sites} sites"] * sites
            + [setting.architecture] * networks
        )
        for setting in settings
    }


def expected(cells: Sequence[Cell]) -> int:
    """Number of cells if every entry had every setting and seed that any entry has."""
    seeds = len({cell.seed for cell in cells})
    return len(statistics.settings(cells)) * len(statistics.entries(cells)) * seeds


def progress(cells: Sequence[Cell]) -> str:
    """The number of finished and missing cells, in one sentence."""
    whole = expected(cells)
    if len(cells) == whole:
        return f"All {whole:,} cells are finished." if whole > 1 else "One cell is finished."
    missing = whole - len(cells)
    return (
        f"{len(cells):,} of {whole:,} cells are finished; {missing:,} "
        f"{'is' if missing == 1 else 'are'} missing."
    )


def verdict(cells: Sequence[Cell]) -> str:
    """The best and the second-best entry by mean balanced accuracy, in one sentence."""
    whole = statistics.overall(cells, "balanced_accuracy")
    if not whole.entries:
        return "No setting has cells of all entries yet, so there is no overall mean."
    best, *rest = by_merit(cells)
    top = whole.entries[best]
    places = f"{len(whole.settings)} settings" if len(whole.settings) > 1 else "one setting"
    number = plus_minus(top.mean, top.deviation, percent)
    which = f"the highest balanced accuracy, {number}," if rest else f"{number} balanced accuracy"
    sentence = f"{best} has {which} on average over {places}"
    if rest:
        sentence += f"; next is {rest[0]} with {percent(whole.entries[rest[0]].mean)}"
    return sentence + "."


def mean_note(cells: Sequence[Cell]) -> str:
    """A note on the seeds and settings that overall means are taken over."""
    count = len(statistics.overall(cells, "balanced_accuracy").settings)
    whole = len(statistics.settings(cells))
    note = "Means over seeds"
    if whole > 1:
        some = f"the {count} of {whole} settings in which every entry has cells"
        note += f", then over {some if count < whole else f'all {whole} settings'}"
    if len({cell.seed for cell in cells}) > 1:
        note += f"; ±{SPACE}is the sample standard deviation of that mean between seeds"
    return note + "."


def final_points(cells: Sequence[Cell], cost: Measure) -> dict[str, tuple[float, float]]:
    """Overall mean cost and accuracy of each entry; empty if no setting has all entries."""
    costs = statistics.overall(cells, cost).entries
    accuracy = statistics.overall(cells, "accuracy").entries
    return {name: (costs[name].mean, accuracy[name].mean) for name in costs}
