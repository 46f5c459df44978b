import re

import numpy as np
import pytest

from oneround.errors import OneRoundError
from oneround.report.units import percent, plus_minus, points
from oneround.research.benchmark.page import write_page
from tests.html_page import Page

from .made_up_table import ENTRIES, cell, drawn, write

TABLES = (
    "Overall", "Balanced accuracy by setting", "Reliability", "Difference to kang2025", "Ranks",
    "Costs",
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    pairs = list(drawn())
    write(folder, pairs)
    path = write_page(folder, "Nine <methods>")
    assert path == folder / "report.html"
    return [row for row, _ in pairs], path.read_text("utf-8"), (folder / "report.md").read_text()


def table(markdown, comparison, title):
    """Rows of one table, by their first field."""
    part = markdown.split(f"## {comparison}\n")[1]
    lines = part.split(f"### {title}\n")[1].split("\n\n")[1].splitlines()
    rows = [[field.strip().strip("*") for field in line.split("|")[1:-1]] for line in lines]
    assert len({len(row) for row in rows}) == 1
    return {row[0]: row[1:] for row in rows}


def test_nothing_comes_from_outside(made):
    page = Page(made[1])
    assert not page.references
    assert not page.open
    assert not {"script", "link", "iframe", "img"} & page.tags
    assert not re.search(r"url\(|@import|https?://", made[1])
    assert "Nine &lt;methods&gt;" in made[1]


def test_markdown_has_every_table(made):
    for comparison in ("published", "equal FLOPs"):
        for title in TABLES:
            rows = table(made[2], comparison, title)
            expected = set(ENTRIES) - ({"kang2025"} if "Difference" in title else set())
            assert set(rows) == expected | {"Entry", ":--"}
    assert made[2].startswith("# Nine \\<methods\\>\n")


def test_numbers_equal_the_cells(made):
    cells, _, markdown = made
    mine = [c for c in cells if c.comparison == "published" and c.entry == "fedisca"]
    others = [c for c in cells if c.comparison == "published" and c.entry == "kang2025"]
    by_seed = [np.mean([c.balanced_accuracy for c in mine if c.seed == s]) for s in (0, 1)]
    text = plus_minus(np.mean(by_seed), np.std(by_seed, ddof=1), percent)
    assert table(markdown, "published", "Overall")["fedisca"][0] == text
    first = [c.balanced_accuracy for c in mine if (c.data, c.partition) == ("bloodmnist", "iid")]
    rows = table(markdown, "published", "Balanced accuracy by setting")
    column = rows["Entry"].index("bloodmnist · iid")
    assert rows["fedisca"][column] == plus_minus(np.mean(first), np.std(first, ddof=1), percent)
    gaps = [a.accuracy - b.accuracy for a, b in zip(mine, others, strict=True)]
    assert table(markdown, "published", "Difference to kang2025")["fedisca"][3] == points(
        np.mean(gaps)
    )


def test_both_pages_say_the_same(made):
    rows = Page(made[1]).rows
    for title in TABLES:
        fields = table(made[2], "equal FLOPs", title)["fedisca"]
        assert ["fedisca", *fields] in rows


def test_the_first_sentence_names_the_best_two(made):
    assert re.search(
        r"kang2025 has the highest balanced accuracy, \d+\.\d ± 0\.\d %, on average over "
        r"6 settings; next is fedisca with \d+\.\d %\.",
        made[2].replace("\u202f", " "),
    )


def test_every_command_and_chart_is_there(made):
    cells, html, _ = made
    assert all(f"<code>{cell.command}</code>" in html for cell in cells)
    assert html.count("<figure>") == 2 * (2 + 2 * 6)
    assert "AUROC (3 of 6 settings)" in html


def test_partly_finished(tmp_path):
    pairs = [
        (row, line)
        for row, line in drawn(entries=ENTRIES[:3], comparisons=("published",))
        if not (row.entry == "fedisca" and row.partition == "iid")
        and not (row.entry == "kang2025" and row.data == "bloodmnist" and row.seed == 1)
    ]
    write(tmp_path, pairs)
    html = write_page(tmp_path, "t").read_text("utf-8")
    markdown = (tmp_path / "report.md").read_text()
    assert "29 of 36 cells are finished; 7 are missing." in markdown
    assert "the 4 of 6 settings in which every entry has cells" in markdown
    assert "finished of 36" in html
    rows = table(markdown, "published", "Balanced accuracy by setting")
    iid = rows["Entry"].index("bloodmnist · iid")
    assert rows["fedisca"][iid] == "–"
    assert rows["kang2025"][iid].endswith("(1 of 2)")
    assert table(markdown, "published", "Ranks")["kang2025"][1 + iid] == "–"


def test_nothing_in_common(tmp_path):
    rows = [cell(entry="a", data="x"), cell(entry="b", data="y", auroc=None)]
    write(tmp_path, [(row, []) for row in rows])
    assert "no overall mean" in write_page(tmp_path, "t").read_text("utf-8")
    difference = table((tmp_path / "report.md").read_text(), "published", "Difference to a")
    assert difference["b"] == ["–"] * 5


@pytest.mark.parametrize("curves", [True, False])
def test_one_cell(tmp_path, curves):
    (row, line), *_ = drawn(entries=("fedisca",), seeds=1)
    write(tmp_path, [(row.model_copy(update={"entry": "a|b*"}), line if curves else [])])
    html = write_page(tmp_path, "t").read_text("utf-8")
    markdown = (tmp_path / "report.md").read_text()
    assert "One cell is finished." in markdown
    assert "±" not in markdown
    assert "Difference" not in markdown
    assert r"| a\|b\* | " in markdown
    assert html.count("<figure>") == 2
    assert html.count('class="whisker"') == 0


def test_reference_is_the_best_without_kang2025(tmp_path):
    write(tmp_path, drawn(entries=("dense", "fedisca"), comparisons=("published",), seeds=1))
    write_page(tmp_path, "t")
    assert "### Difference to fedisca" in (tmp_path / "report.md").read_text()


def test_no_cells(tmp_path):
    with pytest.raises(OneRoundError, match="no finished cells") as caught:
        write_page(tmp_path, "t")
    assert caught.value.file == str(tmp_path / "cells.csv")
    assert caught.value.remedy
