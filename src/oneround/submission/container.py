"""The ZIP file around manifest and weights, read as a file from a stranger.

Nothing is ever extracted to disk. The directory is checked before a member is read, so
memory stays within the size of the file, whatever the directory declares. Every byte of an accepted
file is the content of a member or follows from the contents: a file is what :func:`pack` gives, so
nothing that no hash and no signature covers can travel in it.
"""

from __future__ import annotations

import os
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import BinaryIO, NoReturn

from oneround.errors import Problem

FILE_NAME = re.compile(r"[^\W_][\w._ ()-]{0,99}\.oneround(\.age)?")
"""Allowed file names of submissions: printable, and valid on every operating system."""

MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
SIGNATURE = "signature.json"
MEMBERS = (MANIFEST, WEIGHTS, SIGNATURE)
"""Names of the members in the order in which they are in the file; the last one may be missing."""
LIMIT_BYTES = 1 << 30
"""Size limit of a submission by default, in bytes: 1 GiB (a ResNet-34 has 85 MB)."""
JSON_LIMIT = 1 << 20
"""Size limit of the manifest and of the header of the weights, in bytes."""
SIGNATURE_LIMIT = 1 << 16
"""Size limit of the signature, in bytes; a signature has about 1500."""

ASK_AGAIN = "Ask the site to write the submission again with oneround."
COPY_AGAIN = "Copy the file again from the site and compare its size and SHA-256 with theirs."

_OVERHEAD = 4096  # bytes that the ZIP may need besides the content of its members
_BROKEN = (zipfile.BadZipFile, OSError, RuntimeError, ValueError, EOFError, struct.error)


