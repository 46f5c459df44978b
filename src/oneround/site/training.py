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
from oneround.data import ImageSet, as_image_set, batches
from oneround.data.augment import augment
from oneround.data.image_set import Images
from oneround.data.validation import hold_out, on_both_sides
from oneround.errors import OneRoundError
from oneround.evaluation import Metrics, evaluate, predict
from oneround.models.ensemble import Client
from oneround.models.inference import to_fast_layout
from oneround.runs.device import fabric_for
from oneround.runs.loop import CHECKPOINT, Loop, Stateful
from oneround.runs.optimization import learning_rate, make_optimizer, set_learning_rate
from oneround.runs.stage import Stage, derived_seed
from oneround.schema import comparable
from oneround.study import ArchitectureSpec, Study, TrainingSpec
from oneround.submission import Manifest, TrainingSummary, write_submission

SMALLEST_BATCH = 8
"""Smallest batch that is made for sites with few images: BatchNorm needs its statistics."""


@dataclass(frozen=True)
class TrainedClient(Client):
    """A client model after training, in eval mode, on the CPU.

    Attributes:
        training: summary of the training.
        held_out: number of validation images; 0: none could be held out, and the best epoch was
            chosen on the training images.
        notes: what the site should know about its validation images.
    """

    training: TrainingSummary = field(kw_only=True)
    held_out: int = field(default=0, kw_only=True)
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    def write(self, path: str | os.PathLike[str], study: Study, *, skipped: int = 0) -> Manifest:
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
            skipped=skipped,
        )


def train_client(
    study: Study,
    site: str,
    train: Images,
    val: Images | None = None,
    *,
    architecture: ArchitectureSpec | None = None,
    model: nn.Module | None = None,
    stage: Stage | None = None,
    device: str = "auto",
) -> TrainedClient:
    """Train as the study says; the epoch with the lowest validation loss is the result.

    All sites of a study start from the same random weights, one set for each architecture:
    averaging weights makes sense only then (McMahan et al., AISTATS 2017, figure 1).

    Args:
        study: Classes, image shape and training recipe.
        site: This site's name; its seed derives from the study's seed and this name.
        train: Training images, an image set or any data set or data loader of pixels in [0, 1]
            and labels.
        val: The site's own validation images; by default a part of ``train`` is held out, as
            :func:`oneround.data.validation.hold_out` does.
        architecture: One of the study's; the first by default.
        model: A network to train in place, instead of a fresh one of ``architecture``.
        stage: Folder of the checkpoint, so that an interrupted training continues, and device;
            ``device`` is then ignored.
        device: Where to train without a stage; see :data:`oneround.runs.device.Device`.

    Raises:
        OneRoundError: no training image, images of another shape, a network that does not fit
            them, images of other sites, a site or an architecture that the study does not allow,
            one image where the network needs two, a checkpoint of another training, or a loss
            that is not finite.
    """
    study.require_site(site)
    seed = derived_seed(study.seed, site)
    stage = stage or Stage("training", seed, fabric=fabric_for(device))
    spec, architecture = study.training, architecture or study.architectures[0]
    if architecture not in study.architectures:
        raise OneRoundError(
            f"the study does not allow {architecture}.",
            remedy=f"Use one of {', '.join(map(str, study.architectures))}.",
        )
    train, held_out = _splits(study, train, val, stage)
    _refuse_other_sites(site, train, held_out)
    val = held_out if len(held_out) else train
    network = model or _initial(study, architecture)
    models.require_fit(network, study.image, len(study.classes))
    to_fast_layout(network)
    optimizer = make_optimizer(
        network.parameters(),
        learning_rate=spec.learning_rate,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
    )
    wrapped, optimizer = stage.fabric.setup(network, optimizer)
    best = _Best()
    identity = _Identity(stage, f"{study.hash} {architecture} {seed}", train, val)
    parts: dict[str, Stateful] = {
        "identity": identity, "model": network, "optimizer": optimizer, "best": best,
    }  # fmt: skip
    loop = Loop(stage, spec.epochs, parts)
    for epoch in loop:
        rates, generator = _rates(spec, len(train), epoch), stage.generator(epoch)
        loss = train_epoch(wrapped, optimizer, rates, study, train, loop, generator)
        entry = {"epoch": epoch, "loss": loss} | _validate(wrapped, study, val, stage)
        if not (math.isfinite(entry["loss"]) and math.isfinite(entry["val_loss"])):
            raise OneRoundError(
                f"the loss is not finite in epoch {epoch}.",
                remedy="Agree on a smaller learning rate in the study.",
            )
        stage.log(entry)
        best.offer(entry["val_loss"], epoch, network)
        loop.note = f"{site}: {entry['val_accuracy']:.0%} on its own validation"
    network.load_state_dict(best.weights)
    network.cpu().eval()
    metrics = evaluate(network, val, study.image, resamples=0) if len(held_out) else None
    counts = tuple(train.class_counts().tolist())
    return TrainedClient(
        site, network, architecture, len(train), counts,
        training=_summary(spec, best.epoch, stage, metrics),
        held_out=len(held_out), notes=_notes(train, held_out),
    )  # fmt: skip


