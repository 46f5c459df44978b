"""Mean and standard deviation over seeds, as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev


def summary(
    rows: Sequence[Mapping[str, object]], keys: Sequence[str], values: Sequence[str]
) -> str:
    """One line for each combination of ``keys``, in the order in which they first appear."""
    groups: dict[tuple[object, ...], list[Mapping[str, object]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    lines = [" | ".join(["", *keys, *values, "runs", ""]).strip()]
    lines.append("|" + "---|" * (len(keys) + len(values) + 1))
    for group, members in groups.items():
        cells = [_spread([float(str(m[value])) for m in members]) for value in values]
        lines.append("| " + " | ".join([*map(str, group), *cells, str(len(members))]) + " |")
    return "\n".join(lines)


def _spread(numbers: list[float]) -> str:
    if len(numbers) == 1:
        return f"{numbers[0]:.3f}"
    return f"{mean(numbers):.3f} ± {stdev(numbers):.3f}"
