"""Model inversion: images that match the classes and BatchNorm statistics of client models.

DeepInversion (Yin et al., CVPR 2020) with an ensemble in place of the one teacher. All clients
``together``, as in FedISCA (Kang et al., MICCAI 2023) and Kang et al. 2025:

    L(x̂) = CE(f̄(x̂), y) + α_TV·TV(x̂) + α_BN·Σ_k Σ_l (‖μ_l(x̂) − μ_kl‖₂ + ‖σ²_l(x̂) − σ²_kl‖₂)

with f̄ the ensemble and (μ_kl, σ²_kl) the running statistics of BatchNorm layer l of client k.
Or ``in-turn``, which is ours: each batch belongs to one client k,

    L_k(x̂) = CE(f_k(x̂), y) + Σ_j w_jy·CE(f_j(x̂), y)
             + α_TV·TV(x̂) + α_BN·Σ_l (‖μ_l(x̂) − μ_kl‖₂ + ‖σ²_l(x̂) − σ²_kl‖₂)

with targets y in the class mix of client k, which its statistics describe; the statistics of sites
with different class mixes contradict each other. The companions j are sampled again at every
step; w_jy is the number of images of class y at site j, divided by that of the site with the most.
Features that only one network takes for a class do not survive its companions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import nn

from oneround.distillation.synthesis.bank import ImageBank
from oneround.distillation.synthesis.statistics import Watched, statistics_distance, watch
from oneround.files import read_json, write_json
from oneround.models.ensemble import Client, Ensemble, not_finite
from oneround.runs.cost import Cost, Meter
from oneround.runs.optimization import make_optimizer
from oneround.runs.run import Kept
from oneround.runs.stage import Stage
from oneround.schema import Strict

Competitor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From images, (B, C, H, W), and the ensemble's log-probabilities for them, (B, classes), to a
further term of the loss, a scalar."""


class InversionOptions(Strict):
    """Options of image synthesis by model inversion.

    Attributes:
        images: Number of trajectories from noise to image; the image bank holds
            ``len(snapshots)`` images of each.
        batch_size: Largest number of images that are optimized together and share one BatchNorm
            term.
        clients: Client models that a batch is made from: all ``together``, or one of them,
            ``in-turn``.
        asked: If ``clients`` is ``together``, client models whose loss counts in each step,
            sampled again in each; 0: all K. With fewer than K, the BatchNorm terms count K/asked
            times, which estimates their sum over all K without bias.
        companions: If ``clients`` is ``in-turn``, other client models whose cross-entropy counts
            in each step.
        steps: Optimization steps of each image.
        learning_rate: Learning rate of Adam on the pixels, with betas (0.5, 0.9).
        tv_weight: Weight α_TV of the total variation.
        bn_weight: Weight α_BN of the distance to the BatchNorm statistics; set 0 if a client
            model has no BatchNorm.
        bn_reduction: ``sum``: the distance is summed over layers and client models, as in the
            equation; ``mean``: divided by the number of layers, so that α_BN means the same for
            any number and depth of client models.
        jitter: Largest random shift before each step, as a fraction of the image side.
        snapshots: Points of the trajectory (step/steps, rising, the last is 1) at which images
            go into the image bank, at no further cost.
    """

    images: int = Field(default=640, ge=1)
    batch_size: int = Field(default=128, ge=2)
    clients: Literal["together", "in-turn"] = "in-turn"
    asked: int = Field(default=0, ge=0)
    companions: int = Field(default=1, ge=0)
    steps: int = Field(default=150, ge=1)
    learning_rate: float = Field(default=0.05, gt=0)
    tv_weight: float = Field(default=0.02, ge=0)
    bn_weight: float = Field(default=0.2, ge=0)
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
    ensemble: Ensemble,
    options: InversionOptions,
    stage: Stage,
    kept: Kept = Kept(),  # noqa: B008 - it does not change
) -> ImageBank:
    """Synthesize an image bank, shard by shard; shards that are on disk already are read.

    Args:
        ensemble: The client models, on the device of ``stage.fabric``.
        options: See :class:`InversionOptions`.
        stage: The stage; its folder keeps ``000.safetensors``, ``000.json``, …: images and their
            log.
        kept: Shards of an earlier run that are in the folder already. With them, ``in-turn``
            makes further images only from the client models that are new.

    Raises:
        OneRoundError: a client model has no BatchNorm layer and ``bn_weight`` is not 0.
    """
    watched = watch(ensemble, needed=options.bn_weight > 0)
    plan = batches_of(ensemble.clients, len(ensemble.task.classes), options, kept.added)
    fabric = stage.fabric
    made: dict[int, Shard] = {}
    turns = range(kept.shards, kept.shards + len(plan))
    for number, batch in zip(turns, plan, strict=True):
        if number % fabric.world_size == fabric.global_rank and not _on_disk(stage, number):
            meter = Meter()
            bank, curve = _shard(watched, options, stage, batch, number, turns, meter)
            made[number] = bank, meter.cost, curve
            _write(stage, number, *made[number])
    fabric.barrier()
    shards = [_read(stage, number)[0] for number in range(kept.shards)]
    for number in turns:
        bank, cost, curve = made[number] if number in made else _read(stage, number)
        shards.append(bank)
        stage.cost = stage.cost + cost
        stage.curve += curve
    return ImageBank.join(shards)


