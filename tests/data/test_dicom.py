"""DICOM files: those of pydicom and pydicom-data, against other decoders and formulas in numpy."""

import importlib.util
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, get_decoder
from pydicom.uid import (
    MPEG4HP41,
    HTJ2KLossless,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
)

from oneround.data import dicom
from oneround.data.dicom import DIM, NO_IMAGES, TRANSFER_SYNTAXES, decoders
from oneround.data.dicom_gray import LUT_BITS
from oneround.data.images import read_file, read_image, read_original
from oneround.errors import OneRoundError
from oneround.study import ImageSpec
from tests.data.files import RAMP, write_dicom
from tests.data.test_dicom_gray import linear

MIDDLE = ImageSpec(frames="middle")
COLOR = [
    "OBXXXX1A_rle.dcm", "OBXXXX1A_2frame.dcm", "OT-PAL-8-face.dcm", "gdcm-US-ALOKA-16_big.dcm",
    "SC_rgb_16bit.dcm", "SC_rgb_32bit_2frame.dcm", "SC_rgb_expb_16bit_2frame.dcm",
    "SC_rgb_rle_32bit.dcm", "SC_ybr_full_uncompressed.dcm", "SC_ybr_full_422_uncompressed.dcm",
    "SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb_dcmtk_+eb+cy+s2.dcm", "SC_rgb_gdcm_KY.dcm",
    "SC_rgb_jls_lossy_line.dcm", "SC_rgb_jls_lossy_sample.dcm", "SC_rgb_jpeg.dcm",
    "SC_rgb_jpeg_app14_dcmd.dcm", "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_small_odd_big_endian.dcm",
    "US1_J2KI.dcm", "color-pl.dcm", "color-px.dcm", "GDCMJ2K_TextGBR.dcm", "examples_ybr_color.dcm",
]  # fmt: skip
GRAY = [
    "693_J2KR.dcm", "693_UNCI.dcm", "JPEG-LL.dcm", "JPEG2000.dcm", "J2K_pixelrep_mismatch.dcm",
    "JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_16.dcm", "JPGLosslessP14SV1_1s_1f_8b.dcm",
    "MR-SIEMENS-DICOM-WithOverlays.dcm", "MR_small_RLE.dcm", "MR_small_expb.dcm",
    "MR_small_implicit.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_padded.dcm",
    "RG3_J2KI.dcm", "bad_sequence.dcm", "eCT_Supplemental.dcm", "emri_small_big_endian.dcm",
    "emri_small_jpeg_2k_lossless.dcm", "emri_small_jpeg_ls_lossless.dcm", "examples_overlay.dcm",
    "explicit_VR-UN.dcm", "image_dfl.dcm", "mlut_18.dcm", "vlut_04.dcm", "CT_small.dcm",
]  # fmt: skip


def file(name):
    return Path(get_testdata_file(name, download=False))


def decoded(dataset, index):
    """One frame by GDCM, which the reader asks last; of RLE, by the only decoder."""
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    plugin = decoder.available_plugins[0] if decoder.is_encapsulated else ""
    return decoder.as_array(dataset, index=index, decoding_plugin=plugin)[0]


