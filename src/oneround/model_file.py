"""A model, and its two files: ``global.safetensors`` with ``config.json`` beside it.

:meth:`Model.load` also reads a submission and a RUN folder, so every command that takes a
model takes any of them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from oneround import models
from oneround.data.image_set import Images, ImageSet, as_image_set, check_pixels
from oneround.errors import OneRoundError
from oneround.evaluation import Metrics, evaluate, predict
from oneround.files import read_json, sha256, write_atomic, write_json
from oneround.models.ensemble import Client, Ensemble, Rule
from oneround.runs.device import fabric_for
from oneround.schema import FormatOne, Strict, validated
from oneround.study import ArchitectureSpec, ImageSpec, Task
from oneround.submission import Submission, read_submission

WEIGHTS, CONFIG = "global.safetensors", "config.json"


class ModelConfig(Strict):
    """What is needed to use the weights; the content of ``config.json``.

    Attributes:
        format: version of the file format.
        method: name of the method that made the model.
        study: name of the study.
        study_hash: :attr:`oneround.study.Study.hash` of it.
        classes: class names in the order of the outputs.
        image: size and normalization of the input.
        architectures: architecture of the network, or of each network of an ensemble.
        rule: combination rule of an ensemble; ``None``: a single network.
        weights_sha256: SHA-256 of the weights file.
        intended_use: intended use, as a reminder that travels with the model.
    """

    format: FormatOne = 1
    method: str
    study: str
    study_hash: str
    classes: tuple[str, ...]
    image: ImageSpec
    architectures: tuple[ArchitectureSpec, ...] = Field(min_length=1)
    rule: Rule | None = None
    weights_sha256: str = ""
    intended_use: str = "Research. Not a medical device."


class Suspect(Strict):
    """A site that the cross-check names.

    Attributes:
        site: name of the site.
        why: what was found and what follows from it, in one or two sentences.
        used: whether its client model is used all the same.
    """

    site: str
    why: str
    used: bool


@dataclass(frozen=True)
class Model:
    """A model that is ready to use: a global model, or the client model of a submission.

    Attributes:
        network: From normalized images (B, C, H, W) to logits or log-probabilities (B, classes),
            in eval mode; one network, or an :class:`~oneround.models.ensemble.Ensemble`.
        task: Size and normalization of the images; class names in the order of the outputs.
        architectures: Architecture of the network, or of each network of an ensemble.
        bytes_sent: Bytes sent in all, to and from the sites; ``None``: one submission from each
            site, and the global model back to it.
        notes: Sentences that those who get the model should know.
        suspects: Sites that the cross-check of the coordinator names.
        method: Name of the method that made it; empty for a client model.
        study: Name of the study.
        study_hash: :attr:`oneround.study.Study.hash` of it.
    """

    network: nn.Module
    task: Task
    architectures: tuple[ArchitectureSpec, ...]
    bytes_sent: int | None = None
    notes: tuple[str, ...] = ()
    suspects: tuple[Suspect, ...] = ()
    method: str = ""
    study: str = ""
    study_hash: str = ""

    def predict_proba(
        self, images: torch.Tensor | Images, *, batch_size: int = 256, device: str = "auto"
    ) -> torch.Tensor:
        """Class probabilities, (N, classes) ``float32`` on the CPU, rows sum to one.

        Args:
            images: Pixels, (N, C, H, W), ``float`` in [0, 1] or ``uint8`` in [0, 255]; or a data
                set of N images.
            batch_size: Number of images in a batch.
            device: Where to compute; see :data:`oneround.runs.device.Device`.

        Raises:
            OneRoundError: there are no images, they are of another shape than ``task.image``, or a
                pixel is outside its range.
        """
        if isinstance(images, torch.Tensor):
            images = _unlabeled(images, self.task)
        data = as_image_set(images, self.task.classes)
        fabric = fabric_for(device)
        return predict(self.network, data, self.task.image, batch_size=batch_size, fabric=fabric)

    def evaluate(self, images: Images, *, device: str = "auto") -> Metrics:
        """Metrics with 95 % confidence intervals on labeled images.

        Args:
            images: Labeled images, an image set or any data set or data loader of pixels in [0, 1]
                and labels.
            device: Where to compute; see :data:`oneround.runs.device.Device`.

        Raises:
            OneRoundError: as for :meth:`predict_proba`.
        """
        data = as_image_set(images, self.task.classes)
        return evaluate(self.network, data, self.task.image, fabric=fabric_for(device))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``global.safetensors`` and ``config.json`` into a folder; older ones are replaced.

        Returns:
            The path of the weights.

        Raises:
            OneRoundError: nothing can be written there.
        """
        path = Path(folder)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OneRoundError(
                f"cannot make the folder: {error.strerror}.",
                file=path,
                remedy="Give a folder, new or existing.",
            ) from error
        network = self.network
        weights = save({k: v.contiguous() for k, v in network.state_dict().items()})
        config = ModelConfig(
            method=self.method,
            study=self.study,
            study_hash=self.study_hash,
            classes=self.task.classes,
            image=self.task.image,
            architectures=self.architectures,
            rule=network.rule if isinstance(network, Ensemble) else None,
            weights_sha256=sha256(weights),
        )
        write_atomic(path / WEIGHTS, weights)
        write_json(path / CONFIG, config.model_dump(mode="json"))
        return path / WEIGHTS

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Model:
        """Load a submission (``.oneround``), a ``.safetensors`` file or a folder with one.

        Raises:
            OneRoundError: the file is missing, damaged, or does not fit its config.
        """
        path = Path(path)
        if not path.exists():
            raise OneRoundError("there is no such file or folder.", file=path, remedy=_REMEDY)
        if path.is_file() and path.suffix != ".safetensors":
            return _client_model(read_submission(path))
        path = path / WEIGHTS if path.is_dir() else path
        config = model_config(path.parent)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise OneRoundError(
                f"cannot read the weights: {error.strerror}.", file=path, remedy=_REMEDY
            ) from error
        if sha256(content) != config.weights_sha256:
            raise OneRoundError(
                "the weights are not those that config.json describes.",
                file=path,
                remedy="Copy both files again from the RUN folder.",
            )
        return cls(
            _restore(config, content, path),
            Task(config.image, config.classes),
            config.architectures,
            method=config.method,
            study=config.study,
            study_hash=config.study_hash,
        )


