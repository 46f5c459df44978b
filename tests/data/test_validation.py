from __future__ import annotations

import pytest
import torch

from oneround.data import ImageSet
from oneround.data.validation import hold_out, on_both_sides
from tests.tiny import seeded


def labeled(counts: list[int], patients: list[int] | None = None) -> ImageSet:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    images = torch.rand(len(labels), 1, 2, 2, generator=seeded())
    groups = None if patients is None else torch.tensor(patients)
    return ImageSet(images, labels, [str(c) for c in range(len(counts))], patients=groups)


def counted(data: ImageSet, indices: torch.Tensor) -> list[int]:
    return data.subset(indices).class_counts().tolist()


@pytest.mark.parametrize("seed", range(20))
def test_a_rare_class_is_on_both_sides(seed: int) -> None:
    data = labeled([18, 2, 40])
    train, val = hold_out(data, 0.1, seeded(seed))
    assert counted(data, val) == [2, 1, 4]
    assert torch.equal(torch.cat([train, val]).sort()[0], torch.arange(60))


def test_the_shares_of_large_classes_are_exact() -> None:
    data = labeled([500, 250, 125, 125])
    assert counted(data, hold_out(data, 0.2, seeded())[1]) == [100, 50, 25, 25]
    data = labeled([7, 7, 6])  # 4 of 20: the remainders of 1.4, 1.4 and 1.2 decide
    assert sum(counted(data, hold_out(data, 0.2, seeded())[1])) == 4


def test_the_only_image_of_a_class_stays_in_training() -> None:
    data = labeled([2, 1])
    train, val = hold_out(data, 0.1, seeded())
    assert (counted(data, train), counted(data, val)) == ([1, 1], [1, 0])
    assert len(hold_out(labeled([1, 1]), 0.1, seeded())[1]) == 0


@pytest.mark.parametrize("seed", range(20))
def test_a_patient_is_on_one_side_and_no_class_is_lost(seed: int) -> None:
    generator = seeded(seed)
    patients = torch.randint(12, (60,), generator=generator)
    data = labeled([30, 24, 6], patients.tolist())
    train, val = hold_out(data, 0.2, generator)
    assert not set(patients[train].tolist()) & set(patients[val].tolist())
    for c in range(3):
        several = len(patients[data.labels == c].unique()) > 1
        assert all(counted(data, side)[c] for side in ((train, val) if several else (train,)))


def test_one_patient_cannot_be_divided() -> None:
    train, val = hold_out(labeled([5, 5], [3] * 10), 0.2, seeded())
    assert (len(train), len(val)) == (10, 0)


def test_patients_and_equal_images_on_both_sides_are_counted() -> None:
    train, other = labeled([3, 3], [0, 0, 1, 1, 2, 2]), labeled([2, 2], [2, 3, 3, 4])
    images = other.images.clone()
    images[0] = train.images[4]
    other = ImageSet(images / 2, other.labels, other.classes, patients=other.patients)
    assert on_both_sides(train, other, "test") == [
        "1 of 4 test images are of patients who have training images, too: "
        "metrics on them are too good"
    ]
    copied = ImageSet(images, other.labels, other.classes)
    (line,) = on_both_sides(train, copied, "test")
    assert line.startswith("4 of 4 test images are equal to training images, pixel for pixel")
