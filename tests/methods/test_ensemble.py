from __future__ import annotations

from pathlib import Path

import torch

from oneround.methods.ensemble import Options, ensemble
from oneround.models.ensemble import Client, Ensemble
from oneround.runs.run import Run
from tests.tiny import DENSENET, IMAGE, RESNET, TASK, clients, network


def test_is_the_client_models_with_the_rule(tmp_path: Path) -> None:
    members = [*clients(1), Client("other", network(1, DENSENET), DENSENET, 10, (1, 2, 3))]
    x = torch.randn(2, *IMAGE.shape)
    with Run(tmp_path, {}) as run:
        made = ensemble(Ensemble(members, TASK), run, Options(rule="logits"))
        other = ensemble(Ensemble(members, TASK), run, Options())
    assert torch.equal(made.network(x), Ensemble(members, TASK, "logits")(x))
    assert torch.equal(other.network(x), Ensemble(members, TASK, "class-counts")(x))
    assert made.architectures == (RESNET, DENSENET)
