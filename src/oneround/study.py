"""The study: what all sites agree on before anyone trains. One TOML file.

Everything that must be equal at every site is here (classes and their order, image size,
normalization, allowed architectures, the training recipe), and nothing that is the
coordinator's own business (how images are synthesized, how the student is distilled). The table
``submission`` has the deadline of submissions and the keys that sign them; it alone may still
change while sites train.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import tomlkit
from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from oneround.errors import OneRoundError, warn_renamed
from oneround.files import parse_toml, sha256, write_atomic
from oneround.schema import (
    NAME,
    FormatOne,
    Name,
    PublicKey,
    Recipient,
    Strict,
    Text,
    WholeNumber,
    parse_assignment,
    require_distinct,
    validated,
)

if TYPE_CHECKING:
    import torch


MOST_CLASSES = 4096
"""Largest number of classes."""


class ImageSpec(Strict):
    """Shape and normalization of the images of a study.

    Readers give pixels in [0, 1] of shape (C, H, W); networks see ``(pixel - mean) / std``.

    Attributes:
        channels: number of channels C; 1: gray, 3: color.
        height: height H in pixels, 8 to 1024.
        width: width W in pixels, 8 to 1024.
        mean: mean of the normalization, one value or one for each channel.
        std: standard deviation of the normalization, above 0, one value or one for each channel.
        window: center and width, above 0, of the window of gray DICOM images, in the units after
            rescaling (Hounsfield units for CT); ``None``: the window of each file, or else from
            its minimum to its maximum.
        aspect: how an image of another shape becomes one of this height and width; ``stretch``:
            its aspect ratio changes; ``pad``: it keeps it, and black is added at two sides.
        frames: what becomes of a file with several frames; ``single``: it is refused; ``middle``:
            its middle frame is the image; ``each``: every frame is an image.
    """

    channels: Annotated[Literal[1, 3], WholeNumber] = 3
    height: int = Field(default=28, ge=8, le=1024)
    width: int = Field(default=28, ge=8, le=1024)
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    window: tuple[float, float] | None = None
    aspect: Literal["stretch", "pad"] = "stretch"
    frames: Literal["single", "middle", "each"] = "single"

    @model_validator(mode="after")
    def _one_value_per_channel(self) -> Self:
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.channels):
                raise ValueError(f"{name} needs 1 or {self.channels} values")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        if self.window is not None and self.window[1] <= 0:
            raise ValueError("the width of the window must be above 0")
        return self

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what version 0.1 did not know, where it says the same as that version did.

        So the hash of a study is the same as before, and that version reads its submissions.
        """
        content: dict[str, Any] = write(self)
        later = ("window", "aspect", "frames")
        default = {name: type(self).model_fields[name].default for name in later}
        return {k: v for k, v in content.items() if k not in default or v != default[k]}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an image, (C, H, W)."""
        return (self.channels, self.height, self.width)

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Network input of the shape of ``pixels``, (..., C, H, W), which are in [0, 1]."""
        return (pixels - self._per_channel(self.mean, pixels)) / self._per_channel(self.std, pixels)

    def denormalize(self, inputs: torch.Tensor) -> torch.Tensor:
        """Pixels of network input, clipped to [0, 1]; the inverse of :meth:`normalize`."""
        pixels = inputs * self._per_channel(self.std, inputs) + self._per_channel(self.mean, inputs)
        return pixels.clamp(0, 1)

    @staticmethod
    def _per_channel(values: tuple[float, ...], like: torch.Tensor) -> torch.Tensor:
        import torch  # the agreement alone needs no networks

        return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)


class ArchitectureSpec(Strict):
    """A network by name, with its arguments; see :mod:`oneround.models`.

    Attributes:
        name: name of a registered architecture.
        arguments: arguments of that architecture, by name.
    """

    name: str = "resnet18"
    arguments: dict[str, int | float | str | bool | list[int]] = Field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> ArchitectureSpec:
        """The architecture in a text such as ``resnet18:width=16,stem=small``.

        Raises:
            OneRoundError: the text is not of this form.
        """
        name, _, rest = text.partition(":")
        arguments: dict[str, Any] = {}
        for pair in filter(None, rest.split(",")):
            arguments |= parse_assignment(pair)
        return cls.validate_options({"name": name, "arguments": arguments}, text)

    def __str__(self) -> str:
        arguments = ", ".join(f"{k}={v}" for k, v in sorted(self.arguments.items()))
        return f"{self.name}({arguments})"


Augmentation = Literal["flip", "shift", "rotate", "intensity"]
"""A random change of an image that preserves its class; see :mod:`oneround.data.augment`."""


