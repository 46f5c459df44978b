"""From the stored values of a gray DICOM frame to gray levels in [0, 1], bright meaning 1."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from oneround.data.dicom_lut import read_lut

FLOAT_DATA = ("FloatPixelData", "DoubleFloatPixelData")

WINDOW_PASSED_OVER = "a window that is none (its width is too small, or is no number) is not used"
LUT_PASSED_OVER = "a damaged lookup table of gray levels is not used"
LUT_BITS = "a lookup table uses another number of bits than it says, and is scaled by those"


class Window(NamedTuple):
    """A window of gray levels (PS3.3, C.11.2.1.2 and C.11.2.1.3).

    Attributes:
        center: in units after rescaling.
        width: in the same units.
        function: ``LINEAR``, ``LINEAR_EXACT`` or ``SIGMOID``.
    """

    center: float
    width: float
    function: str = "LINEAR"

    @property
    def valid(self) -> bool:
        """Whether the standard allows it."""
        smallest = 1 if self.function == "LINEAR" else 0
        finite = math.isfinite(self.center) and math.isfinite(self.width)
        return finite and self.width >= smallest and self.width > 0

    def apply(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Gray levels in [0, 1], in the shape of ``values``."""
        center, width, function = self
        if function == "SIGMOID":
            return np.asarray(1 / (1 + np.exp(-4 * (values - center) / width)))
        if function == "LINEAR":
            center, width = center - 0.5, width - 1
        if width == 0:  # a threshold
            return (values > center).astype(np.float64)
        return np.clip((values - center) / width + 0.5, 0, 1)


def gray_levels(
    cells: npt.NDArray[Any], dataset: Any, frame: int, window: tuple[float, float] | None = None
) -> tuple[npt.NDArray[np.float64], set[str]]:
    """Gray levels of one frame, and what a site should be told of.

    Values are rescaled (or looked up), then windowed: by ``window``, or else by the lookup table
    or the first valid window of the frame, of all frames, or of the file; or else from minimum to
    maximum. MONOCHROME1 is inverted. Padding is black and has no part in minimum and maximum.

    Args:
        cells: pixel cells, (H, W), as they are decoded.
        dataset: data set of pydicom; its photometric interpretation is MONOCHROME1 or 2.
        frame: index of the frame, from 0.
        window: center and width that the study agreed on, ``LINEAR_EXACT``.

    Returns:
        (H, W), in [0, 1]; and sentences.

    Raises:
        ValueError: a value of a pixel, or of the rescaling, is not finite; a lookup table that is
            needed is damaged.
    """
    stored = stored_values(cells, dataset)
    padding = _is_padding(cells, dataset) | _is_padding(stored, dataset)
    if not np.isfinite(stored[~padding]).all():
        raise ValueError("a pixel is not a finite number")
    with np.errstate(all="ignore"):  # a result that is not finite is refused where it is used
        values = _rescaled(np.where(padding, 0, stored), dataset, frame)
        if window is None:
            levels, notices = _as_the_file_says(values, ~padding, dataset, frame)
        else:
            levels, notices = Window(*window, "LINEAR_EXACT").apply(values), set()
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        levels = 1 - levels
    return np.where(padding, 0, levels), notices


def stored_values(cells: npt.NDArray[Any], dataset: Any) -> npt.NDArray[Any]:
    """Values in pixel cells: the bits from ``HighBit`` down, with their sign; ``int64``.

    Other bits of a cell may hold an overlay. Codestreams (JPEG and its kin) have no such bits and
    state their own number of bits, so there only the sign is completed.
    """
    if cells.dtype.kind == "f":
        return cells
    values = cells.astype(np.int64)
    bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation) == 1
    half = 1 << (bits - 1)
    if _is_codestream(dataset):
        if signed and values.min() >= -half and values.max() < 2 * half:
            values = np.where(values >= half, values - 2 * half, values)
        return values
    shift = max(0, int(dataset.get("HighBit") or bits - 1) + 1 - bits)
    values = (values >> shift) & (2 * half - 1)
    return np.where(values >= half, values - 2 * half, values) if signed else values


def numbers(item: Any, keyword: str) -> list[float]:
    """Values of an element; none if it is missing or empty, NaN for each that is no number."""
    try:
        value = item.get(keyword)
    except (ValueError, TypeError, OverflowError, ArithmeticError):  # a text that is no number
        value = item.get_item(keyword).value.decode("ascii", "replace").split("\\")
    if value is None or value == "":
        return []
    return [_number(part) for part in np.atleast_1d(value).tolist()]


def _number(value: Any) -> float:
    try:
        return float(value)
    except (ValueError, TypeError, OverflowError):
        return math.nan


