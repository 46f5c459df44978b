"""The container: what the standard library packs, and nothing else between, before or after it."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oneround.study import Study
from oneround.submission import check_submission
from oneround.submission.container import pack

MEMBERS = {"manifest.json": b"{}", "model.safetensors": b"abc" * 99}


def packed_by_the_library(members: dict[str, bytes], **fields: Any) -> bytes:
    """As version 0.1 packed; ``fields`` change those of every member."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, 0o644 << 16
            for field, value in fields.items():
                setattr(info, field, value)
            archive.writestr(info, content)
    return buffer.getvalue()


@pytest.mark.parametrize("more", [{}, {"signature.json": b"{}"}])
def test_packs_as_the_standard_library_does(more: dict[str, bytes]) -> None:
    assert pack(MEMBERS | more) == packed_by_the_library(MEMBERS | more)


def members_of(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def with_gap(content: bytes) -> bytes:
    """Bytes between the second member and the directory, whose offset is right."""
    size, offset = struct.unpack("<II", content[-10:-2])
    gap, end = b"anything", content[-22:-6] + struct.pack("<IH", offset + 8, 0)
    return content[:offset] + gap + content[offset : offset + size] + end


def with_local(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def again(**fields: Any) -> Callable[[bytes], bytes]:
    return lambda content: packed_by_the_library(members_of(content), **fields)


SMUGGLED: dict[str, Callable[[bytes], bytes]] = {
    "a gap": with_gap,
    "an extra field": again(extra=struct.pack("<HH8s", 0x7777, 8, b"anything")),
    "a comment of a member": lambda content: commented(content),
    "a symlink": again(external_attr=0o120777 << 16),
    "other permissions": again(external_attr=0o4755 << 16),
    "another time": again(date_time=(2031, 7, 5, 3, 1, 4)),
    "another system": again(create_system=0),
    "attributes inside": again(internal_attr=7),
    "another version": again(create_version=63),
    "another time in the local header": lambda c: with_local(c, 10, b"\x11\x22"),
    "flags in the local header": lambda c: with_local(c, 6, b"\x02\x00"),
    "another size in the local header": lambda c: with_local(c, 18, b"\x01\0\0\0"),
    "members in another order": lambda c: pack(dict(reversed(members_of(c).items()))),
    "a data descriptor": lambda c: described(c),
}


def commented(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members_of(content).items():
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, 0o644 << 16
            archive.writestr(info, data)
        archive.infolist()[0].comment = b"anything"
    return buffer.getvalue()


def described(content: bytes) -> bytes:
    """Sizes and checksum after the content, as a writer that cannot seek writes them."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: Any) -> int:
            raise OSError

        def tell(self) -> int:
            raise OSError

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:
        for name, data in members_of(content).items():
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, 0o644 << 16
            archive.writestr(info, data)
    return pipe.getvalue()


@pytest.mark.parametrize("how", SMUGGLED)
def test_nothing_but_the_members_is_accepted(
    submit: Callable[..., Path], study: Study, how: str
) -> None:
    path = submit()
    assert not [p for p in check_submission(path, study) if p.fatal]
    good = path.read_bytes()
    path.write_bytes(SMUGGLED[how](good))
    assert path.read_bytes() != good
    assert members_of(path.read_bytes()) == members_of(good)
    assert "unexpected-data" in {p.code for p in check_submission(path, study) if p.fatal}
