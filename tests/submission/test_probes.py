from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from oneround import models
from oneround.study import ArchitectureSpec, ImageSpec, Study
from oneround.submission import check_submission, read_submission, read_submissions
from oneround.submission.manifest import Manifest
from oneround.submission.probes import check_outputs, probes

from .conftest import client_model

Submit = Callable[..., Path]


def fatal(path: Path, study: Study) -> list[str]:
    return [problem.code for problem in check_submission(path, study) if problem.fatal]


def test_probes_are_the_same_every_time(study: Study) -> None:
    x = probes(study.image)
    probes.cache_clear()
    assert torch.equal(x, probes(study.image))
    pixels = study.image.denormalize(x)
    assert [pixels[k].unique().tolist() for k in range(3)] == [[0.0], [0.5], [1.0]]
    assert pixels.min() >= 0
    assert pixels.max() <= 1


def spoil_last(model: nn.Module) -> None:
    model.fc.weight.data[:, 0], model.fc.weight.data[0, 0] = -3e38, 3e38  # type: ignore[index, union-attr]
    model.layer4[-1].bn2.bias.data.fill_(1e6)  # type: ignore[index, union-attr]


def spoil_all(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data *= 1e6


def spoil_variance(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(1e-30)  # type: ignore[union-attr]


def spoil_mean(model: nn.Module) -> None:
    model.layer4[-1].bn2.running_mean.fill_(1e20)  # type: ignore[index, union-attr]


def spoil_scale(model: nn.Module) -> None:
    model.fc.weight.data *= 1e7  # type: ignore[operator, union-attr]


def silence(model: nn.Module) -> None:
    model.fc.weight.data.zero_()  # type: ignore[operator, union-attr]


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (spoil_last, "outputs-not-finite"),
        (spoil_all, "outputs-not-finite"),
        (spoil_variance, "outputs-not-finite"),
        (spoil_mean, "weights-out-of-range"),
        (spoil_scale, "outputs-not-finite"),
        (silence, "outputs-constant"),
    ],
)
def test_spoiled_model(
    submit: Submit, study: Study, spoil: Callable[[nn.Module], None], code: str
) -> None:
    model = client_model(study)
    spoil(model)
    path = submit(model=model)
    assert code in fatal(path, study)
    [problem] = [p for p in check_submission(path, study) if p.code == code]
    if code.startswith("outputs"):
        assert "--exclude north" in problem.remedy


def test_excluded_site_may_have_any_file(submit: Submit, study: Study) -> None:
    model = client_model(study)
    silence(model)
    bad = submit("bad.oneround", model=model)
    good = submit("good.oneround", site="south", model=client_model(study, 1))
    [found] = read_submissions([bad, good], study, exclude=["north"])
    assert found.manifest.site == "south"


def test_large_network_is_not_asked(submit: Submit, study: Study) -> None:
    manifest = read_submission(submit()).manifest
    image = ImageSpec(height=1024, width=1024)
    large = ArchitectureSpec(arguments={"width": 64, "stem": "small"})
    big = Manifest.model_validate(
        manifest.model_dump() | {"image": image.model_dump(), "architecture": large.model_dump()}
    )
    [problem] = check_outputs(models.build(large, image, 3).eval(), big)
    assert (problem.code, problem.fatal) == ("outputs-not-checked", False)
