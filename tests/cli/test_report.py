from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Call, Workplace


def test_the_page_is_written_again(call: Call, workplace: Workplace) -> None:
    page = workplace.run / "report.html"
    before = page.read_bytes()
    page.unlink()
    content = call("report", workplace.run, "--json").json
    assert content == {"report": str(page), "bytes": page.stat().st_size}
    assert page.read_bytes() == before
    assert call("report", workplace.run).out == f"report: {page}\n"


def test_a_folder_without_results(call: Call, tmp_path: Path) -> None:
    outcome = call("report", tmp_path)
    assert outcome.code == 1
    assert "results.json" in outcome.err
