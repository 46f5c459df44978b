import math

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, RLELossless

from oneround.data.dicom_gray import (
    LUT_BITS,
    LUT_PASSED_OVER,
    WINDOW_PASSED_OVER,
    numbers,
    stored_values,
)
from oneround.data.images import read_file
from oneround.errors import OneRoundError
from oneround.study import ImageSpec
from tests.data.files import RAMP, lut, write_dicom

MIN_MAX = RAMP / 4095


def random_array(high=4096, dtype=np.uint16, low=0):
    return np.random.default_rng(0).integers(low, high, (5, 7)).astype(dtype)


def group(sequence, **tags):
    """A functional group that holds ``tags`` in ``sequence``."""
    inner, outer = Dataset(), Dataset()
    for name, value in tags.items():
        setattr(inner, name, value)
    setattr(outer, sequence, Sequence([inner]))
    return outer


@pytest.fixture
def gray(tmp_path):
    """Gray levels, (H, W), and notices of a file that is written from an array and tags."""

    def read(pixels=RAMP, image=None, **tags):
        if pixels is RAMP:
            tags = {"BitsStored": 12, **tags}
        original = read_file(write_dicom(tmp_path / "a.dcm", pixels, **tags), image)
        assert original.frames.dtype.is_floating_point
        return original.frames[0, 0].numpy(), original.notices

    return read


def close(levels, expected):
    np.testing.assert_allclose(levels, expected, atol=1e-6)


# Windows


def linear(x, center, width):
    """PS3.3, C.11.2.1.2.1, with 0 and 1 as the smallest and largest output."""
    y = (x - (center - 0.5)) / max(width - 1, 1e-300) + 0.5
    y = np.where(x <= center - 0.5 - (width - 1) / 2, 0, y)
    return np.where(x > center - 0.5 + (width - 1) / 2, 1, np.clip(y, 0, 1))


@pytest.mark.parametrize("function", [None, "LINEAR_EXACT", "SIGMOID", " sigmoid "])
def test_window_as_pydicom(tmp_path, function):
    array = random_array()
    tags = {"BitsStored": 12, "WindowCenter": [1500, 9], "WindowWidth": [1000, 9]}
    if function:
        tags["VOILUTFunction"] = function.strip().upper()
    path = write_dicom(tmp_path / "a.dcm", array, **tags)
    expected = apply_voi_lut(array, pydicom.dcmread(path)) / 4095
    if function:
        path = write_dicom(path, array, **{**tags, "VOILUTFunction": function})
    close(read_file(path).frames[0, 0].numpy(), expected)


@pytest.mark.parametrize(("center", "width"), [(2048, 1), (2048.5, 1), (2047.5, 2), (100, 4096)])
def test_window_by_the_formula_of_the_standard(gray, center, width):
    levels, _ = gray(WindowCenter=center, WindowWidth=width)
    close(levels, linear(RAMP.astype(float), center, width))


def test_signed_with_rescale_and_window(gray, tmp_path):
    array = random_array(1000, np.int16, -1000)
    tags = {"RescaleSlope": 2, "RescaleIntercept": -24, "WindowCenter": 40, "WindowWidth": 400}
    levels, _ = gray(array, **tags)
    close(levels, np.clip((array.astype(float) * 2 - 24 - 39.5) / 399 + 0.5, 0, 1))
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    reference = apply_voi_lut(apply_modality_lut(array, dataset), dataset)
    low, high = -32768 * 2 - 24, 32767 * 2 - 24
    close(levels, (reference - low) / (high - low))


def test_the_window_of_the_study_counts_before_all_others(gray):
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 9, "WindowWidth": 9}
    image = ImageSpec(window=(40, 400))
    expected = np.clip((RAMP - 1024.0 + 160) / 400, 0, 1)
    for more in ({}, {"VOILUTSequence": [lut(0, 12, np.arange(4096))]}):
        levels, notices = gray(image=image, **tags, **more)
        close(levels, expected)
        assert notices == ()


