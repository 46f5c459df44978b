from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import oneround
from oneround import methods
from oneround.coordinator.aggregate import aggregate, ensemble_of
from oneround.coordinator.results import Results
from oneround.errors import OneRoundError
from oneround.methods import Method
from oneround.model_file import Model, load_model
from oneround.models.ensemble import Ensemble
from oneround.report import write_model_card
from oneround.runs.callbacks import Callback
from oneround.schema import Strict
from oneround.submission import Submission, read_submission
from tests import tiny
from tests.tiny import HEADFIT, KANG2025, STUDY, Watching, equal

METHOD = methods.get("kang2025")
OPTIONS = METHOD.resolve("quick", KANG2025)


def test_ensemble_of_submissions(submissions: list[Submission]) -> None:
    ensemble = ensemble_of(submissions, STUDY)
    assert [client.site for client in ensemble.clients] == ["site-0", "site-1"]
    assert [client.loss for client in ensemble.clients] == [
        submission.manifest.training.loss for submission in submissions
    ]
    for mine, client in zip(ensemble.clients, tiny.clients(), strict=True):
        assert equal(mine.model, client.model)
        assert (mine.images, mine.class_counts) == (client.images, client.class_counts)


def test_weighted_classes_are_known_to_the_ensemble(submissions: list[Submission]) -> None:
    weighted = STUDY.training.model_copy(update={"class_weighted": True})
    study = STUDY.model_copy(update={"training": weighted})
    assert all(client.balanced for client in ensemble_of(submissions, study).clients)
    assert not any(client.balanced for client in ensemble_of(submissions, STUDY).clients)


def test_one_global_model_from_submissions_alone(
    tmp_path: Path, submissions: list[Submission]
) -> None:
    made = aggregate(STUDY, submissions, out=tmp_path, method=METHOD, options=OPTIONS, seed=3)
    assert equal(load_model(tmp_path).network, made.network)
    results = Results.read(tmp_path)
    assert results.method == "kang2025"
    assert results.seeds == {"study": 0, "run": 3}
    assert results.study["hash"] == STUDY.hash
    assert results.models.global_model is None, "there is no image to evaluate it on"
    assert results.models.sites == []
    assert set(results.cost) == {"synthesis", "adaptation", "distillation", "bytes_sent"}
    assert results.cost["bytes_sent"] == sum(s.path.stat().st_size for s in submissions)
    assert results.class_counts == {"site-0": (0, 3, 7), "site-1": (1, 3, 16)}
    for record, submission in zip(results.submissions, submissions, strict=True):
        content = submission.path.read_bytes()
        assert record.sha256 == hashlib.sha256(content).hexdigest()
        assert record.bytes == len(content)
    for name, digest in results.hashes.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    assert {"global.safetensors", "config.json"} <= results.hashes.keys()
    curves = json.loads((tmp_path / "curves.json").read_text())
    assert curves["distillation"][-1]["step"] == 4
    assert "global model written" in (tmp_path / "log.txt").read_text()


def test_the_default_method(tmp_path: Path, submissions: list[Submission]) -> None:
    with pytest.raises(OneRoundError, match="not those of the method headfit"):
        aggregate(STUDY, submissions, out=tmp_path, options=OPTIONS)
    options = methods.get().resolve("quick", HEADFIT)
    aggregate(STUDY, submissions, out=tmp_path, options=options)
    results = Results.read(tmp_path)
    assert results.method == "headfit"
    assert "those of the client model of site-1" in results.notes[0]
    assert results.notes[0] in write_model_card(tmp_path).read_text("utf-8")


@pytest.mark.parametrize("stage", ["synthesis", "adaptation", "distillation"])
def test_interrupted_and_resumed_is_bit_equal(
    tmp_path: Path, submissions: list[Submission], stage: str
) -> None:
    def stop(name: str, done: int, total: int, note: str) -> None:
        if name == stage and done > total // 2:
            raise tiny.Interrupted

    def run(folder: str, **arguments: object) -> None:
        aggregate(
            STUDY, submissions, out=tmp_path / folder, method=METHOD, options=OPTIONS, **arguments
        )

    run("straight")
    with pytest.raises(tiny.Interrupted):
        run("resumed", callbacks=[Watching(stop)])
    with pytest.raises(OneRoundError, match="already holds a run"):
        run("resumed")
    run("resumed", resume=True)
    names = ("global.safetensors", "config.json", "gallery.safetensors", "curves.json")
    for name in names:
        straight, resumed = (tmp_path / f / name for f in ("straight", "resumed"))
        assert straight.read_bytes() == resumed.read_bytes(), name


def test_resuming_with_other_submissions_names_them(
    tmp_path: Path, submissions: list[Submission]
) -> None:
    method = methods.get("fedavg")
    aggregate(STUDY, submissions, out=tmp_path, method=method)
    with pytest.raises(OneRoundError, match=r"other options: submissions\.site-1"):
        aggregate(STUDY, submissions[:1], out=tmp_path, method=method, resume=True)


def test_two_submissions_of_one_site_are_refused(
    tmp_path: Path, submissions: list[Submission]
) -> None:
    with pytest.raises(OneRoundError, match="site-twice") as caught:
        aggregate(STUDY, [submissions[0], *submissions], out=tmp_path / "run")
    assert caught.value.remedy
    assert not (tmp_path / "run").exists()


