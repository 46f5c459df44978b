"""One DICOM file as pixels: gray levels as the file or the study windows them, or colors."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from oneround.data.dicom_gray import (
    FLOAT_DATA,
    LUT_BITS,
    gray_levels,
    is_little_endian,
    stored_values,
)
from oneround.data.dicom_jpeg import codestream, decode_extended, require_consistent
from oneround.data.dicom_lut import read_palette
from oneround.data.frames import chosen_frames
from oneround.errors import OneRoundError, printable
from oneround.study import ImageSpec

DIM = "the brightest value is below 1/8 of the scale of 16 bits, as of 12-bit values"
INSTALL = "Install it with `pip install 'oneround[dicom]'`."
EXPORT = "Export it again from the archive (PACS), or as PNG."
LEAVE_OUT = "Leave it out of the data set; give the images themselves."
DAMAGED = (
    "Export it again, without compression; if other programs can show it, update the decoders with "
    "`pip install -U 'oneround[dicom]'` (`oneround doctor` lists them)."
)
STARTS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")  # of a data set: group 2 or 8
PIXEL_DATA = ("PixelData", *FLOAT_DATA)
SAMPLES = {"MONOCHROME1": 1, "MONOCHROME2": 1, "PALETTE COLOR": 1, "RGB": 3}
EXTENDED_JPEG = "1.2.840.10008.1.2.4.51"
TRANSFER_SYNTAXES = {
    "Implicit VR Little Endian": "1.2.840.10008.1.2",
    "Explicit VR Little Endian": "1.2.840.10008.1.2.1",
    "Explicit VR Big Endian": "1.2.840.10008.1.2.2",
    "Deflated": "1.2.840.10008.1.2.1.99",
    "RLE Lossless": "1.2.840.10008.1.2.5",
    "JPEG Baseline": "1.2.840.10008.1.2.4.50",
    "JPEG Extended (12 bits)": EXTENDED_JPEG,
    "JPEG Lossless (process 14)": "1.2.840.10008.1.2.4.57",
    "JPEG Lossless (process 14, SV1)": "1.2.840.10008.1.2.4.70",
    "JPEG-LS Lossless": "1.2.840.10008.1.2.4.80",
    "JPEG-LS Near-lossless": "1.2.840.10008.1.2.4.81",
    "JPEG 2000 Lossless": "1.2.840.10008.1.2.4.90",
    "JPEG 2000": "1.2.840.10008.1.2.4.91",
    "HTJ2K Lossless": "1.2.840.10008.1.2.4.201",
    "HTJ2K Lossless RPCL": "1.2.840.10008.1.2.4.202",
    "HTJ2K": "1.2.840.10008.1.2.4.203",
}
"""Names and identifiers of the transfer syntaxes that can be read where decoders are installed."""

_STORAGE = "1.2.840.10008.5.1.4.1.1."
NO_IMAGES = {
    "1.2.840.10008.1.3.10": "the table of contents of a disk (DICOMDIR)",
    f"{_STORAGE}4.2": "a spectrum (MR spectroscopy)",
    f"{_STORAGE}8": "an overlay without an image",
    f"{_STORAGE}9": "a waveform, such as an ECG",
    f"{_STORAGE}10": "a lookup table",
    f"{_STORAGE}11": "a presentation state: how to show images, and not an image",
    f"{_STORAGE}30": "a parametric map: measurements, and not an image",
    f"{_STORAGE}66": "raw data of a scanner",
    f"{_STORAGE}66.1": "a registration of images",
    f"{_STORAGE}66.2": "a set of fiducials",
    f"{_STORAGE}66.3": "a registration of images",
    f"{_STORAGE}66.4": "a segmentation (SEG): labels of another image's pixels",
    f"{_STORAGE}66.5": "a segmentation: surfaces of structures",
    f"{_STORAGE}66.6": "a result of tractography",
    f"{_STORAGE}66.7": "a segmentation: labels of another image's pixels",
    f"{_STORAGE}66.8": "a segmentation: layers of another image",
    f"{_STORAGE}67": "a mapping to real-world values",
    f"{_STORAGE}68": "a surface: points or a mesh",
    f"{_STORAGE}88": "a structured report (SR), such as findings, a key object selection or a dose",
    f"{_STORAGE}104": "a document or a model, such as a PDF",
    f"{_STORAGE}481.2": "a radiotherapy dose (RT Dose)",
    f"{_STORAGE}481.3": "a set of radiotherapy structures (RT Structure Set)",
    f"{_STORAGE}481.5": "a radiotherapy plan (RT Plan)",
    f"{_STORAGE}481.8": "a radiotherapy plan (RT Ion Plan)",
}
"""Objects that are no images, by the beginning of their SOP class."""

MODALITIES = {
    "SR": "88", "KO": "88", "PR": "11", "SEG": "66.4", "REG": "66.1", "DOC": "104", "ECG": "9",
    "RTDOSE": "481.2", "RTSTRUCT": "481.3", "RTPLAN": "481.5", "RWV": "67", "SMR": "67",
}  # fmt: skip

_loading = threading.Lock()


@dataclass(frozen=True)
class DicomImage:
    """What is read from one file.

    Attributes:
        frames: each (H, W, 1 or 3), ``uint8``, or ``float32`` in [0, 1].
        patient: the file's PatientID, if it has one.
        notices: what a site should be told of.
        one_bit: whether the file has one bit for a pixel.
    """

    frames: list[npt.NDArray[Any]]
    patient: str | None
    notices: set[str]
    one_bit: bool


def _line(text: object, longest: int = 200) -> str:
    """A text that may hold bytes of a damaged file, as part of a sentence."""
    return printable(" ".join(str(text).split()).rstrip("."), longest)


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file with these first 132 bytes is DICOM, with the usual preamble or without."""
    return head[128:132] == b"DICM" or head[:2] in STARTS


