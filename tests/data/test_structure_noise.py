from typing import get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from oneround.data.structure_noise import (
    FAMILIES,
    Family,
    NoiseOptions,
    StructureNoise,
    power_law_field,
)
from oneround.study import ImageSpec


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def signature(images: torch.Tensor) -> np.ndarray:
    """Statistics of each image that tell families apart, (count, 4).

    Share of gradient energy at short range, kurtosis of the gradient, share of flat steps,
    share of the spectrum in its strongest frequency.
    """
    gray = images.mean(1)
    gray = (gray - gray.mean((1, 2), keepdim=True)) / gray.std((1, 2), keepdim=True)
    step = gray.diff(dim=2).flatten(1)
    power = torch.fft.fft2(gray).abs().square().flatten(1)
    return torch.stack(
        [
            step.square().mean(1).log(),
            (step**4).mean(1).log() - 2 * step.square().mean(1).log(),
            (step.abs() < 1e-3).float().mean(1),
            (power.amax(1) / power.sum(1)).log(),
        ],
        1,
    ).numpy()


def test_every_family_of_the_type_is_drawn() -> None:
    assert tuple(FAMILIES) == get_args(Family)
    assert NoiseOptions().families == get_args(Family)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (3, 33, 17), (1, 8, 40)])
def test_families_draw_varied_pixels_of_any_size(name: Family, shape: tuple[int, int, int]) -> None:
    images = FAMILIES[name](6, shape, seeded())
    assert images.shape == (6, *shape)
    assert images.dtype == torch.float32
    assert 0 <= images.min() <= images.max() <= 1
    assert torch.pdist(images.flatten(1)).min() > 0
    assert images.flatten(1).std(1).mean() > 0.03


@pytest.mark.parametrize("name", FAMILIES)
def test_families_draw_from_the_generator_alone(name: Family) -> None:
    first = FAMILIES[name](4, (3, 16, 16), seeded(1))
    torch.rand(7)  # the global generator does not matter
    assert torch.equal(first, FAMILIES[name](4, (3, 16, 16), seeded(1)))
    assert not torch.equal(first, FAMILIES[name](4, (3, 16, 16), seeded(2)))


def test_families_differ_in_structure() -> None:
    """A nearest-neighbor classifier on four gray statistics finds the family far above chance."""
    known, unknown = (
        np.stack([signature(draw(80, (1, 32, 32), seeded(s))) for draw in FAMILIES.values()])
        for s in (1, 2)
    )
    scale = known.std((0, 1))
    distance = np.abs((unknown[:, :, None, None] - known) / scale).sum(-1)
    nearest = distance.reshape(len(FAMILIES), 80, -1).argmin(-1) // 80
    accuracy = (nearest == np.arange(len(FAMILIES))[:, None]).mean(1)
    assert accuracy.mean() > 0.6
    assert accuracy.min() > 2 / len(FAMILIES)


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.5, 2.5), (3.0, 1.5)])
def test_power_law_field_has_the_slopes_it_claims(a: float, b: float) -> None:
    fields = power_law_field(torch.tensor([[a, b]]).expand(200, 2), (1, 64, 64), seeded())
    power = np.square(np.abs(np.fft.fft2(fields[:, 0].numpy()))).mean(0)
    frequency = np.arange(1, 32)
    for axis, exponent in ((power[0, 1:32], a), (power[1:32, 0], b)):
        slope = np.polyfit(np.log(frequency), np.log(axis), 1)[0]
        assert slope == pytest.approx(-2 * exponent, abs=0.1)


def test_dead_leaves_cover_the_image_with_flat_leaves() -> None:
    flat = signature(FAMILIES["dead_leaves"](32, (1, 64, 64), seeded()))[:, 2]
    assert 0.4 < flat.mean() < 0.95


def test_samples_are_normalized_for_the_network() -> None:
    image = ImageSpec(channels=3, height=20, width=12, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    samples = StructureNoise(image, NoiseOptions()).sample(40, seeded())
    assert samples.shape == (40, 3, 20, 12)
    pixels = samples * torch.tensor(image.std).view(3, 1, 1)
    pixels = pixels + torch.tensor(image.mean).view(3, 1, 1)
    assert pixels.min() >= -1e-6
    assert pixels.max() <= 1 + 1e-6


def test_every_family_is_drawn_as_often() -> None:
    noise = StructureNoise(ImageSpec(height=16, width=16), NoiseOptions())
    images = noise.sample(300, seeded(3))
    generator = seeded(3)
    family = torch.randint(len(FAMILIES), (300,), generator=generator)
    assert torch.equal(images, noise.sample_of(family, generator))
    assert torch.equal(images, noise.sample(300, seeded(3)))


def test_the_index_names_the_family() -> None:
    noise = StructureNoise(ImageSpec(), NoiseOptions(families=("gaussian", "perlin")))
    family = torch.arange(40) % 2
    images = noise.sample_of(family, seeded())
    roughness = images.diff(dim=3).abs().mean((1, 2, 3)) / images.std((1, 2, 3))
    assert roughness[family == 0].min() > roughness[family == 1].max()


def test_contrast_scales_around_mid_gray() -> None:
    image = ImageSpec(mean=(0.0,), std=(1.0,))
    full, half, none = (
        StructureNoise(image, NoiseOptions(contrast=c)).sample(20, seeded()) for c in (1, 0.5, 0)
    )
    torch.testing.assert_close(half, 0.5 + 0.5 * (full - 0.5))
    assert torch.equal(none, torch.full_like(none, 0.5))
    assert StructureNoise(image, NoiseOptions(contrast=5)).sample(20, seeded()).max() == 1


def test_gray_noise() -> None:
    one = StructureNoise(ImageSpec(channels=1), NoiseOptions()).sample(20, seeded())
    assert one.shape == (20, 1, 28, 28)
    three = StructureNoise(ImageSpec(channels=3), NoiseOptions(color=False)).sample(20, seeded())
    assert torch.equal(three, one.expand(20, 3, 28, 28))
    colored = StructureNoise(ImageSpec(channels=3), NoiseOptions()).sample(20, seeded())
    assert (colored[:, 0] != colored[:, 1]).flatten(1).any(1).all()


@pytest.mark.parametrize("options", [{"families": ()}, {"families": ("snow",)}, {"contrast": -1}])
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        NoiseOptions.model_validate(options)