def _notes(train: ImageSet, held_out: ImageSet) -> tuple[str, ...]:
    """What the site should know about its validation images."""
    if not len(held_out):
        return ("no image could be held out for validation: the best epoch is that of the training "
                "images",)  # fmt: skip
    pairs = zip(train.classes, train.class_counts(), held_out.class_counts(), strict=True)
    missing = [name for name, trained, held in pairs if trained and not held]
    lines = [f"no validation image of {', '.join(missing)}"] if missing else []
    return (*lines, *on_both_sides(train, held_out, "validation"))


def _initial(study: Study, architecture: ArchitectureSpec) -> nn.Module:
    """The network that all sites of the study start from."""
    seed = derived_seed(study.seed, "initialization")
    return models.build(architecture, study.image, len(study.classes), seed)


def _summary(
    spec: TrainingSpec, best_epoch: int, stage: Stage, metrics: Metrics | None
) -> TrainingSummary:
    names = ("accuracy", "balanced_accuracy", "auroc") if metrics else ()
    found = {name: getattr(metrics, name) for name in names}
    return TrainingSummary(
        epochs=spec.epochs,
        best_epoch=best_epoch,
        loss=stage.curve[best_epoch - 1]["loss"],
        validation={name: value for name, value in found.items() if value is not None},
    )


class _Best:
    """The weights of the epoch with the lowest validation loss so far; a part of a checkpoint."""

    def __init__(self) -> None:
        self.loss, self.epoch, self.weights = math.inf, 0, dict[str, torch.Tensor]()

    def offer(self, loss: float, epoch: int, network: nn.Module) -> None:
        """Keep a copy of the weights if ``loss`` is lower than all before."""
        if loss < self.loss:
            state = network.state_dict().items()
            self.loss, self.epoch = loss, epoch
            self.weights = {name: tensor.detach().cpu().clone() for name, tensor in state}

    def state_dict(self) -> dict[str, Any]:
        """Loss, epoch and weights."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        vars(self).update(state)


class _Identity:
    """What a checkpoint belongs to: study, architecture, seed, and all images of the site."""

    def __init__(self, stage: Stage, text: str, *images: ImageSet) -> None:
        self._path = stage.file(CHECKPOINT)
        self._text = f"{text} {_fingerprint(*images)}" if self._path else ""

    def state_dict(self) -> dict[str, Any]:
        """Study, architecture, seed and fingerprint of the images, in one line."""
        return {"text": self._text}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compare with a checkpoint.

        Raises:
            OneRoundError: it belongs to another training.
        """
        if state != self.state_dict():
            raise OneRoundError(
                "this checkpoint belongs to another study or site, or the images have changed.",
                file=self._path,
                remedy="Delete the checkpoint to start again, or choose another --out.",
            )


def _rates(spec: TrainingSpec, images: int, epoch: int) -> Iterator[float]:
    """The learning rate of every step of an epoch (from 1)."""
    steps = training_steps(images, spec)
    per_epoch = steps // spec.epochs
    for step in range((epoch - 1) * per_epoch, epoch * per_epoch):
        yield learning_rate(spec.schedule, spec.learning_rate, step, steps)


