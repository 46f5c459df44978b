"""Read a data set from a path: labeled images of the study's size, from whatever format."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from oneround.data.image_set import ImageSet, Splits
from oneround.data.images import fit, read_original
from oneround.data.listing import (
    SPLITS,
    ListedFile,
    Listing,
    files_below,
    list_csv,
    list_folder,
)
from oneround.data.medmnist import class_names, fetch, is_name, load_arrays, read_medmnist
from oneround.errors import OneRoundError
from oneround.study import ImageSpec

MAX_SIZE = 224  # of images in a described study; larger ones cost much and are rarely needed
SAMPLE = 32  # files that `describe` looks at


@dataclass(frozen=True)
class DataDescription:
    """Classes, image size and number of images of a data set, from which to write a study.

    Attributes:
        classes: Class names in order.
        image: Channels and size of the images, at most 224 pixels on a side; default
            normalization.
        counts: Number of images in each split that the source has.
    """

    classes: tuple[str, ...]
    image: ImageSpec
    counts: dict[str, int]


def read_splits(
    path: str | os.PathLike[str],
    *,
    image: ImageSpec,
    classes: Sequence[str] | None = None,
    max_skipped: float = 0.05,
    download: bool = False,
) -> Splits:
    """Read a data set as images of exactly ``image.shape``.

    Args:
        path: A MedMNIST ``.npz`` file; a folder per class, or per split (``train``, ``val``,
            ``test``) and class; a CSV file with the columns ``path``, ``label`` and, optionally,
            ``split`` and ``site``; or, with ``download``, a MedMNIST name such as
            ``bloodmnist_64``.
        image: Channels and size to convert to; see :func:`oneround.data.images.fit`.
        classes: Class names in the order of the study; ``None``: the names found, sorted (for
            MedMNIST: in its own order). A class without images is allowed.
        max_skipped: Largest share of files that may be unreadable, in [0, 1]; the splits list
            them as ``skipped``.
        download: Whether a MedMNIST name may be downloaded (to pooch's cache, checked by MD5).

    Returns:
        Splits whose images are ``uint8`` if all files have 8 bits, else ``float32`` in [0, 1].
        If the source names no splits, all images are in ``train``; if it has other splits alone,
        ``train`` is empty.

    Raises:
        OneRoundError: the source is missing or malformed, a label is not in ``classes``, or
            more than ``max_skipped`` of the files are unreadable.
    """
    file = _locate(path, download)
    if file.suffix.lower() == ".npz":
        return read_medmnist(file, image=image, classes=classes)
    listing = _listing(file)
    names = listing.classes if classes is None else tuple(classes)
    _check_labels(listing, names)
    images, skipped = _read_all(listing.files, image)
    share = len(skipped) / len(listing.files)
    if share > max_skipped or not images:
        raise OneRoundError(
            f"{len(skipped)} of {len(listing.files)} images ({share:.0%}) are unreadable; "
            f"the first: {'; '.join(skipped[:3])}.",
            file=file,
            remedy=f"Repair or remove them; at most {max_skipped:.0%} may be skipped.",
        )
    return _splits(images, names, image, skipped)


def read_unlabeled(
    path: str | os.PathLike[str], image: ImageSpec, split: Literal["train", "val"] = "train"
) -> torch.Tensor:
    """Images without labels, (N, C, H, W) ``float32`` in [0, 1].

    Args:
        path: A MedMNIST ``.npz`` file or a CSV file, of which one ``split`` is read; or a folder,
            of which every image in it and in the folders below it is read.
        image: Channels and size to convert to.
        split: The split of a file.

    Raises:
        OneRoundError: the source is missing or malformed, or an image cannot be read.
    """
    folder = Path(path)
    if not folder.is_dir():
        images = getattr(read_splits(path, image=image), split)
        if images is None or not len(images):
            raise OneRoundError(
                f"there is no image in the split {split}.",
                file=path,
                remedy="Choose another split.",
            )
        return images.pixels()  # type: ignore[no-any-return]
    listed = [ListedFile(file, "") for file in files_below(folder)]
    images, unreadable = _read_all(listed, image)
    if unreadable or not images:
        raise OneRoundError(
            f"{len(unreadable)} file(s) cannot be read: {unreadable[0]}."
            if unreadable
            else "there is no image.",
            file=path,
            remedy="Move everything but images out of the folder.",
        )
    return _splits(images, ("",), image, []).train.pixels()


def describe(path: str | os.PathLike[str], *, download: bool = False) -> DataDescription:
    """Classes, image size and counts of a data set of any kind that :func:`read_splits` reads.

    For class folders and CSV lists the size is the most common one in a sample of files, with
    one channel if every image in the sample is gray.

    Raises:
        OneRoundError: as :func:`read_splits`; labels, and files outside the sample, are not
            checked.
    """
    file = _locate(path, download)
    if file.suffix.lower() == ".npz":
        arrays = load_arrays(file)
        shapes = [tuple(images.shape[1:]) for images, _ in arrays.values()]
        counts = {split: len(labels) for split, (_, labels) in arrays.items()}
        return DataDescription(class_names(file, arrays), _common_spec(shapes), counts)
    listing = _listing(file)
    found = Counter(listed.split for listed in listing.files)
    counts = {split: found[split] for split in SPLITS if found[split]}
    return DataDescription(listing.classes, _common_spec(_sample_shapes(listing)), counts)


def _locate(path: str | os.PathLike[str], download: bool) -> Path:
    """The path itself if it exists; the path of the file if it is a MedMNIST name."""
    if os.path.exists(path):
        return Path(path)
    if is_name(os.fspath(path)):
        return fetch(os.fspath(path), download)
    raise OneRoundError(
        "no such file or folder.",
        file=path,
        remedy="Give a MedMNIST .npz file, a folder per class, or a CSV file.",
    )


def _listing(path: Path) -> Listing:
    if path.is_dir():
        return list_folder(path)
    if path.suffix.lower() == ".csv":
        return list_csv(path)
    raise OneRoundError(
        "is not a data set.",
        file=path,
        remedy="Give a MedMNIST .npz file, a folder per class, or a CSV file.",
    )


def _check_labels(listing: Listing, classes: Sequence[str]) -> None:
    for listed in listing.files:
        if listed.label not in classes:
            raise OneRoundError(
                f"the label {listed.label!r} is not a class of the study.",
                file=listed.path,
                remedy=f"The classes are {', '.join(classes)}; correct the label.",
            )


def _read_all(
    files: Sequence[ListedFile], image: ImageSpec
) -> tuple[list[tuple[ListedFile, torch.Tensor]], list[str]]:
    """Readable images, in order, and one line for each file that cannot be read."""

    def read(listed: ListedFile) -> torch.Tensor | str:
        try:
            return fit(read_original(listed.path)[None], image)[0]
        except OneRoundError as error:
            return f"{listed.path}: {error.reason.rstrip('.')}"

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = list(zip(files, pool.map(read, files), strict=True))
    images = [(listed, result) for listed, result in results if isinstance(result, torch.Tensor)]
    return images, [result for _, result in results if isinstance(result, str)]


def _splits(
    images: Sequence[tuple[ListedFile, torch.Tensor]],
    classes: tuple[str, ...],
    image: ImageSpec,
    skipped: Sequence[str],
) -> Splits:
    dtype = (
        torch.uint8 if all(pixels.dtype == torch.uint8 for _, pixels in images) else torch.float32
    )

    def image_set(split: str) -> ImageSet:
        chosen = [(listed, pixels) for listed, pixels in images if listed.split == split]
        stacked = torch.empty((len(chosen), *image.shape), dtype=dtype)
        for row, (_, pixels) in zip(stacked, chosen, strict=True):
            row.copy_(pixels if pixels.dtype == dtype else pixels.float().div(255))
        labels = torch.tensor([classes.index(listed.label) for listed, _ in chosen]).long()
        sites = tuple(listed.site for listed, _ in chosen if listed.site is not None)
        return ImageSet(stacked, labels, classes, sites if len(sites) == len(chosen) else None)

    train, val, test = (image_set(split) for split in SPLITS)
    return Splits(train, val if len(val) else None, test if len(test) else None, tuple(skipped))


def _sample_shapes(listing: Listing) -> list[tuple[int, ...]]:
    """(C, H, W) of evenly spaced files; C is 1 also for gray images stored as color."""
    step = -(-len(listing.files) // SAMPLE)
    shapes, errors = [], []
    for listed in listing.files[::step]:
        try:
            pixels = read_original(listed.path)
        except OneRoundError as error:
            errors.append(error)
            continue
        gray = bool((pixels == pixels[:1]).all())
        shapes.append((1 if gray else 3, *pixels.shape[1:]))
    if not shapes:
        raise errors[0]
    return shapes


def _common_spec(shapes: Sequence[tuple[int, ...]]) -> ImageSpec:
    height, width = Counter(shape[1:] for shape in shapes).most_common(1)[0][0]
    return ImageSpec(
        channels=3 if any(shape[0] == 3 for shape in shapes) else 1,
        height=max(8, min(height, MAX_SIZE)),
        width=max(8, min(width, MAX_SIZE)),
    )
