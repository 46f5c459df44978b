"""A site trains its client model on its own images."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from oneround import models
from oneround.data import ImageSet, batches
from oneround.data.augment import augment
from oneround.errors import OneRoundError
from oneround.evaluation import evaluate, predict
from oneround.models.ensemble import Client
from oneround.models.inference import to_fast_layout
from oneround.runs.checkpoint import load_state, save_state
from oneround.runs.cost import Cost, Meter
from oneround.runs.stage import Stage, derived_seed
from oneround.study import ArchitectureSpec, Study, TrainingSpec
from oneround.submission import Manifest, TrainingSummary, write_submission

CHECKPOINT = "checkpoint.pt"

SMALLEST_BATCH = 8
"""Statistics of fewer images say little to BatchNorm."""


@dataclass(frozen=True)
class TrainedClient(Client):
    """A client model fresh from training, in eval mode, on the CPU.

    Attributes:
        training: how it went.
    """

    training: TrainingSummary = field(kw_only=True)

    def write(self, path: str | os.PathLike[str], study: Study) -> Manifest:
        """Write the submission; see :func:`oneround.submission.write_submission`."""
        return write_submission(
            path,
            model=self.model,
            study=study,
            site=self.site,
            architecture=self.architecture,
            images=self.images,
            class_counts=self.class_counts,
            training=self.training,
        )


def train_client(
    study: Study,
    site: str,
    train: ImageSet,
    val: ImageSet | None = None,
    *,
    architecture: ArchitectureSpec | None = None,
    model: nn.Module | None = None,
    stage: Stage | None = None,
) -> TrainedClient:
    """Train as the study says; the epoch with the lowest validation loss is the result.

    All sites of a study start from the same random weights, one draw for each architecture:
    averaging weights makes sense only then (McMahan et al., AISTATS 2017, figure 1).

    Args:
        study: classes, image shape and training recipe.
        site: this site's name; its seed derives from the study's seed and this name.
        train: training images.
        val: the site's own validation images; by default a part of ``train`` is cut off.
        architecture: one of the study's; the first by default.
        model: a network to train instead of a fresh one of ``architecture``.
        stage: where epochs are kept, so that an interrupted training goes on.

    Raises:
        OneRoundError: no training image, images of another shape, a network that does not fit
            them, a site or an architecture that the study does not allow, one image where the
            network needs two, a checkpoint of another training, or a loss that is not finite.
    """
    study.require_site(site)
    seed = derived_seed(study.seed, site)
    stage = stage or Stage("training", seed)
    spec, architecture = study.training, architecture or study.architectures[0]
    if architecture not in study.architectures:
        raise OneRoundError(
            f"the study does not allow {architecture}.",
            remedy=f"Use one of {', '.join(map(str, study.architectures))}.",
        )
    train, val = _splits(study, train, val, stage)
    start = derived_seed(study.seed, "initialization")
    network = model or models.build(architecture, study.image, len(study.classes), start)
    models.require_fit(network, study.image, len(study.classes))
    to_fast_layout(network)
    optimizer, schedule = _optimizer(network, spec, training_steps(len(train), spec))
    wrapped, optimizer = stage.fabric.setup(network, optimizer)
    best: dict[str, Any] = {"loss": float("inf"), "epoch": 0, "model": {}}
    checkpoint = stage.file(CHECKPOINT)
    identity = (
        f"{study.hash} {architecture} {seed} {_fingerprint(train, val) if checkpoint else ''}"
    )
    first = 1
    if checkpoint is not None and checkpoint.exists():
        state = load_state(checkpoint)
        if state["identity"] != identity:
            raise OneRoundError(
                "this checkpoint belongs to another study or site, or the images have changed.",
                file=checkpoint,
                remedy="Delete the checkpoint to start anew, or choose another --out.",
            )
        network.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first, best = state["epoch"] + 1, state["best"]
        stage.cost, stage.curve = Cost(**state["cost"]), state["curve"]
    meter = stage.meter()
    for epoch in range(first, spec.epochs + 1):
        generator = stage.generator(epoch)
        loss = train_epoch(wrapped, optimizer, schedule, study, train, stage, generator, meter)
        entry = {"epoch": epoch, "loss": loss} | _validate(wrapped, study, val, stage)
        if not (math.isfinite(entry["loss"]) and math.isfinite(entry["val_loss"])):
            raise OneRoundError(
                f"the loss is not finite in epoch {epoch}.",
                remedy="Agree on a smaller learning rate in the study.",
            )
        stage.curve.append(entry)
        if entry["val_loss"] < best["loss"]:
            best = {"loss": entry["val_loss"], "epoch": epoch, "model": _copy(network)}
        if checkpoint is not None:
            state = {
                "identity": identity,
                "epoch": epoch,
                "model": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "best": best,
                "cost": meter.cost.model_dump(),
                "curve": stage.curve,
            }
            save_state(checkpoint, state)
        stage.tell(epoch, spec.epochs, f"{site}: {entry['val_accuracy']:.0%} on its own validation")
    network.load_state_dict(best["model"])
    stage.cost = meter.cost
    network.cpu().eval()
    metrics = evaluate(network, val, study.image, resamples=0)
    summary = TrainingSummary(
        epochs=spec.epochs,
        best_epoch=best["epoch"],
        loss=stage.curve[best["epoch"] - 1]["loss"],
        validation={
            name: value
            for name in ("accuracy", "balanced_accuracy", "auroc")
            if (value := getattr(metrics, name)) is not None
        },
    )
    counts = tuple(train.class_counts().tolist())
    return TrainedClient(site, network, architecture, len(train), counts, training=summary)


def _optimizer(
    model: nn.Module, spec: TrainingSpec, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """SGD with Nesterov momentum and the study's learning-rate schedule over ``steps``."""
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=spec.learning_rate,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
        nesterov=spec.momentum > 0,
    )
    return optimizer, schedule_for(optimizer, spec.schedule, spec.learning_rate, steps)