def train_epoch(
    model: Any,
    optimizer: Any,
    rates: Iterator[float],
    study: Study,
    train: ImageSet,
    loop: Loop,
    generator: torch.Generator,
) -> float:
    """Train for one pass over the training images; the mean cross-entropy over them.

    Args:
        model: Network, in any mode; trained in place.
        optimizer: Optimizer of its weights.
        rates: Learning rate of every step.
        study: Training recipe and normalization.
        train: Training images.
        loop: Device, and meter of the cost.
        generator: Random numbers for the order and the augmentation of the images.
    """
    fabric = loop.stage.fabric
    weights = class_weights(train.class_counts()) if study.training.class_weighted else None
    loss_of = nn.CrossEntropyLoss(weight=weights).to(fabric.device)
    model.train()
    total, seen = 0.0, 0
    for indices in batches(len(train), batch_size(len(train), study.training), generator):
        x = augment(study.image.normalize(train.pixels(indices)), study.training.augment, generator)
        x, labels = fabric.to_device((x, train.labels[indices]))
        set_learning_rate(optimizer, next(rates))
        with loop.meter.step(len(x)), _one_image_may_be_too_few():
            loss = loss_of(model(x), labels)
            optimizer.zero_grad()
            fabric.backward(loss)
        optimizer.step()
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
    """Weight of each class in the loss, (classes,): inverse to its frequency, mean 1 over images.

    Args:
        counts: Training images of each class, (classes,); absent classes get 0.
    """
    present = counts > 0
    weights = counts.sum() / (present.sum() * counts.clamp_min(1))
    return torch.where(present, weights, 0.0)


def _validate(model: nn.Module, study: Study, val: ImageSet, stage: Stage) -> dict[str, float]:
    probabilities = predict(model, val, study.image, fabric=stage.fabric)
    loss = nn.functional.nll_loss(probabilities.clamp_min(1e-12).log(), val.labels)
    hits = (probabilities.argmax(1) == val.labels).float().mean()
    return {"val_loss": loss.item(), "val_accuracy": hits.item()}


def _splits(
    study: Study, train: Images, val: Images | None, stage: Stage
) -> tuple[ImageSet, ImageSet]:
    """Checked training and validation images; the latter are none if none can be held out."""
    train = as_image_set(train, study.classes)
    val = None if val is None else as_image_set(val, study.classes)
    if len(train) == 0:
        raise OneRoundError(
            "there is no training image.", remedy="Give this site at least one image of any class."
        )
    if train.shape != study.image.shape:
        raise OneRoundError(
            f"images are {train.shape}, the study says {study.image.shape}.",
            remedy="Read them with `read_splits(path, image=study.image)`, which resizes.",
        )
    if val is not None and len(val) > 0:
        return train, val
    generator = stage.generator("validation split")
    kept, held_out = hold_out(train, study.training.validation_fraction, generator)
    return train.subset(kept), train.subset(held_out)


def _refuse_other_sites(site: str, *parts: ImageSet) -> None:
    """Refuse images that their source says are of another site.

    Raises:
        OneRoundError: there are some.
    """
    names = {name for part in parts for name in part.sites or ()}
    if others := sorted(name for name in names if comparable(name) != comparable(site)):
        raise OneRoundError(
            f"there are images of other sites than {site}: {', '.join(others)}.",
            remedy=f"Give those of {site} alone, as `read_splits(path, site={site!r})` does.",
        )


def _fingerprint(*parts: ImageSet) -> str:
    """SHA-256 of all images and labels, in their order."""
    digest = hashlib.sha256()
    for part in parts:
        part.feed(digest)
    return digest.hexdigest()


def batch_size(images: int, spec: TrainingSpec) -> int:
    """Size of a training batch of a site with this many images.

    ``spec.batch_size``, or less where an epoch would have fewer than ``spec.min_steps_per_epoch``
    steps, but :data:`SMALLEST_BATCH` at least.
    """
    if not spec.min_steps_per_epoch:
        return spec.batch_size
    return min(spec.batch_size, max(SMALLEST_BATCH, images // spec.min_steps_per_epoch))


def training_steps(images: int, spec: TrainingSpec) -> int:
    """Number of optimization steps in all epochs of a site with this many training images."""
    full, rest = divmod(images, batch_size(images, spec))
    return spec.epochs * max(1, full + (rest > 1))
