"""Which frames of a file become images, for pictures and for DICOM files."""

from __future__ import annotations

from oneround.errors import OneRoundError
from oneround.study import ImageSpec


def chosen_frames(count: int, image: ImageSpec) -> range:
    """Indices, from 0, of the frames of a file that become images.

    Args:
        count: number of frames in the file.
        image: the study's image; see its ``frames``. The middle of an even number of frames is
            the first one of the second half.

    Raises:
        OneRoundError: there are several, and the study chooses none.
    """
    if count == 1 or image.frames == "each":
        return range(count)
    if image.frames == "middle":
        return range(count // 2, count // 2 + 1)
    raise OneRoundError(
        f"has several frames ({count}), and the study takes files with one.",
        remedy="Export single frames, or agree on `frames` (middle or each) under [image] in the "
        "study.",
    )
