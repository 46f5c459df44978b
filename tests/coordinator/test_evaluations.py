from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from oneround import signing
from oneround.coordinator.evaluations import keep_evaluations, pool, read_evaluation, wilson
from oneround.errors import OneRoundError
from oneround.report import write_model_card, write_report
from oneround.site.evaluation import write_evaluation
from oneround.study import SubmissionSpec
from tests.evaluations import STUDY, at_site, changed, made_up


def test_signed_and_read_again(finished_run: Path, tmp_path: Path) -> None:
    pair, other = (signing.new_signing_key(tmp_path / name) for name in ("site-0", "other"))
    submission = SubmissionSpec(keys={"site-0": signing.read_public_key(pair.public)})
    study = STUDY.model_copy(update={"submission": submission})
    found, path = at_site(finished_run), tmp_path / "north.json"
    assert write_evaluation(path, found) == [path]
    assert read_evaluation(path) == found
    with pytest.raises(OneRoundError, match=r"not signed by site-0: north\.json\.sig is missing"):
        read_evaluation(path, study)
    assert write_evaluation(path, found, key=pair.private) == [path, tmp_path / "north.json.sig"]
    assert read_evaluation(path, study) == found
    path.write_text(path.read_text().replace('"test"', '"val"'))
    with pytest.raises(OneRoundError, match="not what site-0 signed"):
        read_evaluation(path, study)
    write_evaluation(path, found, key=other.private)
    with pytest.raises(OneRoundError, match="not what site-0 signed"):
        read_evaluation(path, study)
    write_evaluation(path, changed(found, site="site-1"), key=pair.private)
    with pytest.raises(OneRoundError, match="the study has no key of site-1"):
        read_evaluation(path, study)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"study_hash": "0" * 64}, "another study"),
        ({"global": {"accuracy": 2}}, "global.accuracy"),
        ({"images": 0}, "images"),
        ({"patients": ["Jane"]}, "patients"),
        ({"site": "../x"}, "site"),
    ],
)
def test_files_from_anyone(
    finished_run: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "north.json"
    path.write_text(
        json.dumps(at_site(finished_run).model_dump(mode="json", by_alias=True) | changes)
    )
    with pytest.raises(OneRoundError, match=reason) as caught:
        read_evaluation(path, STUDY)
    assert caught.value.file == str(path)


def test_text_from_anyone_stays_on_a_short_line(tmp_path: Path) -> None:
    """It goes to terminals and, by the notes of a run, into the model card."""
    path = tmp_path / "north.json"
    strange = "x\n\n## Approved\n\x1b]0;title\x07" + 1000 * "y"
    path.write_text(json.dumps({f"{strange}{number}": 1 for number in range(1000)}))
    with pytest.raises(OneRoundError, match="more") as caught:
        read_evaluation(path)
    assert caught.value.reason.isprintable()
    assert len(caught.value.reason) < 5000


def test_what_all_sites_say_together(finished_run: Path) -> None:
    found = at_site(finished_run)
    one, two = made_up(found, "a", 100, 90, 80), made_up(found, "b", 300, 210, 225)
    three = made_up(found, "c", 100, 80)
    pooled = pool([one, two, three])
    assert (pooled.images, pooled.worst) == (500, "b")
    assert pooled.accuracy == (90 + 210 + 80) / 500
    assert (pooled.better, pooled.compared) == (1, 2)
    expected = binomtest(380, 500).proportion_ci(0.95, method="wilson")
    assert pooled.interval == pytest.approx((expected.low, expected.high), abs=1e-4)
    assert wilson(5, 5)[1] == pytest.approx(1)


def test_report_and_card_show_them(finished_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    found = at_site(finished_run)
    keep_evaluations(folder, [found, made_up(found, "site-1", 59, 30)])
    keep_evaluations(folder, [made_up(found, "site-0", 61, 30)])  # again
    page = write_report(folder).read_text("utf-8")
    assert "At the sites" in page
    assert "120 images" in page
    assert "At the sites it reaches" in page
    assert "Evaluation happens at the sites" not in page
    card = write_model_card(folder).read_text("utf-8")
    assert "| site-0 | 61 |" in card
    assert "| site-1 | 59 |" in card


def test_evaluation_of_another_model(finished_run: Path) -> None:
    with pytest.raises(OneRoundError, match="has evaluated another model"):
        keep_evaluations(finished_run, [changed(at_site(finished_run), model="0" * 64)])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("images", 61),
        ("images", "60"),
        ("images", 60.0),
        ("format", True),
        ("smallest_cell", True),
        ("created", "9999-99-99T99:99:99Z"),
        ("class_counts", {"red": 60, "green": 0, "blue": 0}),
        ("class_counts", {"red": 10**12, "green": 20, "blue": 20}),
        ("global.accuracy", 1.0),
        ("global.accuracy", "0.5"),
        ("global.recall", {"violet": 1.0}),
        ("global.intervals", {"accuracy": [0.9, 0.1]}),
        ("global.confusion", [[60, 0, 0], [0, 60, 0], [0, 0, 60]]),
        ("global.confusion", [[60]]),
        ("global.confusion", [[60], [0, 0]]),
    ],
)
def test_evaluation_that_contradicts_itself(
    finished_run: Path, tmp_path: Path, key: str, value: object
) -> None:
    right = made_up(at_site(finished_run), "site-0", 60, 30)
    content = right.model_dump(mode="json", by_alias=True)
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(content))
    assert read_evaluation(path) == right
    *tables, last = key.split(".")
    table = content[tables[0]] if tables else content
    table[last] = value
    path.write_text(json.dumps(content))
    with pytest.raises(OneRoundError):
        read_evaluation(path)
