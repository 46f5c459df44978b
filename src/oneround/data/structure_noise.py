"""Structure noise: generated images with edges, textures and colors, and no patient in them.

Dead leaves, 1/f spectra, wavelet marginals and untrained generators follow Baradad et al.,
"Learning to See by Looking at Noise" (NeurIPS 2021); classical textures are added to them.
Lengths are in units of the image's shorter side, so every family works at any size.

    >>> noise = StructureNoise(ImageSpec(channels=3, height=28, width=28), NoiseOptions())
    >>> noise.sample(16, torch.Generator().manual_seed(0)).shape
    torch.Size([16, 3, 28, 28])
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from oneround.schema import Strict
from oneround.study import ImageSpec

Family = Literal[
    "dead_leaves",
    "spectrum",
    "wavelets",
    "random_network",
    "shapes",
    "gratings",
    "perlin",
    "voronoi",
    "gaussian",
]

Shape = tuple[int, int, int]
"""(C, H, W), with C 1 or 3 and H, W at least 8."""


class NoiseOptions(Strict):
    """Options of structure noise.

    Attributes:
        families: Noise families, sampled with equal probability; all by default.
        contrast: Factor on the distance of pixels, in [0, 1], from mid-gray; the result is
            clipped to [0, 1]. 1: as generated.
        color: Whether the channels of an image differ; false: gray images.
    """

    families: tuple[Family, ...] = Field(default=get_args(Family), min_length=1)
    contrast: float = Field(default=0.4, ge=0)
    color: bool = True


class StructureNoise:
    """Generator of structure noise from several families, as network input of a study.

    Args:
        image: Channels, size and normalization of the images.
        options: Families, contrast and color.
    """

    def __init__(self, image: ImageSpec, options: NoiseOptions) -> None:
        self.image = image
        self.options = options

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Network input, (count, C, H, W) ``float32``, each image of a random family.

        Args:
            count: Number of images.
            generator: On the CPU; the same state gives the same images, bit for bit.
        """
        families = len(self.options.families)
        return self.sample_of(torch.randint(families, (count,), generator=generator), generator)

    def sample_of(self, family: Tensor, generator: torch.Generator) -> Tensor:
        """Network input, (N, C, H, W) ``float32``, of given families: indices into
        ``options.families``, (N,) ``int64``; see :meth:`sample`."""
        families, count = self.options.families, len(family)
        channels, height, width = self.image.shape
        drawn = (channels if self.options.color else 1, height, width)
        pixels = torch.empty(count, *drawn)
        for index, name in enumerate(families):
            chosen = (family == index).nonzero().flatten()
            if len(chosen):
                pixels[chosen] = FAMILIES[name](len(chosen), drawn, generator)
        pixels = (0.5 + self.options.contrast * (pixels - 0.5)).clamp(0, 1)
        return self.image.normalize(pixels.expand(count, channels, height, width))


# The families. Each generates pixels in [0, 1], (count, C, H, W), of random appearance.


def dead_leaves(count: int, shape: Shape, generator: torch.Generator) -> Tensor:
    """Shapes that occlude each other, radii r with density ~ r^-3 (Lee et al., IJCV 2001).

    An image has upright squares, oriented rectangles, or a mixture of shapes.
    """
    leaves, largest = 100, 0.5
    smallest = _uniform(generator, 0.03, 0.12, count, 1)
    ratio = torch.rand(count, leaves, generator=generator)
    radius = (smallest**-2 + ratio * (largest**-2 - smallest**-2)) ** -0.5
    style = torch.randint(3, (count, 1), generator=generator)
    kind = torch.randint(3, (count, leaves), generator=generator) * (style == 2)
    angle = _uniform(generator, 0, math.tau, count, leaves) * (style > 0)
    aspect = _uniform(generator, 0.4, 1, count, leaves).where(style > 0, torch.ones(()))
    colors = _colors(count, leaves + 1, shape[0], generator)
    centers = _centers(count, leaves, shape, generator)
    image = colors[:, -1, :, None, None].expand(count, *shape)
    for i in range(leaves):
        distance = _distance(
            centers[:, i], radius[:, i], aspect[:, i], angle[:, i], kind[:, i], shape
        )
        image = _paint(image, colors[:, i], distance)
    return image


