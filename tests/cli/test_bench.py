from __future__ import annotations

from pathlib import Path

import pytest
import tomlkit

from oneround import methods
from oneround.cli import main
from oneround.research.benchmark import cells
from tests.tiny import KANG2025, splits, write_npz

CONTENT = {
    "title": "Two on one",
    "partitions": ["iid"],
    "seeds": [1],
    "sites": [2],
    "architectures": ["resnet18:width=2"],
    "training": ["epochs=1", "batch_size=8"],
    "data": [{"name": "colors", "path": "colors.npz"}],
    "entries": [
        {"method": "ensemble", "comparison": "all"},
        {"method": "kang2025", "comparison": "all", "set": KANG2025},
    ],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_npz(tmp_path / "colors.npz", splits())
    path = tmp_path / "two.toml"
    path.write_text(tomlkit.dumps(CONTENT), encoding="utf-8")
    return path


def test_runs_and_writes_the_page(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["bench", str(file), "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert f"page: {out / 'report.html'}" in captured.out
    assert "2/2 all, kang2025: colors, iid, 2 sites, seed 1" in captured.err
    assert "Two on one" in (out / "report.md").read_text()

    row = cells.read_cells(out)[1]
    (out / "cells.csv").unlink()
    (out / "report.html").unlink()
    assert main(row.command.split()[1:]) == 0, "the command of a cell repeats it"
    (again,) = cells.read_cells(out)
    assert again.balanced_accuracy == row.balanced_accuracy
    assert main(["bench", str(file), "--out", str(out), "--page"]) == 0
    assert (out / "report.html").exists()


def test_failed_cells_are_told_at_the_end(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = file.read_text().replace("distillation.start=scratch", "distillation.start=nowhere")
    file.write_text(text)
    assert main(["bench", str(file), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "1 cell(s) failed" in error
    assert "all, kang2025: colors, iid, 2 sites, seed 1: nowhere" in error
    assert len(cells.read_cells(tmp_path / "out")) == 1


def test_where_every_cell_fails_the_reasons_are_the_last_word(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(file.read_text().replace("width=2", "width=0"))
    assert main(["bench", str(file), "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    told = captured.err.split("2 cell(s) failed")[1]
    assert told.count("the network cannot take images") == 2
    assert "no finished cells" not in captured.err
    assert captured.out == ""


def test_missing_data_is_named(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", str(file), "--data", str(tmp_path / "none"), "--out", str(tmp_path / "o")]
    assert main(arguments) == 1
    assert "colors.npz" in capsys.readouterr().err


def test_the_smoke_benchmark_runs(tmp_path: Path) -> None:
    """Every method of the package, and the page; on one of its two partitions."""
    smoke = (Path(__file__).parents[2] / "benchmarks" / "smoke.toml").read_text("utf-8")
    half = tmp_path / "smoke.toml"
    half.write_text(smoke.replace('["iid", "dirichlet-0.6"]', '["dirichlet-0.6"]'), "utf-8")
    assert main(["bench", str(half), "--out", str(tmp_path / "out")]) == 0
    rows = cells.read_cells(tmp_path / "out")
    without_public_images = set(methods.names()) - {"feddf"}
    assert {row.method for row in rows} == without_public_images
    assert len({row.clients for row in rows}) == 1, "the same for all methods"
    limited = [row.flops for row in rows if row.comparison == "equal FLOPs"]
    assert len(limited) == 7
    assert all(0.9 < flops / 5e9 < 1.1 for flops in limited)
    assert "kang2025" in (tmp_path / "out/report.md").read_text()