def opened(name):
    dataset = pydicom.dcmread(file(name), force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2"
    return dataset, int(dataset.get("NumberOfFrames") or 1) // 2


@pytest.mark.parametrize("name", COLOR)
def test_colors_of_real_files(name):
    dataset, index = opened(name)
    expected = decoded(dataset, index)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        expected = apply_color_lut(expected, dataset)
    expected = expected / np.iinfo(expected.dtype).max
    pixels = read_file(file(name), MIDDLE).frames[0]
    scale = 255 if pixels.dtype == torch.uint8 else 1
    np.testing.assert_allclose(pixels.numpy() / scale, expected.transpose(2, 0, 1), atol=1e-6)


def test_a_palette_in_big_endian():
    """pydicom does not swap its bytes; the same file in little endian is the reference."""
    pixels = read_file(file("OBXXXX1A_expb_2frame.dcm"), MIDDLE).frames
    assert torch.equal(pixels, read_file(file("OBXXXX1A_2frame.dcm"), MIDDLE).frames)


def shown(dataset, values, index):
    """Gray levels by the formulas of PS3.3, C.11, without padding."""
    values = values.astype(float)
    if "ModalityLUTSequence" in dataset:
        _, first, _ = dataset.ModalityLUTSequence[0].LUTDescriptor
        table = np.array(dataset.ModalityLUTSequence[0].LUTData, float)
        values = table[np.clip(values - first, 0, len(table) - 1).astype(int)]
    place = rescale = dataset
    if "SharedFunctionalGroupsSequence" in dataset and "eCT" in dataset.filename:
        group = dataset.PerFrameFunctionalGroupsSequence[index]
        shared = dataset.SharedFunctionalGroupsSequence[0]
        place = (group if "FrameVOILUTSequence" in group else shared).FrameVOILUTSequence[0]
        sequence = "PixelValueTransformationSequence"
        rescale = (group if sequence in group else shared)[sequence][0]
    values = values * float(rescale.get("RescaleSlope", 1)) + rescale.get("RescaleIntercept", 0)
    if "VOILUTSequence" in dataset:
        table = np.array(dataset.VOILUTSequence[0].LUTData, float) / 65535
        return table[values.astype(int)]
    if "WindowWidth" in place:
        center, width = (np.atleast_1d(place[f"Window{x}"].value)[0] for x in ("Center", "Width"))
        return linear(values, float(center), float(width))
    return (values - values.min()) / (values.max() - values.min())


@pytest.mark.parametrize("name", GRAY)
def test_gray_levels_of_real_files(name):
    dataset, index = opened(name)
    values = decoded(dataset, index)
    expected = shown(dataset, values, index)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        expected = 1 - expected
    if "PixelPaddingValue" in dataset:
        expected[values == dataset.PixelPaddingValue] = 0
    original = read_file(file(name), MIDDLE)
    np.testing.assert_allclose(original.frames[0, 0].numpy(), expected, atol=1e-6)
    assert original.notices == ()


def test_jpeg_lossless():
    """Values as pydicom's own tests state them; smallest and largest 0 and 278."""
    pixels = read_original(file("JPEG-LL.dcm"))[0].numpy() * 278
    expected = [60, 58, 61, 68, 59, 65, 64, 67]
    np.testing.assert_allclose(pixels[400, 124:132], expected, atol=1e-3)


@pytest.mark.parametrize("name", ["JPGExtended.dcm", "JPEG-lossy.dcm"])
def test_12_bit_jpeg(name):
    """Values as pydicom's own tests state them; smallest and largest 0 and 264."""
    pixels = read_original(file(name))[0].numpy() * 264
    assert pixels.shape == (1024, 256)
    assert pixels[420, 140] == pytest.approx(244, abs=1e-3)
    assert pixels[230, 120] == pytest.approx(95, abs=1e-3)


@pytest.mark.parametrize(
    "syntax", ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEGLSLossless", "RLELossless"]
)
@pytest.mark.parametrize("low", [0, -2048])
def test_lossless_files_of_gdcm(tmp_path, syntax, low):
    """As the same file without compression: unsigned and signed values of 12 bits."""
    import gdcm

    values = (RAMP.astype(int) + low).astype(np.int16 if low else np.uint16)
    tags = {"BitsStored": 12, "WindowCenter": 2048 + low, "WindowWidth": 3000}
    path = write_dicom(tmp_path / "a.dcm", values, **tags)
    reader, change, writer = (
        gdcm.ImageReader(),
        gdcm.ImageChangeTransferSyntax(),
        gdcm.ImageWriter(),
    )
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(tmp_path / "b.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    assert pydicom.dcmread(tmp_path / "b.dcm").file_meta.TransferSyntaxUID.is_encapsulated
    assert torch.equal(read_original(tmp_path / "b.dcm"), read_original(path))


def high_throughput_codestream(side=64):
    """JPEG 2000 HT of one gray code-block without any coefficient: every pixel is 128.

    Markers of ISO/IEC 15444-1 (A.5 and A.6) and 15444-15 (A.3): size, capabilities, coding style
    with HT code-blocks, quantization, one tile with one empty packet.
    """
    size = struct.pack(
        ">HHIIIIIIIIHBBB", 41, 1 << 14, side, side, 0, 0, side, side, 0, 0, 1, 7, 1, 1
    )
    tile = b"\xff\x90" + struct.pack(">HHIBB", 10, 0, 12 + 2 + 1, 0, 1) + b"\xff\x93\0"
    return (
        b"\xff\x4f\xff\x51" + size
        + b"\xff\x50" + struct.pack(">HIH", 8, 1 << 17, 0)
        + b"\xff\x52" + struct.pack(">HBBHBBBBBB", 12, 0, 0, 1, 0, 0, 4, 4, 0x40, 1)
        + b"\xff\x5c" + struct.pack(">HBB", 4, 0x20, 8 << 3)
        + tile + b"\xff\xd9"
    )  # fmt: skip


def test_high_throughput_jpeg_2000(tmp_path):
    path = compressed(tmp_path / "a.dcm", HTJ2KLossless, high_throughput_codestream())
    dataset = pydicom.dcmread(path)
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.save_as(path)
    pixels = read_original(path, ImageSpec(window=(100, 256)))
    np.testing.assert_allclose(pixels.numpy(), (128 - 100) / 256 + 0.5, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["emri_small.dcm", "emri_small_RLE.dcm", "color3d_jpeg_baseline.dcm"]
)
def test_frames(name):
    with pytest.raises(OneRoundError, match="several frames") as caught:
        read_original(file(name))
    assert caught.value.file == str(file(name))
    each = read_file(file(name), ImageSpec(frames="each")).frames if "emri" in name else None
    dataset, index = opened(name)
    middle = read_file(file(name), MIDDLE).frames
    assert middle.shape[0] == 1
    if each is not None:
        assert len(each) == 10
        assert torch.equal(each[index], middle[0])
    else:
        expected = decoded(dataset, index).transpose(2, 0, 1)
        assert np.array_equal(middle[0].numpy(), expected)


# Colors


def test_colors_are_scaled_by_their_stored_bits(tmp_path):
    colors = np.stack([RAMP] * 3, -1)
    original = read_file(write_dicom(tmp_path / "a.dcm", colors, BitsStored=12))
    np.testing.assert_allclose(original.frames[0, 1].numpy(), RAMP / 4095, atol=1e-6)
    assert original.notices == ()
    original = read_file(write_dicom(tmp_path / "a.dcm", colors))
    np.testing.assert_allclose(original.frames[0, 1].numpy(), RAMP / 65535, atol=1e-6)
    assert original.notices == (DIM,)
    eight = (colors >> 4).astype(np.uint8)
    original = read_file(write_dicom(tmp_path / "a.dcm", eight))
    assert np.array_equal(original.frames[0].numpy(), eight.transpose(2, 0, 1))
    original = read_file(write_dicom(tmp_path / "a.dcm", eight >> 2, BitsStored=6))
    np.testing.assert_allclose(original.frames[0, 0].numpy(), (RAMP >> 6) / 63, atol=1e-6)


def palette(entries, bits, first=0):
    tags = {}
    for color, values in zip(("Red", "Green", "Blue"), entries, strict=True):
        values = np.asarray(values)
        tags[f"{color}PaletteColorLookupTableDescriptor"] = [len(values), first, bits]
        tags[f"{color}PaletteColorLookupTableData"] = values.tobytes()
    return {"PhotometricInterpretation": "PALETTE COLOR", **tags}


@pytest.mark.parametrize(
    "kind", ["PALETTE COLOR", "palette color", "PALETTE_COLOR"[:7] + " COLOR "]
)
def test_palettes(tmp_path, kind):
    indices = np.random.default_rng(0).integers(0, 300, (5, 7)).astype(np.uint16)
    entries = np.random.default_rng(1).integers(0, 65536, (3, 256)).astype(np.uint16)
    tags = {**palette(entries, 16, 20), "PhotometricInterpretation": kind}
    pixels = read_file(write_dicom(tmp_path / "a.dcm", indices, **tags)).frames[0]
    expected = entries[:, np.clip(indices.astype(int) - 20, 0, 255)] / 65535
    np.testing.assert_allclose(pixels.numpy(), expected, atol=1e-6)
    small = (entries >> 8).astype(np.uint8)
    path = write_dicom(tmp_path / "a.dcm", indices, **palette(small, 8, 20))
    original = read_file(path)
    expected = small[:, np.clip(indices.astype(int) - 20, 0, 255)]
    assert np.array_equal(original.frames[0].numpy(), expected)
    assert original.notices == ()
    path = write_dicom(tmp_path / "a.dcm", indices, **palette(small.astype(np.uint16), 16, 20))
    original = read_file(path)
    assert np.array_equal(original.frames[0].numpy(), expected)
    assert original.notices == (LUT_BITS,)


def test_a_missing_palette_is_refused(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP, PhotometricInterpretation="PALETTE COLOR")
    with pytest.raises(OneRoundError, match="PALETTE COLOR is missing"):
        read_original(path)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"PhotometricInterpretation": "CMYK"}, "CMYK"),
        ({"PhotometricInterpretation": "RGB"}, "1 values for a pixel"),
        ({"PhotometricInterpretation": "YBR_FULL"}, "1 values for a pixel"),
        ({"Rows": 0}, "no rows"),
        ({"Rows": 99}, "less than expected"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, tags, reason):
    with pytest.raises(OneRoundError, match=reason) as caught:
        read_original(write_dicom(tmp_path / "a.dcm", RAMP, **tags))
    assert caught.value.remedy
    colors = np.stack([RAMP] * 3, -1)
    path = write_dicom(tmp_path / "a.dcm", colors, PhotometricInterpretation="YBR_FULL")
    with pytest.raises(OneRoundError, match="uint8"):
        read_original(path)


