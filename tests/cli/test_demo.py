from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from oneround.cli import demo
from oneround.data import Splits
from oneround.data.phantoms import phantoms
from tests.cli.conftest import Call


def test_asks_for_a_run_on_phantom_images(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run itself takes minutes; here everything up to it."""

    def few(generator: torch.Generator, **counts: int) -> Splits:
        return phantoms(generator, train=12, val=6, test=6)

    asked: list[Any] = []
    monkeypatch.setattr(demo, "phantoms", few)
    monkeypatch.setattr(demo, "run_and_show", lambda *parts, **more: asked.append((parts, more)))
    outcome = call("demo", "--out", tmp_path / "run", "--device", "cpu")
    assert outcome.code == 0
    assert "not real" in outcome.err
    (((splits, study, method, options, run, _), more),) = asked
    assert splits.train.images.shape[1:] == study.image.shape
    assert splits.train.classes == study.classes
    assert isinstance(options, method.options)
    assert run == tmp_path / "run"
    assert more["sites"] > 1
