"""``cells.csv`` and ``curves.csv``: the results of a benchmark so far."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BeforeValidator, Field

from oneround.errors import OneRoundError
from oneround.files import write_atomic
from oneround.schema import Strict, validated

CELLS = "cells.csv"
CURVES = "curves.csv"

Share = Annotated[float, Field(ge=0, le=1)]
Maybe = Annotated[Share | None, BeforeValidator(lambda value: None if value == "" else value)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Label = Annotated[str, Field(min_length=1)]


class Cell(Strict):
    """One row of ``cells.csv``: the result of one method on one setting with one seed.

    Attributes:
        data: Name of the data set.
        partition: Partition of the data set among the sites.
        sites: Number of sites.
        seed: Seed of partition, client training and method.
        architecture: Architecture of the client models.
        comparison: What the entries of one table have in common, such as ``equal FLOPs``.
        entry: Name of the method with its options in tables.
        method: Name of the method.
        accuracy: Accuracy of the global model, in [0, 1].
        balanced_accuracy: Mean recall over classes, in [0, 1].
        auroc: Area under the ROC curve, in [0, 1]; ``None`` if it is not defined.
        ece: Expected calibration error, in [0, 1].
        worst_class: Smallest recall of a class, in [0, 1].
        flops: FLOPs of the method.
        seconds: Wall-clock time of the method, in seconds.
        peak_memory_bytes: Highest memory of the method, in bytes.
        bytes_sent: Bytes sent by all sites and to all sites.
        clients: Hash of the weights of the client models, the same for all entries of one
            setting and seed.
        cell: Hash of everything that decides the result; different in each row.
        command: Command that repeats this cell.
    """

    data: Label
    partition: Label
    sites: Count
    seed: Count
    architecture: Label
    comparison: Label
    entry: Label
    method: Label
    accuracy: Share
    balanced_accuracy: Share
    auroc: Maybe
    ece: Share
    worst_class: Share
    flops: Count
    seconds: Seconds
    peak_memory_bytes: Count
    bytes_sent: Count
    clients: str
    cell: Label
    command: str


class CurvePoint(Strict):
    """The student of a cell during the run: its cost so far, and its accuracy.

    Attributes:
        flops: FLOPs of the method so far.
        seconds: Time of the method so far, in seconds.
        accuracy: Accuracy on the test images, in [0, 1].
        balanced_accuracy: Mean recall over classes, in [0, 1].
    """

    flops: Count
    seconds: Seconds
    accuracy: Share
    balanced_accuracy: Share


class _CurveRow(CurvePoint):
    cell: Label


Row = TypeVar("Row", bound=Strict)

_CELL_COLUMNS = tuple(Cell.model_fields)
_CURVE_COLUMNS = ("cell", *CurvePoint.model_fields)


def read_cells(folder: Path) -> list[Cell]:
    """The finished cells in the order in which they were finished; empty if there is no table.

    Raises:
        OneRoundError: the table is damaged, or names a cell twice.
    """
    path = folder / CELLS
    cells = list(_read(path, Cell, _CELL_COLUMNS))
    seen: set[str] = set()
    for cell in cells:
        if cell.cell in seen:
            raise OneRoundError(
                f"the cell {cell.cell} is in it twice.",
                file=path,
                remedy="Remove one of the two lines, then run the same command again.",
            )
        seen.add(cell.cell)
    return cells


def read_curves(folder: Path) -> dict[str, list[CurvePoint]]:
    """The curve of each cell that has one, by its hash, including cells that are not finished.

    Raises:
        OneRoundError: the table is damaged.
    """
    curves: dict[str, list[CurvePoint]] = {}
    for row in _read(folder / CURVES, _CurveRow, _CURVE_COLUMNS):
        point = CurvePoint(**row.model_dump(exclude={"cell"}))
        curves.setdefault(row.cell, []).append(point)
    return curves


def append_cell(folder: Path, row: Cell, curve: Sequence[CurvePoint]) -> None:
    """Add a finished cell and its curve, which may be empty. One process at a time.

    The curve is written first, since the row marks the cell as finished: an interruption leaves
    either the whole cell or a cell that is run again, whose curve is then replaced.

    Raises:
        OneRoundError: a table is damaged, or the folder is missing, not writable or full.
    """
    points = [[row.cell, *point.model_dump().values()] for point in curve]
    others = [line for _, line in _lines(folder / CURVES, _CURVE_COLUMNS) if line[0] != row.cell]
    cells = [*(cell for cell in read_cells(folder) if cell.cell != row.cell), row]
    _write(folder / CURVES, _CURVE_COLUMNS, [*others, *points])
    _write(folder / CELLS, _CELL_COLUMNS, (cell.model_dump().values() for cell in cells))


def _read(path: Path, kind: type[Row], columns: Sequence[str]) -> Iterator[Row]:
    for number, line in _lines(path, columns):
        try:
            yield validated(kind, dict(zip(columns, line, strict=True)), path)
        except OneRoundError as error:
            raise _damaged(path, f"line {number}: {error.reason}") from error


def _lines(path: Path, columns: Sequence[str]) -> list[tuple[int, list[str]]]:
    """Number and fields of each line after the first; empty if there is no file."""
    try:
        text = path.read_bytes().decode("utf-8")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = next(reader, [])
        lines = [(reader.line_num, line) for line in reader]
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _damaged(path, f"cannot be read as a table: {error}.") from error
    if header != list(columns):
        raise _damaged(path, f"its first line must be {','.join(columns)}.")
    for number, line in lines:
        if len(line) != len(columns):
            what = f"line {number} has {len(line)} values instead of {len(columns)}."
            raise _damaged(path, what)
    return lines


def _damaged(path: Path, reason: str) -> OneRoundError:
    remedy = "Remove the damaged line and run the same command again: its cell is run again."
    if path.name == CURVES:
        remedy = "Remove the damaged line, or the file: charts lose lines, but no result is lost."
    return OneRoundError(reason, file=path, remedy=remedy)


def _write(path: Path, columns: Sequence[str], lines: Iterable[Iterable[object]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *lines])
    write_atomic(path, text.getvalue().encode())
