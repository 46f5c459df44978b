"""Labeled images: what every reader returns and everything else accepts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from oneround.data.store import FULL_SCALE, DiskPixels
from oneround.errors import OneRoundError

AT_ONCE = 1024
"""Images that are looked at together where all of a set are."""


class ImageSet(Dataset[tuple[torch.Tensor, int]]):
    """Images of one size with one label each, in memory or on disk; it does not change.

    Args:
        images: (N, C, H, W), ``uint8`` in [0, 255] (as in most files), ``uint16`` in [0, 65535] or
            ``float32`` in [0, 1]; or pixels on disk.
        labels: (N,) ``int64``, indices into ``classes``.
        classes: Class names in the order of the study.
        sites: Site of each image, if the source names it (a CSV file with a site column).
        patients: (N,) ``int64``, equal for images of the same patient, if the source names
            patients: numbers counted in the source, so that no identifier is kept.
        rows: (N,) ``int64``: which of ``images`` belong to the set, in this order; ``None``: all.
            So a part of a set needs no copy of its images.

    Raises:
        ValueError: a shape, a type or a label is another than these.
    """

    def __init__(
        self,
        images: torch.Tensor | DiskPixels,
        labels: torch.Tensor,
        classes: Sequence[str],
        sites: Sequence[str] | None = None,
        patients: torch.Tensor | None = None,
        *,
        rows: torch.Tensor | None = None,
    ) -> None:
        self._stored, self._rows = images, rows
        self.labels, self.classes = labels, tuple(classes)
        self.sites = None if sites is None else tuple(sites)
        self.patients = patients
        if len(images.shape) != 4 or images.dtype not in FULL_SCALE:
            raise ValueError("images must be (N, C, H, W), uint8, uint16 or float32")
        count = len(images) if rows is None else len(rows)
        if labels.shape != (count,) or labels.dtype != torch.int64:
            raise ValueError("labels must be (N,) int64, one for each image")
        if count and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
            raise ValueError("labels must be indices into classes")
        if patients is not None and patients.shape != labels.shape:
            raise ValueError("patients must be (N,), one for each image")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """One image, (C, H, W) ``float32`` in [0, 1], and its label."""
        return self.pixels(torch.tensor([index]))[0], int(self.labels[index])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image, (C, H, W)."""
        return tuple(self._stored.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """Type of the pixels as they are stored."""
        return self._stored.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the images of this set as they are stored."""
        return len(self) * self.dtype.itemsize * int(torch.Size(self.shape).numel())

    @property
    def images(self) -> torch.Tensor:
        """All images, (N, C, H, W), ``uint8`` if they are stored so, else ``float32`` in [0, 1].

        A copy if this is a part of another set, or is stored in another type.
        """
        return self.stored() if self.dtype == torch.uint8 else self.pixels()

    def stored(self, indices: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        """Images in the type that they are stored in, (B, C, H, W)."""
        return self._stored[indices if self._rows is None else self._rows[indices]]

    def pixels(self, indices: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        """Images as ``float32`` in [0, 1], (B, C, H, W)."""
        images = self.stored(indices)
        scale = FULL_SCALE[images.dtype]
        return images if scale == 1 else images.float().div_(scale)

    def subset(self, indices: torch.Tensor) -> ImageSet:
        """The images at ``indices``, in that order; none is copied."""
        sites = None if self.sites is None else tuple(self.sites[i] for i in indices.tolist())
        patients = None if self.patients is None else self.patients[indices]
        rows = indices if self._rows is None else self._rows[indices]
        return ImageSet(
            self._stored, self.labels[indices], self.classes, sites, patients, rows=rows
        )

    @staticmethod
    def join(parts: Sequence[ImageSet]) -> ImageSet:
        """Several sets of the same classes and image size as one, in memory, without sites and
        patients."""
        same = len({part.dtype for part in parts}) == 1
        images = [part.stored() if same else part.pixels() for part in parts]
        labels = torch.cat([part.labels for part in parts])
        return ImageSet(torch.cat(images), labels, parts[0].classes)

    def feed(self, digest: hashlib._Hash) -> None:
        """Update ``digest`` with everything that distinguishes this set from another."""
        for start in range(0, len(self), AT_ONCE):
            images = self.stored(slice(start, start + AT_ONCE)).contiguous()
            digest.update(images.reshape(-1).numpy().data)
        digest.update(self.labels.reshape(-1).numpy().data)
        if self.sites is not None:
            digest.update(json.dumps(self.sites).encode())
        if self.patients is not None:
            digest.update(self.patients.contiguous().numpy().data)

    def fingerprints(self) -> list[bytes]:
        """A hash of the pixels of each image (BLAKE2b, 16 bytes): equal for equal images."""
        found = []
        for start in range(0, len(self), AT_ONCE):
            images = self.stored(slice(start, start + AT_ONCE)).contiguous().numpy()
            found += [hashlib.blake2b(image.data, digest_size=16).digest() for image in images]
        return found

    def class_counts(self) -> torch.Tensor:
        """Number of images of each class, (classes,) ``int64``."""
        return torch.bincount(self.labels, minlength=len(self.classes))


@dataclass(frozen=True)
class Splits:
    """One data set, divided as its source divides it.

    Attributes:
        train: Training images.
        val: The site's own validation images; ``None``: they are split off from ``train``.
        test: Held-out images, used only to report.
        skipped: What the site should look at: path and reason for each file that could not be read,
            one line each, and then a line for each thing that looks wrong in files that were read.
        unreadable: Number of files that could not be read, the first lines of ``skipped``.
    """

    train: ImageSet
    val: ImageSet | None = None
    test: ImageSet | None = None
    skipped: tuple[str, ...] = ()
    unreadable: int = 0


Images = ImageSet | Dataset[tuple[torch.Tensor, int]] | DataLoader[Any]
"""Labeled images of any kind; :func:`as_image_set` makes an image set of them."""


def as_image_set(data: Images, classes: Sequence[str]) -> ImageSet:
    """Any data set or data loader of pixels and labels as an :class:`ImageSet`, in memory.

    Args:
        data: A map-style or iterable ``torch.utils.data.Dataset`` of pixels in [0, 1], (C, H, W),
            with integer labels; or a ``DataLoader`` of batches of them. An image set is returned
            as it is.
        classes: Class names in the order of the labels.

    Raises:
        OneRoundError: the data set is empty, its items are no pairs of pixels and a label, a pixel
            is outside [0, 1], or a label is not an index into ``classes``.
    """
    if isinstance(data, ImageSet):
        return data
    if isinstance(data, DataLoader):
        pairs = [_pair(batch, True) for batch in data]
    else:
        items = data if isinstance(data, IterableDataset) else map(data.__getitem__, _range(data))
        pairs = [_pair(item, False) for item in items]
    try:
        images = torch.cat([x.float() for x, _ in pairs]) if pairs else torch.empty(0)
    except RuntimeError as error:
        raise OneRoundError(
            "the images are of several sizes.", remedy="Resize them to that of the study."
        ) from error
    check_pixels(images)
    labels = torch.cat([y for _, y in pairs]).long()
    if labels.min() < 0 or labels.max() >= len(classes):
        raise OneRoundError(
            f"labels range from {labels.min()} to {labels.max()}, and there are {len(classes)} "
            "classes.",
            remedy="Give indices into the classes of the study, from 0.",
        )
    return ImageSet(images, labels, tuple(classes))


def check_pixels(images: torch.Tensor) -> None:
    """Refuse images, (N, C, H, W), without a pixel, or ``float`` ones outside [0, 1].

    Raises:
        OneRoundError: there is such a pixel, or there are no images.
    """
    if not images.numel():
        raise OneRoundError("the data set is empty.", remedy="Give at least one image.")
    if FULL_SCALE.get(images.dtype, 1) == 1 and not (images.min() >= 0 and images.max() <= 1):
        raise OneRoundError(
            f"pixels range from {images.min():.3g} to {images.max():.3g}.",
            remedy="Scale them to [0, 1]; the study's normalization is applied later.",
        )


def _pair(item: Any, batch: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels, (B, C, H, W), and labels, (B,), of a batch or of a single item."""
    try:
        pixels, label = (torch.as_tensor(part) for part in item)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OneRoundError(
            "an item of the data set is no pair of pixels and a label.",
            remedy="Yield (pixels, label): a tensor (C, H, W) in [0, 1] and an integer.",
        ) from error
    return (pixels, label.reshape(-1)) if batch else (pixels[None], label.reshape(1))


def _range(data: Dataset[Any]) -> range:
    return range(len(data))  # type: ignore[arg-type]


def batches(
    count: int, size: int, generator: torch.Generator | None = None
) -> Iterator[torch.Tensor]:
    """Indices of one pass over ``count`` items, in batches of at most ``size``.

    With a generator the order is shuffled, and a last batch of one item, on which BatchNorm
    cannot train, is left out unless it is the only one.

    Yields:
        Indices in [0, ``count``), (B,) ``int64``.
    """
    order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    for batch in torch.split(order, size):
        if generator is not None and len(batch) == 1 and count > 1:
            continue
        yield batch
