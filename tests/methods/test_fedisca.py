from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from oneround import methods
from oneround.distillation.adaptation import with_batch_statistics
from oneround.distillation.student import Learner
from oneround.errors import OneRoundError
from oneround.model_file import Model
from oneround.models.ensemble import Ensemble
from oneround.runs.run import Run
from tests.tiny import IMAGE, RESNET, TASK, clients, equal, interrupted, seeded

METHOD = methods.get("fedisca")
TINY = ["epochs=3", "inversion.images=6", "inversion.batch_size=6", "inversion.steps=4"]


def made(run: Run, changes: Sequence[str] = ()) -> Model:
    options = METHOD.resolve("paper", [*TINY, *changes])
    return METHOD.function(Ensemble(clients(2), TASK), run, options)


def test_every_image_of_every_trajectory_teaches_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lessons: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = []
    learn = Learner.learn

    def spy(self, loop, x, taught, weight, names):  # type: ignore[no-untyped-def]
        assert torch.equal(weight[0] + weight[1], torch.ones(len(x)))
        lessons.append((x.clone(), *taught, weight[0]))
        return learn(self, loop, x, taught, weight, names)

    monkeypatch.setattr(Learner, "learn", spy)
    with Run(tmp_path, {}) as run:
        result = made(run)
    assert result.architectures == (RESNET,)
    assert len(lessons) == 3 * 4
    assert [weight[0].item() for *_, weight in lessons[:4]] == [0, 0.25, 0.5, 0.75]
    assert not torch.equal(lessons[0][0], lessons[4][0]), "every epoch begins with other noise"
    ensemble = Ensemble(clients(2), TASK, "logits")
    x, original, adapted, _ = lessons[5]
    assert torch.allclose(original, ensemble(x), atol=1e-5)
    assert torch.allclose(adapted, with_batch_statistics(ensemble)(x), atol=1e-5)


def test_adapted_copies_are_in_training_mode_in_effect() -> None:
    ensemble, x = (
        Ensemble(clients(2), TASK, "logits"),
        torch.randn(8, *IMAGE.shape, generator=seeded()),
    )
    reference = [client.model.train()(x) for client in clients(2)]
    expected = torch.stack(reference).mean(0).log_softmax(1)
    assert torch.allclose(with_batch_statistics(ensemble)(x), expected, atol=1e-4)
    assert not torch.allclose(ensemble(x), expected, atol=1e-2)


@pytest.mark.parametrize("stop", [1, 2])
def test_interrupted_and_resumed(tmp_path: Path, stop: int) -> None:
    with Run(tmp_path / "whole", {}) as run:
        whole = made(run)
    with Run(tmp_path / "parts", {}) as run:
        stage = run.stage("distillation")
        run.stage = lambda *a, **k: stage  # type: ignore[method-assign]
        with interrupted(stage, stop):
            made(run)
    with Run(tmp_path / "parts", {}, resume=True) as run:
        assert equal(made(run).network, whole.network)


def test_ends_when_the_flops_are_spent(tmp_path: Path) -> None:
    with Run(tmp_path / "whole", {}) as run:
        made(run)
        flops = run.costs()["distillation"].flops
    limit = 0.4 * flops
    with Run(tmp_path / "part", {}, flops=limit) as run:
        made(run)
        spent = run.costs()["distillation"].flops
    assert limit <= spent < limit + flops / 12, "it may overshoot by less than a step"


def test_needs_batch_norm(tmp_path: Path) -> None:
    from oneround.models.ensemble import Client
    from oneround.study import ArchitectureSpec
    from tests.tiny import network

    group = ArchitectureSpec(arguments={"width": 2, "norm": "group"})
    members = [*clients(1), Client("other", network(1, group), group, 10, (1, 2, 3))]
    with Run(tmp_path, {}) as run, pytest.raises(OneRoundError, match="no BatchNorm"):
        METHOD.function(Ensemble(members, TASK), run, METHOD.resolve("paper", TINY))


def test_one_batch_whatever_its_size_in_memory(tmp_path: Path) -> None:
    with Run(tmp_path, {}) as run:
        made(run, ["inversion.batch_size=2", "epochs=1"])
        assert run.costs()["distillation"].flops
    with pytest.raises(OneRoundError, match="all clients together"):
        METHOD.resolve("paper", ["inversion.clients=in-turn"])
