from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from oneround.cli.console import ProgressBars, counts_table, models_table, plain_table
from oneround.coordinator.results import Models, SiteMetrics
from oneround.evaluation import Metrics

BLOOD = (
    "basophil", "eosinophil", "erythroblast", "immature granulocytes", "lymphocyte", "monocyte",
    "neutrophil", "platelet",
)  # fmt: skip


def shown(table: Table, width: int) -> list[str]:
    """The lines of a table in a file or on a terminal of this width."""
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def metrics(accuracy: float, auroc: float | None = 1.0) -> dict[str, object]:
    interval = (accuracy - 0.02, accuracy + 0.018)
    intervals = {"accuracy": interval, "balanced_accuracy": interval, "auroc": (0.995, 1.0)}
    return {
        "images": 800, "accuracy": accuracy, "balanced_accuracy": accuracy, "auroc": auroc,
        "ece": 0.1, "recall": {}, "intervals": intervals, "confusion": [], "roc": {},
    }  # fmt: skip


@pytest.fixture
def models() -> Models:
    """Five sites and what was made of them; FedAvg was not possible."""
    return Models.model_validate(
        {
            "sites": [SiteMetrics(site=f"site-{k}", **metrics(0.4)) for k in range(1, 6)],
            "ensemble": Metrics(**metrics(0.9, None)),
            "global": Metrics(**metrics(0.892)),
        }
    )


@pytest.mark.parametrize("width", [80, 120])
def test_every_model_has_one_line(models: Models, width: int) -> None:
    lines = shown(models_table(models, {f"site-{k}": 44_812_345 for k in range(1, 6)}), width)
    assert max(map(len, lines)) < 80
    assert len(lines) == 3 + 5 + 1 + 3
    assert lines[1].split() == ["model", "accuracy", "balanced", "accuracy", "AUROC", "sent"]
    one, whole = "0.892 0.872–0.910", "1.000 0.995–1.000"
    assert lines[-1] == f"global model   {one}  {one}  {whole}   224 MB"
    assert lines[3].split()[0] == "site-1"
    assert lines[3].endswith("44.8 MB")
    assert lines[-3].split() == ["1-shot", "FedAvg", "–", "–", "–", "224", "MB"]


def test_only_long_names_of_sites_are_folded(models: Models) -> None:
    models.sites[0] = SiteMetrics(site="University Hospital of the North", **metrics(0.4))
    lines = shown(models_table(models, {s.site: 1 for s in models.sites}), 80)
    assert max(map(len, lines)) <= 80
    assert sum("0.400 0.380–0.418" in line for line in lines) == 5


@pytest.mark.parametrize("width", [80, 120])
def test_counts_of_eight_classes_at_five_sites(width: int) -> None:
    counts = {f"site-{k}": [k * 100 + c for c in range(8)] for k in range(1, 6)}
    lines = shown(counts_table(BLOOD, counts), width)
    assert len(lines) == 3 + 8 + 1
    assert lines[1].split() == ["class", *counts]
    assert lines[6].split() == ["immature", "granulocytes", "103", "203", "303", "403", "503"]
    assert lines[-1].split() == ["total", *(str(sum(row)) for row in counts.values())]


def test_counts_of_few_classes_at_many_sites() -> None:
    counts = {f"site-{k:02}": [k, 10] for k in range(1, 21)}
    lines = shown(counts_table(("[red]", "green"), counts), 80)
    assert len(lines) == 3 + 20
    assert lines[1].split() == ["site", "[red]", "green", "total"]
    assert lines[3].split() == ["site-01", "1", "10", "11"]


def test_names_are_not_markup() -> None:
    lines = shown(plain_table("name", ["[bold]x[/bold]"]), 80)
    assert lines[0].split() == ["name", "[bold]x[/bold]"]


def test_progress_in_a_file_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBars() as progress:
        progress("training", 1, 2, "")
        progress("training", 2, 2, "done")
    assert capsys.readouterr().err == "training 2/2 done\n"