_REMEDY = "Give a .safetensors file with its config.json, a submission or a RUN folder."


def load_model(path: str | os.PathLike[str]) -> Model:
    """The model in a submission (``.oneround``), a ``.safetensors`` file or a RUN folder.

    Raises:
        OneRoundError: as for :meth:`Model.load`.
    """
    return Model.load(path)


def _unlabeled(images: torch.Tensor, task: Task) -> ImageSet:
    if images.ndim != 4:
        raise OneRoundError(
            f"the images are of shape {tuple(images.shape)}.",
            remedy="Give (N, C, H, W); one image: image[None].",
        )
    if images.dtype != torch.uint8:
        images = images.float()
    check_pixels(images)
    return ImageSet(images, torch.zeros(len(images), dtype=torch.int64), task.classes)


def _client_model(submission: Submission) -> Model:
    manifest = submission.manifest
    return Model(
        submission.model,
        Task(manifest.image, manifest.classes),
        (manifest.architecture,),
        study=manifest.study,
        study_hash=manifest.study_hash,
    )


def model_config(folder: Path) -> ModelConfig:
    """The ``config.json`` in a folder.

    Raises:
        OneRoundError: it is missing or breaks a rule.
    """
    return validated(ModelConfig, read_json(folder / CONFIG), folder / CONFIG, strictly=True)


def _restore(config: ModelConfig, content: bytes, path: Path) -> nn.Module:
    networks = [models.build(a, config.image, len(config.classes)) for a in config.architectures]
    model: nn.Module = networks[0]
    if config.rule is not None:
        pairs = zip(networks, config.architectures, strict=True)
        clients = [Client("", network, a, 0) for network, a in pairs]
        model = Ensemble(clients, Task(config.image, config.classes), "probabilities")
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