def is_little_endian(dataset: Any) -> bool:
    """Byte order of the words in a file."""
    return bool(dataset.file_meta.TransferSyntaxUID.is_little_endian)


def _is_codestream(dataset: Any) -> bool:
    syntax = dataset.file_meta.TransferSyntaxUID
    return bool(syntax.is_encapsulated) and syntax.name != "RLE Lossless"


def _is_padding(values: npt.NDArray[Any], dataset: Any) -> npt.NDArray[np.bool_]:
    """Which values, (H, W), are padding: as stored, before rescaling (PS3.3, C.7.5.1.1.2)."""
    prefix = next((name.removesuffix("Data") for name in FLOAT_DATA if name in dataset), "Pixel")
    ends = numbers(dataset, f"{prefix}PaddingValue")[:1]
    ends += numbers(dataset, f"{prefix}PaddingRangeLimit")[:1] if ends else []
    if not ends:
        return np.zeros(values.shape, np.bool_)
    if prefix == "Pixel":
        signed = int(dataset.PixelRepresentation) == 1
        ends = [_with_sign(end, signed) for end in ends]
    elif math.isnan(ends[0]):
        return np.asarray(np.isnan(values))
    return np.asarray((values >= min(ends)) & (values <= max(ends)))


def _with_sign(value: float, signed: bool) -> float:
    """A number of 16 bits that was written with the other signedness, as it was meant."""
    if signed and 32767 < value < 65536:
        return value - 65536
    return value + 65536 if not signed and -32769 < value < 0 else value


def _places(dataset: Any, frame: int, sequence: str) -> Iterator[Any]:
    """Data sets that may hold an attribute of a frame: its own, that of all frames, the file."""
    own = (dataset.get("PerFrameFunctionalGroupsSequence") or [])[frame : frame + 1]
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [])[:1]
    for group in (*own, *shared):
        yield from (group.get(sequence) or [])[:1]
    yield dataset


def _rescaled(values: npt.NDArray[Any], dataset: Any, frame: int) -> npt.NDArray[np.float64]:
    """Values in the units of the modality, such as Hounsfield units (PS3.3, C.11.1)."""
    for item in dataset.get("ModalityLUTSequence") or []:
        table = read_lut(item, little_endian=is_little_endian(dataset))
        if table is not None:
            return table.look_up(values).astype(np.float64)
    for place in _places(dataset, frame, "PixelValueTransformationSequence"):
        slope, intercept = numbers(place, "RescaleSlope"), numbers(place, "RescaleIntercept")
        if slope or intercept:
            factor, offset = (slope or [1.0])[0], (intercept or [0.0])[0]
            if not math.isfinite(factor) or not math.isfinite(offset):
                raise ValueError("its rescale slope or intercept is not a finite number")
            return values * factor + offset
    return values.astype(np.float64)


def _as_the_file_says(
    values: npt.NDArray[np.float64], inside: npt.NDArray[np.bool_], dataset: Any, frame: int
) -> tuple[npt.NDArray[np.float64], set[str]]:
    """Gray levels by the first lookup table or window, or else from minimum to maximum."""
    notices: set[str] = set()
    for place in _places(dataset, frame, "FrameVOILUTSequence"):
        levels = _looked_up(values, place, is_little_endian(dataset), notices)
        if levels is not None:
            return levels, notices
        for window in _windows(place):
            if window.valid:
                return window.apply(values), notices
            notices.add(WINDOW_PASSED_OVER)
    seen = values[inside]
    low, high = (seen.min(), seen.max()) if seen.size else (0.0, 0.0)
    return np.clip((values - low) / ((high - low) or 1.0), 0, 1), notices


def _looked_up(
    values: npt.NDArray[np.float64], place: Any, little_endian: bool, notices: set[str]
) -> npt.NDArray[np.float64] | None:
    """Gray levels by the first lookup table that is one."""
    for item in place.get("VOILUTSequence") or []:
        try:
            table = read_lut(item, little_endian=little_endian)
        except ValueError:
            notices.add(LUT_PASSED_OVER)
            continue
        if table is not None:
            if table.used_bits != table.bits:
                notices.add(LUT_BITS)
            return np.asarray(table.look_up(values) / (2**table.used_bits - 1))
    return None


def _windows(place: Any) -> Iterator[Window]:
    function = str(place.get("VOILUTFunction") or "").strip().upper()
    if function not in ("LINEAR_EXACT", "SIGMOID"):
        function = "LINEAR"
    pairs = zip(numbers(place, "WindowCenter"), numbers(place, "WindowWidth"), strict=False)
    for center, width in pairs:
        yield Window(center, width, function)
