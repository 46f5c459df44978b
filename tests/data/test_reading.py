import numpy as np
import pytest
import torch
from PIL import Image

from oneround.data import describe, loading, read_splits, store
from oneround.data import images as reader
from oneround.data.images import Original, read_image
from oneround.errors import OneRoundError
from oneround.study import ImageSpec

IMAGE = ImageSpec(channels=1, height=8, width=10)


def save(path, *, size=(8, 10), value=None, dtype=np.uint8, channels=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(path.as_posix()[-20:].encode())
    array = np.random.default_rng(seed).integers(0, 256, (*size, *channels))
    if value is not None:
        array = np.full_like(array, value)
        if 0 < value < 250:  # images of one value are told of
            array[-1, -1], array[-1, -2] = value - 1, value + 1
    Image.fromarray(array.astype(dtype)).save(path)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "root"
    for i in range(10):
        save(root / "train" / "NORMAL" / f"{i}.png", value=i + 1)
        save(root / "train" / "PNEUMONIA" / f"{i}.jpeg", size=(30, 20))
    save(root / "test" / "NORMAL" / "0.png", value=100)
    return root


def test_folder(folder):
    splits = read_splits(folder, image=IMAGE)
    train, test = splits.train, splits.test
    assert train.classes == ("NORMAL", "PNEUMONIA")
    assert train.class_counts().tolist() == [10, 10]
    assert train.images.shape == (20, 1, 8, 10)
    assert train.images.dtype == torch.uint8
    assert train.images[:10, 0, 0, 0].tolist() == list(range(1, 11))
    assert splits.val is None
    assert test.pixels().mean().item() == pytest.approx(100 / 255)
    assert (train.sites, splits.skipped) == (None, ())


def test_one_image_reads_as_in_a_data_set(folder):
    train = read_splits(folder, image=IMAGE).train
    pixels = read_image(folder / "train" / "PNEUMONIA" / "3.jpeg", IMAGE)
    assert torch.equal(pixels, train.pixels()[13])


def test_given_classes_rule_the_order_and_may_be_empty(folder):
    train = read_splits(folder, image=IMAGE, classes=["PNEUMONIA", "COVID", "NORMAL"]).train
    assert train.class_counts().tolist() == [10, 0, 10]
    assert train.labels[0] == 2


def test_unknown_label_names_the_file(folder):
    with pytest.raises(OneRoundError, match="'PNEUMONIA' is not a class") as caught:
        read_splits(folder, image=IMAGE, classes=["NORMAL", "COVID"])
    assert caught.value.file.startswith(str(folder / "train" / "PNEUMONIA"))


def test_mixed_depths_become_16_bits(folder):
    save(folder / "train" / "NORMAL" / "x.png", value=65535, dtype=np.uint16)
    train = read_splits(folder, image=IMAGE).train
    assert train.dtype == torch.uint16
    assert train.pixels()[10].min() == 1
    assert torch.equal(train.pixels()[9, 0, 0], torch.full((10,), 10 / 255))


def test_unreadable_files_are_skipped_up_to_a_share(folder):
    broken = folder / "train" / "NORMAL" / "5.png"
    broken.write_bytes(b"")
    splits = read_splits(folder, image=IMAGE)
    assert splits.skipped == (f"{broken}: the file is empty",)
    assert splits.train.images[:9, 0, 0, 0].tolist() == [1, 2, 3, 4, 5, 7, 8, 9, 10]
    with pytest.raises(OneRoundError, match=r"1 of 21 images \(5%\) are unreadable") as caught:
        read_splits(folder, image=IMAGE, max_skipped=0)
    assert str(broken) in str(caught.value)


def test_nothing_readable_is_an_error_at_any_share(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").touch()
    with pytest.raises(OneRoundError, match="1 of 1"):
        read_splits(tmp_path, image=IMAGE, max_skipped=1)
    with pytest.raises(OneRoundError, match="empty"):
        describe(tmp_path)


def test_csv_with_sites_and_a_missing_file(tmp_path):
    for name in ("1", "2", "3"):
        save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "list.csv").write_text(
        "path,label,split,site\n"
        "images/1.png,ill,train,north\n"
        "images/2.png,well,train,south\n"
        "images/3.png,ill,val,south\n"
        "images/4.png,ill,val,south\n"
    )
    splits = read_splits(tmp_path / "list.csv", image=IMAGE, max_skipped=0.5)
    assert splits.train.sites == ("north", "south")
    assert splits.val.sites == ("south",)
    assert splits.train.labels.tolist() == [0, 1]
    assert splits.skipped == (f"{tmp_path / 'images' / '4.png'}: no such file",)
    assert describe(tmp_path / "list.csv").counts == {"train": 2, "val": 2}


def test_csv_for_evaluation_only(tmp_path):
    save(tmp_path / "1.png")
    (tmp_path / "list.csv").write_text("path,label,split\n1.png,a,test\n")
    splits = read_splits(tmp_path / "list.csv", image=IMAGE, classes=["a", "b"])
    assert (len(splits.train), splits.val, len(splits.test)) == (0, None, 1)


def test_paths_that_are_no_data_set(tmp_path):
    (tmp_path / "notes.txt").touch()
    for path in (tmp_path / "notes.txt", tmp_path / "missing"):
        with pytest.raises(OneRoundError) as caught:
            read_splits(path, image=IMAGE)
        assert caught.value.file == str(path)
        assert "CSV" in caught.value.remedy


def test_describe_takes_the_common_size_and_true_channels(folder):
    for i in range(5):  # gray stored as color
        save(folder / "train" / "NORMAL" / f"rgb{i}.png", value=i, channels=(3,))
    description = describe(folder)
    assert description.classes == ("NORMAL", "PNEUMONIA")
    assert description.image == ImageSpec(channels=1, height=8, width=10)
    assert description.counts == {"train": 25, "test": 1}


def test_describe_caps_the_size_and_sees_color(tmp_path):
    save(tmp_path / "a" / "1.png", size=(300, 200), channels=(3,))
    assert describe(tmp_path).image.shape == (3, 224, 200)


def write_table(folder, rows):
    lines = []
    for name, cells in rows.items():
        save(folder / name)
        lines.append(f"{name},{cells}\n")
    (folder / "list.csv").write_text(f"path,label,split,site,patient\n{''.join(lines)}")
    return folder / "list.csv"


def test_the_rows_of_one_site(tmp_path):
    table = write_table(
        tmp_path, {"1.png": "a,train,north,p", "2.png": "b,train,south,q", "3.png": "b,val,north,r"}
    )
    splits = read_splits(table, image=IMAGE, site="NORTH")
    assert (splits.train.sites, splits.val.sites) == (("north",), ("north",))
    assert len(read_splits(table, image=IMAGE).train) == 2


def test_patients_are_numbers_in_all_splits(tmp_path):
    table = write_table(
        tmp_path,
        {
            "1.png": "a,train,n,anna",
            "2.png": "b,train,n,bert",
            "3.png": "a,train,n,anna",
            "4.png": "b,test,n,bert",
            "5.png": "b,test,n,carl",
        },
    )
    splits = read_splits(table, image=IMAGE)
    first, second, third = splits.train.patients.tolist()
    assert first == third != second
    assert splits.test.patients[0] == second
    (line,) = splits.skipped
    assert line.startswith("1 of 2 test images are of patients who have training images, too")
    assert "bert" not in str(vars(splits.train))


def test_one_patient_for_all_is_none(tmp_path):
    table = write_table(tmp_path, {"1.png": "a,train,n,x", "2.png": "b,train,n,x"})
    splits = read_splits(table, image=IMAGE)
    assert splits.train.patients is None
    assert "patients are not told apart" in splits.skipped[0]


@pytest.fixture
def originals(monkeypatch):
    """What is read of a file, by its name, in place of its content."""
    found = {}

    def read(path, image):
        return found.get(path.name) or reader.read_file(path, image)

    monkeypatch.setattr(loading, "read_file", read)
    return found


def test_frames_and_patients_of_files(folder, originals):
    frames = torch.zeros(3, 1, 8, 10, dtype=torch.uint8)
    originals["3.png"] = Original(frames, patient="anna")
    originals["4.png"] = Original(frames[:1] + 1, patient="anna")
    train = read_splits(folder, image=IMAGE).train
    assert len(train) == 22
    assert train.labels[:12].tolist() == [0] * 12
    assert len(set(train.patients[3:7].tolist())) == 1, "three frames, and another file"
    assert len(train.patients.unique()) == 19, "every other file is on its own"


def test_what_looks_wrong_is_told_with_its_count(folder, originals):
    for name in ("3.png", "4.png"):
        originals[name] = Original(torch.zeros(1, 1, 8, 10), notices=("it is black",))
    splits = read_splits(folder, image=IMAGE)
    (line,) = splits.skipped
    assert splits.unreadable == 0
    first = folder / "train" / "NORMAL" / "3.png"
    assert line == f"2 of 21 images: it is black; the first: {first}"


def test_a_few_deep_files_are_rounded_and_told(folder, originals, monkeypatch):
    monkeypatch.setattr(loading, "SAMPLE", 3)
    originals["9.png"] = Original(torch.full((1, 1, 8, 10), 0.5))
    splits = read_splits(folder, image=IMAGE)
    assert splits.train.dtype == torch.uint8
    assert splits.train.images[9].unique().item() == 128
    assert "rounded to 8" in splits.skipped[0]


def test_nearly_black_images_of_a_site_are_told(tmp_path, originals):
    save(tmp_path / "a" / "1.png")
    originals["1.png"] = Original(torch.rand(1, 1, 8, 10), top=4095 / 65535)
    (line,) = read_splits(tmp_path, image=IMAGE).skipped
    assert line.startswith("the brightest of 1 images with more than 8 bits has 6.2% of")


def test_images_that_do_not_fit_into_memory(folder, monkeypatch):
    monkeypatch.setattr(store, "free_memory", lambda: 2000)
    with pytest.raises(OneRoundError, match="GB of memory are free") as caught:
        read_splits(folder, image=IMAGE)
    assert "--cache" in caught.value.remedy


def test_equal_images_in_two_splits_are_told(folder):
    (folder / "test" / "NORMAL" / "0.png").write_bytes(
        (folder / "train" / "NORMAL" / "4.png").read_bytes()
    )
    (line,) = read_splits(folder, image=IMAGE).skipped
    assert line.startswith("1 of 1 test images are equal to training images, pixel for pixel")


def test_classes_in_other_case(folder):
    train = read_splits(folder, image=IMAGE, classes=["Pneumonia", "Normal"]).train
    assert train.classes == ("Pneumonia", "Normal")
    assert train.labels[0] == 1


def test_long_reading_shows_an_estimate_and_progress(folder, monkeypatch):
    monkeypatch.setattr(loading, "SHORT", 0.0)
    calls = []
    read_splits(folder, image=IMAGE, on_progress=lambda *call: calls.append(call))
    assert calls[0][:3] == ("reading", 0, 21)
    assert "GB" in calls[0][3]
    assert calls[-1][:3] == ("reading", 21, 21)
