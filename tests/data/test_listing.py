import errno
import os

import pytest

from oneround.data.listing import list_csv, list_folder, of_site, with_classes
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
    touch(tmp_path, "train/a/1.png", "holdout/a/1.png")
    with pytest.raises(OneRoundError, match="holdout"):
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
        ("path|label\n1.png|a\n", r"columns path\|label"),
        ("path,label,Path\n1.png,a,2.png\n", "two columns path"),
        ("path,label\nx\\1.png,a\n", "line 2 has the path x.1.png, with backslashes"),
        ("path,label,patient\n1.png,a,\n", "line 2 has no patient"),
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


@pytest.mark.parametrize(
    ("train", "test"), [("Training", "Testing"), ("Train", "Test"), ("TRAIN", "valid")]
)
def test_splits_under_other_names(tmp_path, train, test):
    touch(tmp_path, f"{train}/tumor/1.png", f"{train}/none/1.png", f"{test}/tumor/2.png")
    listing = list_folder(tmp_path)
    assert listing.classes == ("none", "tumor")
    assert {f.split for f in listing.files} == {"train", "val" if test == "valid" else "test"}


@pytest.mark.parametrize("names", [("chest/train/a/1.png",), ("a/train/1.png", "b/test/1.png")])
def test_splits_below_class_folders_are_refused(tmp_path, names):
    touch(tmp_path, *names)
    with pytest.raises(OneRoundError, match="this would be a class folder") as caught:
        list_folder(tmp_path)
    assert caught.value.file in (str(tmp_path / "chest"), str(tmp_path / "a"))


def test_images_beside_the_class_folders_are_told(tmp_path):
    touch(tmp_path, "train/a/1.png", "train/2.png", "3.JPG", "notes.txt", "train/a/Thumbs.db")
    listing = list_folder(tmp_path)
    assert len(listing.files) == 1
    (line,) = listing.notices
    assert line == f"2 file(s) outside of class folders are not read; the first: {tmp_path}/3.JPG"


FORMS = {
    "space": "path, label\n1.png, a\n2.png, b\n",
    "capitals": "Path,Label\n1.png,a\n2.png,b\n",
    "semicolon": "path;label\n1.png;a\n2.png;b\n",
    "tab": "path\tlabel\n1.png\ta\n2.png\tb\n",
    "other columns": "note,path,label\n;,1.png,a\n\n,2.png,b\n",
    "quotes": '"path","label"\r\n"1.png","a"\r\n"2.png","b"\r\n',
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_csv_as_people_have_it(tmp_path, text):
    (tmp_path / "list.csv").write_text(text)
    files = list_csv(tmp_path / "list.csv").files
    assert [(f.path.name, f.label) for f in files] == [("1.png", "a"), ("2.png", "b")]


def test_backslashes_are_read_where_there_is_such_a_file(tmp_path):
    touch(tmp_path, "x/1.png")
    (tmp_path / "list.csv").write_text("path,label\nx\\1.png,a\n")
    assert list_csv(tmp_path / "list.csv").files[0].path == tmp_path / "x" / "1.png"


@pytest.mark.parametrize("header", ["patient", "Patient_ID", "PatientID", "patient id"])
def test_patients(tmp_path, header):
    (tmp_path / "list.csv").write_text(f"path,label,{header}\n1.png,a,p7\n2.png,b,p7\n")
    assert [f.patient for f in list_csv(tmp_path / "list.csv").files] == ["p7", "p7"]


def listed(tmp_path, *labels, sites=()):
    rows = zip(labels, sites or ["x"] * len(labels), strict=True)
    lines = "".join(f"{i}.png,{label},{site}\n" for i, (label, site) in enumerate(rows))
    (tmp_path / "list.csv").write_text(f"path,label,site\n{lines}", "utf-8")
    return list_csv(tmp_path / "list.csv")


@pytest.mark.parametrize("label", ["b\u00e9nin", "be\u0301nin", " B\u00c9NIN", "b\u00e9\u200bnin"])
def test_one_class_however_it_is_written(tmp_path, label):
    classes = ("b\u00e9nin", "malin")
    found = with_classes(listed(tmp_path, label, "Malin"), classes, tmp_path)
    assert [f.label for f in found.files] == list(classes)
    assert found.classes == classes


def test_classes_that_look_the_same_are_refused(tmp_path):
    for two in (("b\u00e9nin", "be\u0301nin"), ("Normal", "NORMAL"), ("no  sign", "no sign")):
        with pytest.raises(OneRoundError, match="must be different from each other") as caught:
            with_classes(listed(tmp_path, *two), None, tmp_path)
        assert len({part for part in caught.value.reason.split("'") if part.strip()}) > 3
    assert "e\\u0301" in ascii(caught.value.reason) or "no  sign" in caught.value.reason


@pytest.mark.parametrize("label", ["nan", "NaN", "N/A", "null", "<NA>"])
def test_a_missing_label_is_no_class(tmp_path, label):
    with pytest.raises(OneRoundError, match="stands for a missing label") as caught:
        with_classes(listed(tmp_path, "a", label), None, tmp_path)
    assert caught.value.file == str(tmp_path / "1.png")
    found = with_classes(listed(tmp_path, "a", "na"), ("a", "NA"), tmp_path)
    assert found.files[1].label == "NA", "a study may have such a class"


def test_rows_of_one_site(tmp_path):
    listing = listed(tmp_path, "a", "b", "a", sites=["north", "south", "north"])
    assert [f.path.name for f in of_site(listing, "North", tmp_path).files] == ["0.png", "2.png"]
    with pytest.raises(OneRoundError, match="no image of 'west'") as caught:
        of_site(listing, "west", tmp_path)
    assert "north, south" in caught.value.remedy
    with pytest.raises(OneRoundError, match="sites must be different"):
        listed(tmp_path, "a", "b", sites=["north", "North"])
