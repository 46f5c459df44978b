from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from oneround import models
from oneround.distillation.synthesis import ImageBank, InversionOptions, synthesize
from oneround.distillation.synthesis.inversion import (
    Batch,
    _asked,
    _in_turn,
    _together,
    batches_of,
    class_mix,
    jitter,
    total_variation,
)
from oneround.distillation.synthesis.statistics import statistics_distance, watch
from oneround.errors import OneRoundError
from oneround.models.ensemble import Client, Ensemble
from oneround.runs.stage import Stage
from oneround.study import ArchitectureSpec
from tests.tiny import IMAGE, STUDY, TASK, clients, interrupted, seeded


def options(**changes: object) -> InversionOptions:
    tiny = {"images": 6, "batch_size": 3, "steps": 4, "clients": "together"}
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
    bank = synthesize(Ensemble(clients(2), TASK), chosen, stage)
    first, last = stage.curve[0], stage.curve[-1]
    for term in ("total", "cross_entropy", "total_variation", "batch_norm"):
        assert last[term] < first[term], term
    pixels = bank.images.float()
    assert pixels.min() >= -1.001
    assert pixels.max() <= 1.001


def test_targets_are_balanced_over_all_shards() -> None:
    bank = synthesize(Ensemble(clients(1), TASK), options(images=8, steps=1), Stage("synthesis"))
    assert bank.targets.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert bank.images.shape == (8, *IMAGE.shape)
    assert bank.images.dtype == torch.float16


@pytest.mark.parametrize("counts", [(1, 1, 1), (5, 0, 15), (97, 2, 1)])
def test_class_mix_is_that_of_the_site_in_every_run(counts: tuple[int, ...]) -> None:
    targets = class_mix(counts, 120)
    share = torch.tensor(counts) / sum(counts)
    for run in (targets, targets[:40], targets[40:80], targets[80:]):
        assert torch.allclose(run.bincount(minlength=3) / len(run), share, atol=0.06)
    if 0 in counts:
        assert counts.index(0) not in targets


def test_in_turn_every_client_gets_as_many_images_in_its_class_mix() -> None:
    members = [
        dataclasses.replace(client, class_counts=counts)
        for client, counts in zip(clients(3), [(8, 0, 0), (0, 4, 4), None], strict=True)
    ]
    batches = batches_of(members, 3, options(images=27, batch_size=5, clients="in-turn"))
    assert [(b.client, len(b.targets)) for b in batches] == [
        (0, 5), (0, 4), (1, 5), (1, 4), (2, 5), (2, 4),
    ]  # fmt: skip
    of = [torch.cat([b.targets for b in batches if b.client == k]).unique() for k in range(3)]
    assert [found.tolist() for found in of] == [[0], [1, 2], [0, 1, 2]]
    noisy = [dataclasses.replace(members[0], class_counts=(0, 0, 0))]
    [batch] = batches_of(noisy, 3, options(images=6, batch_size=6, clients="in-turn"))
    assert batch.targets.bincount().tolist() == [2, 2, 2], "counts of nothing say nothing"
    few = batches_of(members, 3, options(images=2, clients="in-turn"))
    assert [(b.client, len(b.targets)) for b in few] == [(0, 1), (1, 1)]


def test_companions_are_others_drawn_anew() -> None:
    batch, generator = Batch(torch.arange(3), 1), seeded()
    four, two = Ensemble(clients(4), TASK), Ensemble(clients(2), TASK)
    drawn = {_asked(batch, four, options(companions=2), generator) for _ in range(60)}
    assert drawn == {(1, *pair) for pair in itertools.permutations((0, 2, 3), 2)}
    assert len(_asked(batch, four, options(companions=9), generator)) == 4
    assert _asked(batch, two, options(companions=9), generator) == (1, 0)
    together = Batch(torch.arange(3))
    assert _asked(together, four, options(), generator) == (0, 1, 2, 3)
    drawn = {_asked(together, four, options(asked=2), generator) for _ in range(60)}
    assert drawn == set(itertools.combinations(range(4), 2))


def test_a_part_of_the_clients_estimates_what_all_say() -> None:
    """The mean over all parts is the whole: of probabilities and of the BatchNorm term."""
    x, targets = torch.randn(4, *IMAGE.shape, generator=seeded()), torch.tensor([0, 1, 2, 2])
    ensemble = Ensemble(clients(4), TASK, "probabilities")
    watched, chosen = watch(ensemble), options(clients="together")
    whole = _together(watched, x, targets, (0, 1, 2, 3), chosen)
    parts = [
        _together(watched, x, targets, part, chosen)["batch_norm"]
        for part in itertools.combinations(range(4), 2)
    ]
    assert torch.stack(parts).mean().item() == pytest.approx(whole["batch_norm"].item(), rel=1e-4)
    pairs = [ensemble(x, part).exp() for part in itertools.combinations(range(4), 2)]
    assert torch.allclose(torch.stack(pairs).mean(0), ensemble(x).exp(), atol=1e-5)


def test_asking_a_part_of_the_clients_costs_a_part() -> None:
    costs = []
    for asked in (0, 1):
        stage = Stage("synthesis")
        synthesize(Ensemble(clients(4), TASK), options(clients="together", asked=asked), stage)
        costs.append(stage.cost.flops)
    assert costs[1] < 0.5 * costs[0], "the hit rate is still that of all"


