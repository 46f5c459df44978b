import io

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from oneround.data.images import fit, read_image, read_original
from oneround.errors import OneRoundError
from oneround.study import ImageSpec

GRAY = ImageSpec(channels=1, height=8, width=12)
COLOR = ImageSpec(channels=3, height=8, width=12)


def random_array(*shape, high=256, dtype=np.uint8, low=0, seed=0):
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def write_dicom(path, pixels, **tags):
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.save_as(path, enforce_file_format=True)
    return path


# Pictures


def test_rows_and_columns_stay_in_place(tmp_path):
    array = random_array(8, 12, 3)
    Image.fromarray(array).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png", COLOR)
    assert pixels.shape == (3, 8, 12)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, torch.from_numpy(array).permute(2, 0, 1) / 255)


@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp"])
def test_lossless_formats_keep_8_bits(tmp_path, suffix):
    array = random_array(5, 7)
    Image.fromarray(array).save(tmp_path / f"a.{suffix}")
    pixels = read_original(tmp_path / f"a.{suffix}")
    assert pixels.dtype == torch.uint8
    assert np.array_equal(pixels[0].numpy(), array)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_is_divided_by_65535(tmp_path, suffix):
    array = random_array(5, 7, high=65536, dtype=np.uint16)
    Image.fromarray(array).save(tmp_path / f"a.{suffix}")
    pixels = read_original(tmp_path / f"a.{suffix}")
    np.testing.assert_allclose(pixels[0].numpy(), array / 65535, rtol=1e-6)


def test_alpha_is_dropped(tmp_path):
    array = random_array(5, 7, 4)
    Image.fromarray(array).save(tmp_path / "a.png")
    assert np.array_equal(
        read_original(tmp_path / "a.png").numpy(), array[..., :3].transpose(2, 0, 1)
    )
    Image.fromarray(array[..., :2]).save(tmp_path / "b.png")
    assert np.array_equal(read_original(tmp_path / "b.png")[0].numpy(), array[..., 0])


def test_palettes_are_resolved(tmp_path):
    picture = Image.fromarray(random_array(5, 7, 3) // 128 * 128).quantize(16)
    picture.save(tmp_path / "a.png", transparency=bytes(range(16)))
    expected = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(read_original(tmp_path / "a.png").numpy(), expected)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    array = random_array(5, 7, 3)
    Image.fromarray(array).save(tmp_path / "a.png", exif=exif)
    expected = np.rot90(array, -1).transpose(2, 0, 1)
    assert np.array_equal(read_original(tmp_path / "a.png").numpy(), expected)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"not an image", "cannot be read"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "cannot be read"),
        (bytes(128) + b"DICM" + b"\xff" * 50, "cannot be read"),
    ],
)
def test_files_that_are_no_images_are_named(tmp_path, content, reason):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(OneRoundError, match=reason) as caught:
        read_image(tmp_path / "a.png", GRAY)
    assert caught.value.file == str(tmp_path / "a.png")


def test_truncated_jpeg(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(random_array(64, 64, 3)).save(buffer, "jpeg")
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue()[:1500])
    with pytest.raises(OneRoundError, match="truncated"):
        read_image(tmp_path / "a.jpg", GRAY)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(OneRoundError, match="no such file") as caught:
        read_image(tmp_path / "a.png", GRAY)
    assert caught.value.remedy == "Check the path and its permissions."
    with pytest.raises(OneRoundError, match="directory"):
        read_image(tmp_path, GRAY)


def test_float_and_animated_tiff_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(OneRoundError, match="8- or 16-bit"):
        read_image(tmp_path / "a.tiff", GRAY)
    frame = Image.fromarray(random_array(4, 4))
    frame.save(tmp_path / "b.tiff", save_all=True, append_images=[frame])
    with pytest.raises(OneRoundError, match="several frames"):
        read_image(tmp_path / "b.tiff", GRAY)


def test_decompression_bombs_are_refused(tmp_path, monkeypatch):
    Image.fromarray(random_array(32, 32)).save(tmp_path / "a.png")
    write_dicom(tmp_path / "a.dcm", random_array(32, 32))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(OneRoundError, match="bomb"):
        read_image(tmp_path / "a.png", GRAY)
    with pytest.raises(OneRoundError, match="more than 200"):
        read_image(tmp_path / "a.dcm", GRAY)


# Channels and size


def test_color_to_gray_as_pillow(tmp_path):
    array = random_array(8, 12, 3)
    images = torch.from_numpy(array).permute(2, 0, 1)[None]
    expected = np.asarray(Image.fromarray(array).convert("L")).astype(int)
    assert np.abs(fit(images, GRAY)[0, 0].numpy().astype(int) - expected).max() <= 1


def test_gray_to_color_repeats():
    images = torch.from_numpy(random_array(2, 1, 8, 12))
    assert torch.equal(fit(images, COLOR), images.repeat(1, 3, 1, 1))


