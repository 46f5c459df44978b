"""Lookup tables of a DICOM file: of gray levels (PS3.3, C.11.1 and C.11.2) and colors (C.7.9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Lut:
    """One lookup table.

    Attributes:
        entries: outputs, (n,) ``int64``, in [0, 65535].
        first: input of the first entry, as the file has it; a negative one may have been written
            as an unsigned number.
        bits: number of bits of an entry, as the file has it.
    """

    entries: npt.NDArray[np.int64]
    first: int
    bits: int

    @property
    def used_bits(self) -> int:
        """Number of bits that the largest entry needs; ``bits`` if all entries are 0."""
        return int(self.entries.max()).bit_length() or self.bits

    def look_up(self, values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Outputs, in the shape of ``values``; inputs beyond an end get the entry at that end."""
        inputs = np.rint(values)
        first = self.first
        if first > 32767 and (inputs.min() < 0 or inputs.max() < first):
            first -= 65536  # a negative number, written as an unsigned one
        places = np.clip(inputs - first, 0, len(self.entries) - 1).astype(np.int64)
        return np.asarray(self.entries[places])


def read_lut(item: Any, prefix: str = "LUT", *, little_endian: bool = True) -> Lut | None:
    """The lookup table in ``item``; ``None`` if it is empty.

    Entries may have 8 bits each, or one in 16; data may have come as bytes or as numbers.

    Args:
        item: data set of pydicom.
        prefix: beginning of the names of its elements, such as ``RedPaletteColorLookupTable``.
        little_endian: byte order of the file.

    Raises:
        ValueError: the table is damaged.
    """
    descriptor, data = _numbers(item, f"{prefix}Descriptor"), _bytes(item, prefix, little_endian)
    if not descriptor or not data:
        return None
    if len(descriptor) != 3:
        raise ValueError("a lookup table does not say how many entries it has")
    size = descriptor[0] % 65536 or 65536
    if item.get(f"Segmented{prefix}Data") is not None:
        width = 2 if descriptor[2] > 8 else 1
        words = np.frombuffer(data[: len(data) // width * width], f"<u{width}")
        entries: npt.NDArray[Any] = _expanded(words.tolist(), width)
    elif len(data) >= 2 * size:
        entries = np.frombuffer(data, "<u2", size)
    elif len(data) in (size, size + 1):  # 8 bits each, padded to an even number
        entries = np.frombuffer(data, "u1", size)
    else:
        entries = np.empty(0)
    if len(entries) < size:
        raise ValueError("a lookup table has fewer entries than it says")
    return Lut(entries[:size].astype(np.int64), descriptor[1], descriptor[2])


def read_palette(dataset: Any, *, little_endian: bool) -> tuple[Lut, Lut, Lut]:
    """The red, green and blue table of a PALETTE COLOR image.

    Raises:
        ValueError: a table is missing or damaged.
    """
    red, green, blue = (
        read_lut(dataset, f"{color}PaletteColorLookupTable", little_endian=little_endian)
        for color in ("Red", "Green", "Blue")
    )
    if red is None or green is None or blue is None:
        raise ValueError("the palette of PALETTE COLOR is missing")
    return red, green, blue


def _numbers(item: Any, keyword: str) -> list[int]:
    value = item.get(keyword)
    if value is None or isinstance(value, str):
        return []
    if isinstance(value, bytes):
        value = np.frombuffer(value[: len(value) // 2 * 2], "<u2")
    return [int(number) for number in np.atleast_1d(value)]


def _bytes(item: Any, prefix: str, little_endian: bool) -> bytes:
    """Data of a table as 16-bit words in little endian, whatever their VR."""
    names = (f"Segmented{prefix}Data", f"{prefix}Data")
    keyword = next((name for name in names if item.get(name) is not None), names[-1])
    value = item.get(keyword)
    if value is None:
        return b""
    if not isinstance(value, bytes):
        return np.atleast_1d(value).astype(np.int64).astype("<u2").tobytes()
    if little_endian or item[keyword].VR != "OW":
        return value
    return np.frombuffer(value[: len(value) // 2 * 2], ">u2").astype("<u2").tobytes()


def _expanded(data: Sequence[int], width: int) -> npt.NDArray[np.int64]:
    """Entries of a segmented table (PS3.3, C.7.9.2), of which a number has ``width`` bytes.

    Raises:
        ValueError: a segment is none that the standard knows, or is incomplete.
    """
    entries: list[int] = []
    starts: list[int] = []
    position, words = 0, 4 // width  # an offset has 4 bytes
    while position + 1 < len(data):
        if data[position] != 2:
            starts.append(position)
            position = _add_segment(data, position, entries)
            continue
        digits = data[position + 2 : position + 2 + words]  # indirect: repeats earlier segments
        offset = sum(digit << (8 * width * place) for place, digit in enumerate(digits))
        first = starts.index(offset // width if offset // width in starts else offset)
        for start in starts[first : first + data[position + 1]]:
            _add_segment(data, start, entries)
        position += 2 + words
    return np.asarray(entries, np.int64)


def _add_segment(data: Sequence[int], start: int, entries: list[int]) -> int:
    """Add a discrete (0) or linear (1) segment to ``entries``; returns where the next one is."""
    kind, count = data[start : start + 2]
    if kind == 0:
        entries += data[start + 2 : start + 2 + count]
        return start + 2 + count
    if kind == 1 and entries:
        end = data[start + 2]
        entries += np.rint(np.linspace(entries[-1], end, count + 1)[1:]).astype(int).tolist()
        return start + 3
    raise ValueError("a lookup table has a segment of an unknown kind")