@pytest.mark.parametrize(
    "window",
    [
        {"WindowCenter": 2048, "WindowWidth": 0},
        {"WindowCenter": 2048, "WindowWidth": -100},
        {"WindowCenter": 2048, "WindowWidth": 0.5},
        {"WindowCenter": 2048, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": 2048, "WindowWidth": 0, "VOILUTFunction": "LINEAR_EXACT"},
    ],
)
def test_a_window_that_is_none_is_passed_over(gray, window):
    levels, notices = gray(**window)
    close(levels, MIN_MAX)
    assert notices == (WINDOW_PASSED_OVER,)
    window = {**window, "WindowCenter": [2048, 1000], "WindowWidth": [window["WindowWidth"], 2000]}
    function = window.pop("VOILUTFunction", None)
    levels, notices = gray(**window)
    assert function or notices == (WINDOW_PASSED_OVER,)
    close(levels, linear(RAMP, 1000, 2000))


@pytest.mark.parametrize("text", [b"NaN ", b"inf ", b"-inf", b"abcd", b"4,50", b"1e99"])
def test_a_window_that_is_no_number_is_passed_over(tmp_path, text):
    path = write_dicom(tmp_path / "a.dcm", RAMP, BitsStored=12, WindowCenter="5678", WindowWidth=9)
    path.write_bytes(path.read_bytes().replace(b"5678", text))
    original = read_file(path)
    close(original.frames[0, 0].numpy(), np.zeros_like(MIN_MAX) if text == b"1e99" else MIN_MAX)
    assert original.notices == ("all pixels have one gray value",) * (text == b"1e99") + (
        WINDOW_PASSED_OVER,
    ) * (text != b"1e99")


def test_each_number_of_an_element_is_read_by_itself(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=["56", "40"])
    path.write_bytes(path.read_bytes().replace(b"56\\40", b"xy\\40"))
    first, second = numbers(pydicom.dcmread(path), "WindowCenter")
    assert math.isnan(first)
    assert second == 40
    assert numbers(Dataset(), "WindowCenter") == []


# Rescaling


def test_empty_rescaling_is_none(gray):
    close(gray(RescaleSlope="", RescaleIntercept="")[0], MIN_MAX)
    levels, _ = gray(RescaleSlope=2, RescaleIntercept="", WindowCenter=1000, WindowWidth=2000)
    close(levels, linear(RAMP * 2.0, 1000, 2000))
    levels, _ = gray(RescaleIntercept=-24, WindowCenter=1000, WindowWidth=2000)
    close(levels, linear(RAMP - 24.0, 1000, 2000))


@pytest.mark.parametrize("name", ["RescaleSlope", "RescaleIntercept"])
def test_rescaling_that_is_no_number_is_refused(tmp_path, name):
    tags = {"RescaleSlope": 1, "RescaleIntercept": 0, name: "5678"}
    path = write_dicom(tmp_path / "a.dcm", RAMP, **tags)
    for text in (b"NaN ", b"inf ", b"abcd"):
        path.write_bytes(write_dicom(path, RAMP, **tags).read_bytes().replace(b"5678", text))
        with pytest.raises(OneRoundError, match="rescale slope or intercept") as caught:
            read_file(path)
        assert caught.value.file == str(path)
        assert caught.value.remedy


def test_a_slope_of_0_is_told(gray):
    levels, notices = gray(RescaleSlope=0, RescaleIntercept=5)
    assert (levels == 0).all()
    assert notices == ("all pixels have one gray value",)


def test_a_window_that_misses_the_values_is_told(gray):
    assert gray(WindowCenter=40000, WindowWidth=100)[1] == ("all pixels have one gray value",)
    two = gray(WindowCenter=2048, WindowWidth=1)[1]
    assert two == ("all pixels have one of two gray values",)


def test_one_bit_may_have_two_values(gray):
    assert gray(random_array(2, np.uint8), BitsStored=1)[1] == ()


def test_functional_groups_of_the_frame_then_of_all_then_of_the_file(gray):
    """Enhanced objects hold windows and rescaling there (PS3.3, C.7.6.16.2.9 and 10)."""
    window = {"WindowCenter": 1000, "WindowWidth": 2000}
    frame = group("FrameVOILUTSequence", **window)
    shared = group("FrameVOILUTSequence", WindowCenter=50, WindowWidth=60)
    rescale = group("PixelValueTransformationSequence", RescaleSlope=2, RescaleIntercept=-500)
    shared.PixelValueTransformationSequence = rescale.PixelValueTransformationSequence
    both = {
        "PerFrameFunctionalGroupsSequence": Sequence([frame]),
        "SharedFunctionalGroupsSequence": Sequence([shared]),
        "WindowCenter": 1,
        "WindowWidth": 9,
        "RescaleSlope": 7,
        "RescaleIntercept": 7,
    }
    close(gray(**both)[0], linear(RAMP * 2.0 - 500, 1000, 2000))
    del both["PerFrameFunctionalGroupsSequence"]
    close(gray(**both)[0], linear(RAMP * 2.0 - 500, 50, 60))
    both["SharedFunctionalGroupsSequence"] = Sequence([rescale])
    close(gray(**both)[0], linear(RAMP * 2.0 - 500, 1, 9))


def test_each_frame_has_its_own_window(tmp_path):
    frames = Sequence(
        group("FrameVOILUTSequence", WindowCenter=center, WindowWidth=100) for center in (500, 3000)
    )
    tags = {"NumberOfFrames": 2, "Rows": 32, "PerFrameFunctionalGroupsSequence": frames}
    path = write_dicom(tmp_path / "a.dcm", RAMP, BitsStored=12, **tags)
    both = read_file(path, ImageSpec(frames="each")).frames.numpy()
    assert both.shape == (2, 1, 32, 64)
    close(both[0, 0], linear(RAMP[:32], 500, 100))
    close(both[1, 0], linear(RAMP[32:], 3000, 100))
    middle = read_file(path, ImageSpec(frames="middle")).frames.numpy()
    assert np.array_equal(middle[0], both[1])


# Lookup tables


def test_voi_lookup_table(gray):
    array = np.array([[5, 10, 11], [12, 13, 99]], np.uint8)
    levels, _ = gray(array, VOILUTSequence=[lut(10, 10, [0, 100, 1000, 1023], "US")])
    close(levels, np.array([[0, 0, 100], [1000, 1023, 1023]]) / 1023)


def test_entries_of_8_bits_in_words(gray):
    close(gray(VOILUTSequence=[lut(0, 8, np.arange(4096) // 16)])[0], (RAMP // 16) / 255)


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_fewer_bits_than_the_table_says(gray, bits):
    levels, notices = gray(VOILUTSequence=[lut(0, 16, RAMP.ravel() >> max(0, 12 - bits))])
    used = min(bits, 12)
    close(levels, (RAMP >> (12 - used)) / (2**used - 1))
    assert notices == (LUT_BITS,)


def test_an_empty_or_damaged_table_leaves_the_window(gray):
    window = {"WindowCenter": 1000, "WindowWidth": 2000}
    empty = Dataset()
    empty.add_new("LUTDescriptor", "SS", None)
    empty.add_new("LUTData", "OW", None)
    levels, notices = gray(VOILUTSequence=[empty], **window)
    close(levels, linear(RAMP, 1000, 2000))
    assert notices == ()
    damaged = lut(0, 12, np.arange(9), LUTDescriptor=[99, 0, 12])
    levels, notices = gray(VOILUTSequence=[damaged], **window)
    close(levels, linear(RAMP, 1000, 2000))
    assert notices == (LUT_PASSED_OVER,)
    levels, notices = gray(VOILUTSequence=[damaged, lut(0, 12, np.arange(4096))], **window)
    close(levels, MIN_MAX)


def test_a_voi_table_with_a_negative_first_input_after_rescaling(gray):
    """The VR of the first input follows the stored values, which may be unsigned (CT)."""
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    table = lut(65536 - 1024, 12, np.arange(4096)[::-1])
    close(gray(VOILUTSequence=[table], **tags)[0], 1 - MIN_MAX)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_modality_lookup_table(gray, bits):
    values = np.arange(4096) >> max(0, 12 - bits)
    window = {"WindowCenter": 100, "WindowWidth": 100}
    levels, _ = gray(ModalityLUTSequence=[lut(0, bits, values)], RescaleSlope=9, **window)
    close(levels, linear((RAMP >> max(0, 12 - bits)).astype(float), 100, 100))


def test_a_damaged_modality_table_is_refused(gray):
    damaged = lut(0, 12, np.arange(9), LUTDescriptor=[99, 0, 12])
    with pytest.raises(OneRoundError, match="fewer entries"):
        gray(ModalityLUTSequence=[damaged])


def test_lookup_table_in_big_endian(tmp_path):
    table = lut(0, 12, np.arange(4096)[::-1])
    table["LUTData"].value = np.arange(4096)[::-1].astype(">u2").tobytes()
    path = write_dicom(
        tmp_path / "a.dcm", RAMP, BitsStored=12, VOILUTSequence=[table], syntax=ExplicitVRBigEndian
    )
    close(read_file(path).frames[0, 0].numpy(), 1 - MIN_MAX)


# Stored values


def test_monochrome1_is_inverted(gray):
    window = {"WindowCenter": 1500, "WindowWidth": 1000}
    for kind in ("MONOCHROME1", "monochrome1", " Monochrome1 ", "MONOCHROME 1"):
        levels, _ = gray(PhotometricInterpretation=kind, **window)
        close(levels, 1 - linear(RAMP, 1500, 1000))


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    "tags",
    [{}, {"RescaleSlope": -2, "RescaleIntercept": 99}, {"WindowCenter": 900, "WindowWidth": 900}],
)
def test_padding_is_black_and_has_no_part_in_the_contrast(gray, kind, tags):
    pixels = (RAMP // 4 + 500).astype(np.uint16)
    slope, intercept = tags.get("RescaleSlope", 1), tags.get("RescaleIntercept", 0)
    values = pixels[:, 32:] * float(slope) + intercept
    expected = (values - values.min()) / (values.max() - values.min())
    if "WindowCenter" in tags:
        expected = linear(values, 900, 900)
    if kind == "MONOCHROME1":
        expected = 1 - expected
    for padding in ({"PixelPaddingValue": 65535}, {"PixelPaddingValue": 9}):
        pixels[:, :32] = padding["PixelPaddingValue"]
        levels, _ = gray(pixels, PhotometricInterpretation=kind, **padding, **tags)
        close(levels[:, 32:], expected)
        assert (levels[:, :32] == 0).all()


def test_a_range_of_padding(gray):
    pixels = (RAMP // 4 + 500).astype(np.int16)
    pixels[:, :16], pixels[:, 16:32] = -2000, -1500
    levels, _ = gray(pixels, PixelPaddingValue=-1400, PixelPaddingRangeLimit=-2000)
    assert (levels[:, :32] == 0).all()
    inside = pixels[:, 32:].astype(float)
    close(levels[:, 32:], (inside - inside.min()) / (inside.max() - inside.min()))


def test_padding_beyond_the_stored_bits(gray):
    """Unsigned CT of 12 bits whose padding is -2000, written as 63536."""
    pixels = RAMP.copy()
    pixels[:, :32] = 63536
    levels, _ = gray(pixels, BitsStored=12, PixelPaddingValue=63536)
    inside = pixels[:, 32:].astype(float)
    close(levels[:, 32:], (inside - inside.min()) / (inside.max() - inside.min()))
    assert (levels[:, :32] == 0).all()


def test_nothing_but_padding_is_one_gray_value(gray):
    levels, notices = gray(np.full((4, 4), 7, np.uint8), PixelPaddingValue=7)
    assert (levels == 0).all()
    assert notices == ("all pixels have one gray value",)


def test_an_overlay_in_the_high_bits_is_not_in_the_pixels(gray):
    overlay = (RAMP % 3 == 0).astype(np.uint16) << 15
    close(gray(RAMP | overlay, BitsStored=12)[0], MIN_MAX)


def test_high_bit(gray):
    close(gray(RAMP << 4, BitsStored=12, HighBit=15)[0], MIN_MAX)
    close(gray((RAMP << 4) | (RAMP % 16), BitsStored=12, HighBit=15)[0], MIN_MAX)


def test_the_sign_of_12_bits(gray):
    values = RAMP.astype(np.int16) - 2048
    cells = (values & 0xFFF).astype(np.int16)
    window = {"WindowCenter": 0, "WindowWidth": 1000}
    levels, _ = gray(cells, BitsStored=12, **window)
    close(levels, linear(values.astype(float), 0, 1000))


def test_codestreams_have_no_other_bits():
    dataset = Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.BitsStored, dataset.PixelRepresentation, dataset.HighBit = 12, 1, 11
    cells = np.array([0, 2047, 2048, 4095], np.uint16)
    for syntax in ("1.2.840.10008.1.2.4.70", RLELossless):
        dataset.file_meta.TransferSyntaxUID = syntax
        assert stored_values(cells, dataset).tolist() == [0, 2047, -2048, -1]
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"
    wide = np.array([0, 5000, -3000], np.int16)
    assert stored_values(wide, dataset).tolist() == wide.tolist()


# Numbers that are none


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 100, "WindowWidth": 50}])
def test_a_pixel_that_is_no_number_is_refused(gray, bad, window):
    pixels = RAMP.astype(np.float32)
    close(gray(pixels)[0], MIN_MAX)
    pixels[0, 5] = bad
    with pytest.raises(OneRoundError, match="not a finite number") as caught:
        gray(pixels, **window)
    assert caught.value.file.endswith("a.dcm")
    assert caught.value.remedy


def test_padding_that_is_no_number(gray):
    pixels = RAMP.astype(np.float32)
    pixels[:, :32] = np.nan
    levels, _ = gray(pixels, FloatPixelPaddingValue=math.nan)
    assert (levels[:, :32] == 0).all()
    assert levels[:, 32:].max() == 1