@pytest.mark.parametrize("size", [(32, 36), (100, 20), (4, 5)])
def test_resize_as_pillow(size):
    array = random_array(*size)
    expected = np.asarray(Image.fromarray(array).resize((12, 8), Image.Resampling.BILINEAR))
    fitted = fit(torch.from_numpy(array)[None, None], GRAY)
    assert fitted.dtype == torch.uint8
    assert np.abs(fitted[0, 0].numpy().astype(int) - expected.astype(int)).max() <= 1


def test_fit_leaves_fitting_images_alone():
    images = torch.rand(2, 1, 8, 12)
    assert fit(images, GRAY) is images


# DICOM


def test_dicom_without_window_goes_from_minimum_to_maximum(tmp_path):
    array = random_array(5, 7, low=100, high=900, dtype=np.uint16)
    pixels = read_original(write_dicom(tmp_path / "no-suffix", array))[0].numpy()
    assert pixels.dtype == np.float32
    expected = (array - array.min()) / (array.max() - array.min())
    np.testing.assert_allclose(pixels, expected, atol=1e-6)


def test_constant_dicom_is_black(tmp_path):
    pixels = read_original(write_dicom(tmp_path / "a.dcm", np.full((4, 5), 7, np.uint8)))
    assert (pixels == 0).all()


@pytest.mark.parametrize("function", [None, "LINEAR_EXACT", "SIGMOID"])
def test_12_bit_window_as_pydicom(tmp_path, function):
    array = random_array(5, 7, high=4096, dtype=np.uint16)
    tags = {"BitsStored": 12, "WindowCenter": [1500, 9], "WindowWidth": [1000, 9]}
    if function:
        tags["VOILUTFunction"] = function
    path = write_dicom(tmp_path / "a.dcm", array, **tags)
    expected = apply_voi_lut(array, pydicom.dcmread(path)) / 4095
    np.testing.assert_allclose(read_original(path)[0].numpy(), expected, atol=1e-6)


def test_signed_with_rescale_and_window(tmp_path):
    array = random_array(5, 7, low=-1000, high=1000, dtype=np.int16)
    tags = {"RescaleSlope": 2, "RescaleIntercept": -24, "WindowCenter": 40, "WindowWidth": 400}
    path = write_dicom(tmp_path / "a.dcm", array, **tags)
    hounsfield = array.astype(float) * 2 - 24
    expected = np.clip((hounsfield - 39.5) / 399 + 0.5, 0, 1)
    pixels = read_original(path)[0].numpy()
    np.testing.assert_allclose(pixels, expected, atol=1e-6)
    dataset = pydicom.dcmread(path)
    reference = apply_voi_lut(apply_modality_lut(array, dataset), dataset)
    low, high = -32768 * 2 - 24, 32767 * 2 - 24
    np.testing.assert_allclose(pixels, (reference - low) / (high - low), atol=1e-6)


def test_voi_lookup_table(tmp_path):
    table = Dataset()
    table.LUTDescriptor = [4, 10, 10]
    table.add_new("LUTData", "US", [0, 100, 1000, 1023])
    array = np.array([[5, 10, 11], [12, 13, 99]], np.uint8)
    path = write_dicom(tmp_path / "a.dcm", array, VOILUTSequence=[table])
    expected = np.array([[0, 0, 100], [1000, 1023, 1023]]) / 1023
    np.testing.assert_allclose(read_original(path)[0].numpy(), expected, atol=1e-6)


def test_monochrome1_is_inverted(tmp_path):
    array = random_array(5, 7, high=4096, dtype=np.uint16)
    tags = {"BitsStored": 12, "WindowCenter": 1500, "WindowWidth": 1000}
    bright = read_original(write_dicom(tmp_path / "a.dcm", array, **tags))
    tags["PhotometricInterpretation"] = "MONOCHROME1"
    dark = read_original(write_dicom(tmp_path / "b.dcm", array, **tags))
    torch.testing.assert_close(dark, 1 - bright)


def test_color_dicom(tmp_path):
    array = random_array(5, 7, 3)
    pixels = read_original(write_dicom(tmp_path / "a.dcm", array))
    assert pixels.dtype == torch.uint8
    assert np.array_equal(pixels.numpy(), array.transpose(2, 0, 1))


def test_unsupported_dicom_is_refused(tmp_path):
    array = random_array(6, 7)
    path = write_dicom(tmp_path / "a.dcm", array, NumberOfFrames=2, Rows=3)
    with pytest.raises(OneRoundError, match="several frames"):
        read_original(path)
    path = write_dicom(tmp_path / "b.dcm", array, PhotometricInterpretation="PALETTE COLOR")
    with pytest.raises(OneRoundError, match="PALETTE COLOR"):
        read_original(path)


def test_missing_pydicom_is_explained(tmp_path, monkeypatch):
    path = write_dicom(tmp_path / "a.dcm", random_array(4, 4))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OneRoundError, match=r"oneround\[dicom\]"):
        read_original(path)
