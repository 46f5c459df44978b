"""What a submission says about itself. Lengths are limited, so that a hostile one stays small."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from torch import nn

from oneround.schema import Count, FormatOne, Name, Sha256, Strict, Text, Time
from oneround.study import ArchitectureSpec, ImageSpec

SHARES = frozenset(
    (
        *("accuracy", "balanced_accuracy", "auroc", "auc", "auprc", "average_precision", "ece"),
        *("brier", "f1", "precision", "recall", "sensitivity", "specificity", "ppv", "npv"),
    )
)
"""Names of metrics that are always in [0, 1]."""

Loss = Annotated[float, Field(ge=0, le=1e4)]
"""A mean cross-entropy: guessing among 4096 classes has 8.3."""

Metric = Annotated[float, Field(ge=-1e6, le=1e6)]
"""A metric of any kind."""


class TrainingSummary(Strict):
    """How the training at the site went.

    Attributes:
        epochs: number of epochs trained.
        best_epoch: epoch whose weights are submitted, at most ``epochs``.
        loss: mean cross-entropy of that epoch on the training images, in [0, 10⁴].
        validation: metrics on the site's own validation split, those of :data:`SHARES` in [0, 1].
            Those that cannot be computed (NaN, such as AUROC with one class) are left out.
    """

    epochs: Count
    best_epoch: Count
    loss: Loss
    validation: dict[Text, Metric] = Field(default_factory=dict, max_length=64)

    @field_validator("validation", mode="before")
    @classmethod
    def _leave_out_nan(cls, metrics: object) -> object:
        if not isinstance(metrics, dict):
            return metrics
        return {k: v for k, v in metrics.items() if not (isinstance(v, float) and math.isnan(v))}

    @field_validator("validation")
    @classmethod
    def _shares_are_shares(cls, metrics: dict[str, float]) -> dict[str, float]:
        known = {k: v for k, v in metrics.items() if k.lower().replace("-", "_") in SHARES}
        if wrong := [name for name, value in known.items() if not 0 <= value <= 1]:
            raise ValueError(f"{', '.join(wrong)} must be from 0 to 1")
        return metrics

    @model_validator(mode="after")
    def _best_is_one_of_them(self) -> Self:
        if self.best_epoch > self.epochs:
            raise ValueError("best_epoch must be at most epochs")
        return self


class Privacy(Strict):
    """The (ε, δ) differential privacy of the training.

    Attributes:
        epsilon: ε, above 0.
        delta: δ, in [0, 1).
    """

    epsilon: float = Field(gt=0, allow_inf_nan=False)
    delta: float = Field(ge=0, lt=1)


class Manifest(Strict):
    """The content of ``manifest.json``.

    Attributes:
        format: version of the file format.
        study: name of the study.
        study_hash: :attr:`oneround.study.Study.hash` of the study file used in training.
        site: name of the site that submits.
        architecture: network and its arguments; the reader must know a network of this name.
        classes: class names in the order of the network's outputs.
        image: shape, value range and normalization of the network's input.
        images: number of training images.
        skipped: number of images that the site could not read and left out.
        class_counts: training images of each class, or None: withheld. Their sum is ``images``;
            with ``privacy`` they may be noised, and their sum may differ by ``images`` and 100 for
            each class.
        training: summary of the training.
        versions: versions of the software, by name, such as ``{"torch": "2.6.0"}``.
        weights_sha256: SHA-256 of the member ``model.safetensors``.
        created: time of writing, UTC, ISO 8601.
        privacy: differential privacy of the training, or None.
    """

    format: FormatOne = 1
    study: Name
    study_hash: Sha256
    site: Name
    architecture: ArchitectureSpec
    classes: tuple[Text, ...] = Field(min_length=2, max_length=4096)
    image: ImageSpec
    images: int = Field(ge=1, le=10**12)
    skipped: Count = 0
    class_counts: tuple[Count, ...] | None = Field(None, max_length=4096)
    training: TrainingSummary
    versions: dict[Text, Text] = Field(max_length=64)
    weights_sha256: Sha256
    created: Time
    privacy: Privacy | None = None

    @model_validator(mode="after")
    def _classes_fit(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes must be different from each other")
        if self.class_counts is not None and len(self.class_counts) != len(self.classes):
            raise ValueError("class_counts needs one number for each class")
        return self

    @model_validator(mode="after")
    def _counts_sum_to_images(self) -> Self:
        if self.class_counts is None:
            return self
        total = sum(self.class_counts)
        noise = 0 if self.privacy is None else self.images + 100 * len(self.classes)
        if abs(total - self.images) > noise:
            raise ValueError(f"class_counts sum to {total}, and images is {self.images}")
        return self

    @model_serializer(mode="wrap")
    def _without_zero_skipped(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave ``skipped`` out if it is 0, so that version 0.1 reads the file."""
        content: dict[str, Any] = serialize(self)
        if not self.skipped:
            content.pop("skipped", None)
        return content


@dataclass(frozen=True)
class Submission:
    """A submission that was read and has passed all checks.

    Attributes:
        manifest: content of its ``manifest.json``.
        model: client model, from normalized images (B, C, H, W) to logits (B, classes), restored
            exactly, BatchNorm buffers included; on the CPU, in eval mode, without gradients.
        sha256: SHA-256 of the whole file, before encryption.
        size: size of the file as it was sent, in bytes.
        path: file that it was read from.
        signed_by: fingerprint of the key that signed it, the one that the study lists for the
            site; ``None``: the study lists no keys.
    """

    manifest: Manifest
    model: nn.Module
    sha256: str
    size: int
    path: Path
    signed_by: str | None = None