def test_submissions_of_another_study_are_refused(
    tmp_path: Path, submissions: list[Submission]
) -> None:
    """Submissions that were read without a study are compared with it here."""
    changes = {"name": "other", "sites": ("site-1", "site-2"), "classes": tiny.CLASSES[::-1]}
    other = STUDY.model_copy(update=changes)
    with pytest.raises(OneRoundError) as caught:
        aggregate(other, submissions, out=tmp_path / "run", method="fedavg")
    found = [
        (Path(line.split(": ")[0]).name, line.split("[")[1].split("]")[0])
        for line in caught.value.reason.splitlines()[1:]
    ]
    assert found == [
        ("site-0.oneround", "other-study"),
        ("site-0.oneround", "unknown-site"),
        ("site-0.oneround", "classes-differ"),
        ("site-1.oneround", "other-study"),
        ("site-1.oneround", "classes-differ"),
    ]
    assert caught.value.remedy
    assert not (tmp_path / "run").exists()


def test_no_submission_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OneRoundError, match="no submission"):
        aggregate(STUDY, [], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["fedavg", "ensemble"])
def test_methods_without_a_student(
    tmp_path: Path, submissions: list[Submission], method: str
) -> None:
    made = aggregate(STUDY, submissions, out=tmp_path, method=method)
    x = torch.randn(2, *STUDY.image.shape)
    assert equal(load_model(tmp_path).network, made.network)
    assert torch.allclose(load_model(tmp_path).network(x), made.network(x), atol=1e-5)


class Options(Strict):
    """Of the method below."""


def test_a_method_of_ones_own(tmp_path: Path, submissions: list[Submission]) -> None:
    def first(ensemble: Ensemble, run: object, options: object) -> Model:
        architecture = submissions[0].manifest.architecture
        return Model(submissions[0].model, ensemble.task, (architecture,))

    module = ModuleType("first")
    vars(module).update(first=first, Options=Options, PRESETS={"quick": Options()})
    made = aggregate(STUDY, submissions, out=tmp_path, method=Method.of(module))
    assert made.network is submissions[0].model
    assert Results.read(tmp_path).method == "first"


def test_sites_that_keep_their_counts(tmp_path: Path) -> None:
    study = STUDY.model_copy(update={"share_class_counts": False})
    client = oneround.train_client(study, "north", tiny.images())
    client.write(tmp_path / "north.oneround", study)
    submission = read_submission(tmp_path / "north.oneround", study)
    aggregate(study, [submission], out=tmp_path / "run", method="ensemble")
    assert Results.read(tmp_path / "run").class_counts is None
    assert load_model(tmp_path / "run").network.rule == "probabilities"


def test_a_limit_of_flops_ends_the_method(tmp_path: Path, submissions: list[Submission]) -> None:
    options = METHOD.resolve("quick", [*KANG2025, "distillation.steps=50"])
    run = partial(aggregate, STUDY, submissions, method=METHOD, options=options)
    run(out=tmp_path / "whole")
    whole = sum(Results.read(tmp_path / "whole").cost[p].flops for p in PHASES)  # type: ignore[union-attr]
    limit = 0.5 * whole
    run(out=tmp_path / "half", flops=limit)
    half = Results.read(tmp_path / "half")
    spent = sum(half.cost[phase].flops for phase in PHASES)  # type: ignore[union-attr]
    assert limit <= spent < 1.1 * limit
    assert half.options["flops"] == limit
    with pytest.raises(OneRoundError, match="other options: flops"):
        run(out=tmp_path / "half", resume=True)


PHASES = ("synthesis", "adaptation", "distillation")


def test_in_memory_is_bit_equal_to_a_run_folder(
    tmp_path: Path, submissions: list[Submission], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nested = {"inversion": {"images": 6, "steps": 2}, "last_layer": {"steps": 6}}
    in_memory = aggregate(STUDY, submissions, options=nested, seed=3)
    assert not list(tmp_path.iterdir()), "nothing is written"
    assigned = ["inversion.images=6", "inversion.steps=2", "last_layer.steps=6"]
    kept = aggregate(
        STUDY, submissions, method="headfit", options=assigned, seed=3, out=tmp_path / "run"
    )
    assert equal(in_memory.network, kept.network)
    assert equal(load_model(tmp_path / "run").network, kept.network)
    assert (in_memory.method, in_memory.study_hash) == ("headfit", STUDY.hash)


def test_every_method_works_in_memory(submissions: list[Submission]) -> None:
    for name, changes in (("kang2025", KANG2025), ("ensemble", []), ("fedavg", [])):
        made = aggregate(STUDY, submissions, method=name, options=changes)
        assert made.task == STUDY.task, name


def test_callbacks_see_progress_and_logs(submissions: list[Submission], tmp_path: Path) -> None:
    seen: dict[str, list[Any]] = {"progress": [], "synthesis": [], "distillation": []}

    class Seeing(Callback):
        def on_progress(self, stage: str, done: int, total: int, note: str) -> None:
            seen["progress"].append((stage, done, total))

        def on_log(self, stage: str, entry: Mapping[str, Any]) -> None:
            seen[stage].append(dict(entry))

    aggregate(STUDY, submissions, options=HEADFIT, out=tmp_path, callbacks=[Seeing()])
    curves = json.loads((tmp_path / "curves.json").read_text("utf-8"))
    assert seen["synthesis"] == curves["synthesis"]
    assert seen["distillation"] == curves["distillation"]
    assert ("distillation", 6, 6) in seen["progress"]


def test_options_of_another_method_are_refused(submissions: list[Submission]) -> None:
    with pytest.raises(OneRoundError, match="not those of the method headfit"):
        aggregate(STUDY, submissions, options=OPTIONS)
    with pytest.raises(OneRoundError, match="options of headfit"):
        aggregate(STUDY, submissions, options={"distillation": {"steps": 3}})
