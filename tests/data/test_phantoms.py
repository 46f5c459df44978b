import pytest
import torch

from oneround.data.image_set import ImageSet
from oneround.data.phantoms import PHANTOM_CLASSES, draw_cells, phantoms


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def nearest_mean_accuracy(train: tuple[torch.Tensor, torch.Tensor], test: ImageSet) -> float:
    """Accuracy on the mean color of the whole image, nearest class mean."""
    colors, labels = train
    means = torch.stack([colors[labels == k].mean(0) for k in range(len(PHANTOM_CLASSES))])
    predicted = torch.cdist(test.pixels().mean((2, 3)), means).argmin(1)
    return float((predicted == test.labels).float().mean())


def test_splits_are_balanced_bytes_in_random_order() -> None:
    splits = phantoms(seeded(), train=120, val=60, test=30, size=24)
    assert splits.val is not None
    assert splits.test is not None
    for images, count in ((splits.train, 120), (splits.val, 60), (splits.test, 30)):
        assert images.images.shape == (count, 3, 24, 24)
        assert images.images.dtype == torch.uint8
        assert images.classes == PHANTOM_CLASSES
        assert images.class_counts().tolist() == [count // len(PHANTOM_CLASSES)] * 6
        assert (images.labels.diff() != 0).float().mean() > 0.6


def test_counts_that_do_not_divide_differ_by_one_at_most() -> None:
    counts = phantoms(seeded(), train=100, val=1, test=1).train.class_counts()
    assert counts.max() - counts.min() == 1


def test_phantoms_come_from_the_generator_alone() -> None:
    first, again, other = (phantoms(seeded(s), train=30, val=6, test=6) for s in (1, 1, 2))
    assert torch.equal(first.train.images, again.train.images)
    assert torch.equal(first.train.labels, again.train.labels)
    assert not torch.equal(first.train.images, other.train.images)
    assert first.test is not None
    assert not torch.equal(first.train.images[:6], first.test.images)


@pytest.mark.parametrize("size", [8, 28, 64])
def test_cells_have_detail_at_every_size(size: int) -> None:
    cells = draw_cells(torch.arange(6), size, seeded())
    assert cells.shape == (6, 3, size, size)
    assert cells.float().flatten(1).std(1).min() > 10
    assert (cells == 0).float().mean() < 0.1
    assert (cells == 255).float().mean() < 0.3


def test_mean_color_does_not_tell_the_classes() -> None:
    splits = phantoms(seeded(), train=900, val=6, test=600)
    train = (splits.train.pixels().mean((2, 3)), splits.train.labels)
    assert splits.test is not None
    assert nearest_mean_accuracy(train, splits.test) < 0.45


def test_a_linear_classifier_does_not_solve_them() -> None:
    """Ridge regression to one-hot labels on the pixels, penalty chosen in its favor."""
    splits = phantoms(seeded(), train=1500, val=6, test=600)
    assert splits.test is not None
    x, y = splits.train.pixels().flatten(1), splits.train.labels
    mean = x.mean(0)
    gram = (x - mean) @ (x - mean).T
    targets = torch.eye(6)[y] - 1 / 6
    kernel = (splits.test.pixels().flatten(1) - mean) @ (x - mean).T
    accuracies = [
        (
            (kernel @ torch.linalg.solve(gram + penalty * torch.eye(len(x)), targets)).argmax(1)
            == splits.test.labels
        )
        .float()
        .mean()
        .item()
        for penalty in (1.0, 10.0, 100.0, 1000.0)
    ]
    assert 1 / 6 < max(accuracies) < 0.65


def test_no_label_draws_no_image() -> None:
    assert draw_cells(torch.empty(0, dtype=torch.int64), 32, seeded()).shape == (0, 3, 32, 32)
