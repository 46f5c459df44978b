"""One image file (PNG, JPEG, TIFF, BMP or DICOM) as pixels of the size that the study asks for."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps

from oneround.errors import OneRoundError
from oneround.study import ImageSpec

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's "L"
SUPPORTED = "Supported are PNG, JPEG, TIFF, BMP and DICOM images with one frame."


@dataclass(frozen=True)
class Original:
    """Images of one file in their own size, and what there is to know of it."""

    frames: torch.Tensor
    patient: str | None = None
    notices: tuple[str, ...] = ()
    top: float | None = None


def read_file(path: str | os.PathLike[str], image: ImageSpec | None = None) -> Original:
    """The images of a file."""
    return Original(read_original(path)[None])


def read_image(path: str | os.PathLike[str], image: ImageSpec) -> torch.Tensor:
    """Pixels of one image file, (C, H, W) = ``image.shape``, ``float32`` in [0, 1].

    The same pixels as :func:`oneround.data.read_splits` reads from this file.

    Raises:
        OneRoundError: the file is missing, empty, corrupt or not a supported image.
    """
    pixels = fit(read_original(path)[None], image)[0]
    return pixels.float().div(255) if pixels.dtype == torch.uint8 else pixels


def read_images(path: str | os.PathLike[str], image: ImageSpec) -> torch.Tensor:
    """Pixels of all images in one file, (F, C, H, W), ``float32`` in [0, 1]."""
    pixels = fit(read_file(path, image).frames, image)
    return pixels.float().div(255) if pixels.dtype == torch.uint8 else pixels


def read_original(path: str | os.PathLike[str]) -> torch.Tensor:
    """Pixels of one image file in its own size, (1 or 3, H, W).

    ``uint8`` in [0, 255] if the file has 8 bits per channel; ``float32`` in [0, 1] if it has
    more: 16-bit values are divided by 65535; gray DICOM values are scaled by the window of the
    file or, if it has none, from minimum to maximum. Transparency is dropped, palettes are
    resolved, and the EXIF orientation is applied.

    Raises:
        OneRoundError: the file is missing, empty, corrupt or not a supported image.
    """
    try:
        with open(path, "rb") as file:
            is_dicom = file.read(132)[128:] == b"DICM"
        pixels = _read_dicom(path) if is_dicom else _read_picture(path)
    except OneRoundError:
        raise
    except Exception as error:  # decoders of damaged files raise nearly anything
        missing = isinstance(error, OSError) and error.errno  # not an error of a decoder
        remedy = "Check the path and its permissions." if missing else SUPPORTED
        raise OneRoundError(_reason(path, error), file=path, remedy=remedy) from error
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def fit(images: torch.Tensor, image: ImageSpec) -> torch.Tensor:
    """Convert images, (N, 1 or 3, H, W), to the channels and size of ``image``.

    Color becomes gray by luma (ITU-R BT.601). Resizing is bilinear with antialiasing and changes
    the aspect ratio where it differs, as in MedMNIST: nothing is cropped or padded.

    Returns:
        (N, C, H, W) of ``image.shape``, in the type and range of ``images``.
    """
    if images.shape[1:] == image.shape:
        return images
    pixels = images.float()
    if pixels.shape[1] > image.channels:
        pixels = (pixels * torch.tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
    if pixels.shape[2:] != image.shape[1:]:
        pixels = torch.nn.functional.interpolate(
            pixels, size=image.shape[1:], mode="bilinear", antialias=True
        )
    pixels = pixels.expand(-1, image.channels, -1, -1)
    if images.dtype == torch.uint8:
        return pixels.round().clamp(0, 255).to(torch.uint8)
    return pixels.clamp(0, 1)


def _reason(path: str | os.PathLike[str], error: Exception) -> str:
    """What an exception of the system or of a decoder means, in one sentence."""
    if isinstance(error, FileNotFoundError):
        return "no such file."
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "the file is empty."
    cause = " ".join(str(getattr(error, "strerror", None) or error).split())
    return f"cannot be read as an image: {cause or type(error).__name__}."


def _read_picture(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """(H, W, 1 or 3), ``uint8`` or ``float32`` in [0, 1]."""
    with Image.open(path, formats=FORMATS) as source:
        if source.format != "MPO" and getattr(source, "n_frames", 1) > 1:
            raise ValueError("it has several frames")
        picture = ImageOps.exif_transpose(source)
    if picture.mode.startswith("I") or picture.mode == "F":
        return _from_16_bit(np.asarray(picture))[..., None]
    if picture.mode in ("1", "L", "LA", "La"):
        return np.asarray(picture.convert("L"))[..., None]
    if picture.mode == "P":
        picture = picture.convert("RGBA")  # resolves palettes with and without transparency
    return np.asarray(picture.convert("RGB"))


def _from_16_bit(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Unsigned 16-bit values, which Pillow may return as 32-bit ones, scaled to [0, 1]."""
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise ValueError("its values are not unsigned 8- or 16-bit integers")
    return values.astype(np.float32) / 65535