# What a file is


def test_the_patient_is_known_and_not_told(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP, PatientID=" 0815 ")
    original = read_file(path)
    assert original.patient == "0815"
    assert original.top is None
    for patient in ("", "  "):
        assert read_file(write_dicom(tmp_path / "a.dcm", RAMP, PatientID=patient)).patient is None
    assert read_file(write_dicom(tmp_path / "a.dcm", RAMP)).patient is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("rtdose.dcm", "radiotherapy dose"),
        ("rtdose_rle_1frame.dcm", "radiotherapy dose"),
        ("rtplan.dcm", "radiotherapy plan"),
        ("rtstruct.dcm", "radiotherapy structures"),
        ("liver_1frame.dcm", "segmentation"),
        ("reportsi.dcm", "structured report"),
        ("test-SR.dcm", "structured report"),
        ("waveform_ecg.dcm", "waveform, such as an ECG"),
        ("DICOMDIR", "DICOMDIR"),
        ("ExplVR_LitEndNoMeta.dcm", "radiotherapy plan"),
    ],
)
def test_objects_that_are_no_images_are_called_by_their_name(name, kind):
    with pytest.raises(OneRoundError, match=kind) as caught:
        read_original(file(name))
    assert caught.value.file == str(file(name))
    assert "Leave it out" in caught.value.remedy


