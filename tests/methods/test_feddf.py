from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from oneround import methods
from oneround.data.reading import read_unlabeled
from oneround.errors import OneRoundError
from oneround.model_file import Model
from oneround.models.ensemble import Ensemble, average
from oneround.runs.run import Run
from tests.tiny import (
    IMAGE,
    TASK,
    clients,
    equal,
    images,
    interrupted,
    splits,
    write_folder,
    write_npz,
)

METHOD = methods.get("feddf")
TINY = ["steps=6", "batch_size=4"]


@pytest.fixture
def public(tmp_path: Path) -> Path:
    return write_npz(tmp_path / "public.npz", splits())


def made(run: Run, public: Path, changes: Sequence[str] = (), preset: str = "paper") -> Model:
    options = METHOD.resolve(preset, [f"public={public}", *TINY, *changes])
    return METHOD.function(Ensemble(clients(2), TASK), run, options)


def test_the_student_starts_as_the_average(tmp_path: Path, public: Path) -> None:
    with Run(tmp_path / "run", {}) as run:
        model = made(run, public, ["distillation.learning_rate=1e-12"]).network
    start = average(Ensemble(clients(2), TASK))
    assert torch.allclose(model.fc.weight, start.fc.weight, atol=1e-9)  # type: ignore[union-attr, arg-type]


def test_the_student_comes_closer_to_the_ensemble(tmp_path: Path, public: Path) -> None:
    x = IMAGE.normalize(read_unlabeled(public, IMAGE))
    ensemble = Ensemble(clients(2), TASK, "logits")

    def divergence(model: torch.nn.Module) -> float:
        log_q = model(x).log_softmax(1)
        return torch.nn.functional.kl_div(
            log_q, ensemble(x), reduction="batchmean", log_target=True
        ).item()

    with Run(tmp_path / "run", {}) as run, torch.no_grad():
        before = divergence(average(Ensemble(clients(2), TASK)))
        with torch.enable_grad():
            model = made(
                run, public, ["steps=60", "batch_size=16", "distillation.learning_rate=0.01"]
            ).network
        assert divergence(model) < 0.5 * before
    assert run.stages["distillation"].cost.flops > 0


def test_interrupted_and_resumed(tmp_path: Path, public: Path) -> None:
    steps = ["steps=130", "batch_size=2"]
    with Run(tmp_path / "whole", {}) as run:
        whole = made(run, public, steps, "quick")
    with Run(tmp_path / "parts", {}) as run:
        stage = run.stage("distillation")
        run.stage = lambda *a, **k: stage  # type: ignore[method-assign]
        with interrupted(stage, 110):
            made(run, public, steps, "quick")
    with Run(tmp_path / "parts", {}, resume=True) as run:
        assert equal(made(run, public, steps, "quick").network, whole.network)


def test_without_public_images_there_is_nothing_to_do(tmp_path: Path) -> None:
    with Run(tmp_path / "run", {}) as run, pytest.raises(OneRoundError, match="none are") as error:
        METHOD.function(Ensemble(clients(2), TASK), run, METHOD.resolve())
    assert "public=PATH" in error.value.remedy


def test_unlabeled_images_in_a_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pictures", images(6))
    for number, file in enumerate(sorted(folder.rglob("*.png"))):
        file.rename(folder / f"{number}.png")
    assert len(read_unlabeled(write_npz(tmp_path / "a.npz", splits()), IMAGE, "val")) == 12
    found = read_unlabeled(folder, IMAGE)
    assert found.shape == (6, *IMAGE.shape)
    assert 0 <= found.min() < found.max() <= 1
    (folder / "notes.txt").write_text("no image")
    with pytest.raises(OneRoundError, match=r"notes\.txt"):
        read_unlabeled(folder, IMAGE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(OneRoundError, match="no image"):
        read_unlabeled(tmp_path / "empty", IMAGE)
