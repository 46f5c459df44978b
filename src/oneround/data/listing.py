"""Lists of image files with label, split, site and patient, from class folders and CSV files."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from oneround.errors import OneRoundError
from oneround.schema import comparable, require_distinct, visibly

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Names of splits, in any case, and the split that each means."""

PICTURES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm"}
"""Suffixes of files that are surely images; files without them may be images, too."""

_COLUMNS = {"path": "path", "label": "label", "split": "split", "site": "site",
            "patient": "patient", "patientid": "patient"}  # fmt: skip
_MISSING = {"nan", "na", "n/a", "#n/a", "<na>", "null", "nat"}  # as spreadsheets and pandas write
_LEFT_BY_THE_SYSTEM = {"thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class ListedFile:
    """One image file, with its label, split, site and patient as the source gives them."""

    path: Path
    label: str
    split: str = "train"
    site: str | None = None
    patient: str | None = None


@dataclass(frozen=True)
class Listing:
    """Image files, the class names in their source, sorted, and what the user should know."""

    files: tuple[ListedFile, ...]
    classes: tuple[str, ...]
    notices: tuple[str, ...] = ()


def list_folder(root: Path) -> Listing:
    """The files of a folder per class, ``ROOT/NORMAL/…``, or per split and class,
    ``ROOT/train/NORMAL/…``.

    Splits are the folders in :data:`SPLIT_NAMES`, in any case. Every file in a class folder or in
    a folder below it counts as an image; names that begin with ``.`` or ``__`` are skipped.

    Raises:
        OneRoundError: there is no class folder, no file in any of them, another folder beside
            the splits, or a folder of a split in a class folder.
    """
    folders = _folders(root)
    splits = [folder for folder in folders if _split_of(folder)]
    if splits and len(splits) < len(folders):
        others = ", ".join(folder.name for folder in folders if not _split_of(folder))
        raise OneRoundError(
            f"there are folders beside the splits: {others}.",
            file=root,
            remedy="Name the splits train, val and test, and move other folders away.",
        )
    groups = [(_split_of(folder) or "train", folder) for folder in splits] or [("train", root)]
    classes = [(split, folder) for split, parent in groups for folder in _folders(parent)]
    _refuse_splits_in_classes([folder for _, folder in classes])
    files = tuple(
        ListedFile(path, folder.name, split)
        for split, folder in classes
        for path in files_below(folder)
    )
    if not files:
        raise OneRoundError(
            "there is no class folder with images.",
            file=root,
            remedy="Put the images into one folder per class, such as NORMAL and PNEUMONIA.",
        )
    names = tuple(sorted({folder.name for _, folder in classes}))
    return Listing(files, names, _beside_the_classes([root, *splits]))


def list_csv(file: Path) -> Listing:
    """The files in a CSV list with the columns ``path``, ``label`` and, optionally, ``split``,
    ``site`` and ``patient``.

    The separator is a comma, a semicolon or a tab; case and spaces in the header do not count, and
    ``patient_id`` is ``patient``. Paths are relative to the folder of the CSV file; a split is one
    of :data:`SPLIT_NAMES`.

    Raises:
        OneRoundError: a column is missing or there twice, a cell is empty, a split is unknown, or a
            path is listed twice; the line is named.
    """
    lines: dict[Path, int] = {}
    files = []
    for line, row in _csv_rows(file):
        listed = _listed_file(file, line, row)
        first = lines.setdefault(listed.path, line)
        if first != line:
            raise OneRoundError(
                f"{row['path']} is listed twice, in lines {first} and {line}.",
                file=file,
                remedy="List each image once, so that no image is in two splits.",
            )
        files.append(listed)
    if not files:
        raise OneRoundError("lists no image.", file=file, remedy="Add a line for each image.")
    try:
        require_distinct(sorted({f.site for f in files if f.site is not None}), "sites")
    except ValueError as error:
        raise OneRoundError(
            f"{error}.", file=file, remedy="Write the name of each site in one way."
        ) from error
    return Listing(tuple(files), tuple(sorted({listed.label for listed in files})))


def with_classes(listing: Listing, classes: Sequence[str] | None, source: Path) -> Listing:
    """The listing with labels that are ``classes``; names are compared as
    :func:`oneround.schema.comparable` does.

    Args:
        listing: Files as their source labels them.
        classes: Class names of the study; ``None``: those of the source.
        source: The data set, for errors.

    Raises:
        OneRoundError: a label is not in ``classes`` or is missing, or two labels of a source
            without study differ only in case, spaces or the way that accents are stored.
    """
    if classes is None:
        try:
            require_distinct(listing.classes, "classes")
        except ValueError as error:
            raise OneRoundError(
                f"{error}.", file=source, remedy="Write the name of each class in one way."
            ) from error
    names = {comparable(name): name for name in classes or listing.classes}
    files = tuple(replace(f, label=_class_of(f, names, classes is None)) for f in listing.files)
    return replace(listing, files=files, classes=tuple(classes or listing.classes))


def of_site(listing: Listing, site: str, source: Path) -> Listing:
    """The files of one site, if the listing names sites; the whole listing if it does not.

    Raises:
        OneRoundError: it names sites, and this one is not among them.
    """
    sites = sorted({listed.site for listed in listing.files if listed.site is not None})
    if not sites:
        return listing
    files = tuple(f for f in listing.files if f.site and comparable(f.site) == comparable(site))
    if not files:
        raise OneRoundError(
            f"its column site has no image of {site!r}.",
            file=source,
            remedy=f"Its sites are {', '.join(sites)}; correct the name, or drop the column.",
        )
    return replace(listing, files=files)


def _class_of(listed: ListedFile, names: Mapping[str, str], unknown_study: bool) -> str:
    """The class that a label means."""
    known = names.get(comparable(listed.label))
    if comparable(listed.label) in _MISSING and (known is None or unknown_study):
        raise OneRoundError(
            f"the label {listed.label!r} stands for a missing label.",
            file=listed.path,
            remedy="Give the image a label, or drop its line or folder.",
        )
    if known is None:
        raise OneRoundError(
            f"the label {visibly(listed.label)} is not a class of the study.",
            file=listed.path,
            remedy=f"The classes are {', '.join(names.values())}; correct the label.",
        )
    return known


def _refuse_splits_in_classes(folders: Sequence[Path]) -> None:
    for folder in folders:
        if inside := [below.name for below in _folders(folder) if _split_of(below)]:
            raise OneRoundError(
                f"this would be a class folder, and it contains {' and '.join(inside)}.",
                file=folder,
                remedy=f"If these are the splits, give {folder} itself; they must be above the "
                "class folders, such as train/NORMAL.",
            )


def _beside_the_classes(parents: Sequence[Path]) -> tuple[str, ...]:
    """A notice if images lie where no class folder is."""
    found = [
        path
        for parent in parents
        for path in sorted(parent.iterdir())
        if path.suffix.lower() in PICTURES and not _hidden(path.name) and path.is_file()
    ]
    if not found:
        return ()
    return (f"{len(found)} file(s) outside of class folders are not read; the first: {found[0]}",)


def _csv_rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    """Line numbers and rows with stripped cells, by the names of :data:`_COLUMNS`."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            separator = _separator(stream.readline())
            stream.seek(0)
            reader = csv.reader(stream, delimiter=separator)
            header = next(reader, [])
            columns = [_COLUMNS.get(re.sub(r"[\s_-]", "", name.casefold()), "") for name in header]
            rows = [(reader.line_num, _cells(columns, cells)) for cells in reader if any(cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise OneRoundError(
            f"cannot be read as CSV: {error}.", file=file, remedy="Save it as CSV in UTF-8."
        ) from error
    if not {"path", "label"} <= set(columns):
        raise OneRoundError(
            f"has the columns {', '.join(header) or '(none)'}; path and label are needed.",
            file=file,
            remedy="Name the columns in the first line, separated by commas.",
        )
    if twice := [c for c in set(columns) - {""} if columns.count(c) > 1]:
        raise OneRoundError(
            f"has two columns {twice[0]}.", file=file, remedy="Drop or rename one of them."
        )
    return rows


def _separator(header: str) -> str:
    """The one of comma, semicolon and tab that is most often in the header."""
    return max(",;\t", key=header.count)


def _cells(columns: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    filled = [*cells, *[""] * (len(columns) - len(cells))]
    return {name: cell.strip() for name, cell in zip(columns, filled, strict=False) if name}


def _listed_file(file: Path, line: int, row: dict[str, str]) -> ListedFile:
    for name in ("path", "label", "split", "site", "patient"):
        if row.get(name) == "":
            raise OneRoundError(
                f"line {line} has no {name}.", file=file, remedy="Fill it in, or drop the line."
            )
    split = SPLIT_NAMES.get(row.get("split", "train").casefold())
    if split is None:
        raise OneRoundError(
            f"line {line} has the split {row['split']!r}.",
            file=file,
            remedy="Use train, val or test.",
        )
    path = _path(file, line, row["path"])
    return ListedFile(path, row["label"], split, row.get("site"), row.get("patient"))


def _path(file: Path, line: int, text: str) -> Path:
    """The path in a cell; one of Windows is read with slashes where there is such a file."""
    path = Path(os.path.normpath(file.parent / text))
    if "\\" not in text or path.exists():
        return path
    slashed = Path(os.path.normpath(file.parent / text.replace("\\", "/")))
    if slashed.exists():
        return slashed
    raise OneRoundError(
        f"line {line} has the path {text}, with backslashes, and there is no such file.",
        file=file,
        remedy="Write it relative to the folder of this file, with slashes: images/1.png.",
    )


def _split_of(folder: Path) -> str | None:
    return SPLIT_NAMES.get(folder.name.casefold())


def _folders(parent: Path) -> list[Path]:
    return sorted(p for p in parent.iterdir() if p.is_dir() and not _hidden(p.name))


def _hidden(folder: str) -> bool:
    """Whether a folder is not the user's own, such as ``.ipynb_checkpoints`` or ``__MACOSX``."""
    return folder.startswith((".", "__"))


def files_below(folder: Path) -> list[Path]:
    """All files in ``folder`` and the folders below it, sorted, without hidden files and folders.

    Links are followed. Broken links are among the files, so that reading them reports them.

    Raises:
        OneRoundError: a folder cannot be read.
    """

    def unreadable(error: OSError) -> None:
        raise OneRoundError(
            f"the folder cannot be read: {error.strerror}.",
            file=error.filename,
            remedy="Ask for permission to read it, or move it elsewhere.",
        ) from error

    found, seen = [], set()
    for parent, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else [name for name in folders if not _hidden(name)]
        own = [n for n in names if not n.startswith(".") and n.lower() not in _LEFT_BY_THE_SYSTEM]
        paths = [Path(parent, name) for name in own]
        if real not in seen:
            found += [p for p in paths if p.is_file() or (p.is_symlink() and not p.exists())]
        seen.add(real)
    return sorted(found)
