"""Studies, images and networks so small that a test takes milliseconds."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from oneround import models
from oneround.data import ImageSet, Splits
from oneround.model_file import Model
from oneround.models.batch_norm import update_statistics
from oneround.models.ensemble import Client
from oneround.runs.callbacks import Callback, Progress
from oneround.runs.stage import Stage
from oneround.study import ArchitectureSpec, ImageSpec, Study, TrainingSpec

CLASSES = ("red", "green", "blue")
IMAGE = ImageSpec(channels=3, height=16, width=16)
RESNET = ArchitectureSpec(name="resnet18", arguments={"width": 2})
DENSENET = ArchitectureSpec(
    name="densenet", arguments={"init_features": 4, "growth_rate": 2, "block_config": [1, 1]}
)
TRAINING = TrainingSpec(
    epochs=2, batch_size=8, learning_rate=0.05, augment=("flip",), validation_fraction=0.2
)
STUDY = Study(name="tiny", classes=CLASSES, image=IMAGE, architectures=(RESNET,), training=TRAINING)
TASK = STUDY.task

KANG2025 = [
    "inversion.images=6",
    "inversion.batch_size=3",
    "inversion.steps=2",
    "adaptation.batches=1",
    "adaptation.batch_size=4",
    "distillation.steps=4",
    "distillation.batch_size=4",
    "distillation.noise_pool=8",
    "distillation.checkpoint_every=1",
    "distillation.mix=noise",
    "distillation.start=scratch",
    "adaptation.statistics=running",
]
"""The method kang2025, every part of it, in a second."""

HEADFIT = [
    "inversion.images=6",
    "inversion.steps=2",
    "last_layer.steps=6",
    "last_layer.checkpoint_every=2",
]
"""The same for the method headfit, the default."""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(
    count: int = 24, seed: int = 0, classes: Sequence[str] = CLASSES, image: ImageSpec = IMAGE
) -> ImageSet:
    """Every class in turn; its color shows what it is."""
    labels = torch.arange(count) % len(classes)
    pixels = 0.4 + 0.1 * torch.rand(count, *image.shape, generator=seeded(seed))
    pixels[torch.arange(count), labels % image.channels] += 0.3
    return ImageSet((pixels * 255).to(torch.uint8), labels, tuple(classes))


def with_sites(data: ImageSet, sites: Sequence[str]) -> ImageSet:
    return ImageSet(data.images, data.labels, data.classes, sites)


def splits(train: int = 48, test: int = 12) -> Splits:
    return Splits(images(train, seed=1), images(12, seed=2), images(test, seed=3))


def network(
    seed: int = 0, architecture: ArchitectureSpec = RESNET, image: ImageSpec = IMAGE
) -> nn.Module:
    """Random weights, with the BatchNorm statistics of images of its own."""
    model = models.build(architecture, image, len(CLASSES), seed)
    batches = (image.normalize(images(8, seed + i, image=image).pixels()) for i in range(2))
    update_statistics(model, batches)
    return model.eval()


def clients(count: int = 2, *, counts: bool = True) -> list[Client]:
    """Random client models of sites with different numbers of images."""
    return [
        Client(f"site-{k}", network(k), RESNET, 10 * (k + 1), (k, 3, 7 + 9 * k) if counts else None)
        for k in range(count)
    ]


def global_model(
    trained: nn.Module, *architectures: ArchitectureSpec, method: str = "kang2025"
) -> Model:
    """A global model of ``STUDY``, as ``method`` would make it."""
    name, study_hash = STUDY.name, STUDY.hash
    return Model(
        trained, STUDY.task, architectures, method=method, study=name, study_hash=study_hash
    )


def write_folder(folder: Path, data: ImageSet) -> Path:
    """One folder of PNG files per class."""
    for number, (pixels, label) in enumerate(zip(data.images, data.labels, strict=True)):
        path = folder / data.classes[label] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
    return folder


def write_npz(path: Path, data: Splits) -> Path:
    """A file in the layout of MedMNIST."""
    arrays = {}
    for split in ("train", "val", "test"):
        part = getattr(data, split)
        arrays[f"{split}_images"] = part.images.permute(0, 2, 3, 1).numpy()
        arrays[f"{split}_labels"] = part.labels.numpy()[:, None].astype(np.uint8)
    np.savez(path, **arrays)
    return path


def write_csv(folder: Path, data: ImageSet, splits: Sequence[str], sites: Sequence[str]) -> Path:
    """Images in a folder and a list of them with columns split and site."""
    write_folder(folder, data)
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "site"])
        for number, label in enumerate(data.labels.tolist()):
            name = data.classes[label]
            writer.writerow([f"{name}/{number:03}.png", name, splits[number], sites[number]])
    return folder / "list.csv"


def equal(one: nn.Module, other: nn.Module) -> bool:
    """Whether all weights and buffers are equal, bit for bit."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


class Watching(Callback):
    """A callback of one function."""

    def __init__(self, tell: Progress) -> None:
        self.on_progress = tell  # type: ignore[method-assign]


class Interrupted(Exception):
    """Stands for a power cut in mid work."""


@contextmanager
def interrupted(stage: Stage, step: int) -> Iterator[None]:
    """The work inside stops after ``step`` steps of ``stage``."""

    def stop(name: str, done: int, total: int, note: str) -> None:
        if done == step:
            raise Interrupted

    stage.callbacks = (*stage.callbacks, Watching(stop))
    with pytest.raises(Interrupted):
        yield
