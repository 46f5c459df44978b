"""Read a data set from a path: labeled images of the study's size, from whatever format."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from oneround.data.image_set import ImageSet, Splits
from oneround.data.images import read_original
from oneround.data.listing import (
    SPLITS,
    ListedFile,
    Listing,
    files_below,
    list_csv,
    list_folder,
    of_site,
    with_classes,
)
from oneround.data.loading import SAMPLE, Loaded, load
from oneround.data.medmnist import class_names, fetch, is_name, load_arrays, read_medmnist
from oneround.data.store import DiskPixels
from oneround.data.validation import on_both_sides
from oneround.errors import OneRoundError
from oneround.runs.callbacks import Progress, silent
from oneround.study import ImageSpec

MAX_SIZE = 224  # of images in a described study; larger ones cost much and are rarely needed
DARK = 1 / 8  # of the scale: some picture of a site is brighter if their depth is right


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
    site: str | None = None,
    max_skipped: float = 0.05,
    download: bool = False,
    cache: str | os.PathLike[str] | None = None,
    on_progress: Progress = silent,
) -> Splits:
    """Read a data set as images of exactly ``image.shape``.

    Args:
        path: A MedMNIST ``.npz`` file; a folder per class, or per split (``train``, ``val``,
            ``test``) and class; a CSV file with the columns ``path``, ``label`` and, optionally,
            ``split``, ``site`` and ``patient``; or, with ``download``, a MedMNIST name such as
            ``bloodmnist_64``.
        image: Channels and size to convert to; see :func:`oneround.data.images.fit`.
        classes: Class names in the order of the study; ``None``: the names found, sorted (for
            MedMNIST: in its own order). A class without images is allowed. Names are compared as
            :func:`oneround.schema.comparable` does.
        site: Of a CSV file with a ``site`` column, read the images of this site alone.
        max_skipped: Largest share of files that may be unreadable, in [0, 1]; the splits list
            them as ``skipped``.
        download: Whether a MedMNIST name may be downloaded (to pooch's cache, checked by MD5).
        cache: Folder to keep the images in, so that they need not fit into memory; an interrupted
            reading continues, and files that have not changed are not read again.
        on_progress: Called for every file.

    Returns:
        Splits whose images are ``uint8``, or ``uint16`` if there are files with more than 8 bits
        among those of an evenly spaced sample. If the source names no splits, all images are in
        ``train``; if it has other splits alone, ``train`` is empty. Patients are those of the CSV
        file, or else of DICOM files (PatientID).

    Raises:
        OneRoundError: the source is missing or malformed, a label is not in ``classes``, more than
            ``max_skipped`` of the files are unreadable, or the images do not fit into memory.
    """
    file = _locate(path, download)
    kept = None if cache is None else Path(cache)
    if file.suffix.lower() == ".npz":
        splits = read_medmnist(file, image=image, classes=classes, cache=kept)
    else:
        listing = with_classes(_listing(file), classes, file)
        if site is not None:
            listing = of_site(listing, site, file)
        splits = _read_listing(listing, file, image, max_skipped, kept, on_progress)
    told = [
        line
        for name, part in (("validation", splits.val), ("test", splits.test))
        if part is not None
        for line in on_both_sides(splits.train, part, name)
    ]
    return replace(splits, skipped=(*splits.skipped, *told))


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
    files = tuple(ListedFile(file, "") for file in files_below(folder))
    if not files:
        raise OneRoundError(
            "there is no image.", file=path, remedy="Put some into it, or give another folder."
        )
    return _read_listing(Listing(files, ("",)), folder, image, 0, None, silent).train.pixels()


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
        shapes = [pixels.of_one for pixels, _ in arrays.values()]
        counts = {split: len(labels) for split, (_, labels) in arrays.items()}
        return DataDescription(class_names(file, arrays), _common_spec(shapes), counts)
    listing = with_classes(_listing(file), None, file)
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
    """The files of a data set, labeled as its source labels them."""
    if path.is_dir():
        return list_folder(path)
    if path.suffix.lower() == ".csv":
        return list_csv(path)
    raise OneRoundError(
        "is not a data set.",
        file=path,
        remedy="Give a MedMNIST .npz file, a folder per class, or a CSV file.",
    )


def _read_listing(
    listing: Listing,
    source: Path,
    image: ImageSpec,
    max_skipped: float,
    cache: Path | None,
    on_progress: Progress,
) -> Splits:
    """The images of a listing whose labels are its classes; arguments as :func:`read_splits`."""
    listed = sorted(listing.files, key=lambda file: SPLITS.index(file.split))  # in one piece each
    loaded = load([file.path for file in listed], image, cache, on_progress)
    skipped = [found for found in loaded.files if isinstance(found, str)]
    share = len(skipped) / len(listed)
    if share > max_skipped or len(skipped) == len(listed):
        raise OneRoundError(
            f"{len(skipped)} of {len(listed)} images ({share:.0%}) are unreadable; "
            f"the first: {'; '.join(skipped[:3])}.",
            file=source,
            remedy=f"Repair or remove them; at most {max_skipped:.0%} may be skipped.",
        )
    pairs = list(zip(listed, loaded.files, strict=True))
    read = [(file, found) for file, found in pairs if isinstance(found, Loaded)]
    patients, about_patients = _patients(read)
    told = [*listing.notices, *_notices(read), *about_patients]

    train, val, test = (
        _image_set(read, split, listing.classes, patients, loaded.pixels) for split in SPLITS
    )
    return Splits(
        train,
        val if len(val) else None,
        test if len(test) else None,
        (*skipped, *told),
        len(skipped),
    )


def _image_set(
    read: Sequence[tuple[ListedFile, Loaded]],
    split: str,
    classes: tuple[str, ...],
    patients: Sequence[int] | None,
    pixels: torch.Tensor | DiskPixels,
) -> ImageSet:
    """The images of one split; ``patients`` has a number for each file."""
    chosen = [i for i, (file, _) in enumerate(read) if file.split == split]
    files = [(read[i][0], i) for i in chosen for _ in read[i][1].rows]
    rows = torch.tensor([row for i in chosen for row in read[i][1].rows]).long()
    sites = tuple(file.site for file, _ in files if file.site is not None)
    whole = len(rows) > 0 and torch.equal(rows, torch.arange(len(rows)) + rows[0])
    in_one_piece = whole and isinstance(pixels, torch.Tensor)
    return ImageSet(
        pixels[rows[0] : rows[-1] + 1] if in_one_piece else pixels,
        torch.tensor([classes.index(file.label) for file, _ in files]).long(),
        classes,
        sites if sites and len(sites) == len(files) else None,
        None if patients is None else torch.tensor([patients[i] for _, i in files]).long(),
        rows=None if in_one_piece else rows,
    )


def _patients(
    read: Sequence[tuple[ListedFile, Loaded]],
) -> tuple[list[int] | None, list[str]]:
    """Number of the patient of each file, and what the user should know about patients.

    Patients are those of the list, or else of the files; a file without one is on its own.
    ``None``: nothing says which images belong together.
    """
    names = [file.patient or found.facts.patient for file, found in read]
    named = [name for name in names if name is not None]
    several_frames = any(len(found.rows) > 1 for _, found in read)
    if len(named) > 1 and len(set(named)) == 1 and len(named) == len(read):
        line = "all images are of the same patient, as if anonymized: patients are not told apart"
        return (list(range(len(read))) if several_frames else None), [line]
    if not named and not several_frames:
        return None, []
    numbers: dict[str, int] = {}
    for i, name in enumerate(names):
        numbers.setdefault(name or f"file {i}", len(numbers))
    return [numbers[name or f"file {i}"] for i, name in enumerate(names)], []


def _notices(read: Sequence[tuple[ListedFile, Loaded]]) -> list[str]:
    """A line for each thing that looks wrong in files that were read."""
    first: dict[str, Path] = {}
    count: Counter[str] = Counter()
    for file, found in read:
        for notice in found.facts.notices:
            first.setdefault(notice, file.path)
            count[notice] += 1
    lines = [f"{n} of {len(read)} images: {what}; the first: {first[what]}"
             for what, n in count.items()]  # fmt: skip
    tops = [found.facts.top for _, found in read if found.facts.top is not None]
    if tops and max(tops) < DARK:
        lines.append(
            f"the brightest of {len(tops)} images with more than 8 bits has {max(tops):.1%} of "
            "their scale, so the network sees them nearly black: if they have 12 bits in 16, "
            f"multiply them by 16; the first: {read[0][0].path}"
        )
    return lines


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
