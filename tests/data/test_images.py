import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from oneround.data import images as module
from oneround.data.images import ONE_VALUE, TWO_VALUES, fit, read_file, read_image, read_original
from oneround.errors import OneRoundError
from oneround.study import ImageSpec
from tests.data.files import RAMP, write_dicom, write_tiff

GRAY = ImageSpec(channels=1, height=8, width=12)
COLOR = ImageSpec(channels=3, height=8, width=12)


def random_array(*shape, high=256, dtype=np.uint8, low=0, seed=0):
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


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


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_of_any_order_turned_and_with_white_as_zero(
    tmp_path, endian, orientation, photometric, dtype
):
    full = np.iinfo(dtype).max
    array = random_array(5, 12, high=full, dtype=dtype)
    path = write_tiff(tmp_path / "a.tif", array, photometric, endian, t274=orientation)
    shown = array if photometric else full - array
    turned = {
        1: shown, 2: shown[:, ::-1], 3: shown[::-1, ::-1], 4: shown[::-1], 5: shown.T,
        6: np.rot90(shown, -1), 7: shown[::-1, ::-1].T, 8: np.rot90(shown),
    }  # fmt: skip
    pixels = read_original(path)[0].numpy()
    scale = 1 if dtype == np.uint8 else full
    np.testing.assert_allclose(pixels, turned[orientation] / scale, atol=1e-6)


def test_compressed_tiff_with_white_as_zero(tmp_path):
    array = random_array(5, 7, high=65536, dtype=np.uint16)
    picture = Image.fromarray(array)
    picture.save(tmp_path / "a.tif", compression="tiff_lzw", tiffinfo={262: 0})
    pixels = read_original(tmp_path / "a.tif")[0].numpy()
    np.testing.assert_allclose(pixels, 1 - array / 65535, atol=1e-6)


def test_tiff_packed_to_12_bits(tmp_path):
    array = random_array(4, 6, high=4096, dtype=np.uint16)
    path = write_tiff(tmp_path / "a.tif", array, 1, t258=12)
    first, second = array.reshape(-1, 2).T
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1)
    path.write_bytes(path.read_bytes()[: -array.nbytes] + packed.astype(np.uint8).tobytes())
    np.testing.assert_allclose(read_original(path)[0].numpy(), array / 4095, atol=1e-6)


def test_signed_and_32_bit_tiff_are_refused(tmp_path):
    for array, form in ((random_array(4, 4, dtype=np.int16), 2), (RAMP.astype(np.uint32), 1)):
        path = write_tiff(tmp_path / "a.tif", array, 1, t339=form)
        with pytest.raises(OneRoundError, match="8- or 16-bit"):
            read_image(path, GRAY)