Shard = tuple[ImageBank, Cost, list[dict[str, float]]]


def _files(stage: Stage, number: int) -> tuple[Path, Path] | None:
    images, log = stage.file(f"{number:03}.safetensors"), stage.file(f"{number:03}.json")
    return None if images is None or log is None else (images, log)


def _on_disk(stage: Stage, number: int) -> bool:
    files = _files(stage, number)
    return files is not None and files[0].exists()


def _write(
    stage: Stage, number: int, bank: ImageBank, cost: Cost, curve: list[dict[str, float]]
) -> None:
    files = _files(stage, number)
    if files is not None:
        write_json(files[1], {"cost": cost.model_dump(), "curve": curve})
        bank.write(files[0])  # last: its presence says that the shard is complete


def _read(stage: Stage, number: int) -> Shard:
    files = _files(stage, number)
    assert files is not None, "several processes share a bank through its folder"
    saved = read_json(files[1])
    return ImageBank.read(files[0]), Cost(**saved["cost"]), saved["curve"]


@dataclass(frozen=True)
class Batch:
    """Images that are synthesized together: one shard of the image bank.

    Attributes:
        targets: Class that each image is made for, (B,) ``int64``.
        client: Index of the client whose turn it is; ``None``: all together.
    """

    targets: torch.Tensor
    client: int | None = None