def test_companions_count_by_their_share_of_the_class() -> None:
    members = [
        dataclasses.replace(client, class_counts=counts)
        for client, counts in zip(clients(2), [(10, 5, 0), (5, 10, 10)], strict=True)
    ]
    ensemble, targets = Ensemble(members, TASK), torch.tensor([0, 1, 2, 2])
    x = torch.randn(4, *IMAGE.shape, generator=seeded())
    watched = watch(ensemble)
    own, other = (
        nn.functional.cross_entropy(client.model(x), targets, reduction="none")
        for client in members
    )
    terms = _in_turn(watched, x, targets, (1, 0), options())
    found, distance = terms["cross_entropy"], terms["batch_norm"] / options().bn_weight
    share = torch.tensor([1.0, 0.5, 0.0, 0.0])
    assert found.item() == pytest.approx((other + share * own).mean().item(), rel=1e-4)
    assert distance.item() == pytest.approx(statistics_distance(watched.models[1], "sum").item())
    alone = _in_turn(watched, x, targets, (1,), options())["cross_entropy"]
    assert alone.item() == pytest.approx(other.mean().item(), rel=1e-4)


def test_in_turn_images_become_what_they_are_meant_for() -> None:
    weights = {"tv_weight": 0.0, "bn_weight": 1e-3}
    chosen = options(clients="in-turn", steps=100, learning_rate=0.02, jitter=0.0, **weights)
    secret = [dataclasses.replace(client, class_counts=None) for client in clients(2)]
    for members in (clients(2), secret):
        stage = Stage("synthesis")
        bank = synthesize(Ensemble(members, TASK), chosen, stage)
        assert len(bank) == 6
        for shard in (0, 1):
            first, *_, last = (e for e in stage.curve if e["shard"] == shard)
            assert last["total"] < first["total"]
            assert last["hit_rate"] == 1
            assert last["cross_entropy"] < math.log(len(STUDY.classes)) / 3, "a third of chance"


def test_curve_is_logged_with_its_parts() -> None:
    stage = Stage("synthesis")
    synthesize(Ensemble(clients(1), TASK), options(steps=26), stage)
    assert [(e["shard"], e["step"]) for e in stage.curve] == [(0, 25), (0, 26), (1, 25), (1, 26)]
    for entry in stage.curve:
        parts = entry["cross_entropy"] + entry["total_variation"] + entry["batch_norm"]
        assert entry["total"] == pytest.approx(parts, rel=1e-5)


def test_snapshots_are_taken_on_the_way() -> None:
    ensemble = Ensemble(clients(1), TASK)
    bank = synthesize(ensemble, options(snapshots=(0.25, 0.5, 1.0)), Stage("synthesis"))
    assert len(bank) == 18
    assert sorted(bank.progress.tolist()) == [0.25] * 6 + [0.5] * 6 + [1.0] * 6
    plain = synthesize(ensemble, options(), Stage("synthesis"))
    assert same(bank.finished(), plain), "snapshots change nothing else"


@pytest.mark.parametrize("points", [(), (0.5,), (1.0, 0.5), (0.0, 1.0), (0.5, 1.5), (1.0, 1.0)])
def test_snapshots_rise_and_end_at_the_end(points: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="snapshots"):
        InversionOptions(snapshots=points)


@pytest.mark.parametrize("together", ["together", "in-turn"])
@pytest.mark.parametrize("step", [2, 4, 6])  # in shard 0, after it, in shard 1
def test_interrupted_and_resumed_is_bit_equal(tmp_path: Path, step: int, together: str) -> None:
    ensemble, whole = Ensemble(clients(2), TASK), Stage("synthesis", 1)
    chosen = options(clients=together)
    straight = synthesize(ensemble, chosen, whole)

    def stage() -> Stage:
        return Stage("synthesis", 1, tmp_path)

    with interrupted(stopped := stage(), step):
        synthesize(ensemble, chosen, stopped)
    kept = (tmp_path / "000.safetensors").stat().st_mtime_ns if step > 4 else None
    resumed = stage()
    assert same(synthesize(ensemble, chosen, resumed), straight)
    assert resumed.curve == whole.curve
    assert resumed.cost.flops == whole.cost.flops
    if kept is not None:
        assert (tmp_path / "000.safetensors").stat().st_mtime_ns == kept, "it was made again"


def test_another_seed_makes_other_images() -> None:
    ensemble = Ensemble(clients(1), TASK)
    banks = [synthesize(ensemble, options(), Stage("synthesis", seed)) for seed in (1, 2)]
    assert not torch.equal(banks[0].images, banks[1].images)
    assert not torch.equal(banks[0].images[:3], banks[0].images[3:])


def test_networks_without_batch_norm_need_weight_zero() -> None:
    group = ArchitectureSpec(arguments={"width": 2, "norm": "group"})
    ensemble = Ensemble([Client("north", models.build(group, IMAGE, 3), group, 10)], TASK)
    with pytest.raises(OneRoundError, match="north has no BatchNorm"):
        synthesize(ensemble, options(bn_weight=1.0), Stage("synthesis"))
    bank = synthesize(ensemble, options(bn_weight=0.0), Stage("synthesis"))
    assert bank.images.isfinite().all()
