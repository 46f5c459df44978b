"""What readers of pictures and of DICOM files share: the choice of frames, and a notice."""

from __future__ import annotations

from oneround.errors import OneRoundError
from oneround.study import ImageSpec

DIM = "the brightest value is below 1/8 of the scale of 16 bits, as of 12-bit values"


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
