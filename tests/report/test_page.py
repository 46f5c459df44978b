import csv
import io
import json
import re
from urllib.parse import unquote

import pytest
from safetensors.torch import load_file, save_file

from oneround.errors import OneRoundError
from oneround.report import write_report
from oneround.report.units import decimal, percent
from tests.html_page import Page

from .made_up_run import CLASSES, FAMILIES, SITES, make_distill_run, make_run

SECTIONS = {
    "models", "classes", "partition", "bank", "noise", "mixed", "curves", "cost", "origin",
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    results = make_run(run)
    path = write_report(run)
    assert path == run / "report.html"
    return results, path.read_text("utf-8")


def test_nothing_comes_from_outside(made):
    _, html = made
    page = Page(html)
    assert page.references
    inside = ("data:image/png;base64,", "data:text/csv;charset=utf-8,", "#")
    assert all(reference.startswith(inside) for reference in page.references)
    assert not {"script", "link", "iframe", "object"} & page.tags
    assert not re.search(r"url\(|@import|https?://", html)
    assert len(html) < 3_000_000


def test_outside_names_are_escaped(made):
    _, html = made
    assert "<script" not in html
    assert "&lt;script&gt;alert(" in html


def test_every_section_is_there_and_tags_are_balanced(made):
    page = Page(made[1])
    assert page.sections == SECTIONS
    assert not page.open
    for name in [*CLASSES, *FAMILIES, *SITES, "not a medical device", "λ 0."]:
        assert name in page.text


def test_numbers_equal_results(made):
    results, html = made
    rows = {row[0]: row for row in Page(html).rows if len(row) == 7}
    models = results["models"]
    named = {"Global model": models["global"], "Ensemble": models["ensemble"]}
    named |= {"One-shot FedAvg": models["fedavg"]} | {m["site"]: m for m in models["sites"]}
    for name, metrics in named.items():
        for cell, key, number in zip(
            rows[name][1:4],
            ("accuracy", "balanced_accuracy", "auroc"),
            (percent, percent, decimal),
            strict=True,
        ):
            assert cell.startswith(number(metrics[key]))
            assert number(metrics["intervals"][key][1]) in cell
    assert rows["Global model"][6] == "3.66\u202fMB"
    assert rows["site-1"][6] == "732\u202fkB"


def test_rates_of_each_class_equal_results_on_the_page_and_in_its_table(made):
    results, html = made
    metrics = results["models"]["global"]
    rates = ("recall", "specificity", "ppv", "npv", "prevalence")
    shown = {row[0]: row for row in Page(html).rows if len(row) == 6}
    uri = next(r for r in Page(html).references if "specificity" in r)
    table = {
        row["class"]: row for row in csv.DictReader(io.StringIO(unquote(uri.split(",", 1)[1])))
    }
    for name in CLASSES:
        for cell, rate in zip(shown[name][1:], rates, strict=True):
            low, high = metrics["class_intervals"][rate][name]
            assert cell.startswith(percent(metrics[rate][name]))
            assert percent(high) in cell
            row = table[name]
            assert float(row[rate]) == metrics[rate][name]
            assert (float(row[f"{rate}_low"]), float(row[f"{rate}_high"])) == (low, high)


def test_the_reliability_diagram_has_a_point_for_each_bin(made):
    results, html = made
    bins = results["models"]["global"]["reliability"]
    assert "Reliability" in Page(html).text
    assert html.count("<circle") == len(bins)


def test_navigation_leads_to_sections(made):
    page = Page(made[1])
    anchors = {r.removeprefix("#") for r in page.references if r.startswith("#")}
    assert anchors == SECTIONS
    assert {"main", "nav"} <= page.tags


def test_the_paired_difference_is_shown_with_its_interval(tmp_path):
    results = make_run(tmp_path)
    results["models"]["ensemble"]["difference"] = {
        "accuracy": 0.012, "intervals": {"accuracy": [-0.011, 0.034]},
    }  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps(results))
    rows = {row[0]: row for row in Page(write_report(tmp_path).read_text("utf-8")).rows if row}
    assert rows["Ensemble"][5] == "+1.2−1.1 to +3.4"