def _read_dicom(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """(H, W, 1 or 3), ``uint8`` or ``float32`` in [0, 1].

    MONAI's reader opens the file, but would apply only the linear rescale to the pixels, so
    pydicom and :func:`_window` apply lookup tables and windows.
    """
    if importlib.util.find_spec("pydicom") is None:
        raise OneRoundError(
            "is a DICOM file, and pydicom is not installed.",
            file=path,
            remedy="Install it with `pip install 'oneround[dicom]'`.",
        )
    from monai.data import PydicomReader  # takes a second to import

    dataset = PydicomReader().read(os.fspath(path))
    _refuse_unsupported(dataset)
    if dataset.SamplesPerPixel == 3:
        colors: npt.NDArray[Any] = dataset.pixel_array  # pydicom converts YBR to RGB
        return colors if colors.dtype == np.uint8 else _from_16_bit(colors)
    pixels = _gray_levels(dataset)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        pixels = 1 - pixels
    return pixels.astype(np.float32)[..., None]


def _gray_levels(dataset: Any) -> npt.NDArray[np.float64]:
    """(H, W) in [0, 1]: rescaled, then by the lookup table, the window or minimum and maximum."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    values = apply_modality_lut(dataset.pixel_array, dataset).astype(np.float64)
    if dataset.get("VOILUTSequence"):
        bits = dataset.VOILUTSequence[0].LUTDescriptor[2]
        table = apply_voi_lut(np.rint(values).astype(np.int64), dataset)
        return np.asarray(table / (2**bits - 1))
    if dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        return _window(values, dataset)
    low, high = values.min(), values.max()
    return np.asarray((values - low) / max(high - low, 1e-12))


def _refuse_unsupported(dataset: Any) -> None:
    """Refuse several frames, palettes and implausibly large images before they are decoded.

    Raises:
        ValueError: the file has one of these.
    """
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise ValueError("it has several frames")
    kind = dataset.PhotometricInterpretation
    if kind not in ("MONOCHROME1", "MONOCHROME2", "RGB") and not kind.startswith("YBR"):
        raise ValueError(f"photometric interpretation {kind} is not supported")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and dataset.Rows * dataset.Columns > 2 * limit:
        raise ValueError(f"{dataset.Rows} x {dataset.Columns} pixels are more than {2 * limit}")


def _window(values: npt.NDArray[np.float64], dataset: Any) -> npt.NDArray[np.float64]:
    """Values scaled to [0, 1] by the first window of a DICOM file (PS3.3, C.11.2.1.2 and 3)."""
    center, width = (
        float(np.atleast_1d(dataset[name].value)[0]) for name in ("WindowCenter", "WindowWidth")
    )
    function = dataset.get("VOILUTFunction") or "LINEAR"
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - center) / width))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    width = max(width, 1e-12)  # a window of width 1 is a threshold
    return np.clip((values - center) / width + 0.5, 0, 1)