class TrainingSpec(Strict):
    """How each site trains its client model; see :func:`oneround.site.training.train_client`.

    Attributes:
        epochs: number of passes over the training images.
        batch_size: number of images in a step.
        min_steps_per_epoch: steps of an epoch below which a site with few images gets smaller
            batches, of 8 at least; 0: never.
        learning_rate: peak learning rate of SGD.
        momentum: Nesterov momentum of SGD, in [0, 1).
        weight_decay: weight decay of SGD.
        schedule: learning rate over the steps; see
            :func:`oneround.runs.optimization.learning_rate`.
        class_weighted: whether the loss weights classes, inverse to their frequency at the site.
        augment: random changes of the training images.
        validation_fraction: share of the training images that are held out where a site has no
            validation images, in (0, 0.5).
    """

    epochs: int = Field(default=15, ge=1)
    batch_size: int = Field(default=64, ge=2)
    min_steps_per_epoch: int = Field(default=0, ge=0, le=1000)
    learning_rate: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    schedule: Literal["one-cycle", "constant", "step"] = "one-cycle"
    class_weighted: bool = False
    augment: tuple[Augmentation, ...] = ("flip", "shift")
    validation_fraction: float = Field(default=0.1, gt=0, lt=0.5)


@dataclass(frozen=True)
class Task:
    """The task of a network: to classify images of one shape into these classes.

    Attributes:
        image: Shape and normalization of the input.
        classes: Class names in the order of the outputs.
    """

    image: ImageSpec
    classes: tuple[str, ...]


class SubmissionSpec(Strict):
    """How sites submit. Not a part of the study's hash: a new key or another deadline does not
    invalidate a trained client model.

    Attributes:
        keys: Public key of each site that signs. Once there is one, every submission must be
            signed with the key of its site.
        encrypt_to: Age recipient of the coordinator; submissions leave a site encrypted to it.
        deadline: Deadline of submissions: a time with its zone (ISO 8601), or a day (its end, UTC).
        at_least: Number of submissions that are enough for a global model (k of n); ``None``:
            see :attr:`Study.at_least`.
        smallest_cell: Smallest count in the metrics that a site sends back; others are left out.
        most_images: Largest number of training images that a site can have; submissions that claim
            more are refused.
    """

    keys: dict[Name, PublicKey] = Field(default_factory=dict)
    encrypt_to: Recipient | None = None
    deadline: datetime | None = None
    at_least: int | None = Field(default=None, ge=1)
    smallest_cell: int = Field(default=5, ge=1, le=1000)
    most_images: int | None = Field(default=None, ge=1, le=10**12)

    @field_validator("deadline", mode="before")
    @classmethod
    def _end_of_the_day(cls, value: object) -> object:
        if isinstance(value, date) and not isinstance(value, datetime):
            value = value.isoformat()  # TOML has days of its own
        if not isinstance(value, str):
            return value
        is_a_day = re.fullmatch(r"\d{4}-\d{2}-\d{2}", value)
        return datetime.fromisoformat(f"{value}T23:59:59Z" if is_a_day else value)

    @field_validator("deadline")
    @classmethod
    def _has_a_time_zone(cls, value: datetime | None) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError("a time needs its zone, such as 2027-01-31T12:00:00Z")
        return value and value.astimezone(UTC)

    @model_validator(mode="after")
    def _keys_are_different(self) -> Self:
        if len(set(self.keys.values())) != len(self.keys):
            raise ValueError("every site needs a key of its own")
        return self


