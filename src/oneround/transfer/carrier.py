"""A folder that sites and coordinator reach: list, send, fetch; see :mod:`oneround.transfer`."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fsspec.callbacks import Callback

from oneround.errors import OneRoundError
from oneround.files import (
    exclusive,
    hidden_part,
    is_abandoned,
    is_part,
    name_part,
    part_name,
    settle,
    sha256,
    sync_folder,
)
from oneround.runs.callbacks import Progress, silent
from oneround.submission import FILE_NAME, LIMIT_BYTES
from oneround.transfer.connections import (
    FOLDER,
    WEBDAV,
    WHOLE_AT_ONCE,
    connected,
    http_status,
    in_our_words,
    without_secrets,
)

CHUNK = 1 << 20  # bytes that are read at once


@dataclass(frozen=True)
class Item:
    """A file at a carrier.

    Attributes:
        name: name of the file, without folder.
        size: size in bytes, as reported by the carrier.
        modified: time of arrival in UTC, as reported by the carrier; ``None``: not reported.
    """

    name: str
    size: int
    modified: datetime | None


@dataclass(frozen=True)
class Receipt:
    """The result of sending a file.

    Attributes:
        name: name of the file at the carrier.
        size: size in bytes.
        sha256: SHA-256 of the file.
        compared: whether it was read back and is the same, byte for byte; ``False``: the carrier
            accepts files and shows none.
        sent: whether it was sent; ``False``: it was there already.
    """

    name: str
    size: int
    sha256: str
    compared: bool
    sent: bool


class Carrier:
    """A folder at a URL.

    Args:
        url: path or URL of the folder; see :mod:`oneround.transfer` for the kinds.
        progress: function called with stage, bytes done, bytes in all and a note.

    Raises:
        OneRoundError: the URL is of no known kind, a package is missing, or no server answers.
    """

    def __init__(self, url: str, progress: Progress = silent) -> None:
        try:
            self.scheme = urlsplit(url).scheme if "://" in url or url.startswith("file:") else ""
            self.shown = without_secrets(url)
        except ValueError:  # it may quote a part of a password
            raise OneRoundError(
                "this is not a URL.",
                remedy="Write it as sftp://USER@HOST:PORT/FOLDER; characters such as # and @ in a "
                "name as %23 and %40, and no password.",
            ) from None
        self._progress = progress
        with in_our_words("reached", self.shown, self.scheme):
            self._files, self._root = connected(url, self.scheme)

    def items(self) -> list[Item]:
        """The submissions at the carrier, sorted by name; files of other names are skipped.

        Raises:
            OneRoundError: the folder is missing, may not be listed, or no server answers.
        """
        if self.scheme in ("https", "http"):
            raise OneRoundError(
                "files can be sent to this URL, but not listed.",
                file=self.shown,
                remedy="Collect from the folder of the server, or by webdavs://, sftp:// or s3://.",
            )
        with in_our_words("listed", self.shown, self.scheme):
            with suppress(AttributeError):
                self._files.invalidate_cache()
            try:
                found = self._files.ls(self._root, detail=True)
            except FileNotFoundError:  # what is empty does not exist in S3
                if self.scheme != "s3" or not self._files.exists(self._root.split("/")[0]):
                    raise
                found = []
        items = (_item(entry) for entry in found if entry["type"] == "file")
        named = (item for item in items if FILE_NAME.fullmatch(item.name))
        return sorted(named, key=lambda item: item.name)

    def send(self, file: Path, *, replace: bool = False) -> Receipt:
        """Send a file, and read it back to compare. Safe to repeat.

        Args:
            file: file on this machine; it has the same name at the carrier.
            replace: whether another file of this name may be replaced.

        Raises:
            OneRoundError: there is another file of this name, or the file did not arrive whole. The
                carrier is then as before, but for HTTPS PUT, where the server decides.
        """
        target = self._path(file.name)
        if not FILE_NAME.fullmatch(posixpath.basename(target)) and target != self._root:
            raise OneRoundError(
                "oneround collect would skip a file of this name.",
                file=file,
                remedy="Rename it, such as to SITE.oneround (letters, digits and . _ - ( ) space).",
            )
        digest, size = sha256(file), file.stat().st_size
        with in_our_words("sent", self.shown, self.scheme):
            if self.scheme not in WHOLE_AT_ONCE and not self._files.isdir(self._root):
                raise FileNotFoundError
            self._remove_abandoned(file.name)
            there = self._digest(target, size, "comparing")
            if there == digest:
                return Receipt(file.name, size, digest, compared=True, sent=False)
            if there is not None and not replace:
                raise self._taken(file.name)
            compared = self._put_whole(file, target, digest, size, replace=replace)
        return Receipt(file.name, size, digest, compared=compared, sent=True)

    def fetch(self, item: Item, folder: Path) -> Path:
        """Fetch a file into ``folder``, whole or not at all, with its time of arrival; its path.

        Raises:
            OneRoundError: it is larger than a submission may be, or cannot be read.
        """
        self.collect(item, folder, replace=True)
        return folder / item.name

    def collect(self, item: Item, folder: Path, *, replace: bool = False) -> bool:
        """Fetch a file into ``folder``, unless the same is there; other processes may do so, too.

        Args:
            item: file at the carrier.
            folder: folder on this machine.
            replace: whether it may take the place of another file of its name that may have been
                accepted. One that no study accepts, such as half a file, is always replaced.

        Returns:
            Whether it was not there before.

        Raises:
            OneRoundError: there is another file of its name, it is larger than a submission may
                be, or it cannot be read or written. What was there stays.
        """
        target = folder / item.name
        self._require_size(item.size, item.name)
        with (
            in_our_words("fetched", self._shown(item.name), self.scheme),
            hidden_part(target, private=True) as file,
        ):
            size = 0
            for chunk in self._chunks(self._path(item.name), item.size, "fetching"):
                size += file.write(chunk)
            if item.size not in (0, size):
                raise OneRoundError(
                    f"it has {size} bytes instead of {item.size}: it has changed meanwhile.",
                    file=self._shown(item.name),
                    remedy="Run the same command again.",
                )
            file.flush()
            if item.modified is not None:
                os.utime(file.name, (item.modified.timestamp(),) * 2)
            if replace:
                settle(file, target)
                return True
            with exclusive(folder):
                if target.exists() and sha256(target) == sha256(Path(file.name)):
                    return False
                settle(file, target, replace=_is_broken(target))
        return True

    def _put_whole(self, file: Path, target: str, digest: str, size: int, *, replace: bool) -> bool:
        """Send under a hidden name of this process alone, then rename; see :meth:`_put`."""
        if self.scheme in WHOLE_AT_ONCE:
            return self._put(file, target, digest, size)
        part = self._path(part_name(file.name))
        try:
            compared = self._put(file, part, digest, size)
            if not replace and self._digest(target, size, "comparing") not in (None, digest):
                raise self._taken(file.name)
            self._rename(part, target, replace=replace)
        except BaseException:
            with suppress(Exception):
                self._files.rm_file(part)
            raise
        return compared

    def _taken(self, name: str) -> OneRoundError:
        return OneRoundError(
            "there is another file of this name.",
            file=self._shown(name),
            remedy="Give --replace if it is yours and older, or rename the file.",
        )

    def _remove_abandoned(self, name: str) -> None:
        """Remove what killed processes have left of a file at the carrier, as far as possible."""
        if self.scheme in WHOLE_AT_ONCE:
            return
        with suppress(Exception):
            for entry in self._files.ls(self._root, detail=True):
                item = _item(entry)
                time = item.modified.timestamp() if item.modified else None
                if is_part(item.name, name) and is_abandoned(item.name, time):
                    self._files.rm_file(self._path(item.name))

    def _path(self, name: str) -> str:
        if self.scheme in ("https", "http") and not self._root.endswith("/"):
            return self._root  # the URL of the file itself, such as a presigned one
        return posixpath.join(self._root, name)

    def _put(self, file: Path, target: str, digest: str, size: int) -> bool:
        """Whether the file could be read back; one that arrived damaged is removed."""
        options = {"method": "put"} if self.scheme in ("https", "http") else {}

        def sent(total: int, done: int, **_: object) -> None:
            self._progress("sending", done, max(total, done), file.name)

        callback = Callback(size=size, hooks={"progress": sent})
        self._files.put_file(os.fspath(file), target, callback=callback, **options)
        self._progress("sending", size, size, file.name)
        back = self._digest(target, size, "comparing")
        if back is None and self.scheme in ("https", "http"):
            return False
        if back != digest:
            with suppress(Exception):
                self._files.rm_file(target)
            raise OneRoundError(
                "the file did not arrive as it was sent.",
                file=self.shown,
                remedy="Run the command again; if it fails again, ask whoever runs the server.",
            )
        return True

    def _rename(self, part: str, target: str, *, replace: bool) -> None:
        if self.scheme in FOLDER:
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
            try:
                name_part(Path(part), Path(target), replace=replace)
            except FileExistsError as error:  # another process was faster
                if sha256(Path(part)) != sha256(Path(target)):
                    raise self._taken(posixpath.basename(target)) from error
                os.unlink(part)
            sync_folder(Path(target).parent)
        elif self.scheme in WEBDAV:
            self._files.client.move(part, target, overwrite=True)
        else:
            self._files.mv(part, target)

    def _digest(self, path: str, size: int, stage: str) -> str | None:
        """SHA-256 of a file at the carrier; ``None``: there is none, or the carrier shows none."""
        hashed = hashlib.sha256()
        try:
            with suppress(AttributeError):
                self._files.invalidate_cache()
            for chunk in self._chunks(path, size, stage):
                hashed.update(chunk)
        except FileNotFoundError:
            return None
        except Exception as error:
            if self.scheme in ("https", "http") and http_status(error) in (401, 403, 405):
                return None
            raise
        return hashed.hexdigest()

    def _chunks(self, path: str, size: int, stage: str) -> Iterator[bytes]:
        options = {"block_size": 0} if self.scheme in ("https", "http") else {}
        done, name = 0, posixpath.basename(path)
        with closing(self._files.open(path, "rb", **options)) as file:
            while chunk := file.read(CHUNK):
                done += len(chunk)
                self._require_size(done, name)
                self._progress(stage, done, max(size, done), name)
                yield chunk

    def _require_size(self, size: int, name: str) -> None:
        if size > LIMIT_BYTES:
            raise OneRoundError(
                f"the file is larger than {LIMIT_BYTES} bytes.",
                file=self._shown(name),
                remedy="No submission is so large: find out who put it there.",
            )

    def _shown(self, name: str) -> str:
        """Where a file is, for messages."""
        return f"{self.shown.rstrip('/')}/{name}"


def _is_broken(file: Path) -> bool:
    """Whether no study accepts a file, whoever holds the keys; ``False``: that is not known."""
    unknown = ("encrypted", "unreadable", "unknown-architecture")
    from oneround.submission import check_submission  # which needs torch

    return any(p.fatal and p.code not in unknown for p in check_submission(file))


def _item(entry: dict[str, Any]) -> Item:
    times = (entry.get(key) for key in ("mtime", "modified", "LastModified", "last_modified"))
    time = next((time for time in times if time is not None), None)
    if isinstance(time, int | float):
        time = datetime.fromtimestamp(time, UTC)
    name = posixpath.basename(str(entry["name"]).rstrip("/"))
    return Item(name, int(entry.get("size") or 0), time if isinstance(time, datetime) else None)