def read_dicom(path: str | os.PathLike[str], image: ImageSpec) -> DicomImage:
    """Pixels of one file, by the window and the frames that the study agreed on.

    Raises:
        OneRoundError: the file is no image, is damaged, or needs a decoder; it has no ``file``.
    """
    try:
        pydicom = _pydicom()
        return _read(pydicom.dcmread(path, force=True), image)
    except (OneRoundError, MemoryError):
        raise
    except Exception as error:  # a damaged file can make pydicom raise nearly anything
        cause = _line(error) or type(error).__name__
        raise OneRoundError(f"cannot be read as an image: {cause}.", remedy=EXPORT) from error


def decoders() -> dict[str, list[str]] | None:
    """Decoders that are installed here, by transfer syntax; ``None``: pydicom is not.

    ``pydicom`` stands for what needs no other package.
    """
    if importlib.util.find_spec("pydicom") is None:
        return None
    _pydicom()
    return {name: _decoders_of(uid) for name, uid in TRANSFER_SYNTAXES.items()}


def _decoders_of(syntax: str) -> list[str]:
    """Names of the installed decoders; of JPEG Extended, the one that knows more than 8 bits.

    Raises:
        NotImplementedError: pydicom knows none.
    """
    from pydicom.pixels import get_decoder

    decoder = get_decoder(syntax)
    if not decoder.is_encapsulated:
        return ["pydicom"]
    return [x for x in decoder.available_plugins if x == "gdcm" or syntax != EXTENDED_JPEG]


def _pydicom() -> Any:
    """The package pydicom, with its decoders.

    GDCM, one of them, imports a module ``dl`` that Python has not had for long: a folder of that
    name beside a notebook would be taken for it, and break the import of pydicom.

    Raises:
        OneRoundError: it is not installed.
    """
    if importlib.util.find_spec("pydicom") is None:
        raise OneRoundError("is a DICOM file, and pydicom is not installed.", remedy=INSTALL)
    with _loading:
        blocked = "gdcm" not in sys.modules and "dl" not in sys.modules
        if blocked:
            sys.modules["dl"] = None  # type: ignore[assignment]
        try:
            import pydicom
            import pydicom.pixels
        finally:
            if blocked:
                del sys.modules["dl"]
    return pydicom