class Study(Strict):
    """The agreement between the sites.

    Attributes:
        format: version of the file format.
        name: name of the study.
        classes: class names; their order is the order of the network's outputs.
        sites: names of the sites that may submit; empty: any name.
        image: shape and normalization of the images.
        architectures: networks that a site may use; the first is the default.
        training: how each site trains.
        share_class_counts: whether manifests state the number of training images of each class,
            which help the ensemble to weight sites; ``False``: sites withhold them.
        seed: seed of client training; each site derives its own from it and its name.
        submission: keys, deadline, k of n; the only part that may change after sites have trained.
    """

    format: FormatOne = 1
    name: Name
    classes: tuple[Text, ...] = Field(min_length=2, max_length=MOST_CLASSES)
    sites: tuple[Name, ...] = ()
    image: ImageSpec = ImageSpec()
    architectures: tuple[ArchitectureSpec, ...] = Field(default=(ArchitectureSpec(),), min_length=1)
    training: TrainingSpec = TrainingSpec()
    share_class_counts: bool = True
    seed: int = Field(default=0, ge=0, lt=2**31)
    submission: SubmissionSpec = SubmissionSpec()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        for what in ("classes", "sites"):
            require_distinct(getattr(self, what), what)
        if self.sites and (strangers := set(self.submission.keys) - set(self.sites)):
            raise ValueError(
                f"submission.keys: {', '.join(sorted(strangers))} is none of the sites"
            )
        if self.sites and self.at_least > len(self.sites):
            raise ValueError("submission.at_least is more than there are sites")
        return self

    @property
    def task(self) -> Task:
        """Image and classes: the part of the study that a network needs."""
        return Task(self.image, self.classes)

    @property
    def expected_sites(self) -> tuple[str, ...]:
        """Sites that are asked to submit: those that the study lists, or else all with a key."""
        return self.sites or tuple(self.submission.keys)

    @property
    def at_least(self) -> int:
        """Number of submissions that are enough: all expected sites by default, and 2 of any."""
        return self.submission.at_least or len(self.expected_sites) or 2

    def agreement(self) -> dict[str, Any]:
        """Everything that must be equal at every site, in plain types: all but ``submission``.

        A ``min_steps_per_epoch`` of 0 is left out: studies without it have the same hash as before.
        """
        content = self.model_dump(mode="json", exclude={"submission"})
        if not self.training.min_steps_per_epoch:
            del content["training"]["min_steps_per_epoch"]
        return content

    @property
    def hash(self) -> str:
        """SHA-256 of :meth:`agreement` in canonical JSON.

        Comments, the order of keys, line ends and a byte order mark do not count, so a file
        that was opened in an editor or sent by mail has the same hash.
        """
        canonical = json.dumps(self.agreement(), sort_keys=True, ensure_ascii=True)
        return sha256(canonical.encode())

    def require_site(self, site: str, file: str | os.PathLike[str] | None = None) -> None:
        """Refuse a site that could not submit, before it trains.

        Args:
            site: name of the site.
            file: file that the name comes from, for the error.

        Raises:
            OneRoundError: ``site`` is not a :data:`Name`, or not one of ``sites``.
        """
        if not re.fullmatch(NAME, site):
            raise OneRoundError(
                f"{site!r} cannot be the name of a site.",
                file=file,
                remedy="Use letters A to Z, digits, spaces and ._-, at most 64, and no sign first.",
            )
        if self.sites and site not in self.sites:
            raise OneRoundError(
                f"the study knows no site {site!r}.",
                file=file,
                remedy=f"Use one of {', '.join(self.sites)}, letter for letter, or ask the "
                "coordinator.",
            )

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], *, signed_by: str | os.PathLike[str] | None = None
    ) -> Study:
        """Read and validate a TOML file.

        Args:
            path: TOML file.
            signed_by: public key (``.pub``) of the coordinator, whose signature of the file must
                then be beside it (``.sig``).

        Raises:
            OneRoundError: the file is missing, is not TOML, breaks a rule of the study, or is not
                what the coordinator signed.
        """
        try:
            raw = Path(path).read_bytes()
            if signed_by is not None:
                from oneround import signing

                signing.require_signed_file(path, raw, signed_by)
            content = parse_toml(raw.decode("utf-8-sig"))
        except OSError as error:
            raise OneRoundError(
                f"cannot read the study: {error.strerror}.",
                file=path,
                remedy="Check the path; `oneround study init` writes a new one.",
            ) from error
        except ValueError as error:
            raise OneRoundError(
                f"not a TOML file: {error}.",
                file=path,
                remedy="Correct the line, or write a new study with `oneround study init`.",
            ) from error
        if "hand_in" in content and "submission" not in content:
            warn_renamed("the table hand_in of a study", "submission")
            content["submission"] = content.pop("hand_in")
        study = validated(cls, content, path, strictly=True)
        if study.submission.encrypt_to:
            from oneround import signing

            signing.require_recipient(study.submission.encrypt_to, path)
        return study

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the study as TOML, atomically.

        Raises:
            OneRoundError: the file cannot be written.
        """
        content = self.model_dump(mode="json", exclude_none=True)
        write_atomic(path, tomlkit.dumps(content).encode())


def preset(name: str, image: ImageSpec) -> tuple[ArchitectureSpec, TrainingSpec]:
    """Network and training recipe of a preset, for images of one size.

    Images below 64 pixels get the small stem (3×3, no pooling).

    Args:
        name: ``quick``: for a CPU, a ResNet-18 of width 16 and 15 one-cycle epochs, of 8 steps or
            more even with few images; ``paper``: that of FedISCA's public code, a ResNet-18 of
            full width and 100 epochs of SGD from a learning rate of 1e-3.
        image: shape of the images.

    Raises:
        OneRoundError: there is no such preset.
    """
    stem = "small" if max(image.height, image.width) < 64 else "standard"
    if name == "quick":
        training = TrainingSpec(min_steps_per_epoch=8)
        return ArchitectureSpec(arguments={"width": 16, "stem": stem}), training
    if name == "paper":
        training = TrainingSpec(epochs=100, batch_size=128, learning_rate=1e-3, schedule="step")
        return ArchitectureSpec(arguments={"width": 64, "stem": stem}), training
    raise OneRoundError(f"there is no preset {name!r}.", remedy="Presets are quick and paper.")