def write_16_bit_png(path, array):
    """PNG of gray (H, W, 1), gray with alpha, RGB or RGBA, with a gamma that is not to be used."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    height, width, channels = array.shape
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0))
        + chunk(b"gAMA", struct.pack(">I", 100000))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_the_upper_8_bits_of_16_bit_colors(tmp_path, channels):
    array = random_array(5, 7, channels, high=65536, dtype=np.uint16)
    original = read_file(write_16_bit_png(tmp_path / "a.png", array))
    shown = array[..., [0, 0, 0]] if channels == 2 else array[..., :3]
    assert np.array_equal(original.frames[0].numpy(), (shown >> 8).transpose(2, 0, 1))
    assert original.top == pytest.approx((shown.max() >> 8) / 255)


def test_12_bit_values_in_16_bits_are_told(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    Image.fromarray(RAMP).save(tmp_path / "b.tif")
    write_16_bit_png(tmp_path / "c.png", np.stack([RAMP] * 3, -1))
    write_tiff(tmp_path / "d.tif", RAMP, 0)
    for name in ("a.png", "b.tif", "c.png", "d.tif"):
        original = read_file(tmp_path / name)
        assert original.top == pytest.approx(4095 / 65535, abs=0.004)
        assert original.notices == (), "the reader of a data set says so of all images together"
    Image.fromarray(RAMP * 16).save(tmp_path / "a.png")
    original = read_file(tmp_path / "a.png")
    assert original.notices == ()
    assert original.top == pytest.approx(1, abs=0.001)
    Image.fromarray((RAMP >> 8).astype(np.uint8)).save(tmp_path / "a.png")
    assert read_file(tmp_path / "a.png").top is None


def test_cmyk_and_interlaced_pictures_as_pillow(tmp_path):
    array = random_array(8, 8, 4)
    Image.fromarray(array, "CMYK").save(tmp_path / "a.tif")
    expected = np.asarray(Image.fromarray(array, "CMYK").convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(read_original(tmp_path / "a.tif").numpy(), expected)
    Image.fromarray(array, "CMYK").save(tmp_path / "a.jpg", quality=100, subsampling=0)
    decoded = read_original(tmp_path / "a.jpg").numpy().astype(int)
    assert np.abs(decoded - expected).max() <= 6


def test_constant_and_two_valued_pictures_are_told(tmp_path):
    two = random_array(8, 8, high=2) * 200
    for array, notices in (
        (np.full((8, 8), 7, np.uint8), (ONE_VALUE,)),
        (np.full((8, 8, 3), (7, 8, 9), np.uint8), (ONE_VALUE,)),
        (two, (TWO_VALUES,)),
        (np.stack([two] * 3, -1), (TWO_VALUES,)),
        (two.astype(bool), ()),
        (random_array(8, 8), ()),
    ):
        Image.fromarray(array).save(tmp_path / "a.png")
        assert read_file(tmp_path / "a.png").notices == notices


def test_one_pixel_that_differs_is_a_value(tmp_path):
    array = np.zeros((100, 100), np.uint8)
    array[7, 7], array[93, 8] = 1, 2
    Image.fromarray(array).save(tmp_path / "a.png")
    assert read_file(tmp_path / "a.png").notices == ()
    array[7, 7] = 0
    Image.fromarray(array).save(tmp_path / "a.png")
    assert read_file(tmp_path / "a.png").notices == (TWO_VALUES,)


def test_frames_of_tiff(tmp_path):
    pages = [random_array(4, 6, seed=seed) for seed in range(3)]
    first, *others = (Image.fromarray(page) for page in pages)
    first.save(tmp_path / "a.tif", save_all=True, append_images=others)
    with pytest.raises(OneRoundError, match="several frames") as caught:
        read_file(tmp_path / "a.tif")
    assert caught.value.file == str(tmp_path / "a.tif")
    each = read_file(tmp_path / "a.tif", ImageSpec(frames="each")).frames
    assert np.array_equal(each[:, 0].numpy(), pages)
    middle = read_file(tmp_path / "a.tif", ImageSpec(frames="middle")).frames
    assert torch.equal(middle, each[1:2])
    assert torch.equal(read_original(tmp_path / "a.tif", ImageSpec(frames="each")), each[0])
    others[1] = Image.fromarray(random_array(9, 9))
    first.save(tmp_path / "a.tif", save_all=True, append_images=others)
    with pytest.raises(OneRoundError, match="different sizes"):
        read_file(tmp_path / "a.tif", ImageSpec(frames="each"))


def test_too_little_memory_is_no_damaged_file(tmp_path, monkeypatch):
    Image.fromarray(random_array(4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr(module, "_picture", lambda source: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        read_file(tmp_path / "a.png")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.1, 1.1])
def test_no_reader_gives_other_than_numbers_in_0_to_1(tmp_path, monkeypatch, bad):
    Image.fromarray(random_array(4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr(module, "_picture", lambda source: np.full((4, 4, 1), bad, np.float32))
    with pytest.raises(OneRoundError, match="finite numbers") as caught:
        read_file(tmp_path / "a.png")
    assert caught.value.file == str(tmp_path / "a.png")


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


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (4, 12, (2, 6, 0, 12)),  # needs no resizing
        (16, 12, (0, 8, 3, 9)),
        (20, 24, (0, 8, 1, 11)),  # 9.6 columns become 10
        (7, 12, (0, 7, 0, 12)),  # of 1 row of black, it is at the bottom
        (9, 100, (3, 4, 0, 12)),
        (100, 1, (0, 8, 5, 6)),
    ],
)
def test_padding_keeps_the_aspect_ratio(height, width, box):
    image = GRAY.model_copy(update={"aspect": "pad"})
    fitted = fit(torch.full((2, 1, height, width), 0.5), image)
    top, bottom, left, right = box
    expected = torch.zeros(2, 1, 8, 12)
    expected[:, :, top:bottom, left:right] = 0.5
    torch.testing.assert_close(fitted, expected)
    assert fit(torch.full((1, 3, height, width), 7, dtype=torch.uint8), image).max() == 7


def test_padded_pixels_are_the_resized_ones():
    array = random_array(16, 12)
    fitted = fit(torch.from_numpy(array)[None, None], GRAY.model_copy(update={"aspect": "pad"}))
    expected = np.asarray(Image.fromarray(array).resize((6, 8), Image.Resampling.BILINEAR))
    assert np.abs(fitted[0, 0, :, 3:9].numpy().astype(int) - expected.astype(int)).max() <= 1