def shapes(count: int, shape: Shape, generator: torch.Generator) -> Tensor:
    """One to eight large shapes, filled or outlined, on a soft gradient."""
    figures = 8
    number = torch.randint(1, figures + 1, (count,), generator=generator)
    radius = _uniform(generator, 0.1, 0.4, count, figures)
    aspect = _uniform(generator, 0.3, 1, count, figures)
    angle = _uniform(generator, 0, math.tau, count, figures)
    kind = torch.randint(3, (count, figures), generator=generator)
    outline = torch.rand(count, figures, generator=generator) < 0.4
    thickness = _uniform(generator, 0.02, 0.06, count, figures)
    colors = torch.rand(count, figures, shape[0], generator=generator)
    centers = _centers(count, figures, shape, generator)
    ends = _colors(count, 4, shape[0], generator).mT.reshape(count, shape[0], 2, 2)
    image = F.interpolate(ends, shape[1:], mode="bilinear", align_corners=True)
    for i in range(figures):
        distance = _distance(
            centers[:, i], radius[:, i], aspect[:, i], angle[:, i], kind[:, i], shape
        )
        hollow = distance.abs() - _images(thickness[:, i])
        distance = torch.where(_images(outline[:, i]), hollow, distance)
        image = _paint(image, colors[:, i], distance + _images(1e3 * (number <= i)))
    return image


def spectrum(count: int, shape: Shape, generator: torch.Generator) -> Tensor:
    """Random phases under the amplitude 1 / (|f_x|^a + |f_y|^b), a and b in [0.5, 3.5]."""
    exponents = _uniform(generator, 0.5, 3.5, count, 2)
    return _exposed(_mixed(power_law_field(exponents, shape, generator), generator), generator)


def power_law_field(exponents: Tensor, shape: Shape, generator: torch.Generator) -> Tensor:
    """Gaussian fields with mean amplitude 1 / (|f_x|^a + |f_y|^b), f in cycles per image.

    Args:
        exponents: Exponents a and b of each image, (count, 2).
        shape: (C, H, W); the channels are independent.
        generator: Source of randomness, on the CPU.

    Returns:
        (count, C, H, W), of mean zero.
    """
    fy, fx = _frequencies(shape)
    a, b = _images(exponents[:, 0]), _images(exponents[:, 1])
    amplitude = 1 / (fx**a + fy.abs() ** b)
    amplitude[..., 0, 0] = 0
    white = torch.fft.rfft2(torch.randn(len(exponents), *shape, generator=generator))
    field: Tensor = torch.fft.irfft2(white * amplitude[:, None], s=shape[1:])
    return field


def wavelets(count: int, shape: Shape, generator: torch.Generator) -> Tensor:
    """Oriented band-pass waves of a few scales with sparse coefficients (wavelet marginals)."""
    fy, fx = _frequencies(shape)
    radius, direction = torch.hypot(fx, fy).clamp(min=1e-6), torch.atan2(fy, fx)
    scales, orientations = int(math.log2(min(shape[1:]) / 4)) + 1, 4
    density = _images(_uniform(generator, 1, 6, count, 1)) / (shape[1] * shape[2])
    decay = _uniform(generator, 0, 1, count, 1, 1)
    strength = torch.rand(count, scales, orientations, generator=generator) ** 2
    strength = strength * 2 ** (-decay * torch.arange(scales)[:, None])
    total = torch.zeros((), dtype=torch.complex64)
    for scale in range(scales):
        band = torch.exp(-2 * torch.log2(radius / 2 ** (scale + 0.5)) ** 2)
        for orientation in range(orientations):
            wave = band * torch.cos(direction - math.pi * orientation / orientations) ** 6
            sparse = torch.rand(count, *shape, generator=generator) < density * 4**scale
            weights = sparse * torch.randn(count, *shape, generator=generator)
            weights = weights * _images(strength[:, scale, orientation, None])
            total = total + wave / wave.sum() * torch.fft.rfft2(weights)
    field: Tensor = torch.fft.irfft2(total, s=shape[1:])
    return _exposed(_mixed(field, generator), generator)


