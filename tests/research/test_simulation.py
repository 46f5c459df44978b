from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from oneround import methods
from oneround.coordinator.results import Results
from oneround.data import ImageSet, Splits
from oneround.errors import OneRoundError
from oneround.evaluation import evaluate
from oneround.model_file import load_model
from oneround.research.simulation import divide, simulate
from oneround.study import Study
from oneround.submission import read_submission
from tests import tiny
from tests.tiny import DENSENET, KANG2025, RESNET, STUDY, Watching

METHOD = methods.get("kang2025")


def run(out: Path, splits: Splits, study: Study = STUDY, **arguments: Any) -> Results:
    defaults = {"sites": 2, "partition": "dirichlet", "beta": 0.6, "method": METHOD}
    options = METHOD.resolve("quick", KANG2025)
    return simulate(splits, study, out=out, **(defaults | {"options": options} | arguments))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two sites."""
    out = tmp_path_factory.mktemp("simulation") / "run"
    run(out, tiny.splits())
    return out


def test_results_have_the_documented_keys(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    models = results["models"]
    assert [site["site"] for site in models["sites"]] == ["site-1", "site-2"]
    single = [*models["sites"], *(models[name] for name in ("fedavg", "ensemble", "global"))]
    for metrics in [*single, *models["rules"].values()]:
        assert 0 <= metrics["accuracy"] <= 1
        assert 0 <= metrics["balanced_accuracy"] <= 1
        assert 0 <= metrics["auroc"] <= 1
        assert metrics["images"] == 12
    assert models["ensemble"] == models["rules"]["class-counts"]
    cost = results["cost"]
    assert set(cost) == {"training", "synthesis", "adaptation", "distillation", "bytes_sent"}
    for phase in cost.keys() - {"bytes_sent"}:
        assert cost[phase].keys() == {"flops", "seconds", "peak_memory_bytes"}
        assert all(value > 0 for value in cost[phase].values()), phase
    sent = [p.stat().st_size for p in (finished / "submissions").iterdir()]
    assert cost["bytes_sent"] == sum(sent)
    assert sum(map(sum, results["class_counts"].values())) == 48
    assert Results.read(finished).model_dump(mode="json", by_alias=True) == results


def test_reported_metrics_are_those_of_the_files(finished: Path) -> None:
    models = Results.read(finished).models
    test = tiny.splits().test
    assert test is not None
    again = evaluate(load_model(finished).network, test, STUDY.image)
    assert again.confusion == models.global_model.confusion
    for measure in ("accuracy", "balanced_accuracy", "auroc", "ece"):  # the layout rounds otherwise
        expected = getattr(models.global_model, measure)
        assert getattr(again, measure) == pytest.approx(expected, abs=1e-6), measure
    one = read_submission(finished / "submissions" / "site-1.oneround", STUDY)
    assert evaluate(one.model, test, STUDY.image).accuracy == models.sites[0].accuracy
    counts = Results.read(finished).class_counts
    assert counts is not None
    assert one.manifest.class_counts == counts["site-1"]


def test_test_images_only_report(finished: Path, tmp_path: Path) -> None:
    other = replace(tiny.splits(), test=tiny.images(30, seed=9))
    run(tmp_path, other)
    for name in ("global.safetensors", "curves.json"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


def test_the_seed_decides_everything(finished: Path, tmp_path: Path) -> None:
    run(tmp_path, tiny.splits(), STUDY.model_copy(update={"seed": 1}))
    assert Results.read(tmp_path).class_counts != Results.read(finished).class_counts
    one, other = ((f / "global.safetensors").read_bytes() for f in (tmp_path, finished))
    assert one != other


@pytest.mark.parametrize(
    ("stage", "note"),
    [("training", "site-2"), ("synthesis", ""), ("distillation", ""), ("evaluation", "fedavg")],
)
def test_interrupted_and_resumed_is_bit_equal(
    finished: Path, tmp_path: Path, stage: str, note: str
) -> None:
    def stop(name: str, done: int, total: int, said: str) -> None:
        if name == stage and note in said and done > 1:
            raise tiny.Interrupted

    with pytest.raises(tiny.Interrupted):
        run(tmp_path, tiny.splits(), callbacks=[Watching(stop)])
    resumed = run(tmp_path, tiny.splits(), resume=True)
    for name in ("global.safetensors", "curves.json", "gallery.safetensors"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes(), name
    straight = Results.read(finished)
    assert resumed.models == straight.models
    assert resumed.cost["training"].flops == straight.cost["training"].flops
    assert resumed.cost["distillation"].flops == straight.cost["distillation"].flops


def test_a_finished_run_resumed_changes_nothing(finished: Path) -> None:
    files = [*finished.glob("submissions/*"), *finished.glob("bank/*")]
    before = {p: p.read_bytes() for p in [*files, finished / "global.safetensors"]}
    times = {p: p.stat().st_mtime_ns for p in files}
    run(finished, tiny.splits(), resume=True)
    assert {p: p.read_bytes() for p in before} == before
    assert {p: p.stat().st_mtime_ns for p in files} == times


def test_resuming_with_other_options_names_them(finished: Path) -> None:
    changed = METHOD.resolve("quick", [*KANG2025, "distillation.steps=5"])
    with pytest.raises(OneRoundError, match=r"options\.distillation\.steps"):
        run(finished, tiny.splits(), options=changed, resume=True)
    with pytest.raises(OneRoundError, match=r"partition\.sites"):
        run(finished, tiny.splits(), sites=3, resume=True)


def test_architectures_may_differ(tmp_path: Path) -> None:
    study = STUDY.model_copy(update={"architectures": (RESNET, DENSENET)})
    results = run(tmp_path, tiny.splits(), study, partition="iid")
    names = [record.architecture.partition("(")[0] for record in results.submissions]
    assert names == ["resnet18", "densenet"]
    assert results.models.fedavg is None
    assert any(note.startswith("fedavg: weights of different") for note in results.notes)
    assert results.models.ensemble is not None
    assert results.models.global_model is not None


def test_sites_that_keep_their_counts(tmp_path: Path) -> None:
    study = STUDY.model_copy(update={"share_class_counts": False})
    results = run(tmp_path, tiny.splits(), study)
    assert results.class_counts is None
    assert results.models.rules.keys() == {"logits", "probabilities"}
    assert results.models.ensemble == results.models.rules["probabilities"]
    assert any("class-counts" in note for note in results.notes)


def test_a_class_that_a_site_does_not_have_is_noted(tmp_path: Path) -> None:
    names = tuple("north" if label else "south" for label in tiny.images(48).labels.tolist())
    data = tiny.splits()
    splits = replace(data, train=tiny.with_sites(data.train, names), val=None)
    results = run(
        tmp_path, splits, partition="site", method=methods.get("fedavg"),
        options=methods.get("fedavg").resolve(),
    )  # fmt: skip
    assert [site.site for site in results.models.sites] == ["north", "south"]
    assert "north has no training image of class red." in results.notes
    fedavg = results.models.fedavg
    assert fedavg is not None
    assert fedavg.difference is not None
    assert (fedavg.difference.accuracy, fedavg.difference.differing) == (0, 0)
    assert fedavg.model_copy(update={"difference": None}) == results.models.global_model


def parts_of(partition: Any, **arguments: Any) -> dict[str, tuple[ImageSet, ImageSet | None]]:
    data = arguments.pop("data", tiny.splits())
    return divide(data, STUDY, arguments.pop("sites", 3), partition, arguments.pop("beta", 0.6))


@pytest.mark.parametrize("partition", ["iid", "dirichlet"])
def test_every_image_goes_to_one_site(partition: str) -> None:
    data, parts = tiny.splits(), parts_of(partition)
    assert list(parts) == ["site-1", "site-2", "site-3"]
    for split, whole in (("train", data.train), ("val", data.val)):
        assert whole is not None
        found = torch.cat(
            [
                (train if split == "train" else val).images.flatten(1)  # type: ignore[union-attr]
                for train, val in parts.values()
                if split == "train" or val is not None
            ]
        )
        expected = whole.images.flatten(1)
        assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, expected.tolist()))


def test_names_of_many_sites_sort_in_order() -> None:
    names = list(parts_of("iid", sites=10))
    assert names == sorted(names)
    assert names[0] == "site-01"


def test_partition_by_the_site_column() -> None:
    data = tiny.splits()
    sites = tuple("ba"[i % 2] for i in range(48))
    val_sites = ("b",) * 12
    assert data.val is not None
    splits = replace(
        data, train=tiny.with_sites(data.train, sites), val=tiny.with_sites(data.val, val_sites)
    )
    parts = parts_of("site", data=splits)
    assert list(parts) == ["a", "b"]
    assert torch.equal(parts["b"][0].images, data.train.images[::2])
    assert parts["a"][1] is None
    assert len(parts["b"][1] or ()) == 12


@pytest.mark.parametrize("name", ["../../elsewhere", "a/b", ""])
def test_a_site_column_cannot_name_other_folders(tmp_path: Path, name: str) -> None:
    data = tiny.splits()
    splits = replace(data, train=tiny.with_sites(data.train, (name,) * 48))
    with pytest.raises(OneRoundError, match="cannot be the name of a site") as caught:
        run(tmp_path / "a" / "run", splits, partition="site")
    assert caught.value.remedy
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_simulated(tmp_path: Path) -> None:
    data = tiny.splits()
    with pytest.raises(OneRoundError, match="no test images"):
        run(tmp_path, replace(data, test=None))
    with pytest.raises(OneRoundError, match="does not say which image is from which site"):
        run(tmp_path, data, partition="site")
    with pytest.raises(OneRoundError, match="cannot be divided among 100 sites"):
        run(tmp_path, data, partition="iid", sites=100)
    with pytest.raises(OneRoundError, match="gives each of the 40 sites"):
        run(tmp_path, data, sites=40)
    with pytest.raises(OneRoundError, match="number of sites is 0"):
        run(tmp_path, data, partition="iid", sites=0)
    assert not list(tmp_path.iterdir())
