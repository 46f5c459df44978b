from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from oneround import models
from oneround.ensemble import Client, Ensemble
from oneround.errors import OneRoundError
from oneround.stage import Stage
from oneround.study import ArchitectureSpec
from oneround.synthesis import ImageBank, InversionOptions, synthesize
from oneround.synthesis.inversion import jitter, total_variation
from tiny import IMAGE, STUDY, clients, interrupted, seeded


def options(**changes: object) -> InversionOptions:
    tiny = {"images": 6, "batch_size": 3, "steps": 4}
    return InversionOptions(**(tiny | changes))


def same(one: ImageBank, other: ImageBank) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in vars(one))


def test_total_variation_by_loop() -> None:
    x = torch.randn(2, 3, 5, 4, dtype=torch.double)
    expected = 0.0
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        squares = 0.0
        for i in range(5):
            for j in range(4):
                if i + down < 5 and 0 <= j + right < 4:
                    squares += ((x[..., i, j] - x[..., i + down, j + right]) ** 2).sum().item()
        expected += math.sqrt(squares)
    assert total_variation(x).item() == pytest.approx(expected)


def test_jitter_rolls_the_whole_batch() -> None:
    x = torch.randn(2, 3, 10, 20)
    shifts = set()
    for seed in range(60):
        moved = jitter(x, 0.1, seeded(seed))
        shifts |= {
            (i, j)
            for i in range(-1, 2)
            for j in range(-2, 3)
            if torch.equal(moved, x.roll((i, j), (-2, -1)))
        }
    assert len(shifts) > 12
    assert torch.equal(jitter(x, 0.0, seeded()), x)


def test_every_term_falls() -> None:
    stage = Stage("synthesis")
    weights = {"tv_weight": 0.01, "bn_weight": 0.1}
    chosen = options(batch_size=6, steps=60, learning_rate=0.1, **weights)
    bank = synthesize(Ensemble(clients(2)), STUDY, chosen, stage)
    first, last = stage.curve[0], stage.curve[-1]
    for term in ("total", "cross_entropy", "total_variation", "batch_norm"):
        assert last[term] < first[term], term
    pixels = bank.images.float()
    assert pixels.min() >= -1.001
    assert pixels.max() <= 1.001


def test_targets_are_balanced_over_all_shards() -> None:
    bank = synthesize(Ensemble(clients(1)), STUDY, options(images=8, steps=1), Stage("synthesis"))
    assert bank.targets.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert bank.images.shape == (8, *IMAGE.shape)
    assert bank.images.dtype == torch.float16


def test_curve_is_logged_with_its_parts() -> None:
    stage = Stage("synthesis")
    synthesize(Ensemble(clients(1)), STUDY, options(steps=12), stage)
    assert [(e["shard"], e["step"]) for e in stage.curve] == [(0, 10), (0, 12), (1, 10), (1, 12)]
    for entry in stage.curve:
        parts = entry["cross_entropy"] + entry["total_variation"] + entry["batch_norm"]
        assert entry["total"] == pytest.approx(parts, rel=1e-5)


def test_snapshots_are_taken_on_the_way() -> None:
    ensemble = Ensemble(clients(1))
    bank = synthesize(ensemble, STUDY, options(snapshots=(0.25, 0.5, 1.0)), Stage("synthesis"))
    assert len(bank) == 18
    assert sorted(bank.progress.tolist()) == [0.25] * 6 + [0.5] * 6 + [1.0] * 6
    plain = synthesize(ensemble, STUDY, options(), Stage("synthesis"))
    assert same(bank.finished(), plain), "snapshots change nothing else"


@pytest.mark.parametrize("points", [(), (0.5,), (1.0, 0.5), (0.0, 1.0), (0.5, 1.5), (1.0, 1.0)])
def test_snapshots_rise_and_end_at_the_end(points: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="snapshots"):
        InversionOptions(snapshots=points)


@pytest.mark.parametrize("step", [2, 4, 6])  # in shard 0, after it, in shard 1
def test_interrupted_and_resumed_is_bit_equal(tmp_path: Path, step: int) -> None:
    ensemble, whole = Ensemble(clients(2)), Stage("synthesis", 1)
    straight = synthesize(ensemble, STUDY, options(), whole)

    def stage() -> Stage:
        return Stage("synthesis", 1, tmp_path)

    with interrupted(stopped := stage(), step):
        synthesize(ensemble, STUDY, options(), stopped)
    kept = (tmp_path / "000.safetensors").stat().st_mtime_ns if step > 4 else None
    resumed = stage()
    assert same(synthesize(ensemble, STUDY, options(), resumed), straight)
    assert resumed.curve == whole.curve
    assert resumed.cost.flops == whole.cost.flops
    if kept is not None:
        assert (tmp_path / "000.safetensors").stat().st_mtime_ns == kept, "it was made again"


def test_another_seed_makes_other_images() -> None:
    ensemble = Ensemble(clients(1))
    banks = [synthesize(ensemble, STUDY, options(), Stage("synthesis", seed)) for seed in (1, 2)]
    assert not torch.equal(banks[0].images, banks[1].images)
    assert not torch.equal(banks[0].images[:3], banks[0].images[3:])


def test_networks_without_batch_norm_need_weight_zero() -> None:
    group = ArchitectureSpec(arguments={"width": 2, "norm": "group"})
    ensemble = Ensemble([Client("north", models.build(group, IMAGE, 3), group, 10)])
    with pytest.raises(OneRoundError, match="north has no BatchNorm"):
        synthesize(ensemble, STUDY, options(bn_weight=1.0), Stage("synthesis"))
    bank = synthesize(ensemble, STUDY, options(bn_weight=0.0), Stage("synthesis"))
    assert bank.images.isfinite().all()
