import hashlib
import pickle

import numpy as np
import pytest
import torch

from oneround.data import describe, medmnist, read_splits
from oneround.data.medmnist import CLASSES, MD5, URL
from oneround.errors import OneRoundError
from oneround.study import ImageSpec

GRAY = ImageSpec(channels=1, height=28, width=28)


def write_npz(path, *, classes=2, size=28, channels=None, splits=("train", "val", "test"), **extra):
    rng = np.random.default_rng(0)
    shape = (size, size) if channels is None else (size, size, channels)
    arrays = {}
    for split, count in zip(splits, (12, 6, 4), strict=False):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, *shape)).astype(np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % classes).astype(np.uint8)[:, None]
    arrays |= extra
    np.savez(path, **arrays)
    return path, arrays


def test_gray_and_known_names(tmp_path):
    path, arrays = write_npz(tmp_path / "pneumoniamnist.npz")
    splits = read_splits(path, image=GRAY)
    assert splits.train.classes == ("normal", "pneumonia")
    assert np.array_equal(splits.train.images[:, 0].numpy(), arrays["train_images"])
    assert splits.train.labels.tolist() == arrays["train_labels"][:, 0].tolist()
    assert (len(splits.val), len(splits.test)) == (6, 4)


def test_color_other_size_and_flat_labels(tmp_path):
    labels = np.arange(12) % 3
    path, arrays = write_npz(
        tmp_path / "own.npz", size=64, channels=3, splits=["train"], train_labels=labels
    )
    splits = read_splits(path, image=ImageSpec())
    assert splits.train.images.shape == (12, 3, 28, 28)
    assert splits.train.images.dtype == torch.uint8
    assert splits.train.classes == ("0", "1", "2")
    assert splits.val is None
    whole = read_splits(path, image=ImageSpec(height=64, width=64)).train.images
    assert np.array_equal(whole.permute(0, 2, 3, 1).numpy(), arrays["train_images"])


def test_test_split_only(tmp_path):
    path, _ = write_npz(tmp_path / "own.npz", splits=["test"])
    splits = read_splits(path, image=GRAY)
    assert len(splits.train) == 0
    assert len(splits.test) == 12


def test_given_classes_rule_the_order(tmp_path):
    path, arrays = write_npz(tmp_path / "pneumoniamnist_64.npz")
    labels = torch.from_numpy(arrays["train_labels"][:, 0].astype(np.int64))
    swapped = read_splits(path, image=GRAY, classes=["pneumonia", "normal"]).train
    assert torch.equal(swapped.labels, 1 - labels)
    renamed = read_splits(path, image=GRAY, classes=["healthy", "ill"]).train
    assert torch.equal(renamed.labels, labels)
    assert renamed.classes == ("healthy", "ill")


def test_given_classes_that_do_not_fit(tmp_path):
    path, _ = write_npz(tmp_path / "pneumoniamnist.npz")
    with pytest.raises(OneRoundError, match="has 2 classes, and the study has 3"):
        read_splits(path, image=GRAY, classes=["normal", "bacterial", "viral"])
    with pytest.raises(OneRoundError, match="lists normal in another place"):
        read_splits(path, image=GRAY, classes=["ill", "normal"])


def test_names_are_compared_without_case_and_spaces(tmp_path):
    path, arrays = write_npz(tmp_path / "pneumoniamnist.npz")
    labels = torch.from_numpy(arrays["train_labels"][:, 0].astype(np.int64))
    splits = read_splits(path, image=GRAY, classes=["PNEUMONIA", " Normal"])
    assert torch.equal(splits.train.labels, 1 - labels)
    assert splits.skipped == ()


def test_names_taken_in_order_are_told(tmp_path):
    path, _ = write_npz(tmp_path / "pneumoniamnist.npz")
    (line,) = read_splits(path, image=GRAY, classes=["healthy", "ill"]).skipped
    assert "taken in order: normal is healthy; pneumonia is ill" in line
    own, _ = write_npz(tmp_path / "own.npz")
    assert read_splits(own, image=GRAY, classes=["healthy", "ill"]).skipped == ()


