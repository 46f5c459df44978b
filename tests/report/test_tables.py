from __future__ import annotations

import csv
import io
from pathlib import Path
from urllib.parse import unquote

import pytest

from oneround.report.summary import rows
from oneround.report.tables import tables
from tests.evaluations import at_site, made_up

from .made_up_run import SITES, make_run


def read(uri: str) -> list[dict[str, str]]:
    kind, _, content = uri.partition(",")
    assert kind == "data:text/csv;charset=utf-8"
    return list(csv.DictReader(io.StringIO(unquote(content))))


def test_cost_and_submissions_equal_results(tmp_path: Path) -> None:
    results = make_run(tmp_path)
    found = tables(results, rows(results), [])
    assert set(found) == {"models", "classes", "cost", "submissions"}
    phases = {row["phase"]: row for row in read(found["cost"])}
    for name, cost in results["cost"].items():
        if isinstance(cost, dict):
            assert float(phases[name]["flops"]) == cost["flops"]
            assert float(phases[name]["seconds"]) == cost["seconds"]
    assert "bytes_sent" not in phases
    sent = read(found["submissions"])
    assert [row["site"] for row in sent] == SITES
    assert [int(row["bytes"]) for row in sent] == [s["bytes"] for s in results["submissions"]]
    assert [row["sha256"] for row in sent] == [s["sha256"] for s in results["submissions"]]


def test_sites_equal_their_evaluations(finished_run: Path) -> None:
    found = at_site(finished_run)
    sites = [made_up(found, "site-0", 61, 30), made_up(found, "site-1", 59, 30, own=20)]
    table = read(tables({}, [], sites)["sites"])
    for row, site in zip(table, sites, strict=True):
        assert (row["site"], row["split"]) == (site.site, site.split)
        assert int(row["images"]) == site.images
        assert float(row["accuracy"]) == site.global_model.accuracy
        if (own := site.own) is None:
            assert row["own_accuracy"] == row["difference"] == ""
        else:
            assert float(row["own_accuracy"]) == own.accuracy
            assert float(row["difference"]) == pytest.approx(
                site.global_model.accuracy - own.accuracy
            )


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(1)", "\t=1"])
def test_a_text_is_no_formula(text: str) -> None:
    sent = [{"site": "a", "file": text, "bytes": -1, "signed_by": text, "sha256": "0"}]
    (row,) = read(tables({"submissions": sent}, [], [])["submissions"])
    assert row["file"] == row["signed_by"] == f"'{text}"
    assert row["bytes"] == "-1"


def test_no_table_without_rows() -> None:
    assert tables({"cost": {"bytes_sent": 3}, "submissions": None}, [], []) == {}