@pytest.mark.parametrize("uid", NO_IMAGES)
def test_other_objects_have_words_even_with_pixels(tmp_path, uid):
    for suffix in ("", ".99"):
        known = {"1.2.840.10008.5.1.4.1.1.66"} if suffix else set()
        if uid in known:
            continue
        path = write_dicom(tmp_path / "a.dcm", RAMP, SOPClassUID=uid + suffix)
        with pytest.raises(OneRoundError) as caught:
            read_original(path)
        assert caught.value.reason == f"is {NO_IMAGES[uid]}."


def test_an_image_without_its_pixels_is_called_by_its_name(tmp_path):
    uid = "1.2.840.10008.5.1.4.1.1.2"
    path = write_dicom(tmp_path / "a.dcm", RAMP, PixelData=None, SOPClassUID=uid)
    with pytest.raises(OneRoundError, match=r"without pixels \(CT Image\)"):
        read_original(path)


def test_a_damaged_header_is_not_printed(tmp_path):
    """A wrong length may make one text of all that follows, such as the patient's name."""
    text = "1.2.840.10008.5.1.4.1.1.7\0\0DOE^JANE\0" + "x" * 500
    path = write_dicom(tmp_path / "a.dcm", RAMP, PixelData=None)
    dataset = pydicom.dcmread(path)
    dataset.SOPClassUID = text
    dataset.save_as(path)
    with pytest.raises(OneRoundError, match="does not say what it is") as caught:
        read_original(path)
    assert "DOE" not in str(caught.value)
    with pytest.raises(OneRoundError) as caught:
        read_original(write_dicom(path, RAMP, PhotometricInterpretation=text))
    assert len(caught.value.reason) < 200
    assert caught.value.reason.isprintable()


def test_images_of_radiotherapy_and_of_thickness_are_images(tmp_path):
    for uid in ("481.1", "77.1.4", "6.2", "81.1"):
        path = write_dicom(tmp_path / "a.dcm", RAMP, SOPClassUID=f"1.2.840.10008.5.1.4.1.1.{uid}")
        assert read_file(path).frames.shape == (1, 1, 64, 64)


@pytest.mark.parametrize("modality", ["SR", "rtdose", "PR", "SEG", "KO"])
def test_without_pixels_the_modality_says_what_it_is(tmp_path, modality):
    path = write_dicom(tmp_path / "a.dcm", RAMP, PixelData=None, Modality=modality)
    with pytest.raises(OneRoundError, match=r"report|dose|presentation|segmentation"):
        read_original(path)


