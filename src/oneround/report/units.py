"""Number formats of reports: percent, SI prefixes, durations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

SPACE = "\u202f"  # narrow, and no line break between number and unit


def percent(share: float | None) -> str:
    """A share in [0, 1] in percent: ``91.2 %``."""
    return "–" if share is None else f"{100 * share:.1f}{SPACE}%"


def decimal(value: float | None) -> str:
    """A number with three decimals: ``0.987``."""
    return "–" if value is None else f"{value:.3f}"


def interval(bounds: Sequence[float], number: Callable[[float], str]) -> str:
    """Both ends of an interval, with the unit once: ``89.4–92.5 %``."""
    low, high = map(number, bounds)
    return f"{low.removesuffix(f'{SPACE}%')}–{high}"


def plus_minus(mean: float, deviation: float | None, number: Callable[[float], str]) -> str:
    """Mean and standard deviation, with the unit once: ``89.4 ± 0.6 %``; or the mean alone."""
    if deviation is None:
        return number(mean)
    return f"{number(mean).removesuffix(f'{SPACE}%')}{SPACE}±{SPACE}{number(deviation)}"


def points(difference: float) -> str:
    """A difference of shares in percentage points, always with a sign: ``+1.2``, ``−0.4``."""
    return f"{100 * difference:+.1f}".replace("-", "−").replace("−0.0", "+0.0")


def si(value: float | None, unit: str) -> str:
    """A value with three digits, SI prefix and unit: ``1.23 GB``, ``45.6 TFLOP``."""
    if value is None:
        return "–"
    prefixes = ["", "k", "M", "G", "T", "P", "E"]
    while value >= 999.5 and len(prefixes) > 1:
        value /= 1000
        prefixes.pop(0)
    number = f"{value:.3g}" if value < 999.5 else f"{value:.0f}"
    return f"{number}{SPACE}{prefixes[0]}{unit}"


def duration(seconds: float | None) -> str:
    """A time in seconds in its two largest units: ``3.2 s``, ``4 min 5 s``, ``2 h 3 min``."""
    if seconds is None:
        return "–"
    if seconds < 59.5:
        return f"{seconds:.1f}{SPACE}s" if seconds < 9.95 else f"{seconds:.0f}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{SPACE}min {rest}{SPACE}s"
    return f"{minutes // 60}{SPACE}h {minutes % 60}{SPACE}min"