def _read(dataset: Any, image: ImageSpec) -> DicomImage:
    _refuse_no_image(dataset)
    _complete(dataset)
    _refuse_unsupported(dataset)
    count = max(1, int(dataset.get("NumberOfFrames") or 1))
    notices: set[str] = set()
    frames = []
    for index, cells in _cells(dataset, chosen_frames(count, image)):
        pixels, found = _pixels(cells, dataset, index, image)
        frames.append(pixels)
        notices |= found
    patient = str(dataset.get("PatientID") or "").strip(" \0") or None
    return DicomImage(frames, patient, notices, dataset.get("BitsStored") == 1)


def _refuse_no_image(dataset: Any) -> None:
    """Refuse a report, a plan, a dose, a segmentation or another object that is no image.

    Raises:
        OneRoundError: it is one; or there are no pixels.
    """
    meta = dataset.file_meta.get("MediaStorageSOPClassUID")
    uid = str(dataset.get("SOPClassUID") or meta or "")
    has_pixels = any(name in dataset for name in PIXEL_DATA)
    if not has_pixels or not uid:
        modality = MODALITIES.get(str(dataset.get("Modality") or "").strip().upper())
        uid = _STORAGE + modality if modality else uid
    kinds = [kind for kind in NO_IMAGES if f"{uid}.".startswith(f"{kind}.")]
    if kinds:
        raise OneRoundError(f"is {NO_IMAGES[max(kinds, key=len)]}.", remedy=LEAVE_OUT)
    if not has_pixels:
        name = str(getattr(dataset.get("SOPClassUID"), "name", "")).removesuffix(" Storage")
        if not name or name == dataset.SOPClassUID:  # nothing, or a text that is no known class
            raise ValueError("it has no pixels and does not say what it is; it may be cut off")
        raise OneRoundError(f"is a DICOM file without pixels ({name}).", remedy=LEAVE_OUT)


def _complete(dataset: Any) -> None:
    """Give the data set what decoders need, where it can be known.

    Raises:
        OneRoundError: something else is missing.
    """
    needed = ["Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated"]
    if "PixelData" in dataset:
        needed += ["BitsStored", "PixelRepresentation"]
    missing = [name for name in needed if dataset.get(name) in (None, "")]
    if missing:
        raise OneRoundError(
            f"does not say its {', '.join(missing)}, so its pixels cannot be read.", remedy=EXPORT
        )
    if dataset.file_meta.get("TransferSyntaxUID") is None:
        if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
            raise OneRoundError("does not say how its pixels are compressed.", remedy=EXPORT)
        dataset.file_meta.TransferSyntaxUID = _native_syntax(*dataset.original_encoding)
    kind = str(dataset.PhotometricInterpretation).strip(" \0").upper()
    spaced = {"PALETTECOLOR": "PALETTE COLOR"}
    kind = kind.replace(" ", "_" if kind.startswith("YBR") else "")
    dataset.PhotometricInterpretation = spaced.get(kind, kind)


def _native_syntax(implicit: bool, little_endian: bool) -> Any:
    from pydicom import uid

    if implicit:
        return uid.ImplicitVRLittleEndian
    return uid.ExplicitVRLittleEndian if little_endian else uid.ExplicitVRBigEndian


def _refuse_unsupported(dataset: Any) -> None:
    """Refuse unknown colors and implausibly large images before they are decoded.

    Raises:
        ValueError: the file has one of these.
    """
    kind, samples = dataset.PhotometricInterpretation, int(dataset.SamplesPerPixel)
    expected = 3 if kind.startswith("YBR_") else SAMPLES.get(kind)
    if expected is None:
        raise ValueError(f"photometric interpretation {_line(kind, 40)} is not supported")
    if samples != expected:
        raise ValueError(f"{samples} values for a pixel do not fit its kind of color, {kind}")
    if expected == 3 and dataset.get("PixelRepresentation") == 1:
        raise ValueError("its colors are signed numbers")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows * columns == 0:
        raise ValueError("it has no rows or no columns")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and rows * columns > 2 * limit:
        raise ValueError(f"{rows} x {columns} pixels are more than {2 * limit}")