def test_unnamed_file_may_lack_the_last_class(tmp_path):
    path, _ = write_npz(tmp_path / "own.npz")
    train = read_splits(path, image=GRAY, classes=["a", "b", "c"]).train
    assert train.class_counts().tolist() == [6, 6, 0]
    with pytest.raises(OneRoundError, match="has 2 classes, and the study has 1"):
        read_splits(path, image=GRAY, classes=["a"])


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"train_labels": np.zeros((12, 14), np.uint8)}, "14 labels per image"),
        ({"train_labels": np.zeros(11, np.uint8)}, "one label for each image"),
        ({"train_labels": np.zeros(12)}, "one label for each image"),
        ({"train_images": np.zeros((12, 28, 28))}, "float64"),
        ({"train_images": np.zeros((12, 28, 28, 28), np.uint8)}, "not 2-D"),
        ({"train_labels": np.full(12, 9, np.uint8)}, "a label 9"),
        ({"train_labels": np.array([None] * 12)}, "allow_pickle=False"),
    ],
)
def test_malformed_arrays(tmp_path, extra, reason):
    path, _ = write_npz(tmp_path / "pneumoniamnist.npz", **extra)
    with pytest.raises(OneRoundError, match=reason) as caught:
        read_splits(path, image=GRAY)
    assert caught.value.file == str(path)


def test_files_that_are_no_npz(tmp_path):
    path, _ = write_npz(tmp_path / "a.npz")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(OneRoundError, match="not an npz"):
        read_splits(path, image=GRAY)
    path.write_bytes(pickle.dumps({"train_images": 1}))
    with pytest.raises(OneRoundError, match="not an npz"):
        read_splits(path, image=GRAY)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(OneRoundError, match="no images"):
        read_splits(path, image=GRAY)
    np.savez(path, train_images=np.zeros((1, 28, 28), np.uint8))
    with pytest.raises(OneRoundError, match="train_labels"):
        read_splits(path, image=GRAY)


def test_damaged_member(tmp_path):
    path, _ = write_npz(tmp_path / "a.npz")
    content = bytearray(path.read_bytes())
    content[2000] ^= 255
    path.write_bytes(content)
    with pytest.raises(OneRoundError, match="CRC"):
        read_splits(path, image=GRAY)


def test_describe(tmp_path):
    path, _ = write_npz(tmp_path / "pneumoniamnist_64.npz", size=64)
    description = describe(path)
    assert description.classes == ("normal", "pneumonia")
    assert description.image.shape == (1, 64, 64)
    assert description.counts == {"train": 12, "val": 6, "test": 4}


def test_every_set_has_hashes_for_its_sizes():
    assert set(MD5) == {f"{name}{size}" for name in CLASSES for size in ("", "_64", "_128", "_224")}
    assert len(set(MD5.values())) == len(MD5)
    assert all(len(bytes.fromhex(value)) == 16 for value in MD5.values())


def test_download_by_name(tmp_path, monkeypatch):
    write_npz(tmp_path / "served.npz", size=64)
    asked = {}

    def retrieve(url, known_hash, fname, path):
        asked.update(url=url, known_hash=known_hash, fname=fname)
        return str((tmp_path / "served.npz").rename(tmp_path / fname))

    monkeypatch.setattr("pooch.retrieve", retrieve)
    splits = read_splits("pneumoniamnist_64", image=GRAY, download=True)
    assert splits.train.classes == ("normal", "pneumonia")
    assert asked == {
        "url": "https://zenodo.org/records/10519652/files/pneumoniamnist_64.npz",
        "known_hash": "md5:8f4eceb4ccffa70c672198ea285246c6",
        "fname": "pneumoniamnist_64.npz",
    }


def test_download_is_checked_and_cached(tmp_path, monkeypatch):
    path, _ = write_npz(tmp_path / "pneumoniamnist.npz")
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path)
    monkeypatch.setitem(MD5, "pneumoniamnist", digest)
    assert len(read_splits("pneumoniamnist", image=GRAY, download=True).train) == 12


def test_failed_download_is_explained(monkeypatch):
    def retrieve(*args, **kwargs):
        raise ValueError("MD5 hash of downloaded file does not match")

    monkeypatch.setattr("pooch.retrieve", retrieve)
    with pytest.raises(OneRoundError, match=r"bloodmnist\.npz failed: MD5 hash"):
        describe("bloodmnist", download=True)


def test_names_need_download_and_must_be_known():
    with pytest.raises(OneRoundError, match="--download") as caught:
        read_splits("bloodmnist_64", image=GRAY)
    assert URL.format(name="bloodmnist_64") in str(caught.value)
    for name in ("chestmnist", "bloodmnist_28", "organmnist3d"):
        with pytest.raises(OneRoundError, match="no MedMNIST set"):
            read_splits(name, image=GRAY, download=True)


@pytest.mark.parametrize("label", [4096, 10**12, 2**63 + 1])
def test_a_label_beyond_all_classes_is_refused_at_once(tmp_path, label):
    labels = np.array([[0], [label]], dtype=np.uint64)
    path = tmp_path / "mine.npz"
    np.savez(path, train_images=np.zeros((2, 28, 28), np.uint8), train_labels=labels)
    with pytest.raises(OneRoundError, match=f"there is a label {label}"):
        medmnist.load_arrays(path)
