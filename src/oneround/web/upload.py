"""A form with one file, taken apart while it comes in. Nothing is trusted but what was counted."""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException

from oneround.web.intake import PART

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_LIMITS = {"parts": 4, "headers": 4096, "field": 200, "around": 1 << 16}


class Upload:
    """A file that comes in as the field ``file`` of a form; use it in a ``with`` statement.

    The field ``csrf`` has to come first and to be right, or else nothing is written. After a form
    is refused, what still comes is thrown away up to the limit, since browsers show no answer
    before they have sent everything. At the end of the ``with`` statement the file is gone, unless
    it was given a name of its own.

    Args:
        folder: Folder of the hidden file.
        limit: Largest size of the file in bytes; as soon as there are more, that is the end.
        csrf: Value that the field of this name must have.
        content_type: Content type of the request.

    Attributes:
        path: The hidden file.
        size: Size of the file so far, in bytes.
        replace: Whether the box of this name was ticked.

    Raises:
        HTTPException: it is no such form. :meth:`feed` does when the limit is reached, and
            :meth:`finish` for all else; with a text for people.
    """

    def __init__(self, folder: Path, limit: int, csrf: str, content_type: str) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not 0 < len(boundary) <= 70:
            raise HTTPException(400, "This is not the form of this page.")
        self.path = folder / PART.format(secrets.token_hex(8))
        self.size, self.replace = 0, False
        self._limit, self._csrf, self._came = limit, csrf, 0
        self._hash = hashlib.sha256()
        self._file = -1
        self._refused: HTTPException | None = None
        self._allowed, self._whole, self._parts = False, False, 0
        self._field, self._value = "", b""
        self._header, self._headers, self._lengths = [b"", b""], dict[bytes, bytes](), 0
        self._parser = MultipartParser(boundary, self._callbacks())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()

    @property
    def sha256(self) -> str:
        """SHA-256 of the file so far."""
        return self._hash.hexdigest()

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the request."""
        self._came += len(chunk)
        if self._came > self._limit + _LIMITS["around"]:
            self._too_large()
        if self._refused:
            return
        try:
            self._parse(chunk)
        except HTTPException as refused:
            if refused.status_code == 413:
                raise
            self._refused = refused
            self._remove()

    def finish(self) -> None:
        """End of the request: the file is whole and on the disk when this returns."""
        if self._refused:
            raise self._refused
        if not self._whole:
            _refuse(400, "The file did not arrive whole. Send it again.")
        if self._file < 0 or not self.size:
            _refuse(400, "No file was chosen. Choose one, and send it.")
        os.fsync(self._file)
        self._close()

    def _parse(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError:
            _refuse(400, "The form cannot be read. Load the page again, and send the file again.")
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            _refuse(507, "There is no room for the file. Tell the coordinator." if full else
                    "The file cannot be written. Tell the coordinator.")  # fmt: skip

    def _remove(self) -> None:
        self._close()
        self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._part_begins,
            "on_header_field": self._on_header(0),
            "on_header_value": self._on_header(1),
            "on_header_end": self._header_ends,
            "on_headers_finished": self._part_is_known,
            "on_part_data": self._data,
            "on_part_end": self._part_ends,
            "on_end": self._form_ends,
        }

    def _part_begins(self) -> None:
        self._parts += 1
        if self._parts > _LIMITS["parts"]:
            _refuse(400, "The form has more fields than that of this page.")
        self._headers, self._field, self._value = {}, "", b""

    def _on_header(self, side: int) -> Callable[[bytes, int, int], None]:
        def took(data: bytes, start: int, end: int) -> None:
            self._lengths += end - start
            if self._lengths > _LIMITS["headers"]:
                _refuse(400, "The headers of the form are too long.")
            self._header[side] += data[start:end]

        return took

    def _header_ends(self) -> None:
        self._headers[self._header[0].lower()] = self._header[1]
        self._header = [b"", b""]

    def _part_is_known(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._field = options.get(b"name", b"").decode("latin-1")
        if self._field != "file":
            return
        if not self._allowed:
            _refuse(403, "The page is too old. Load it again, and send the file again.")
        if self._file >= 0:
            _refuse(400, "One file at a time.")
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._field == "file":
            self._write(data[start:end])
        elif len(self._value) + end - start > _LIMITS["field"]:
            _refuse(400, "A field of the form is too long.")
        else:
            self._value += data[start:end]

    def _write(self, content: bytes) -> None:
        self.size += len(content)
        if self.size > self._limit:
            self._too_large()
        self._hash.update(content)
        while content:
            content = content[os.write(self._file, content) :]

    def _part_ends(self) -> None:
        if self._field == "csrf":
            self._allowed = hmac.compare_digest(self._value, self._csrf.encode())
        elif self._field == "replace":
            self.replace = self._value == b"yes"

    def _form_ends(self) -> None:
        self._whole = True

    def _too_large(self) -> NoReturn:
        _refuse(413, f"The file is larger than {self._limit} bytes, which is the limit here. "
                "A submission is smaller: choose the file that `oneround train` or "
                "`oneround seal` wrote.")  # fmt: skip


def _refuse(status: int, reason: str) -> NoReturn:
    raise HTTPException(status, reason)
