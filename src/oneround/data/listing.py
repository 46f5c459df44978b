"""Lists of image files with label, split and site, from class folders and CSV files."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

from oneround.errors import OneRoundError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ListedFile:
    """One image file, with its label, split and site as the source gives them."""

    path: Path
    label: str
    split: str = "train"
    site: str | None = None


@dataclass(frozen=True)
class Listing:
    """Image files, and the class names in their source, sorted."""

    files: tuple[ListedFile, ...]
    classes: tuple[str, ...]


def list_folder(root: Path) -> Listing:
    """The files of a folder per class, ``ROOT/NORMAL/…``, or per split and class,
    ``ROOT/train/NORMAL/…``.

    Splits are the folders ``train``, ``val`` and ``test``. Every file in a class folder or in a
    folder below it counts as an image; names that begin with ``.`` or ``__`` are skipped.

    Raises:
        OneRoundError: there is no class folder, no file in any of them, or another folder beside
            the splits.
    """
    folders = _folders(root)
    splits = [folder for folder in folders if folder.name in SPLITS]
    if splits and len(splits) < len(folders):
        others = ", ".join(folder.name for folder in folders if folder.name not in SPLITS)
        raise OneRoundError(
            f"there are folders beside the splits: {others}.",
            file=root,
            remedy="Name the splits train, val and test, and move other folders away.",
        )
    groups = [(folder.name, folder) for folder in splits] or [("train", root)]
    classes = [(split, folder) for split, parent in groups for folder in _folders(parent)]
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
    return Listing(files, tuple(sorted({folder.name for _, folder in classes})))


def list_csv(file: Path) -> Listing:
    """The files in a CSV list with the columns ``path``, ``label`` and, optionally, ``split``
    and ``site``.

    Paths are relative to the folder of the CSV file; a split is train, val or test.

    Raises:
        OneRoundError: a column is missing, a cell is empty, a split is unknown, or a path is
            listed twice; the line is named.
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
    return Listing(tuple(files), tuple(sorted({listed.label for listed in files})))


def _csv_rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    """Line numbers and rows with stripped cells."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restkey="", restval="")
            columns = list(reader.fieldnames or [])
            rows = [
                (reader.line_num, {name: row[name].strip() for name in columns}) for row in reader
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise OneRoundError(
            f"cannot be read as CSV: {error}.", file=file, remedy="Save it as CSV in UTF-8."
        ) from error
    if not {"path", "label"} <= set(columns):
        raise OneRoundError(
            f"has the columns {', '.join(columns) or '(none)'}; path and label are needed.",
            file=file,
            remedy="Name the columns in the first line, separated by commas.",
        )
    return rows


def _listed_file(file: Path, line: int, row: dict[str, str]) -> ListedFile:
    for name in ("path", "label", "split", "site"):
        if row.get(name) == "":
            raise OneRoundError(
                f"line {line} has no {name}.", file=file, remedy="Fill it in, or drop the line."
            )
    split = row.get("split", "train")
    if split not in SPLITS:
        raise OneRoundError(
            f"line {line} has the split {split!r}.", file=file, remedy="Use train, val or test."
        )
    path = Path(os.path.normpath(file.parent / row["path"]))
    return ListedFile(path, row["label"], split, row.get("site"))


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
        paths = [Path(parent, name) for name in names if not name.startswith(".")]
        if real not in seen:
            found += [p for p in paths if p.is_file() or (p.is_symlink() and not p.exists())]
        seen.add(real)
    return sorted(found)