@pytest.mark.parametrize(
    "name",
    ["Rows", "Columns", "BitsStored", "BitsAllocated", "PixelRepresentation", "SamplesPerPixel",
     "PhotometricInterpretation"],
)  # fmt: skip
def test_what_pixels_need_is_named_where_it_is_missing(tmp_path, name):
    with pytest.raises(OneRoundError, match=f"does not say its {name}") as caught:
        read_original(write_dicom(tmp_path / "a.dcm", RAMP, **{name: None}))
    assert "attribute" not in caught.value.reason
    assert caught.value.remedy


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
def test_without_preamble(tmp_path, syntax):
    path = write_dicom(tmp_path / "a.dcm", RAMP, syntax=syntax)
    expected = read_original(path)
    content = path.read_bytes()
    path.write_bytes(content[132:])
    assert torch.equal(read_original(path), expected), "with its file meta information"
    path.write_bytes(content[content.index(b"\x08\x00\x16\x00") :])
    assert torch.equal(read_original(path), expected)
    path.write_bytes(b"\x08\x00 is how a letter to a hospital may begin")
    with pytest.raises(OneRoundError, match="cannot be read as an image"):
        read_original(path)


def test_files_that_are_cut_off_are_refused(tmp_path):
    assert read_file(file("MR_small.dcm"))
    for name in (
        "MR_truncated.dcm", "MR_small_RLE.dcm", "JPEG-LL.dcm", "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm", "SC_rgb_jpeg.dcm", "JPGExtended.dcm", "image_dfl.dcm",
        "SC_rgb.dcm", "US1_J2KI.dcm",
    ):  # fmt: skip
        content = file(name).read_bytes()
        for share in (0.4, 0.9):
            path = tmp_path / "a.dcm"
            path.write_bytes(content[: int(len(content) * share)])
            with pytest.raises(OneRoundError) as caught:
                read_original(path)
            assert caught.value.file == str(path)
            assert "\n" not in caught.value.reason
            assert caught.value.remedy


def test_decompression_bombs_are_refused(tmp_path, monkeypatch):
    path = write_dicom(tmp_path / "a.dcm", np.zeros((32, 32), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(OneRoundError, match="more than 200"):
        read_original(path)


# Decoders


def compressed(path, syntax, codestream=b"\xff\xd8\xff\xd9"):
    dataset = pydicom.dcmread(write_dicom(path, RAMP, BitsStored=12))
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([codestream])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless, HTJ2KLossless])
def test_damaged_codestreams_are_refused(tmp_path, syntax):
    with pytest.raises(OneRoundError, match="cannot be decoded") as caught:
        read_original(compressed(tmp_path / "a.dcm", syntax))
    assert syntax.name in caught.value.reason
    assert "pip install" in caught.value.remedy


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless, JPEGExtended12Bit])
def test_a_missing_decoder_is_named(tmp_path, monkeypatch, syntax):
    monkeypatch.setattr(dicom, "_decoders_of", lambda syntax: [])
    with pytest.raises(OneRoundError, match="no decoder for that is installed") as caught:
        read_original(compressed(tmp_path / "a.dcm", syntax))
    assert caught.value.remedy == "Install it with `pip install 'oneround[dicom]'`."


@pytest.mark.parametrize("name", ["JPEG-LL.dcm", "JPGExtended.dcm"])
@pytest.mark.parametrize(
    "tags",
    [{"BitsAllocated": 8, "BitsStored": 8}, {"BitsAllocated": 32}, {"Rows": 7}, {"Columns": 9999}],
)
def test_a_codestream_that_contradicts_its_header_does_not_end_the_process(tmp_path, name, tags):
    """As GDCM does on some of these."""
    dataset = pydicom.dcmread(file(name))
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(OneRoundError, match="its codestream has"):
        read_original(tmp_path / "a.dcm")


def test_a_video_is_refused(tmp_path):
    with pytest.raises(OneRoundError, match="MPEG-4") as caught:
        read_original(compressed(tmp_path / "a.dcm", MPEG4HP41))
    assert "single images" in caught.value.remedy


def test_missing_pydicom_is_explained(tmp_path, monkeypatch):
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OneRoundError, match="pydicom is not installed") as caught:
        read_image(path, ImageSpec())
    assert caught.value.remedy == "Install it with `pip install 'oneround[dicom]'`."
    assert decoders() is None


def test_every_transfer_syntax_has_a_decoder_here():
    found = decoders()
    assert found.keys() == TRANSFER_SYNTAXES.keys()
    assert all(found.values())
    assert found["JPEG Extended (12 bits)"] == ["gdcm"]


def test_a_folder_dl_beside_a_notebook_does_not_hide_the_decoders(tmp_path):
    """GDCM imports a module of that name, which Python no longer has."""
    (tmp_path / "dl").mkdir()
    code = "from oneround.data.dicom import decoders; assert decoders()['JPEG-LS Lossless']"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
