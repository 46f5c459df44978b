import errno
import os

import pytest

from oneround.data.listing import list_csv, list_folder
from oneround.errors import OneRoundError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_folder_per_class(tmp_path):
    touch(tmp_path, "b/2.png", "b/1.png", "a/patient/3", "a/.DS_Store", ".git/x", "readme.txt")
    (tmp_path / "c").mkdir()
    listing = list_folder(tmp_path)
    assert listing.classes == ("a", "b", "c")
    found = [(f.path.relative_to(tmp_path).as_posix(), f.label, f.split) for f in listing.files]
    assert found == [
        ("a/patient/3", "a", "train"),
        ("b/1.png", "b", "train"),
        ("b/2.png", "b", "train"),
    ]


def test_split_folders(tmp_path):
    touch(tmp_path, "train/a/1.png", "train/b/1.png", "test/b/2.png", "__MACOSX/a/1.png")
    listing = list_folder(tmp_path)
    assert listing.classes == ("a", "b")
    assert [(f.split, f.label) for f in listing.files] == [
        ("test", "b"),
        ("train", "a"),
        ("train", "b"),
    ]


def test_folder_beside_the_splits(tmp_path):
    touch(tmp_path, "train/a/1.png", "validation/a/1.png")
    with pytest.raises(OneRoundError, match="validation"):
        list_folder(tmp_path)


def test_folder_without_classes(tmp_path):
    touch(tmp_path, "1.png")
    with pytest.raises(OneRoundError, match="no class folder"):
        list_folder(tmp_path)


def test_what_the_user_did_not_put_there_is_no_image(tmp_path):
    touch(tmp_path, "a/1.png", "a/.checkpoints/1.png", "a/more/__MACOSX/1.png", "a/.hidden.png")
    (tmp_path / "a" / "link.png").symlink_to("1.png")
    (tmp_path / "a" / "lost.png").symlink_to("no such file")
    (tmp_path / "a" / "loop.png").symlink_to("loop.png")
    names = [str(listed.path.relative_to(tmp_path)) for listed in list_folder(tmp_path).files]
    assert names == ["a/1.png", "a/link.png", "a/loop.png", "a/lost.png"]


def test_linked_folders_are_read_too(tmp_path):
    touch(tmp_path, "data/a/1.png", "archive/2.png", "archive/more/3.png")
    (tmp_path / "data" / "a" / "2024").symlink_to(tmp_path / "archive")
    (tmp_path / "archive" / "more" / "loop").symlink_to(tmp_path / "archive")
    names = [listed.path.name for listed in list_folder(tmp_path / "data").files]
    assert names == ["1.png", "2.png", "3.png"]


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.png", "a/more/2.png")
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("more"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(OneRoundError, match="Permission denied") as caught:
        list_folder(tmp_path)
    assert caught.value.file == str(tmp_path / "a" / "more")


def test_csv(tmp_path):
    (tmp_path / "list.csv").write_text(
        "\ufeffpath,label,split,site\nx/1.png, b ,train,north\n../2.png,a,test,south\n", "utf-8"
    )
    listing = list_csv(tmp_path / "list.csv")
    assert listing.classes == ("a", "b")
    first, second = listing.files
    assert (first.path, first.label, first.split, first.site) == (
        tmp_path / "x/1.png",
        "b",
        "train",
        "north",
    )
    assert second.path == tmp_path.parent / "2.png"


def test_csv_needs_only_path_and_label(tmp_path):
    (tmp_path / "list.csv").write_text("path,label\n1.png,a\n")
    (listed,) = list_csv(tmp_path / "list.csv").files
    assert (listed.split, listed.site) == ("train", None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "none"),
        ("path;label\n1.png;a\n", "columns path;label"),
        ("path,label\n", "lists no image"),
        ("path,label\n1.png,a\n2.png,\n", "line 3 has no label"),
        ("path,label\n1.png,a\n2.png\n", "line 3 has no label"),
        ("path,label,site\n1.png,a,\n", "line 2 has no site"),
        ("path,label,split\n1.png,a,dev\n", "line 2 has the split 'dev'"),
        ("path,label\n1.png,a\nx/../1.png,b\n", "listed twice, in lines 2 and 3"),
    ],
)
def test_malformed_csv(tmp_path, content, reason):
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(OneRoundError, match=reason) as caught:
        list_csv(tmp_path / "list.csv")
    assert caught.value.file == str(tmp_path / "list.csv")


def test_csv_that_is_no_text(tmp_path):
    (tmp_path / "list.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(OneRoundError, match="cannot be read as CSV"):
        list_csv(tmp_path / "list.csv")
