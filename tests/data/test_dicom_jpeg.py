from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from oneround.data.dicom_jpeg import codestream, decode_extended, require_consistent


def opened(name):
    dataset = pydicom.dcmread(Path(get_testdata_file(name, download=False)))
    return dataset, codestream(dataset, 0)


@pytest.mark.parametrize(
    ("name", "lossless"),
    [("JPEG-LL.dcm", True), ("SC_rgb_jpeg_gdcm.dcm", True), ("JPGExtended.dcm", False)],
)
def test_codestreams_that_agree_with_their_header(name, lossless):
    dataset, stream = opened(name)
    require_consistent(stream, dataset, lossless=lossless)
    with pytest.raises(ValueError, match="another kind of compression"):
        require_consistent(stream, dataset, lossless=not lossless)
    for tags, reason in (
        ({"Rows": 3}, r"1024 pixels of 1|100 x 100 pixels of 3"),
        ({"BitsAllocated": 32}, "bits"),
        ({"BitsStored": 0}, "bits"),
    ):
        dataset, stream = opened(name)
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
        with pytest.raises(ValueError, match=reason):
            require_consistent(stream, dataset, lossless=lossless)


@pytest.mark.parametrize("place", [1, 17, 19, 37])
def test_what_would_end_the_process_is_refused(place):
    """Start, transform of colors, marker of the frame, marker of the table after it."""
    dataset, stream = opened("SC_rgb_jpeg_gdcm.dcm")
    damaged = bytearray(stream)
    damaged[place] ^= 0x3E
    damaged = bytes(damaged)
    if place == 1:
        damaged = damaged[:20]
    with pytest.raises(ValueError, match=r"damaged|compression"):
        require_consistent(damaged, dataset, lossless=True)


def test_extended_jpeg():
    dataset, stream = opened("JPGExtended.dcm")
    cells = decode_extended(stream, dataset)
    assert (cells.min(), cells.max(), cells[420, 140], cells[230, 120]) == (0, 264, 244, 95)
    with pytest.raises(ValueError, match="does not decode"):
        decode_extended(stream[: len(stream) // 2], dataset)
    dataset.SamplesPerPixel = 3
    with pytest.raises(ValueError, match="colors"):
        decode_extended(stream, dataset)
