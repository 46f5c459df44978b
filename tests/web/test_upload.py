from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from starlette.exceptions import HTTPException

from oneround.web.upload import Upload

CSRF = ("csrf", b"secret")
FILE = ('file"; filename="../../etc/passwd', b"content")
TYPE = "multipart/form-data; boundary=line"


def form(*fields: tuple[str, bytes]) -> bytes:
    parts = (
        b'--line\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
        % (name.encode(), content)
        for name, content in fields
    )
    return b"".join(parts) + b"--line--\r\n"


def received(folder: Path, body: bytes, *, limit: int = 100, step: int = 7) -> Upload:
    with Upload(folder, limit, "secret", TYPE) as upload:
        for start in range(0, len(body), step):
            upload.feed(body[start : start + step])
        upload.finish()
        assert upload.path.read_bytes() == FILE[1]
    return upload


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterable[None]:
    yield
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_a_form_in_pieces(tmp_path: Path, step: int) -> None:
    upload = received(tmp_path, form(CSRF, ("replace", b"yes"), FILE), step=step)
    assert (upload.size, upload.replace) == (7, True)
    assert upload.sha256 == hashlib.sha256(b"content").hexdigest()
    assert upload.path.parent == tmp_path, "the name that the browser gives is never looked at"
    assert not received(tmp_path, form(CSRF, FILE, ("replace", b"no"))).replace


LONG = ("x", b"y" * 1000)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (form(FILE), 403),
        (form(FILE, CSRF), 403),
        (form(("csrf", b"other"), FILE), 403),
        (form(("csrf", "sécret".encode()), FILE), 403),
        (form(CSRF, ("file", b"x" * 101)), 413),
        (form(CSRF, FILE)[:-12], 400),
        (form(CSRF), 400),
        (form(CSRF, ("file", b"")), 400),
        (form(CSRF, FILE, FILE), 400),
        (form(*[("a", b"b")] * 5), 400),
        (form(CSRF, LONG, FILE), 400),
        (form(CSRF, ("n" * 5000, b""), FILE), 400),
        (b"--line\r\n" + b"A: b\r\n" * 3000, 400),
        (b"no form at all", 400),
        (b"--line\r\n\0\0\0", 400),
        (b"", 400),
        (form(CSRF, FILE) + b"x" * 100_000, 413),
    ],
)
def test_hostile_forms(tmp_path: Path, body: bytes, status: int) -> None:
    with pytest.raises(HTTPException) as caught:
        received(tmp_path, body)
    assert caught.value.status_code == status
    assert caught.value.detail.endswith(".")


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "multipart/form-data", f"multipart/form-data; boundary={'b' * 71}"]
)
def test_other_kinds_of_requests(tmp_path: Path, kind: str) -> None:
    with pytest.raises(HTTPException):
        Upload(tmp_path, 100, "secret", kind)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(HTTPException, match="no room") as caught:
        received(tmp_path, form(CSRF, FILE))
    assert caught.value.status_code == 507


def test_nothing_more_is_taken_when_the_limit_is_reached(tmp_path: Path) -> None:
    with Upload(tmp_path, 1000, "secret", TYPE) as upload:
        upload.feed(form(CSRF, ("file", b""))[:-12])
        for _ in range(3):
            upload.feed(b"x" * 300)
        with pytest.raises(HTTPException, match="larger than 1000"):
            upload.feed(b"x" * 300)
        assert upload.path.stat().st_size <= 1000
