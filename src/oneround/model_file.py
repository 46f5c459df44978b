"""A model as files: ``global.safetensors`` with ``config.json`` beside it.

:func:`load_model` also reads a submission and a RUN folder, so every command that takes a
model takes any of them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from oneround import models
from oneround.errors import OneRoundError
from oneround.files import read_json, sha256, write_atomic, write_json
from oneround.models.ensemble import Client, Ensemble, Rule
from oneround.schema import Strict, validated
from oneround.study import ArchitectureSpec, ImageSpec, Study
from oneround.submission import read_submission

WEIGHTS, CONFIG = "global.safetensors", "config.json"


class ModelConfig(Strict):
    """What is needed to use the weights; the content of ``config.json``.

    Attributes:
        format: version of this file.
        method: how the model was made.
        study: name of the study.
        study_hash: :attr:`oneround.study.Study.hash`.
        classes: class names in the order of the outputs.
        image: size and normalization of the input.
        architectures: one for a single network, K for an ensemble.
        rule: how the networks of an ensemble are combined; ``None``: a single network.
        weights_sha256: SHA-256 of the weights file.
        intended_use: a reminder that travels with the model.
    """

    format: Literal[1] = 1
    method: str
    study: str
    study_hash: str
    classes: tuple[str, ...]
    image: ImageSpec
    architectures: tuple[ArchitectureSpec, ...] = Field(min_length=1)
    rule: Rule | None = None
    weights_sha256: str = ""
    intended_use: str = "Research. Not a medical device."


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to use.

    Attributes:
        model: from network input (B, C, H, W) to logits or log-probabilities (B, classes).
        classes: class names in the order of the outputs.
        image: size and normalization of the input.
    """

    model: nn.Module
    classes: tuple[str, ...]
    image: ImageSpec


def save_model(
    folder: Path,
    model: nn.Module,
    architectures: tuple[ArchitectureSpec, ...],
    study: Study,
    method: str,
) -> ModelConfig:
    """Write weights and config into ``folder``; what is there is replaced.

    Args:
        model: one network, or an :class:`~oneround.models.ensemble.Ensemble`.
        architectures: of the network, or of every network of the ensemble.
    """
    weights = save({k: v.contiguous() for k, v in model.state_dict().items()})
    config = ModelConfig(
        method=method,
        study=study.name,
        study_hash=study.hash,
        classes=study.classes,
        image=study.image,
        architectures=architectures,
        rule=model.rule if isinstance(model, Ensemble) else None,
        weights_sha256=sha256(weights),
    )
    write_atomic(folder / WEIGHTS, weights)
    write_json(folder / CONFIG, config.model_dump(mode="json"))
    return config


def load_model(path: str | os.PathLike[str]) -> LoadedModel:
    """Load a submission (``.oneround``), a ``.safetensors`` file or a RUN folder.

    Raises:
        OneRoundError: the file is missing, damaged, or does not fit its config.
    """
    path = Path(path)
    if not path.exists():
        raise OneRoundError(
            "there is no such file or folder.",
            file=path,
            remedy="Give a .safetensors file with its config.json, a submission or a RUN folder.",
        )
    if path.is_file() and path.suffix != ".safetensors":
        submission = read_submission(path)
        return LoadedModel(submission.model, submission.manifest.classes, submission.manifest.image)
    path = path / WEIGHTS if path.is_dir() else path
    config = model_config(path.parent)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise OneRoundError(
            f"cannot read the weights: {error.strerror}.",
            file=path,
            remedy="Give a .safetensors file with its config.json, a submission or a RUN folder.",
        ) from error
    if sha256(content) != config.weights_sha256:
        raise OneRoundError(
            "the weights are not those that config.json describes.",
            file=path,
            remedy="Copy both files again from the RUN folder.",
        )
    return LoadedModel(_restore(config, content, path), config.classes, config.image)


def model_config(folder: Path) -> ModelConfig:
    """The ``config.json`` in a folder.

    Raises:
        OneRoundError: it is missing or breaks a rule.
    """
    return validated(ModelConfig, read_json(folder / CONFIG), folder / CONFIG)


def _restore(config: ModelConfig, content: bytes, path: Path) -> nn.Module:
    networks = [models.build(a, config.image, len(config.classes)) for a in config.architectures]
    model: nn.Module = networks[0]
    if config.rule is not None:
        pairs = zip(networks, config.architectures, strict=True)
        model = Ensemble([Client("", network, a, 0) for network, a in pairs], "probabilities")
        model.rule = config.rule
    try:
        weights = load(content)
        if isinstance(model, Ensemble):
            model.weights = torch.zeros_like(weights["weights"])
            weights.setdefault("votes", model.votes)  # files of version 0.1.0 have neither
            weights.setdefault("log_priors", torch.zeros_like(model.weights))
            model.log_priors = torch.zeros_like(weights["log_priors"])
        model.load_state_dict(weights)
    except (SafetensorError, RuntimeError, KeyError) as error:
        raise OneRoundError(
            f"the weights do not fit the architecture in config.json: {str(error)[:300]}.",
            file=path,
            remedy="Copy both files again from the RUN folder.",
        ) from error
    return model.eval().requires_grad_(False)
