import csv

import pytest

from oneround.errors import OneRoundError
from oneround.research.benchmark import cells
from oneround.research.benchmark.cells import CurvePoint, append_cell, read_cells, read_curves

from .made_up_table import cell, curve

COLUMNS = (
    "data,partition,sites,seed,architecture,comparison,entry,method,accuracy,balanced_accuracy,"
    "auroc,ece,worst_class,flops,seconds,peak_memory_bytes,bytes_sent,clients,cell,command"
)


def test_what_was_written_is_read(tmp_path):
    rows = [
        cell(cell="x", entry='fedisca, "our" rule', accuracy=1 / 3, auroc=None),
        cell(cell="y", command="oneround simulate\n --seed 1"),
    ]
    curves = [curve(10**12, 3.0, 0.7), []]
    for row, line in zip(rows, curves, strict=True):
        append_cell(tmp_path, row, line)
    assert read_cells(tmp_path) == rows
    assert read_curves(tmp_path) == {"x": curves[0]}


def test_columns_are_as_agreed(tmp_path):
    append_cell(tmp_path, cell(), curve(10, 1.0, 0.5, size=2))
    assert (tmp_path / "cells.csv").read_text().splitlines()[0] == COLUMNS
    rows = list(csv.DictReader((tmp_path / "curves.csv").open(newline="")))
    assert list(rows[0]) == ["cell", "flops", "seconds", "accuracy", "balanced_accuracy"]
    assert len(rows) == 2


def test_nothing_is_finished_yet(tmp_path):
    assert read_cells(tmp_path) == []
    assert read_curves(tmp_path) == {}


def test_interrupted_between_both_files(tmp_path, monkeypatch):
    append_cell(tmp_path, cell(cell="x"), curve(10, 1.0, 0.5))
    write_atomic = cells.write_atomic

    def cut(path, content):
        if path.name == "cells.csv":
            raise KeyboardInterrupt
        write_atomic(path, content)

    monkeypatch.setattr(cells, "write_atomic", cut)
    with pytest.raises(KeyboardInterrupt):
        append_cell(tmp_path, cell(cell="y"), curve(10, 1.0, 0.9))
    assert [row.cell for row in read_cells(tmp_path)] == ["x"]
    monkeypatch.undo()
    again = [CurvePoint(flops=1, seconds=1, accuracy=0.1, balanced_accuracy=0.2)]
    append_cell(tmp_path, cell(cell="y"), again)
    assert [row.cell for row in read_cells(tmp_path)] == ["x", "y"]
    assert read_curves(tmp_path)["y"] == again


def test_a_cell_that_is_done_again_is_replaced(tmp_path):
    append_cell(tmp_path, cell(cell="x", accuracy=0.1), [])
    append_cell(tmp_path, cell(cell="x", accuracy=0.2), [])
    assert [row.accuracy for row in read_cells(tmp_path)] == [0.2]


DAMAGES = {
    "cut": lambda text: text[:-20],
    "header": lambda text: text.replace("entry", "label", 1),
    "empty": lambda text: "",
    "number": lambda text: text.replace("0.5", "high", 1),
    "nan": lambda text: text.replace("0.5", "nan", 1),
    "range": lambda text: text.replace("0.5", "50", 1),
    "quote": lambda text: text + '"a"b,c\n',
    "twice": lambda text: text + text.splitlines()[-1] + "\n",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_cells(tmp_path, damage):
    append_cell(tmp_path, cell(cell="x" * 30, command=""), [])
    path = tmp_path / "cells.csv"
    path.write_text(damage(path.read_text()))
    with pytest.raises(OneRoundError) as caught:
        read_cells(tmp_path)
    assert caught.value.file == str(path)
    assert "Remove" in caught.value.remedy


def test_the_damaged_line_is_named(tmp_path):
    append_cell(tmp_path, cell(cell="x"), curve(10, 1.0, 0.5, size=3))
    path = tmp_path / "curves.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], "x,1,2", *lines[2:]]) + "\n")
    with pytest.raises(OneRoundError, match="line 3 has 3 values instead of 5") as caught:
        read_curves(tmp_path)
    assert "no result" in caught.value.remedy
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(OneRoundError, match="cannot be read as a table"):
        read_curves(tmp_path)
