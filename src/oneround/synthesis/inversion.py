"""Model inversion: images that the client models would take for their training images.

DeepInversion (Yin et al., CVPR 2020) with an ensemble in place of the one teacher, as in
FedISCA (Kang et al., MICCAI 2023) and Kang et al. 2025:

    L(x̂) = CE(f̄(x̂), y) + α_TV·TV(x̂) + α_BN·Σ_k Σ_l (‖μ_l(x̂) − μ_kl‖₂ + ‖σ²_l(x̂) − σ²_kl‖₂)

with f̄ the ensemble and (μ_kl, σ²_kl) the running statistics of BatchNorm layer l of client k.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import nn

from oneround.cost import Cost, Meter
from oneround.ensemble import Ensemble
from oneround.files import read_json, write_json
from oneround.models import require_batch_norm
from oneround.stage import Stage
from oneround.study import Strict, Study
from oneround.synthesis.bank import ImageBank
from oneround.synthesis.watched import statistics_distance, watch


class InversionOptions(Strict):
    """How images are synthesized.

    Attributes:
        images: how many trajectories; the bank holds ``len(snapshots)`` images of each.
        batch_size: images that are made together, and share one BatchNorm term.
        steps: optimization steps.
        learning_rate: of Adam on the pixels, with betas (0.5, 0.9).
        tv_weight: α_TV.
        bn_weight: α_BN.
        bn_reduction: ``sum``: the term as in the equation; ``mean``: divided by its number of
            layers, so that α_BN means the same for any number and depth of client models.
        jitter: largest random shift before each step, as a fraction of the image side.
        snapshots: points of the trajectory (step/steps) at which images go into the bank; the
            trajectory costs nothing more once it is walked. They rise, and the last is 1.
    """

    images: int = Field(default=512, ge=1)
    batch_size: int = Field(default=128, ge=2)
    steps: int = Field(default=150, ge=1)
    learning_rate: float = Field(default=0.05, gt=0)
    tv_weight: float = Field(default=0.3, ge=0)
    bn_weight: float = Field(default=1.0, ge=0)
    bn_reduction: Literal["sum", "mean"] = "sum"
    jitter: float = Field(default=0.07, ge=0, lt=0.5)
    snapshots: tuple[float, ...] = (1.0,)

    @field_validator("snapshots")
    @classmethod
    def _snapshots_rise_to_the_end(cls, points: tuple[float, ...]) -> tuple[float, ...]:
        if not points or points[-1] != 1 or points[0] <= 0 or sorted(set(points)) != list(points):
            raise ValueError("snapshots must rise from above 0 to 1")
        return points


def synthesize(
    ensemble: Ensemble, study: Study, options: InversionOptions, stage: Stage
) -> ImageBank:
    """Fill an image bank, shard by shard; shards that are on disk already are read, not made.

    Args:
        ensemble: the client models, on the device of ``stage.fabric``.
        study: classes and image shape.
        options: see :class:`InversionOptions`.
        stage: its folder keeps ``000.safetensors``, ``000.json``, …: images and their log.

    Raises:
        OneRoundError: a client model has no BatchNorm layer and ``bn_weight`` is not 0.
    """
    if options.bn_weight:
        for client in ensemble.clients:
            require_batch_norm(client.model, client.site)
    sizes = [len(part) for part in torch.split(torch.arange(options.images), options.batch_size)]
    watched, shards = watch(ensemble), []
    for number, size in enumerate(sizes):
        images, log = stage.file(f"{number:03}.safetensors"), stage.file(f"{number:03}.json")
        if images is None or log is None or not images.exists():
            meter = Meter()
            shard, curve = _invert(watched, study, options, stage, number, size, len(sizes), meter)
            cost = meter.cost
            if images is not None and log is not None:
                write_json(log, {"cost": cost.model_dump(), "curve": curve})
                shard.write(images)  # last: its presence says that the shard is complete
        else:
            shard, saved = ImageBank.read(images), read_json(log)
            cost, curve = Cost(**saved["cost"]), saved["curve"]
        shards.append(shard)
        stage.cost = stage.cost + cost
        stage.curve += curve
    return ImageBank.join(shards)


def _invert(
    watched: Ensemble,
    study: Study,
    options: InversionOptions,
    stage: Stage,
    number: int,
    size: int,
    shards: int,
    meter: Meter,
) -> tuple[ImageBank, list[dict[str, float]]]:
    """One shard: ``size`` images from noise to the end of their trajectory."""
    generator = stage.generator(number)
    device = stage.fabric.device
    x = torch.randn(size, *study.image.shape, generator=generator)
    x = x.to(device).requires_grad_()
    targets = torch.arange(number * options.batch_size, number * options.batch_size + size)
    targets = (targets % len(study.classes)).to(device)
    limits = study.image.normalize(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)).to(device)
    optimizer = torch.optim.Adam([x], lr=options.learning_rate, betas=(0.5, 0.9))
    taken_at = {max(1, round(point * options.steps)): point for point in options.snapshots}
    snapshots, curve = [], []
    for step in range(1, options.steps + 1):
        with meter.step(size), stage.fabric.autocast():
            log_probabilities = watched(jitter(x, options.jitter, generator))
            terms = {
                "cross_entropy": nn.functional.nll_loss(log_probabilities, targets),
                "total_variation": options.tv_weight * total_variation(x),
                "batch_norm": options.bn_weight
                * statistics_distance(watched, options.bn_reduction),
            }
            loss = torch.stack(list(terms.values())).sum()
            optimizer.zero_grad()
            stage.fabric.backward(loss)
        optimizer.step()
        with torch.no_grad():
            x.clamp_(limits[0], limits[1])
        if step in taken_at:
            snapshots.append(
                ImageBank(
                    x.detach().half().cpu().contiguous(),
                    targets.cpu(),
                    torch.full((size,), taken_at[step]),
                )
            )
        hit_rate = (log_probabilities.argmax(1) == targets).float().mean().item()
        if step % 10 == 0 or step == options.steps:
            entry = {"shard": number, "step": step, "total": loss.item(), "hit_rate": hit_rate}
            curve.append(entry | {name: term.item() for name, term in terms.items()})
        stage.tell(
            number * options.steps + step, shards * options.steps, f"{hit_rate:.0%} on target"
        )
    return ImageBank.join(snapshots), curve


def total_variation(x: torch.Tensor) -> torch.Tensor:
    """Sum of the 2-norms of neighbor differences in four directions (DeepInversion's TV_l2)."""
    differences = (
        x[..., :, :-1] - x[..., :, 1:],
        x[..., :-1, :] - x[..., 1:, :],
        x[..., :-1, :-1] - x[..., 1:, 1:],
        x[..., 1:, :-1] - x[..., :-1, 1:],
    )
    return torch.stack([difference.norm() for difference in differences]).sum()


def jitter(x: torch.Tensor, fraction: float, generator: torch.Generator) -> torch.Tensor:
    """The batch shifted cyclically by at most ``fraction`` of its height and width."""
    limits = [round(fraction * side) for side in x.shape[-2:]]
    shifts = [int(torch.randint(-limit, limit + 1, (), generator=generator)) for limit in limits]
    return x.roll(shifts, (-2, -1))