def batches_of(
    clients: Sequence[Client], classes: int, options: InversionOptions, only: Sequence[str] = ()
) -> list[Batch]:
    """All batches of an image bank.

    All clients ``together``: balanced targets. ``in-turn``: equally many images for each client
    (or each site in ``only``) with targets in its class mix; balanced if the site withholds its
    class counts or they are all zero, as counts with noise may be.
    """
    if options.clients == "together":
        targets = torch.arange(options.images) % classes
        return [Batch(part) for part in torch.split(targets, options.batch_size)]
    batches = []
    turns = [k for k, client in enumerate(clients) if not only or client.site in only]
    if not turns:  # the cross-check has left all new ones out
        return []
    for k, images in zip(turns, torch.arange(options.images).tensor_split(len(turns)), strict=True):
        counts = clients[k].class_counts or ()
        targets = class_mix(counts if any(counts) else (1,) * classes, len(images))
        parts = targets.tensor_split(-(-len(targets) // options.batch_size)) if len(targets) else ()
        batches += [Batch(part, k) for part in parts]
    return batches


def class_mix(counts: Sequence[int], size: int) -> torch.Tensor:
    """Classes in the proportions of ``counts``, (size,) ``int64``, mixed in any part of them too.

    They follow the golden ratio sequence, which fills an interval evenly from the start.
    """
    edges = torch.tensor(counts, dtype=torch.float64).cumsum(0)
    places = (torch.arange(size, dtype=torch.float64) + 0.5) * (5**0.5 - 1) / 2 % 1
    return torch.searchsorted(edges, places * edges[-1], right=True)


def trajectory(
    watched: Watched,
    options: InversionOptions,
    batch: Batch,
    generator: torch.Generator,
    stage: Stage,
    meter: Meter,
    competitor: Competitor | None = None,
) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """Optimize a batch of images from noise on; see the equations at the top of this module.

    Args:
        watched: The client models; see
            :func:`oneround.distillation.synthesis.statistics.watch`.
        options: See :class:`InversionOptions`; number of images, batch size and snapshots are not
            used.
        batch: Targets of the images, and whose turn it is.
        generator: Source of randomness, on the CPU.
        stage: Device and precision.
        meter: Measures each step.
        competitor: A further term of the loss, if all clients are asked together.

    Yields:
        After each step the images, network input (B, C, H, W), and the terms of the loss, by name.
    """
    device, size = stage.fabric.device, len(batch.targets)
    image = watched.task.image
    x = torch.randn(size, *image.shape, generator=generator)
    x, targets = x.to(device).requires_grad_(), batch.targets.to(device)
    limits = image.normalize(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)).to(device)
    optimizer = make_optimizer(
        [x], kind="adam", learning_rate=options.learning_rate, betas=(0.5, 0.9)
    )
    for _ in range(options.steps):
        asked = _asked(batch, watched, options, generator)
        networks = tuple(sorted(str(watched.clients[k].architecture) for k in asked))
        moved = jitter(x, options.jitter, generator)
        with meter.step("invert", size, networks, competitor is None), stage.fabric.autocast():
            if batch.client is None:
                terms = _together(watched, moved, targets, asked, options, competitor)
            else:
                terms = _in_turn(watched, moved, targets, asked, options)
            terms["total_variation"] = options.tv_weight * total_variation(x)
            loss = torch.stack(list(terms.values())).sum()
            optimizer.zero_grad()
            stage.fabric.backward(loss)
        optimizer.step()
        with torch.no_grad():
            x.clamp_(limits[0], limits[1])
        if not x.isfinite().all():
            raise not_finite(watched.clients[k] for k in asked)
        yield x.detach(), terms


def _shard(
    watched: Watched,
    options: InversionOptions,
    stage: Stage,
    batch: Batch,
    number: int,
    turns: range,
    meter: Meter,
) -> tuple[ImageBank, list[dict[str, float]]]:
    """Synthesize shard ``number`` of ``turns``: its snapshots, and the log of its trajectory."""
    size, targets = len(batch.targets), batch.targets.to(stage.fabric.device)
    taken_at = {max(1, round(point * options.steps)): point for point in options.snapshots}
    snapshots, curve = [], []
    hit_rate = 0.0
    way = trajectory(watched, options, batch, stage.generator(number), stage, meter)
    for step, (x, terms) in enumerate(way, 1):
        last = step == options.steps or meter.flops >= stage.flops / len(turns)
        if last or step in taken_at:
            taken = x.half().cpu().contiguous()
            progress = torch.full((size,), 1.0 if last else taken_at[step])
            snapshots.append(ImageBank(taken, batch.targets, progress))
        if last or step % 25 == 0:
            with meter.step(size, "hit rate"), torch.no_grad(), stage.fabric.autocast():
                hit_rate = (watched.unwatched(x).argmax(1) == targets).float().mean().item()
            parts = {name: term.item() for name, term in terms.items()}
            entry = {"shard": number, "step": step, "total": sum(parts.values())}
            curve.append(entry | {"hit_rate": hit_rate} | parts)
            stage.show(curve[-1])
        done, total = (number - turns[0]) * options.steps + step, len(turns) * options.steps
        stage.tell(total if last and number == turns[-1] else done, total,
                   f"{hit_rate:.0%} on target")  # fmt: skip
        if last:
            break
    return ImageBank.join(snapshots), curve


def _asked(
    batch: Batch, watched: Ensemble, options: InversionOptions, generator: torch.Generator
) -> tuple[int, ...]:
    """Indices of the clients whose loss counts in this step, the one whose turn it is first."""
    clients = range(len(watched.clients))
    if batch.client is None:
        return watched.draw(options.asked, generator) or tuple(clients)
    others = [k for k in clients if k != batch.client]
    drawn = torch.randperm(len(others), generator=generator)[: options.companions]
    return batch.client, *(others[i] for i in drawn.tolist())


def _together(
    watched: Ensemble,
    x: torch.Tensor,
    targets: torch.Tensor,
    asked: tuple[int, ...],
    options: InversionOptions,
    competitor: Competitor | None = None,
) -> dict[str, torch.Tensor]:
    """Loss terms of images ``x``, (B, C, H, W), by the ensemble of the clients that are asked."""
    everybody = len(asked) == len(watched.clients)
    log_p = watched(x, None if everybody else asked)
    terms = {"cross_entropy": nn.functional.nll_loss(log_p, targets)}
    if competitor is not None:
        terms["competition"] = competitor(x, log_p)
    judges = watched.models if everybody else nn.ModuleList(watched.models[k] for k in asked)
    distance = statistics_distance(judges, options.bn_reduction)
    if options.bn_reduction == "sum":
        distance = distance * (len(watched.clients) / len(asked))
    return terms | {"batch_norm": options.bn_weight * distance}


def _in_turn(
    watched: Watched,
    x: torch.Tensor,
    targets: torch.Tensor,
    asked: tuple[int, ...],
    options: InversionOptions,
) -> dict[str, torch.Tensor]:
    """Loss terms of images ``x``, (B, C, H, W), by the client whose turn it is and its
    companions."""
    shares = watched.weights / watched.weights.amax(0)
    cross_entropy = torch.zeros((), device=x.device)
    for k in asked:
        models = (watched if k == asked[0] else watched.unwatched).models
        logits = models[k](x).float()
        if not logits.isfinite().all():
            raise not_finite([watched.clients[k]])
        losses = nn.functional.cross_entropy(logits, targets, reduction="none")
        share = shares[k].expand(logits.shape[1])[targets]
        cross_entropy = cross_entropy + (losses if k == asked[0] else share * losses).mean()
    distance = statistics_distance(watched.models[asked[0]], options.bn_reduction)
    return {"cross_entropy": cross_entropy, "batch_norm": options.bn_weight * distance}


def total_variation(x: torch.Tensor) -> torch.Tensor:
    """Sum of the 2-norms of the differences between neighbors in four directions, a scalar, for
    images (B, C, H, W): TV_l2 in DeepInversion's code."""
    differences = (
        x[..., :, :-1] - x[..., :, 1:],
        x[..., :-1, :] - x[..., 1:, :],
        x[..., :-1, :-1] - x[..., 1:, 1:],
        x[..., 1:, :-1] - x[..., :-1, 1:],
    )
    return torch.stack([difference.norm() for difference in differences]).sum()


def jitter(x: torch.Tensor, fraction: float, generator: torch.Generator) -> torch.Tensor:
    """Images (B, C, H, W), all shifted cyclically by the same random number of pixels, at most
    ``fraction`` of height and width."""
    limits = [round(fraction * side) for side in x.shape[-2:]]
    shifts = [int(torch.randint(-limit, limit + 1, (), generator=generator)) for limit in limits]
    return x.roll(shifts, (-2, -1))