def _cells(dataset: Any, indices: range) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Index and decoded pixel cells, (H, W) or (H, W, 3) of RGB, of each chosen frame.

    Raises:
        OneRoundError: there is no decoder, or it fails.
    """
    _require_decoder(dataset.file_meta.TransferSyntaxUID)
    for index in indices:
        try:
            cells = _decoded(dataset, index)
        except MemoryError:
            raise
        except Exception as error:
            raise _damaged(dataset.file_meta.TransferSyntaxUID, error) from error
        yield index, cells


def _require_decoder(syntax: Any) -> None:
    """Refuse a transfer syntax that nobody here decodes.

    Raises:
        OneRoundError: it is one.
    """
    try:
        names = _decoders_of(syntax)
    except NotImplementedError as error:
        raise OneRoundError(
            f"its pixels are stored as {_line(syntax.name)}, which is not read.",
            remedy="Export single images from it, as PNG or as DICOM without compression.",
        ) from error
    if not names:
        raise OneRoundError(
            f"its pixels are compressed ({_line(syntax.name)}), and no decoder for that is "
            "installed.",
            remedy=INSTALL,
        )


def _decoded(dataset: Any, index: int) -> npt.NDArray[Any]:
    """Pixel cells of one frame, with all their bits, by the first decoder that can.

    pydicom turns YBR into RGB. GDCM is asked where there is no other decoder.

    Raises:
        ValueError: the colors are of a kind that is not supported.
        Exception: the last decoder's.
    """
    from pydicom.pixels import get_decoder

    syntax = dataset.file_meta.TransferSyntaxUID
    names = _decoders_of(syntax)
    if names == ["gdcm"]:
        stream = codestream(dataset, index)
        require_consistent(stream, dataset, lossless=syntax != EXTENDED_JPEG)
        if syntax == EXTENDED_JPEG and int(dataset.BitsStored) > 8:
            return decode_extended(stream, dataset)
    plugins = [name for name in names if name != "gdcm"][::-1] or names
    for name in plugins if syntax.is_encapsulated else [""]:
        try:
            cells, facts = get_decoder(syntax).as_array(
                dataset, index=index, correct_unused_bits=False, decoding_plugin=name
            )
            break
        except RuntimeError:  # as pydicom calls the failure of a decoder
            if name == plugins[-1]:
                raise
    if cells.ndim == 3 and facts["photometric_interpretation"] != "RGB":
        raise ValueError(f"colors in {facts['photometric_interpretation']} are not supported")
    return np.asarray(cells)


def _damaged(syntax: Any, error: Exception) -> OneRoundError:
    cause = _line(str(error).rpartition("\n")[2]) or type(error).__name__
    how = f" ({_line(syntax.name)})" if syntax.is_encapsulated else ""
    return OneRoundError(
        f"its pixels cannot be decoded{how}, so they are damaged or incomplete, or of a kind that "
        f"the decoder does not know: {cause}.",
        remedy=DAMAGED if syntax.is_encapsulated else EXPORT,
    )


def _pixels(
    cells: npt.NDArray[Any], dataset: Any, index: int, image: ImageSpec
) -> tuple[npt.NDArray[Any], set[str]]:
    """(H, W, 1 or 3), ``uint8``, or ``float32`` in [0, 1]; and what a site should be told of."""
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return _colors_of_palette(stored_values(cells, dataset), dataset)
    if cells.ndim == 3:
        bits = int(dataset.BitsStored)
        if bits == 8 and cells.dtype == np.uint8:
            return cells, set()
        colors = stored_values(cells, dataset) / (2**bits - 1)
        return colors.astype(np.float32), {DIM} if bits > 8 and colors.max() < 1 / 8 else set()
    levels, notices = gray_levels(cells, dataset, index, image.window)
    return levels.astype(np.float32)[..., None], notices


def _colors_of_palette(values: npt.NDArray[Any], dataset: Any) -> tuple[npt.NDArray[Any], set[str]]:
    """(H, W, 3); entries of 8 bits that are said to have 16 are taken for what they are."""
    palette = read_palette(dataset, little_endian=is_little_endian(dataset))
    colors = np.stack([table.look_up(values) for table in palette], axis=-1)
    bits = 8 if max(table.used_bits for table in palette) <= 8 else 16
    notices = {LUT_BITS} if bits != max(table.bits for table in palette) else set()
    if bits == 8:
        return colors.astype(np.uint8), notices
    return (colors / 65535).astype(np.float32), notices