def random_network(count: int, shape: Shape, generator: torch.Generator) -> Tensor:
    """Outputs of untrained generators in the manner of StyleGAN, one network for each image.

    From 4×4 noise to full size, at each level: upsampling, 3×3 convolution, noise, style, leaky
    ReLU.
    """
    width, levels = 8, math.ceil(math.log2(min(shape[1:]) / 4))
    grain = _images(_uniform(generator, 0, 0.3, count, width))
    features = torch.randn(count, width, 4, 4, generator=generator)
    for level in reversed(range(levels)):
        size = [math.ceil(side / 2**level) for side in shape[1:]]
        features = F.interpolate(features, size, mode="bilinear")
        kernels = torch.randn(count * width, width, 3, 3, generator=generator)
        padded = F.pad(features, (1, 1, 1, 1), mode="replicate").flatten(0, 1)[None]
        features = F.conv2d(padded, kernels, groups=count)
        features = F.instance_norm(features).view(count, width, *size)
        noise = torch.randn(count, 1, *size, generator=generator)
        gain, bias = torch.randn(2, count, width, 1, 1, generator=generator)
        features = F.leaky_relu((features + grain * noise) * gain + bias, 0.2)
    to_color = torch.randn(count, shape[0], width, generator=generator)
    return _exposed(torch.einsum("ncw,nwyx->ncyx", to_color, features), generator)


def gratings(count: int, shape: Shape, generator: torch.Generator) -> Tensor:
    """One to four waves, sine or square, straight or in rings, full-field or Gabor patches."""
    waves = 4
    number = torch.randint(1, waves + 1, (count,), generator=generator)
    highest = min(shape[1:]) / 4
    cycles = 1.5 * (highest / 1.5) ** torch.rand(count, waves, generator=generator)
    angle, phase = _uniform(generator, 0, math.tau, 2, count, waves)
    width = _uniform(generator, 0.1, 0.4, count, waves)
    sharpness = _uniform(generator, 0.5, 4, count, waves)
    rings = torch.rand(count, waves, generator=generator) < 0.2
    full = torch.rand(count, 1, generator=generator) < 0.5
    centers = _centers(count, waves, shape, generator)
    directions = _uniform(generator, -1, 1, count, waves, shape[0]) * 0.5
    image = _colors(count, 1, shape[0], generator)[:, 0, :, None, None].expand(count, *shape)
    for i in range(waves):
        u, v = _local(centers[:, i], angle[:, i], shape)
        squared = u**2 + v**2
        along = torch.where(_images(rings[:, i]), squared.sqrt(), u)
        wave = torch.sin(math.tau * _images(cycles[:, i]) * along + _images(phase[:, i]))
        wave = torch.tanh(_images(sharpness[:, i]) * wave)
        patch = torch.exp(-squared / (2 * _images(width[:, i]) ** 2))
        wave = wave * torch.where(_images(full[:, 0]), 1.0, patch) * _images(number > i)
        image = image + directions[:, i, :, None, None] * wave[:, None]
    return image.clamp(0, 1)


def perlin(count: int, shape: Shape, generator: torch.Generator) -> Tensor:
    """Value noise of several octaves in three colors: clouds, ridges or marble."""
    field = _value_noise(count, shape, generator)
    kind = _images(torch.randint(3, (count,), generator=generator))
    angle = _uniform(generator, 0, math.tau, count)
    u, _ = _local(torch.zeros(count, 2), angle, shape)
    marble = torch.sin(_images(_uniform(generator, 5, 25, count)) * u + 3 * field)
    field = torch.where(kind == 0, field, torch.where(kind == 1, field.abs(), marble))
    lowest, highest = field.amin((1, 2), keepdim=True), field.amax((1, 2), keepdim=True)
    position = (2 * (field - lowest) / (highest - lowest).clamp(min=1e-6))[:, None]
    first, second, third = _images(torch.rand(3, count, shape[0], generator=generator))
    lower = torch.lerp(first, second, position.clamp(max=1))
    return torch.lerp(lower, third, (position - 1).clamp(min=0))


