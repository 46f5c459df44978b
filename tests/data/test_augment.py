from __future__ import annotations

import torch

from oneround.data.augment import augment
from tests.tiny import seeded


def test_augment_nothing() -> None:
    x = torch.randn(3, 3, 8, 8)
    assert augment(x, (), seeded()) is x
    assert augment(x[:0], ("flip", "rotate"), seeded()).shape == (0, 3, 8, 8)


def test_flip_mirrors_some_images() -> None:
    x = torch.randn(40, 3, 8, 8, generator=seeded())
    changed = augment(x, ("flip",), seeded())
    mirrored = x.flip(-1)
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(changed, x, strict=True)]
    flipped = [torch.allclose(a, b, atol=1e-5) for a, b in zip(changed, mirrored, strict=True)]
    assert all(a != b for a, b in zip(same, flipped, strict=True))
    assert 10 < sum(flipped) < 30


def test_shift_and_rotate_stay_small() -> None:
    """The bright spot in the middle of a large image stays where it may be."""
    x = torch.zeros(50, 1, 101, 101)
    x[:, :, 49:52, 49:52] = 1
    x[:, :, 49:52, 84:87] = 1  # 35 pixels to the right
    for kinds, furthest in ((("shift",), 0.08 * 101), (("rotate",), 35 * 0.262)):
        changed = augment(x, kinds, seeded())
        where = changed[:, 0, :, 60:]
        rows = torch.arange(101).view(1, -1, 1)
        middle = (where * rows).sum((1, 2)) / where.sum((1, 2)) - 50
        assert middle.abs().max() < furthest + 0.5
        assert middle.abs().max() > furthest / 2


def test_intensity_changes_by_a_tenth() -> None:
    x = torch.ones(200, 1, 2, 2)
    changed = augment(x, ("intensity",), seeded())
    assert changed.min() >= 0.8
    assert changed.max() <= 1.2
    assert changed.std(0).min() > 0.03
    assert torch.equal(changed, augment(x, ("intensity",), seeded()))


def test_augmented_statistics_are_not_those_of_padding() -> None:
    """Reflection, not black borders, which BatchNorm would learn."""
    x = torch.ones(20, 1, 16, 16)
    assert torch.allclose(augment(x, ("flip", "shift", "rotate"), seeded()), x, atol=1e-5)
