from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from oneround.data import ImageSet, as_image_set, batches
from oneround.errors import OneRoundError
from tests.tiny import CLASSES, IMAGE, images, seeded


def test_pixels_are_in_0_to_1_whatever_the_file_has() -> None:
    data = images(6)
    as_float = ImageSet(data.pixels(), data.labels, CLASSES)
    assert torch.equal(as_float.pixels(), data.pixels())
    assert data.pixels(slice(0, 2)).shape == (2, *IMAGE.shape)
    assert data.images.dtype == torch.uint8, "converting does not change the images"
    pixels, label = data[4]
    assert torch.equal(pixels, data.images[4] / 255)
    assert (label, len(data)) == (1, 6)


def test_subset_keeps_order_and_sites() -> None:
    data = ImageSet(images(4).images, images(4).labels, CLASSES, ("n", "s", "n", "w"))
    part = data.subset(torch.tensor([3, 0]))
    assert part.sites == ("w", "n")
    assert part.labels.tolist() == [0, 0]
    assert part.class_counts().tolist() == [2, 0, 0]


@pytest.mark.parametrize(
    ("pixels", "labels"),
    [
        (torch.zeros(2, 3, 8), torch.zeros(2).long()),
        (torch.zeros(2, 3, 8, 8).double(), torch.zeros(2).long()),
        (torch.zeros(2, 3, 8, 8), torch.zeros(3).long()),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2)),
        (torch.zeros(2, 3, 8, 8), torch.tensor([0, 3])),
        (torch.zeros(2, 3, 8, 8), torch.tensor([-1, 0])),
    ],
)
def test_what_is_no_image_set(pixels: torch.Tensor, labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="must be"):
        ImageSet(pixels, labels, CLASSES)


def test_as_image_set_takes_any_data_set() -> None:
    data = images(5)
    taken = as_image_set(TensorDataset(data.pixels(), data.labels), CLASSES)
    assert torch.equal(taken.images, data.pixels())
    assert torch.equal(taken.labels, data.labels)
    assert as_image_set(data, CLASSES) is data


def test_as_image_set_refuses_pixels_that_are_normalized_already() -> None:
    data = images(5)
    with pytest.raises(OneRoundError, match="pixels range from -") as caught:
        as_image_set(TensorDataset(IMAGE.normalize(data.pixels()), data.labels), CLASSES)
    assert "[0, 1]" in caught.value.remedy
    with pytest.raises(OneRoundError, match="empty"):
        as_image_set(TensorDataset(torch.zeros(0, *IMAGE.shape), torch.zeros(0)), CLASSES)


@pytest.mark.parametrize(("count", "sizes"), [(8, [4, 4]), (9, [4, 4]), (10, [4, 4, 2]), (1, [1])])
def test_shuffled_batches_leave_no_image_alone(count: int, sizes: list[int]) -> None:
    found = list(batches(count, 4, seeded()))
    assert [len(batch) for batch in found] == sizes
    together = torch.cat(found)
    assert len(together.unique()) == len(together)
    assert torch.equal(together, torch.cat(list(batches(count, 4, seeded()))))


def test_batches_in_order_leave_nothing_out() -> None:
    assert torch.cat(list(batches(9, 4))).tolist() == list(range(9))


def test_a_data_loader_and_a_stream_are_taken_too() -> None:
    data = images(10)

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(zip(data.pixels(), data.labels.tolist(), strict=True))

    pairs = TensorDataset(data.pixels(), data.labels[:, None])
    for given in (DataLoader(pairs, batch_size=4), Stream(), DataLoader(Stream(), batch_size=3)):
        taken = as_image_set(given, CLASSES)
        assert torch.equal(taken.labels, data.labels)
        assert torch.equal(taken.images, data.pixels())


def test_labels_beyond_the_classes_are_refused() -> None:
    data = images(3)
    with pytest.raises(OneRoundError, match="labels range from 0 to 2, and there are 2"):
        as_image_set(TensorDataset(data.pixels(), data.labels), CLASSES[:2])
    broken = data.pixels()
    broken[0, 0, 0, 0] = float("nan")
    with pytest.raises(OneRoundError, match="pixels range"):
        as_image_set(TensorDataset(broken, data.labels), CLASSES)


def test_items_that_are_no_pairs_are_refused() -> None:
    data = images(4)
    dicts = [{"image": x, "label": int(y)} for x, y in zip(data.pixels(), data.labels, strict=True)]
    triples = TensorDataset(data.pixels(), data.labels, data.labels)
    for given in (dicts, triples, DataLoader(dicts, batch_size=2), DataLoader(data.pixels())):
        with pytest.raises(OneRoundError, match="no pair") as caught:
            as_image_set(given, CLASSES)
        assert "(pixels, label)" in caught.value.remedy


def test_images_of_several_sizes_are_refused() -> None:
    with pytest.raises(OneRoundError, match="several sizes"):
        as_image_set([(torch.zeros(1, 4, 4), 0), (torch.zeros(1, 5, 4), 1)], CLASSES)