def voronoi(count: int, shape: Shape, generator: torch.Generator) -> Tensor:
    """Cells of a tissue: wavy Voronoi regions with membranes and, in most images, nuclei."""
    most = 40
    number = torch.randint(5, most + 1, (count, 1), generator=generator)
    centers = _centers(count, most, shape, generator)
    centers = centers + 1e3 * (torch.arange(most) >= number)[..., None]
    y, x = _grid(shape)
    warp = _images(_uniform(generator, 0, 0.05, count))
    y = y + warp * _value_noise(count, shape, generator)
    x = x + warp * _value_noise(count, shape, generator)
    nearest, second = torch.full((2, count, *shape[1:]), 1e6)
    owner = torch.zeros(count, *shape[1:], dtype=torch.int64)
    for i in range(most):
        distance = torch.hypot(y - _images(centers[:, i, 0]), x - _images(centers[:, i, 1]))
        owner = torch.where(distance < nearest, i, owner)
        second = torch.minimum(second, torch.maximum(distance, nearest))
        nearest = torch.minimum(nearest, distance)
    colors = _colors(count, most + 2, shape[0], generator)
    palette = colors[:, :most].mT
    image = palette.gather(2, owner.flatten(1)[:, None].expand(-1, shape[0], -1))
    image = image.view(count, *shape)
    scale = number.flatten() ** -0.5
    membrane = _uniform(generator, 0.02, 0.15, count) * scale
    image = _paint(image, colors[:, most], second - nearest - _images(membrane))
    nucleus = _uniform(generator, -0.1, 0.35, count) * scale
    return _paint(image, colors[:, most + 1], nearest - _images(nucleus))


def gaussian(count: int, shape: Shape, generator: torch.Generator) -> Tensor:
    """Independent normal pixels around mid-gray, standard deviation in [0.05, 0.3]."""
    deviation = _images(_uniform(generator, 0.05, 0.3, count))[:, None]
    return (0.5 + deviation * torch.randn(count, *shape, generator=generator)).clamp(0, 1)


FAMILIES: dict[Family, Callable[[int, Shape, torch.Generator], Tensor]] = {
    "dead_leaves": dead_leaves,
    "spectrum": spectrum,
    "wavelets": wavelets,
    "random_network": random_network,
    "shapes": shapes,
    "gratings": gratings,
    "perlin": perlin,
    "voronoi": voronoi,
    "gaussian": gaussian,
}
"""``family(count, (C, H, W), generator)`` returns pixels in [0, 1], (count, C, H, W)."""


# Building blocks of the families.


def _uniform(generator: torch.Generator, low: float, high: float, *size: int) -> Tensor:
    return low + (high - low) * torch.rand(size, generator=generator)


def _images(values: Tensor) -> Tensor:
    """Values (...) as (..., 1, 1), to meet images (..., H, W)."""
    return values[..., None, None]


def _grid(shape: Shape) -> tuple[Tensor, Tensor]:
    """Pixel centers y (H, 1) and x (1, W), the origin in the middle of the image."""
    _, height, width = shape
    side = min(height, width)
    y = (torch.arange(height) + 0.5 - height / 2) / side
    x = (torch.arange(width) + 0.5 - width / 2) / side
    return y[:, None], x[None, :]


def _frequencies(shape: Shape) -> tuple[Tensor, Tensor]:
    """f_y (H, 1) and f_x >= 0 (1, W // 2 + 1) of ``rfft2``, in cycles per image."""
    _, height, width = shape
    fy, fx = torch.fft.fftfreq(height, 1 / height), torch.fft.rfftfreq(width, 1 / width)
    return fy[:, None], fx[None, :]


