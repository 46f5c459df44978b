"""Built-in demo images: cells as in a blood smear, drawn by this file and **not real**.

Six classes differ in structure (lobes, granules, nucleoli). Position, size, rotation, stain,
light, neighbors, focus and sensor noise vary alike in all of them, so that neither the mean
color nor a linear classifier tells the classes apart. The cells are schematic: good for
trying out the software, worth nothing as medical evidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from oneround.data.image_set import ImageSet, Splits


def phantoms(
    generator: torch.Generator,
    *,
    train: int = 1500,
    val: int = 300,
    test: int = 600,
    size: int = 32,
) -> Splits:
    """A data set of drawn cells: no patient, no microscope.

    Args:
        generator: on the CPU; the same state gives the same images.
        train: number of training images; in every split the classes are balanced.
        val: number of validation images.
        test: number of test images.
        size: height and width in pixels; the same seed draws other images at another size.

    Returns:
        ``uint8`` RGB images (N, 3, size, size) of :data:`PHANTOM_CLASSES`, in random order.
    """
    drawn = [_split(count, size, generator) for count in (train, val, test)]
    return Splits(train=drawn[0], val=drawn[1], test=drawn[2])


def _split(count: int, size: int, generator: torch.Generator) -> ImageSet:
    labels = torch.randperm(count, generator=generator) % len(PHANTOM_CLASSES)
    return ImageSet(draw_cells(labels, size, generator), labels, PHANTOM_CLASSES)


def draw_cells(labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """One image for each label.

    Args:
        labels: indices into :data:`PHANTOM_CLASSES`, (N,) ``int64``.
        size: height and width in pixels.
        generator: on the CPU.

    Returns:
        (N, 3, size, size) ``uint8``.
    """
    count = len(labels)
    stain = _stain(count, generator)
    image = _background(stain, size, generator)
    radius = _uniform(generator, 0.24, 0.34, count)
    center = _uniform(generator, -0.14, 0.14, count, 2)
    u, v = _seen_from(center, _uniform(generator, 0, math.tau, count), radius, size)
    cell = torch.empty(4, count, size, size)
    for label, draw in enumerate(_CLASSES.values()):
        chosen = (labels == label).nonzero().flatten()
        cell[:, chosen] = torch.stack(draw(u[chosen], v[chosen], generator))
    image = _paint_cell(image, Cell(*cell), radius, stain, generator)
    return _photograph(image, generator)


# Shapes. Lengths are in units of the cell's radius, angles in radians; u and v (n, H, W) are
# the coordinates of the pixels seen from the cell's center. All give signed distances
# (n, H, W), negative inside.


class Cell(NamedTuple):
    """What a cell is made of: four signed distances, each (n, H, W)."""

    body: Tensor
    nucleus: Tensor
    granules: Tensor
    nucleoli: Tensor


def _round_nucleus(u: Tensor, v: Tensor, generator: torch.Generator) -> Cell:
    radius = _uniform(generator, 0.5, 0.78, len(u), 1)
    center = _around(_uniform(generator, 0, 0.2, len(u), 1), generator)
    return Cell(_body(u, v, generator), _discs(u, v, center, radius), _none(u), _none(u))


def _segmented_nucleus(u: Tensor, v: Tensor, generator: torch.Generator) -> Cell:
    """Three or four lobes on an arc, joined by threads."""
    lobes, step, arc = 4, 1.25, 0.46
    number = torch.randint(3, lobes + 1, (len(u), 1), generator=generator)
    angle = step * torch.arange(lobes) + _uniform(generator, -0.15, 0.15, len(u), lobes)
    distance = _uniform(generator, arc - 0.06, arc + 0.1, len(u), lobes)
    radius = _uniform(generator, 0.24, 0.32, len(u), lobes)
    radius = torch.where(torch.arange(lobes) < number, radius, -1.0)
    nucleus = _discs(u, v, _polar(distance, angle), radius)
    span = (number[:, 0] - 1) * step / 2
    threads = _arc(u, v, torch.full((len(u),), arc), span, span, torch.tensor(0.07))
    return Cell(_body(u, v, generator), torch.minimum(nucleus, threads), _none(u), _none(u))


def _kidney_nucleus(u: Tensor, v: Tensor, generator: torch.Generator) -> Cell:
    """A thick, smooth, bent band."""
    radius = _uniform(generator, 0.38, 0.48, len(u))
    span = _uniform(generator, 1.1, 1.7, len(u))
    thickness = _uniform(generator, 0.24, 0.3, len(u))
    nucleus = _arc(u, v, radius, span, torch.zeros(len(u)), thickness)
    return Cell(_body(u, v, generator), nucleus, _none(u), _none(u))


def _granular_cytoplasm(u: Tensor, v: Tensor, generator: torch.Generator) -> Cell:
    """A round nucleus off the center, and coarse granules all over."""
    nucleus = _around(_uniform(generator, 0.15, 0.4, len(u), 1), generator)
    radius = _uniform(generator, 0.4, 0.55, len(u), 1)
    granules = _around(0.85 * torch.rand(len(u), 26, generator=generator).sqrt(), generator)
    size = _uniform(generator, 0.08, 0.13, len(u), 26)
    return Cell(
        _body(u, v, generator),
        _discs(u, v, nucleus, radius),
        _discs(u, v, granules, size),
        _none(u),
    )


def _blast(u: Tensor, v: Tensor, generator: torch.Generator) -> Cell:
    """A large nucleus with two to four pale nucleoli."""
    radius = _uniform(generator, 0.68, 0.85, len(u), 1)
    center = _around(_uniform(generator, 0, 0.12, len(u), 1), generator)
    most = 4
    number = torch.randint(2, most + 1, (len(u), 1), generator=generator)
    turn = math.tau * torch.arange(most) / number + _uniform(generator, -0.3, 0.3, len(u), most)
    nucleoli = center + _polar(_uniform(generator, 0.25, 0.48, len(u), most), turn)
    size = _uniform(generator, 0.13, 0.19, len(u), most)
    size = torch.where(torch.arange(most) < number, size, -1.0)
    return Cell(
        _body(u, v, generator),
        _discs(u, v, center, radius),
        _none(u),
        _discs(u, v, nucleoli, size),
    )


def _platelet_clump(u: Tensor, v: Tensor, generator: torch.Generator) -> Cell:
    """Five to ten small plates with a dark middle, close together."""
    most = 10
    number = torch.randint(5, most + 1, (len(u), 1), generator=generator)
    present = torch.arange(most) < number
    centers = _around(0.9 * torch.rand(len(u), most, generator=generator).sqrt(), generator)
    plate = _uniform(generator, 0.2, 0.34, len(u), most)
    middle = plate * _uniform(generator, 0.4, 0.75, len(u), most)
    body, nucleus = (
        _discs(u, v, centers, torch.where(present, size, -1.0)) for size in (plate, middle)
    )
    return Cell(body, nucleus, _none(u), _none(u))


_CLASSES: dict[str, Callable[[Tensor, Tensor, torch.Generator], Cell]] = {
    "round nucleus": _round_nucleus,
    "segmented nucleus": _segmented_nucleus,
    "kidney-shaped nucleus": _kidney_nucleus,
    "granular cytoplasm": _granular_cytoplasm,
    "blast with nucleoli": _blast,
    "platelet clump": _platelet_clump,
}

PHANTOM_CLASSES: tuple[str, ...] = tuple(_CLASSES)
"""The classes, in the order of the labels."""


def _none(u: Tensor) -> Tensor:
    return torch.ones_like(u)


def _body(u: Tensor, v: Tensor, generator: torch.Generator) -> Tensor:
    """A disc of radius 1, slightly dented."""
    angle = torch.atan2(v, u)
    edge = torch.ones(())
    for waves in (2, 3, 5):
        depth = _images(_uniform(generator, 0, 0.05, len(u)))
        phase = _images(_uniform(generator, 0, math.tau, len(u)))
        edge = edge + depth * torch.cos(waves * angle + phase)
    return torch.hypot(u, v) - edge


def _discs(u: Tensor, v: Tensor, centers: Tensor, radii: Tensor) -> Tensor:
    """Union of discs: centers (n, k, 2), radii (n, k); a negative radius leaves one out."""
    distance = torch.full_like(u, 1e3)
    for center, radius in zip(centers.unbind(1), radii.unbind(1), strict=True):
        from_center = torch.hypot(u - _images(center[:, 0]), v - _images(center[:, 1]))
        distance = torch.minimum(distance, from_center - _images(radius))
    return distance


def _arc(
    u: Tensor, v: Tensor, radius: Tensor, span: Tensor, middle: Tensor, thickness: Tensor
) -> Tensor:
    """A bent band with round ends: ``middle`` ± ``span`` on a circle, ± ``thickness``."""
    turned = torch.atan2(v, u) - _images(middle)
    turned = torch.remainder(turned + math.pi, math.tau) - math.pi
    angle = _images(middle) + turned.clamp(-_images(span), _images(span))
    nearest = _images(radius)
    return torch.hypot(u - nearest * angle.cos(), v - nearest * angle.sin()) - _images(thickness)


def _polar(distance: Tensor, angle: Tensor) -> Tensor:
    """Points (..., 2)."""
    return torch.stack([distance * angle.cos(), distance * angle.sin()], -1)


def _around(distance: Tensor, generator: torch.Generator) -> Tensor:
    """Points (..., 2) at the distances (...) from the center, in random directions."""
    return _polar(distance, _uniform(generator, 0, math.tau, *distance.shape))


# Colors, and the way from shapes to pixels. Lengths are in units of the image's side.


class Stain(NamedTuple):
    """Colors (n, 3) and focus of each image."""

    plasma: Tensor
    red: Tensor
    body: Tensor
    nucleus: Tensor
    granules: Tensor
    blur: Tensor  # width of an edge, (n,)


def _stain(count: int, generator: torch.Generator) -> Stain:
    """Like May-Grünwald-Giemsa; batches differ in strength and hue."""

    def dye(red: float, green: float, blue: float, spread: float) -> Tensor:
        color = torch.tensor([red, green, blue])
        return color + spread * torch.randn(count, 3, generator=generator)

    purple, orange = dye(0.45, 0.2, 0.5, 0.05), dye(0.88, 0.5, 0.42, 0.05)
    return Stain(
        plasma=dye(0.94, 0.91, 0.9, 0.03),
        red=dye(0.88, 0.64, 0.63, 0.04),
        body=dye(0.76, 0.72, 0.87, 0.06),
        nucleus=dye(0.42, 0.25, 0.6, 0.07),
        granules=torch.where(torch.rand(count, 1, generator=generator) < 0.5, purple, orange),
        blur=_uniform(generator, 0.025, 0.05, count),
    )


def _background(stain: Stain, size: int, generator: torch.Generator) -> Tensor:
    """Plasma, red cells with their central pallor, a white cell at the border, platelets."""
    count, upright = len(stain.blur), torch.zeros(len(stain.blur))
    image = _images(stain.plasma).expand(-1, -1, size, size)
    for _ in range(5):
        radius = _uniform(generator, 0.15, 0.21, count)
        center = _uniform(generator, -0.65, 0.65, count, 2)
        distance = torch.hypot(*_seen_from(center, upright, radius, size))
        pallor = _images(_uniform(generator, 0.3, 0.8, count))
        opacity = 1 - pallor * torch.exp(-((distance / 0.45) ** 2))
        image = _paint(image, stain.red, (distance - 1) * _images(radius), stain.blur, opacity)
    distance = _uniform(generator, 0.55, 0.95, count)
    radius = _uniform(generator, 0.24, 0.34, count)
    center = _around(distance, generator)
    neighbor = torch.hypot(*_seen_from(center, upright, radius, size))
    image = _paint(image, stain.body, (neighbor - 1) * _images(radius), stain.blur)
    image = _paint(image, stain.nucleus, (neighbor - 0.65) * _images(radius), stain.blur)
    for _ in range(3):
        radius = _uniform(generator, 0.02, 0.05, count)
        center = _uniform(generator, -0.8, 0.8, count, 2)
        platelet = torch.hypot(*_seen_from(center, upright, radius, size)) - 1
        image = _paint(image, stain.nucleus, platelet * _images(radius), stain.blur)
    return image


def _paint_cell(
    image: Tensor, cell: Cell, radius: Tensor, stain: Stain, generator: torch.Generator
) -> Tensor:
    count, size = len(image), image.shape[-1]
    chromatin = 0.85 + 0.08 * _clouds(count, 10, size, generator)
    body, nucleus, granules, nucleoli = (distance * _images(radius) for distance in cell)
    image = _paint(image, stain.body, body, stain.blur)
    image = _paint(image, stain.nucleus, nucleus, stain.blur, chromatin)
    image = _paint(image, stain.granules, granules, stain.blur)
    return _paint(image, stain.body, nucleoli, stain.blur)


def _photograph(image: Tensor, generator: torch.Generator) -> Tensor:
    """Uneven light, a color cast, sensor noise, eight bits."""
    count, size = len(image), image.shape[-1]
    light = _images(_uniform(generator, 0.75, 1.05, count))
    light = light + 0.05 * _clouds(count, 2, size, generator)
    cast = _images(1 + 0.06 * torch.randn(count, 3, generator=generator))
    grain = _images(_uniform(generator, 0.01, 0.04, count, 1))
    image = image * light[:, None] * cast
    image = image + grain * torch.randn(image.shape, generator=generator)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def _paint(
    image: Tensor, color: Tensor, distance: Tensor, blur: Tensor, opacity: Tensor | float = 1.0
) -> Tensor:
    """Image (n, 3, H, W) with color (n, 3) where distance < 0, across soft edges."""
    cover = opacity * (0.5 - distance / _images(blur)).clamp(0, 1)
    return torch.lerp(image, _images(color), cover[:, None])


def _seen_from(center: Tensor, angle: Tensor, radius: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Coordinates u, v (n, H, W) of the pixels in a shifted, turned and scaled frame."""
    line = (torch.arange(size) + 0.5) / size - 0.5
    y, x = line[:, None] - _images(center[:, 0]), line[None, :] - _images(center[:, 1])
    cos, sin = _images(angle.cos() / radius), _images(angle.sin() / radius)
    return cos * x + sin * y, cos * y - sin * x


def _clouds(count: int, cells: int, size: int, generator: torch.Generator) -> Tensor:
    """Smooth random fields (count, size, size) of about unit variance."""
    coarse = torch.randn(count, 1, cells, cells, generator=generator)
    return F.interpolate(coarse, (size, size), mode="bicubic", align_corners=True)[:, 0]


def _uniform(generator: torch.Generator, low: float, high: float, *size: int) -> Tensor:
    return low + (high - low) * torch.rand(size, generator=generator)


def _images(values: Tensor) -> Tensor:
    """Values (...) as (..., 1, 1), to meet images (..., H, W)."""
    return values[..., None, None]
