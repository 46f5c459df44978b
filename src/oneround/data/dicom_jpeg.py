"""What GDCM is asked to decode in a DICOM file: JPEG Lossless, and JPEG with more than 8 bits.

GDCM ends the whole process where a codestream contradicts the header of its file, so that is
looked at before; other codestreams go to other decoders.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
SEGMENTS = {0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}  # tables, comments, applications
"""Markers of JPEG (ITU-T T.81, B.1) that begin a frame, and others that may stand before a scan."""


def codestream(dataset: Any, index: int) -> bytes:
    """The codestream of one frame."""
    from pydicom.encaps import get_frame

    count = max(1, int(dataset.get("NumberOfFrames") or 1))
    return bytes(get_frame(dataset.PixelData, index, number_of_frames=count))


def require_consistent(stream: bytes, dataset: Any, *, lossless: bool) -> None:
    """Refuse a JPEG codestream of another size, depth or kind than the header of its file says.

    Raises:
        ValueError: it is one, or has no frame header (ITU-T T.81, B.2.2).
    """
    kind, bits, rows, columns, samples = _frame_header(stream)
    if kind not in ((0xC3,) if lossless else (0xC0, 0xC1)):
        raise ValueError("its codestream has another kind of compression than its header says")
    stored, allocated = int(dataset.BitsStored), int(dataset.BitsAllocated)
    if (rows, columns, samples) != (dataset.Rows, dataset.Columns, dataset.SamplesPerPixel):
        raise ValueError(f"its codestream has {columns} x {rows} pixels of {samples} values")
    if not 2 <= bits <= 16 or not 1 <= stored <= allocated or allocated != (8 if bits <= 8 else 16):
        raise ValueError(f"its codestream has {bits} bits, and its header {stored} of {allocated}")


def _frame_header(stream: bytes) -> tuple[int, int, int, int, int]:
    """Marker (which is the kind of compression), bits, rows, columns and values per pixel.

    Raises:
        ValueError: a segment before the scan is damaged, or there is none of the frame.
    """
    position, found = 2, None
    while position + 4 <= len(stream) and stream[position] == 0xFF:
        marker, length = struct.unpack_from(">BH", stream, position + 1)
        if marker == 0xDA and found:
            return found
        if marker in FRAMES and position + 10 <= len(stream) and not found:
            found = (marker, *struct.unpack_from(">BHHB", stream, position + 4))
        elif marker not in SEGMENTS or _has_unknown_colors(stream[position + 4 : position + 16]):
            break
        position += 2 + length
    raise ValueError("the header of its codestream is damaged")


def _has_unknown_colors(segment: bytes) -> bool:
    """Whether a segment is Adobe's, with a transform of colors that is neither none nor YCbCr."""
    return segment.startswith(b"Adobe") and segment[11:12] > b"\x01"


def decode_extended(stream: bytes, dataset: Any) -> npt.NDArray[np.uint16]:
    """A gray frame of more than 8 bits, (H, W), which GDCM reads and pydicom does not ask it to.

    Raises:
        ValueError: it is damaged, or in color.
    """
    import gdcm

    if int(dataset.SamplesPerPixel) != 1:
        raise ValueError("colors with more than 8 bits are not supported")
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(stream)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((int(dataset.Columns), int(dataset.Rows), 1))
    image.SetDataElement(element)
    gray = gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2)
    image.SetPhotometricInterpretation(gray)
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGExtendedProcess2_4))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, 12, 11, 0))
    buffer = image.GetBuffer()
    if buffer is None:
        raise ValueError("GDCM does not decode it")
    cells = np.frombuffer(buffer.encode("utf-8", "surrogateescape"), "<u2")
    return np.asarray(cells.reshape(int(dataset.Rows), int(dataset.Columns)))
