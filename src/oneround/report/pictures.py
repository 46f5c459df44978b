"""The example images of a run as PNG images inside the page."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from oneround.errors import OneRoundError

_BYTES = 700_000  # of pixels in one section, so that the page stays below 3 MB
_PER_GROUP = 10
_SIDE = 96  # of the largest image; smaller ones are enlarged to about 64


@dataclass(frozen=True)
class Picture:
    """One image on the page.

    Attributes:
        uri: The image as a data URI.
        alt: Text in place of the image, for screen readers.
        caption: Text below the image; may be empty.
        width: Width on the page, in pixels.
        height: Height on the page, in pixels.
    """

    uri: str
    alt: str
    caption: str
    width: int
    height: int


@dataclass(frozen=True)
class Gallery:
    """Example images of a run.

    Attributes:
        bank: Bank images by class.
        noise: Structure noise by family.
        mixed: Pseudo intermediate samples, the largest λ first.
        mix: What bank images were mixed with: ``noise``, ``bank`` or ``none``.
    """

    bank: dict[str, list[Picture]]
    noise: dict[str, list[Picture]]
    mixed: list[Picture]
    mix: str


def read_gallery(path: Path, classes: Sequence[str]) -> Gallery | None:
    """The gallery in ``path``, or ``None`` if there is no such file.

    The file of :func:`oneround.distillation.gallery.write_gallery` holds ``bank``, ``noise`` and
    ``mixed``, each (N, C, H, W) ``uint8`` and optional; ``bank_targets`` and ``noise_families``,
    (N,) ``int64``; ``mixed_lambda``, (N,) ``float32``; and in its metadata ``about``: JSON with
    ``noise_families``, a list of names, and ``mix``.

    Raises:
        OneRoundError: the file cannot be read.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            if not isinstance(about, dict):
                raise ValueError("its metadata is no table")
    except (SafetensorError, OSError, ValueError) as error:
        raise OneRoundError(
            f"cannot read the gallery: {error}.",
            file=path,
            remedy="Remove the file, and the page is written without it.",
        ) from error
    names = about.get("noise_families", [])
    return Gallery(
        bank=_groups(tensors, "bank", "bank_targets", classes, "synthesized image"),
        noise=_groups(tensors, "noise", "noise_families", names, "structure noise"),
        mixed=_mixed(tensors),
        mix=about.get("mix", "noise"),
    )


def _groups(
    tensors: dict[str, Tensor], images: str, indices: str, names: Sequence[str], what: str
) -> dict[str, list[Picture]]:
    if images not in tensors:
        return {}
    present = [i for i in range(len(names)) if (tensors[indices] == i).any()]
    side, count = _budget(tensors[images], groups=len(present))
    return {
        names[i]: [
            _picture(image, side, f"{what}, {names[i]}")
            for image in tensors[images][tensors[indices] == i][:count]
        ]
        for i in present
    }


def _mixed(tensors: dict[str, Tensor]) -> list[Picture]:
    if "mixed" not in tensors:
        return []
    side, count = _budget(tensors["mixed"], groups=2)  # as many as two groups
    shares, order = tensors["mixed_lambda"][: 2 * count].sort(descending=True)
    return [
        _picture(tensors["mixed"][i], side, f"bank image × {share:.2f} + noise", f"λ {share:.2f}")
        for share, i in zip(shares.tolist(), order.tolist(), strict=True)
    ]


def _budget(images: Tensor, *, groups: int) -> tuple[int, int]:
    """Longest side in pixels, and number of images in each group, within the size of the page."""
    channels, longest = images.shape[1], max(images.shape[2:])
    room = _BYTES / (channels * max(1, groups))
    side = min(_SIDE, longest, int(room**0.5))
    return side, min(_PER_GROUP, int(room / side**2))


def _picture(image: Tensor, side: int, alt: str, caption: str = "") -> Picture:
    """An image, (C, H, W) ``uint8``, reduced to ``side`` and shown at a whole multiple of it."""
    pixels = image.movedim(0, -1).squeeze(-1).numpy()
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side), Image.Resampling.BOX)
    png = io.BytesIO()
    picture.save(png, "PNG", optimize=True)
    scale = max(1, round(64 / max(picture.size)))
    return Picture(
        uri="data:image/png;base64," + base64.b64encode(png.getvalue()).decode(),
        alt=alt,
        caption=caption,
        width=scale * picture.width,
        height=scale * picture.height,
    )