def schedule_for(
    optimizer: torch.optim.Optimizer, schedule: str, learning_rate: float, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """``one-cycle`` (Smith and Topin, 2019: up for 30 %, then down to zero), ``constant``, or
    ``step``: a tenth from half, a hundredth from three quarters of the steps."""
    if schedule == "step":
        places = [steps // 2, steps * 3 // 4]
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, places)
    if schedule == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps + 1, cycle_momentum=False
    )


def train_epoch(
    model: Any,
    optimizer: Any,
    schedule: torch.optim.lr_scheduler.LRScheduler | None,
    study: Study,
    train: ImageSet,
    stage: Stage,
    generator: torch.Generator,
    meter: Meter,
) -> float:
    """One pass over the training images; the mean loss.

    Args:
        model: in any mode; changed in place.
        optimizer: of its weights.
        schedule: makes a step after every batch, if there is one.
        study: training recipe and normalization.
        train: training images.
        stage: its device.
        generator: of their order and random changes.
        meter: measures every step.
    """
    weights = class_weights(train.class_counts()) if study.training.class_weighted else None
    loss_of = nn.CrossEntropyLoss(weight=weights).to(stage.fabric.device)
    model.train()
    total, seen = 0.0, 0
    for indices in batches(len(train), batch_size(len(train), study.training), generator):
        x = augment(study.image.normalize(train.pixels(indices)), study.training.augment, generator)
        x, labels = stage.fabric.to_device((x, train.labels[indices]))
        with meter.step(len(x)), _one_image_may_be_too_few():
            loss = loss_of(model(x), labels)
            optimizer.zero_grad()
            stage.fabric.backward(loss)
        optimizer.step()
        if schedule is not None:
            schedule.step()
        total, seen = total + loss.item() * len(x), seen + len(x)
    return total / seen


@contextmanager
def _one_image_may_be_too_few() -> Iterator[None]:
    """Explain torch's error for a batch of one image that the network shrinks to one pixel."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise OneRoundError(
            "one training image is too few: this network shrinks images of this size to one "
            "pixel, and BatchNorm cannot be trained on one value.",
            remedy="Give this site more images (one may be held out for validation), or agree on "
            "larger images or the small stem in the study.",
        ) from error


def class_weights(counts: torch.Tensor) -> torch.Tensor:
    """Weight of each class in the loss, inverse to its frequency, with mean 1 over images."""
    present = counts > 0
    weights = counts.sum() / (present.sum() * counts.clamp_min(1))
    return torch.where(present, weights, 0.0)


def _validate(model: nn.Module, study: Study, val: ImageSet, stage: Stage) -> dict[str, float]:
    probabilities = predict(model, val, study.image, fabric=stage.fabric)
    loss = nn.functional.nll_loss(probabilities.clamp_min(1e-12).log(), val.labels)
    hits = (probabilities.argmax(1) == val.labels).float().mean()
    return {"val_loss": loss.item(), "val_accuracy": hits.item()}


def _splits(
    study: Study, train: ImageSet, val: ImageSet | None, stage: Stage
) -> tuple[ImageSet, ImageSet]:
    """Checked training and validation images; one image serves as both if there is no other."""
    if len(train) == 0:
        raise OneRoundError(
            "there is no training image.", remedy="Give this site at least one image of any class."
        )
    if tuple(train.images.shape[1:]) != study.image.shape:
        raise OneRoundError(
            f"images are {tuple(train.images.shape[1:])}, the study says {study.image.shape}.",
            remedy="Read them with `read_splits(path, image=study.image)`, which resizes.",
        )
    if val is not None and len(val) > 0:
        return train, val
    if len(train) < 2:
        return train, train
    order = torch.randperm(len(train), generator=stage.generator("validation split"))
    held_out = max(1, round(study.training.validation_fraction * len(train)))
    return train.subset(order[held_out:].sort()[0]), train.subset(order[:held_out].sort()[0])


def _fingerprint(*parts: ImageSet) -> str:
    """Of all images and labels, in their order."""
    digest = hashlib.sha256()
    for part in parts:
        part.feed(digest)
    return digest.hexdigest()


def batch_size(images: int, spec: TrainingSpec) -> int:
    """Training images in a batch: ``spec.batch_size``, or fewer where an epoch would have less than
    ``spec.min_steps_per_epoch`` steps, but :data:`SMALLEST_BATCH` at least."""
    if not spec.min_steps_per_epoch:
        return spec.batch_size
    return min(spec.batch_size, max(SMALLEST_BATCH, images // spec.min_steps_per_epoch))


def training_steps(images: int, spec: TrainingSpec) -> int:
    """Optimization steps in all epochs; of one, those of :func:`oneround.data.batches`."""
    full, rest = divmod(images, batch_size(images, spec))
    return spec.epochs * max(1, full + (rest > 1))


def _copy(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