class Refused(Exception):
    """Ends one stage of reading, with the problems that it found."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__()
        self.problems = problems


def refuse(code: str, what: str, why: str, remedy: str = ASK_AGAIN) -> NoReturn:
    """Raise :class:`Refused` with one fatal problem."""
    raise Refused(Problem(code, what, why, remedy))


def some(names: Iterable[str]) -> str:
    """At most three names, quoted, shortened and safe to print, and how many more there are."""
    names = list(names)
    shown = [repr(name if len(name) <= 100 else name[:99] + "…") for name in names[:3]]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def pack(members: Mapping[str, bytes]) -> bytes:
    """The bytes of a submission; equal members give equal bytes on every machine, at any time."""
    facts = [(name, zlib.crc32(content), len(content)) for name, content in members.items()]
    headers, directory = _frame(facts)
    between = zip(headers, members.values(), strict=True)
    return b"".join([*(part for pair in between for part in pair), directory])


def _frame(facts: Iterable[tuple[str, int, int]]) -> tuple[list[bytes], bytes]:
    """What a submission has besides the contents of its members; nothing in it can be chosen.

    The ZIP format 2.0 with stored members, dated 1980-01-01, the earliest that ZIP knows, and with
    the permissions rw-r--r-- (https://pkware.cachefly.net/webdocs/APPNOTE/APPNOTE-6.3.9.TXT).

    Args:
        facts: name, CRC-32 and size in bytes of each member.

    Returns:
        The header of each member, and what follows the last one.
    """
    headers, entries, offset = list[bytes](), list[bytes](), 0
    for name, crc, size in facts:
        common = struct.pack("<4HIIIHH", 0, 0, 0, 33, crc, size, size, len(name), 0)
        headers.append(b"PK\3\4" + struct.pack("<H", 20) + common + name.encode())
        where = struct.pack("<HHHII", 0, 0, 0, 0o644 << 16, offset)
        entries.append(b"PK\1\2" + struct.pack("<BBH", 20, 3, 20) + common + where + name.encode())
        offset += len(headers[-1]) + size
    directory, count = b"".join(entries), len(entries)
    end = struct.pack("<4HIIH", 0, 0, count, count, len(directory), offset, 0)
    return headers, directory + b"PK\5\6" + end


def open_archive(file: BinaryIO, size: int) -> zipfile.ZipFile:
    """The archive of a file of ``size`` bytes, if it contains the members of a submission alone.

    Raises:
        Refused: it is no ZIP file, is damaged, or contains something else.
    """
    _check_ends(file, size)
    try:
        archive = zipfile.ZipFile(file)
    except _BROKEN as error:
        _damaged("the directory of the file", error)
    problems = [
        *_check_names([info.orig_filename for info in archive.infolist()]),
        *_check_storage(archive.infolist(), size),
    ]
    if problems:
        raise Refused(*problems)
    return archive


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The content of a member, its checksum verified.

    Raises:
        Refused: it is damaged.
    """
    try:
        return archive.read(name)
    except _BROKEN as error:
        _damaged(name, error)


def require_packed(file: BinaryIO, archive: zipfile.ZipFile) -> None:
    """Refuse a file that is not what :func:`pack` gives; only what is no content is read.

    Args:
        file: file of the archive.
        archive: archive of :func:`open_archive`.

    Raises:
        Refused: there is a byte that is no content and does not follow from the contents.
    """
    given = {i.orig_filename: (i.orig_filename, i.CRC, i.file_size) for i in archive.infolist()}
    facts = [given[name] for name in MEMBERS if name in given]
    headers, directory = _frame(facts)
    file.seek(0)
    for header, (_, _, size) in zip(headers, facts, strict=True):
        if file.read(len(header)) != header:
            _more_than_members()
        file.seek(size, os.SEEK_CUR)
    if file.read(len(directory) + 1) != directory:
        _more_than_members()


def _more_than_members() -> NoReturn:
    refuse(
        "unexpected-data",
        "the file is not what packing its members gives",
        "There are bytes, fields or attributes that no hash and no signature covers.",
        "Submit the file as `oneround train` or `oneround seal` wrote it, not packed again.",
    )


def _check_ends(file: BinaryIO, size: int) -> None:
    """Check both ends of the file before the ZIP directory is read; it must be small and last."""
    file.seek(0)
    if file.read(4) != b"PK\x03\x04":
        refuse(
            "not-a-submission",
            "the file is empty" if size == 0 else "the file does not begin as a submission does",
            "A submission is a ZIP file with a manifest and weights.",
            "Choose the .oneround file that `oneround train` wrote, or copy it again.",
        )
    file.seek(max(0, size - 42))
    tail = file.read()
    if len(tail) < 42 or tail[-22:-18] != b"PK\x05\x06" or tail[-2:] != b"\0\0":
        refuse(
            "truncated",
            "the end of the file is missing, or something was added after it",
            "The directory of a ZIP file is at its end; without it nothing can be trusted.",
            COPY_AGAIN,
        )
    directory_size, offset = struct.unpack("<II", tail[-10:-2])
    if directory_size > _OVERHEAD:
        refuse(
            "unexpected-member",
            "the file contains far more members than a submission",
            f"A submission contains {MANIFEST}, {WEIGHTS} and at most a signature.",
        )
    if offset + directory_size + 22 != size or tail[:4] == b"PK\x06\x07":
        refuse(
            "unexpected-data",
            "the directory does not end where the file ends",
            "Something was put before or into the file, or a part is missing.",
            COPY_AGAIN,
        )


def _check_names(names: list[str]) -> Iterable[Problem]:
    why = f"A submission contains {MANIFEST} and {WEIGHTS} once each, at most {SIGNATURE} besides."
    if extra := [name for name in names if name not in MEMBERS]:
        yield Problem("unexpected-member", f"the file also contains {some(extra)}", why, ASK_AGAIN)
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        yield Problem("unexpected-member", f"{some(twice)} is there twice", why, ASK_AGAIN)
    if missing := [name for name in (MANIFEST, WEIGHTS) if name not in names]:
        yield Problem("missing-member", f"{some(missing)} is missing", why, ASK_AGAIN)


def _check_storage(infos: list[zipfile.ZipInfo], size: int) -> Iterable[Problem]:
    if any(info.flag_bits & 1 for info in infos):
        why = "A submission is read without a password."
        yield Problem("encrypted-member", "a member is encrypted", why, ASK_AGAIN)
    if any(i.compress_type != zipfile.ZIP_STORED or i.compress_size != i.file_size for i in infos):
        why = "Compressed data can grow without limit when read, so members are only stored."
        yield Problem("compressed-member", "a member is compressed", why, ASK_AGAIN)
    content = sum(info.file_size for info in infos)
    if content > size:
        what = f"members of {content} bytes are declared in a file of {size}"
        why = "They overlap, or a part of the file is missing."
        yield Problem("member-size", what, why, COPY_AGAIN)
    elif size - content > _OVERHEAD:
        what = f"{size - content} bytes of the file belong to no member"
        why = "Only what is checked may travel in a submission."
        yield Problem("unexpected-data", what, why, ASK_AGAIN)
    if any(i.orig_filename == MANIFEST and i.file_size > JSON_LIMIT for i in infos):
        what = f"{MANIFEST} is larger than {JSON_LIMIT} bytes"
        why = "A manifest is a page of text."
        yield Problem("manifest-too-large", what, why, ASK_AGAIN)
    if any(i.orig_filename == SIGNATURE and i.file_size > SIGNATURE_LIMIT for i in infos):
        what = f"{SIGNATURE} is larger than {SIGNATURE_LIMIT} bytes"
        yield Problem("signature-too-large", what, "A signature has about 1500.", ASK_AGAIN)


def _damaged(what: str, error: Exception) -> NoReturn:
    refuse(
        "damaged",
        f"{what} is damaged ({str(error)[:120]!r})",
        "Bytes have changed since the file was written.",
        COPY_AGAIN,
    )
