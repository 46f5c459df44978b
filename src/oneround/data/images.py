"""One image file (PNG, JPEG, TIFF, BMP or DICOM) as pixels of the size that the study asks for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from oneround.data.dicom import looks_like_dicom, read_dicom
from oneround.data.frames import chosen_frames
from oneround.errors import OneRoundError
from oneround.study import ImageSpec

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's "L"
SUPPORTED = "Supported are PNG, JPEG, TIFF, BMP and DICOM images."
ONE_VALUE = "all pixels have one gray value"
TWO_VALUES = "all pixels have one of two gray values"
# WhiteIsZero with 16 bits in big endian, which Pillow does not know as it does little endian
TiffImagePlugin.OPEN_INFO.setdefault(
    (TiffImagePlugin.MM, 0, (1,), 1, (16,), ()), ("I;16B", "I;16B")
)
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF


@dataclass(frozen=True)
class Original:
    """What is read from one image file, in its own size.

    Attributes:
        frames: (F, 1 or 3, H, W), ``uint8`` in [0, 255] if the file has 8 bits per channel, else
            ``float32`` in [0, 1].
        patient: PatientID of a DICOM file, if it has one: to tell patients apart at the site.
            It stays in memory.
        notices: what a site should be told of although the image is read: sentences without the
            file's name, equal for all files that they are true of.
        top: largest value of a picture with 16 bits, as a share of full scale, in [0, 1]; ``None``
            for 8 bits and for DICOM.
    """

    frames: torch.Tensor
    patient: str | None = None
    notices: tuple[str, ...] = ()
    top: float | None = None


def read_image(path: str | os.PathLike[str], image: ImageSpec) -> torch.Tensor:
    """Pixels of one image file, (C, H, W) = ``image.shape``, ``float32`` in [0, 1].

    The same pixels as :func:`oneround.data.read_splits` reads from this file, which rounds those of
    more than 8 bits to 16; where every frame is an image, the first.

    Raises:
        OneRoundError: the file is missing, empty, corrupt or not a supported image.
    """
    return read_images(path, image)[0]


def read_images(path: str | os.PathLike[str], image: ImageSpec) -> torch.Tensor:
    """The same for all images in a file, (F, C, H, W)."""
    pixels = fit(read_file(path, image).frames, image)
    return pixels.float().div(255) if pixels.dtype == torch.uint8 else pixels


def read_original(path: str | os.PathLike[str], image: ImageSpec | None = None) -> torch.Tensor:
    """Pixels of the first frame of :func:`read_file`, (1 or 3, H, W).

    Raises:
        OneRoundError: the file is missing, empty, corrupt or not a supported image.
    """
    return read_file(path, image).frames[0]


def read_file(path: str | os.PathLike[str], image: ImageSpec | None = None) -> Original:
    """All that is read from one image file.

    Pictures: transparency is dropped, palettes are resolved, the EXIF orientation is applied, and
    WhiteIsZero is inverted. Gray values of more than 8 bits are divided by their full scale (65535
    for 16 bits); of colors with 16 bits the upper 8 are read. DICOM: gray values are windowed by
    the study, by the file, or from minimum to maximum (:mod:`oneround.data.dicom_gray`); colors
    are divided by full scale.

    Args:
        path: PNG, JPEG, TIFF, BMP or DICOM file.
        image: the study's image, of which ``window`` and ``frames`` count; ``None``: the defaults.

    Raises:
        OneRoundError: the file is missing, empty, corrupt or not a supported image, or has several
            frames of which the study chooses none.
    """
    image = image or ImageSpec()
    try:
        with open(path, "rb") as file:
            head = file.read(132)
        original = (
            _from_dicom(path, image) if looks_like_dicom(head) else _from_picture(path, image)
        )
        _check(original.frames)
        return original
    except MemoryError:
        raise
    except OneRoundError as error:  # of a part that does not know the file
        raise OneRoundError(error.reason, file=path, remedy=error.remedy) from error
    except Exception as error:  # decoders of damaged files raise nearly anything
        missing = isinstance(error, OSError) and error.errno  # not an error of a decoder
        remedy = "Check the path and its permissions." if missing else SUPPORTED
        raise OneRoundError(_reason(path, error), file=path, remedy=remedy) from error


def fit(images: torch.Tensor, image: ImageSpec) -> torch.Tensor:
    """Convert images, (N, 1 or 3, H, W), to the channels and size of ``image``.

    Color becomes gray by luma (ITU-R BT.601). Resizing is bilinear with antialiasing. Where the
    aspect ratio differs, it changes (``stretch``, as in MedMNIST), or black is added at both sides
    (``pad``; of an odd number of rows or columns, the last is at the bottom or at the right).
    Nothing is cropped.

    Returns:
        (N, C, H, W) of ``image.shape``, in the type and range of ``images``.
    """
    if images.shape[1:] == image.shape:
        return images
    pixels = images.float()
    if pixels.shape[1] > image.channels:
        pixels = (pixels * torch.tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
    pixels = _resized(pixels, image).expand(-1, image.channels, -1, -1)
    if images.dtype == torch.uint8:
        return pixels.round().clamp(0, 255).to(torch.uint8)
    return pixels.clamp(0, 1)


def _resized(pixels: torch.Tensor, image: ImageSpec) -> torch.Tensor:
    """Pixels, (N, C, h, w), as (N, C, H, W) of the height and width of ``image``."""
    old = tuple(pixels.shape[2:])
    scale = min(new / side for new, side in zip(image.shape[1:], old, strict=True))
    size: tuple[int, ...] = image.shape[1:]
    if image.aspect == "pad":
        size = tuple(max(1, round(side * scale)) for side in old)
    if size != old:
        pixels = torch.nn.functional.interpolate(pixels, size=size, mode="bilinear", antialias=True)
    rows, columns = (new - side for new, side in zip(image.shape[1:], size, strict=True))
    edges = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    return torch.nn.functional.pad(pixels, edges) if any(edges) else pixels


def _reason(path: str | os.PathLike[str], error: Exception) -> str:
    """What an exception of the system or of a decoder means, in one sentence."""
    if isinstance(error, FileNotFoundError):
        return "no such file."
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "the file is empty."
    if isinstance(error, UnidentifiedImageError):
        return "cannot be read as an image: its format is unknown."
    cause = " ".join(str(getattr(error, "strerror", None) or error).split())
    return f"cannot be read as an image: {cause or type(error).__name__}."


def _check(frames: torch.Tensor) -> None:
    """Refuse what is no image, whatever it came from.

    Raises:
        OneRoundError: there is no pixel, or one that is not a finite number in [0, 1].
    """
    if not frames.numel():
        raise OneRoundError("has no pixels.", remedy=SUPPORTED)
    if frames.dtype != torch.uint8 and not (frames.min() >= 0 and frames.max() <= 1):
        raise OneRoundError(
            "has pixels that are not finite numbers in [0, 1].",
            remedy="Export it again; see the window and the rescaling that its header states.",
        )


def _stacked(frames: list[npt.NDArray[Any]]) -> torch.Tensor:
    """(F, C, H, W) of frames of (H, W, C).

    Raises:
        ValueError: they have several sizes.
    """
    if len({frame.shape for frame in frames}) > 1:
        raise ValueError("its frames have different sizes")
    stack = frames[0][None] if len(frames) == 1 else np.stack(frames)
    return torch.from_numpy(stack.transpose(0, 3, 1, 2).copy())


def _contrast(frames: list[npt.NDArray[Any]], one_bit: bool) -> set[str]:
    """What a site should be told of images, (H, W, C), of one or two values."""
    counts = [_values(frame.reshape(-1, frame.shape[-1])) for frame in frames]
    notices = {ONE_VALUE} if 1 in counts else set()
    return notices | ({TWO_VALUES} if 2 in counts and not one_bit else set())


def _values(pixels: npt.NDArray[Any]) -> int:
    """Number of different values among pixels, (N, C); 3: three or more."""
    few = pixels[:: len(pixels) // 256 + 1]
    if len(np.unique(few, axis=0)) > 2:
        return 3
    others = pixels[(pixels != pixels[:1]).any(1)]
    return 1 if not len(others) else 2 if (others == others[:1]).all() else 3


def _from_dicom(path: str | os.PathLike[str], image: ImageSpec) -> Original:
    read = read_dicom(path, image)
    notices = read.notices | _contrast(read.frames, read.one_bit)
    return Original(_stacked(read.frames), read.patient, tuple(sorted(notices)))


def _from_picture(path: str | os.PathLike[str], image: ImageSpec) -> Original:
    # opened as a file: by its name, Pillow maps uncompressed TIFF and garbles what is turned
    with open(path, "rb") as file, Image.open(file, formats=FORMATS) as source:
        # the further pictures of MPO, a JPEG of some cameras, are views of the first
        count = 1 if source.format == "MPO" else getattr(source, "n_frames", 1)
        pages, tops, one_bit = [], [], False
        for index in chosen_frames(count, image):
            source.seek(index)
            raw = _raw_mode(source)
            one_bit |= raw in ("1", "1;I", "P;1")
            pages.append(_picture(source))
            if source.format in ("PNG", "TIFF") and ";16" in raw:
                tops.append(_top(pages[-1], source))
    notices = tuple(sorted(_contrast(pages, one_bit)))
    return Original(_stacked(pages), None, notices, max(tops, default=None))


def _raw_mode(source: Image.Image) -> str:
    """How Pillow names the pixels in the file, such as ``RGB;16B``."""
    tiles = getattr(source, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    return str(arguments if isinstance(arguments, str) else (arguments or [""])[0])


def _top(pixels: npt.NDArray[Any], source: Image.Image) -> float:
    """Largest stored value as a share of full scale; white is zero in some TIFF files."""
    full = 255 if pixels.dtype == np.uint8 else 1
    return float(full - pixels.min() if _white_is_zero(source) else pixels.max()) / full


def _white_is_zero(source: Image.Image) -> bool:
    return bool(_tag(source, PHOTOMETRIC, 1) == 0)


def _tag(source: Image.Image, tag: int, default: int) -> Any:
    """First value of a tag of a TIFF file; ``default`` if there is none."""
    value = getattr(source, "tag_v2", {}).get(tag, default)
    return value[0] if isinstance(value, tuple) else value


def _picture(source: Image.Image) -> npt.NDArray[Any]:
    """The frame that ``source`` is at, (H, W, 1 or 3), ``uint8`` or ``float32`` in [0, 1]."""
    picture = ImageOps.exif_transpose(source)
    if picture.mode.startswith("I") or picture.mode == "F":
        return _deep(np.asarray(picture), source)[..., None]
    if picture.mode in ("1", "L", "LA", "La"):
        return np.asarray(picture.convert("L"))[..., None]
    if picture.mode == "P":
        picture = picture.convert("RGBA")  # resolves palettes with and without transparency
    return np.asarray(picture.convert("RGB"))


def _deep(values: npt.NDArray[Any], source: Image.Image) -> npt.NDArray[np.float32]:
    """Gray values of 9 to 16 bits, which Pillow may return as 32-bit ones, scaled to [0, 1]."""
    bits = _tag(source, BITS_PER_SAMPLE, 16)
    full = 2**bits - 1
    unsigned = values.dtype.kind != "f" and _tag(source, SAMPLE_FORMAT, 1) == 1
    if not unsigned or bits > 16 or values.min() < 0 or values.max() > full:
        raise ValueError("its values are not unsigned 8- or 16-bit integers")
    levels = values.astype(np.float32) / full
    return np.asarray(1 - levels if _white_is_zero(source) else levels)