def test_each_version_is_listed_once(tmp_path):
    results = make_run(tmp_path)
    results["versions"]["oneround"] = results["oneround"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    rows = Page(write_report(tmp_path).read_text("utf-8")).rows
    assert [row[0] for row in rows].count("oneround") == 1


def test_lines_have_the_color_of_their_legend(made):
    _, html = made
    colors = dict(re.findall(r'<li title="(.*?)"><i style="--c: var\((.*?)\)"', html))
    lines = re.findall(r'<path class="line" style="--c: var\((.*?)\);.*?<title>(.*?)</title>', html)
    named = [(name, color) for color, name in lines if name in colors]
    assert named
    assert all(colors[name] == color for name, color in named)


def test_confusion_and_class_counts_equal_results(made):
    results, html = made
    rows = Page(html).rows
    for index, counts in enumerate(results["models"]["global"]["confusion"]):
        row = next(row for row in rows if row[0] == f"{index + 1}|{CLASSES[index]}")
        assert row[1:9] == [str(count) for count in counts]
    for site, counts in results["class_counts"].items():
        row = next(row for row in rows if row[0] == site and len(row) == 10)
        assert row[1:] == [str(count) for count in counts] + [f"{sum(counts):,}"]


def test_everything_that_went_in_is_named(made):
    results, html = made
    page = Page(html)
    hashes = [results["study"]["hash"], *results["hashes"].values()]
    hashes += [submission["sha256"] for submission in results["submissions"]]
    for text in [*hashes, *results["versions"].values(), *results["notes"], results["command"]]:
        assert text in page.text
    assert ["inversion.weights.tv", "2.5e-05"] in page.rows
    assert ["Synthesis", "220\u202fTFLOP", "4\u202fmin 11\u202fs", "2.1\u202fGB"] in page.rows


def test_distill_without_images(tmp_path):
    make_distill_run(tmp_path)
    page = Page(write_report(tmp_path).read_text("utf-8"))
    assert page.sections == SECTIONS - {"models", "classes", "partition"} | {"evaluation"}
    assert "Evaluation happens at the sites" in page.text
    assert "Balanced accuracy" not in page.text


def test_missing_parts_are_left_out(tmp_path):
    (tmp_path / "results.json").write_text('{"schema": 1, "method": "fedavg"}')
    page = Page(write_report(tmp_path).read_text("utf-8"))
    assert page.sections == {"evaluation", "origin"}


def test_large_images_stay_small(tmp_path):
    make_run(tmp_path, side=224)
    assert write_report(tmp_path).stat().st_size < 3_000_000


@pytest.mark.parametrize("content", [None, "{", "[1]"])
def test_unreadable_results(tmp_path, content):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(OneRoundError) as caught:
        write_report(tmp_path)
    assert caught.value.file == str(tmp_path / "results.json")
    assert caught.value.remedy


@pytest.mark.parametrize(("mix", "instead"), [("none", "bank images alone"), ("bank", "mixtures")])
def test_noise_that_was_not_used_is_shown_as_such(tmp_path, mix, instead):
    make_run(tmp_path)
    assert "Not used in this run" not in Page(write_report(tmp_path).read_text("utf-8")).text
    path = tmp_path / "gallery.safetensors"
    about = json.dumps({"noise_families": FAMILIES, "mix": mix})
    save_file(load_file(path), path, {"about": about})
    text = Page(write_report(tmp_path).read_text("utf-8")).text
    assert text.count("Not used in this run") == 2
    assert instead in text


def test_damaged_gallery(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"method": "kang2025"}))
    (tmp_path / "gallery.safetensors").write_bytes(b"not tensors")
    with pytest.raises(OneRoundError, match="gallery"):
        write_report(tmp_path)