def _centers(count: int, number: int, shape: Shape, generator: torch.Generator) -> Tensor:
    """Uniformly distributed points (y, x) of the image, (count, number, 2)."""
    sides = torch.tensor(shape[1:]) / min(shape[1:])
    return (torch.rand(count, number, 2, generator=generator) - 0.5) * sides


def _colors(count: int, number: int, channels: int, generator: torch.Generator) -> Tensor:
    """Random colors near one base color of each image, (count, number, channels)."""
    base = _uniform(generator, 0.2, 0.8, count, 1, channels)
    spread = _uniform(generator, 0.1, 0.35, count, 1, 1)
    return (base + spread * torch.randn(count, number, channels, generator=generator)).clamp(0, 1)


def _local(center: Tensor, angle: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """Coordinates u and v, (count, H, W), of the pixels relative to a center, rotated."""
    y, x = _grid(shape)
    y, x = y - _images(center[:, 0]), x - _images(center[:, 1])
    cos, sin = _images(angle.cos()), _images(angle.sin())
    return cos * x + sin * y, cos * y - sin * x


def _distance(
    center: Tensor, radius: Tensor, aspect: Tensor, angle: Tensor, kind: Tensor, shape: Shape
) -> Tensor:
    """Approximate signed distance to a rectangle (0), ellipse (1) or triangle (2), negative
    inside."""
    u, v = _local(center, angle, shape)
    u, v, kind = u.abs(), v / _images(aspect), _images(kind)
    triangle = torch.maximum(-v, v / 2 + u * math.sqrt(0.75)) * 1.6
    level = torch.where(kind == 0, torch.maximum(u, v.abs()) * 1.13, torch.hypot(u, v))
    return torch.where(kind == 2, triangle, level) - _images(radius)


def _paint(image: Tensor, color: Tensor, distance: Tensor) -> Tensor:
    """Image (count, C, H, W) with color (count, C) where the distance is negative; edges are one
    pixel wide."""
    cover = (0.5 - distance * min(image.shape[2:])).clamp(0, 1)
    return torch.lerp(image, _images(color), cover[:, None])


def _value_noise(count: int, shape: Shape, generator: torch.Generator) -> Tensor:
    """Smooth random fields of unit variance, (count, H, W): octaves of roughness 0.3 to 0.8."""
    side = min(shape[1:])
    roughness = _uniform(generator, 0.3, 0.8, count)
    first = torch.randint(2, (count,), generator=generator)
    field = torch.zeros(())
    for octave in range(int(math.log2(side)) - 1):
        grid = [math.ceil(2 ** (octave + 1) * length / side) + 1 for length in shape[1:]]
        coarse = torch.randn(count, 1, *grid, generator=generator)
        fine = F.interpolate(coarse, shape[1:], mode="bicubic", align_corners=True)[:, 0]
        field = field + fine * _images(roughness**octave * (octave >= first))
    return (field - field.mean((1, 2), keepdim=True)) / field.std((1, 2), keepdim=True)


def _mixed(field: Tensor, generator: torch.Generator) -> Tensor:
    """Fields (count, C, H, W) whose channels become more or less alike, by a random share."""
    share = _images(torch.rand(len(field), 1, generator=generator))
    return torch.lerp(field, field.mean(1, keepdim=True) * math.sqrt(field.shape[1]), share)


def _exposed(field: Tensor, generator: torch.Generator) -> Tensor:
    """Fields of any scale as pixels in [0, 1], with random brightness and contrast."""
    brightness = _images(_uniform(generator, 0.35, 0.65, len(field), 1))
    contrast = _images(_uniform(generator, 0.12, 0.28, len(field), 1))
    mean = field.mean((1, 2, 3), keepdim=True)
    deviation = field.std((1, 2, 3), keepdim=True).clamp(min=1e-6)
    return (brightness + contrast * (field - mean) / deviation).clamp(0, 1)
