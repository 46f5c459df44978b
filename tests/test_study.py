from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oneround.errors import OneRoundError, RenamedWarning
from oneround.schema import parse_assignment
from oneround.study import ArchitectureSpec, ImageSpec, Study, SubmissionSpec, preset
from tests.tiny import IMAGE, STUDY

TEXT = """
name = "blood"
classes = ["a", "b"]
seed = 3

[image]
channels = 1
height = 16
width = 32
"""


def read(tmp_path: Path, text: str | bytes) -> Study:
    path = tmp_path / "study.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Study.read(path)


def test_hash_is_that_of_the_content_alone(tmp_path: Path) -> None:
    study = read(tmp_path, TEXT)
    assert len(study.hash) == 64
    same = {
        "comment": "# agreed on in May\n" + TEXT,
        "order": 'seed = 3\nclasses = ["a", "b"]\nname = "blood"\n'
        "[image]\nwidth = 32\nheight = 16\nchannels = 1\n",
        "line ends": TEXT.replace("\n", "\r\n"),
        "byte order mark": b"\xef\xbb\xbf" + TEXT.encode(),
        "default written out": TEXT.replace("seed = 3", "seed = 3\nshare_class_counts = true"),
        "inline table": 'name = "blood"\nclasses = ["a", "b"]\nseed = 3\n'
        "image = {channels = 1, height = 16, width = 32}\n",
    }
    for change, text in same.items():
        assert read(tmp_path, text).hash == study.hash, change


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('["a", "b"]', '["b", "a"]'),
        ("seed = 3", "seed = 4"),
        ("width = 32", "width = 31"),
        ('name = "blood"', 'name = "bloods"'),
        ("seed = 3", "seed = 3\ntraining = {epochs = 3}"),
        ("seed = 3", "seed = 3\ntraining = {min_steps_per_epoch = 3}"),
        ("seed = 3", 'seed = 3\narchitectures = [{name = "resnet34"}]'),
    ],
)
def test_hash_changes_with_the_content(tmp_path: Path, old: str, new: str) -> None:
    assert read(tmp_path, TEXT.replace(old, new)).hash != read(tmp_path, TEXT).hash


def test_a_study_of_before_there_were_small_batches_keeps_its_hash(tmp_path: Path) -> None:
    new = TEXT.replace("seed = 3", "seed = 3\ntraining = {min_steps_per_epoch = 0}")
    assert read(tmp_path, new).hash == read(tmp_path, TEXT).hash
    assert "min_steps_per_epoch" not in read(tmp_path, new).agreement()["training"]


def test_toml_round_trip(tmp_path: Path) -> None:
    study = Study.model_validate(
        STUDY.model_dump()
        | {
            "classes": (
                '5" disk',
                "C:\\images",
                "naïve 細胞 🩸",
                "it's",
                "a # b",
                "[x]",
                "\\u0041",
            ),
            "sites": ("north", "St. Mary"),
            "image": {"channels": 3, "mean": (0.1, 0.2, 1e-05), "std": (0.3,)},
            "architectures": (
                ArchitectureSpec(arguments={"width": 4, "stem": "small"}),
                ArchitectureSpec(name="densenet", arguments={"block_config": [1, 1]}),
                ArchitectureSpec(name="own", arguments={"rate": 0.5, "bias": True, "two words": 1}),
            ),
        }
    )
    study.write(tmp_path / "study.toml")
    assert Study.read(tmp_path / "study.toml") == study
    assert Study.read(tmp_path / "study.toml").hash == study.hash


NAMES = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=20)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(NAMES, min_size=2, max_size=4, unique=True))
def test_any_class_names_come_back(classes: list[str]) -> None:
    study = Study(name="x", classes=tuple(classes))
    with tempfile.TemporaryDirectory() as folder:
        study.write(Path(folder, "x.toml"))
        assert Study.read(Path(folder, "x.toml")) == study


@pytest.mark.parametrize(
    ("change", "key", "known"),
    [
        ("colour = 1", "colour", "share_class_counts"),
        ("training = {epoch = 3}", "training.epoch", "epochs"),
        ("training = {learning_rate = inf}", "training.learning_rate", "epochs"),
        ("training = {augment = ['fly']}", "training.augment.0", "epochs"),
        ("architectures = [{nam = 'resnet18'}]", "architectures.0.nam", "arguments"),
        ("architectures = []", "architectures", "share_class_counts"),
        ("sites = ['../x']", "sites.0", "share_class_counts"),
        ("sites = ['x', 'x']", "sites must be different", "share_class_counts"),
        ("format = 2", "format", "share_class_counts"),
    ],
)
def test_errors_name_file_key_and_remedy(tmp_path: Path, change: str, key: str, known: str) -> None:
    with pytest.raises(OneRoundError) as caught:
        read(tmp_path, TEXT.replace("seed = 3", change))
    assert caught.value.file == str(tmp_path / "study.toml")
    assert key in caught.value.reason
    assert "known are" in caught.value.remedy
    assert known in caught.value.remedy


@pytest.mark.parametrize("text", [b"name = ", b"\xff\xfe", b"name = 'x'\nname = 'y'"])
def test_not_toml(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(OneRoundError, match="not a TOML file") as caught:
        read(tmp_path, text)
    assert caught.value.remedy


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "no.toml", tmp_path):
        with pytest.raises(OneRoundError, match="cannot read the study"):
            Study.read(path)


@pytest.mark.parametrize(
    "values",
    [{"mean": (0.1, 0.2)}, {"std": (0.0,)}, {"std": (0.1, 0.1, -1.0)}, {"mean": (float("nan"),)}],
)
def test_normalization_that_makes_no_sense(values: dict[str, object]) -> None:
    with pytest.raises(OneRoundError, match=r"mean|std"):
        ImageSpec.validate_options(values, "image options")


def test_normalize_per_channel_and_back() -> None:
    spec = ImageSpec(channels=3, height=8, width=8, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    pixels = torch.rand(4, *spec.shape)
    inputs = spec.normalize(pixels)
    assert torch.allclose(inputs[:, 2], (pixels[:, 2] - 0.3) / 2.0)
    assert torch.allclose(spec.denormalize(inputs), pixels, atol=1e-6)
    assert IMAGE.denormalize(torch.tensor([[[9.0]], [[-9.0]], [[0.0]]])).flatten().tolist() == [
        1.0,
        0.0,
        0.5,
    ]


def test_presets_fit_the_image_size() -> None:
    small, large = ImageSpec(height=28, width=28), ImageSpec(height=64, width=64)
    for name in ("quick", "paper"):
        for image, stem in ((small, "small"), (large, "standard")):
            architecture, training = preset(name, image)
            assert architecture.arguments["stem"] == stem
            assert training.epochs >= 1
    with pytest.raises(OneRoundError, match="no preset 'fast'"):
        preset("fast", small)


KEY = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE" + "A" * 86 + "=="


def test_how_files_come_in_is_no_part_of_the_hash(tmp_path: Path) -> None:
    submission = (
        f'[submission]\ndeadline = "2027-01-31"\nat_least = 2\nkeys = {{north = "{KEY}"}}\n'
    )
    study = read(tmp_path, TEXT + submission)
    assert study.hash == read(tmp_path, TEXT).hash
    assert study.submission.keys == {"north": KEY}
    study.write(tmp_path / "again.toml")
    assert Study.read(tmp_path / "again.toml") == study


@pytest.mark.parametrize(
    ("deadline", "utc"),
    [
        ('"2027-01-31"', "2027-01-31T23:59:59+00:00"),
        ('"2027-01-31T12:00:00+01:00"', "2027-01-31T11:00:00+00:00"),
        ("2027-01-31", "2027-01-31T23:59:59+00:00"),
        ("2027-01-31T12:00:00Z", "2027-01-31T12:00:00+00:00"),
    ],
)
def test_deadline(tmp_path: Path, deadline: str, utc: str) -> None:
    read_one = read(tmp_path, f"{TEXT}[submission]\ndeadline = {deadline}\n").submission.deadline
    assert read_one is not None
    assert read_one.isoformat() == utc


@pytest.mark.parametrize(
    ("submission", "reason"),
    [
        ('deadline = "2027-01-31T12:00:00"', "needs its zone"),
        ('deadline = "soon"', "submission.deadline"),
        (f'keys = {{north = "{KEY}", south = "{KEY}"}}', "a key of its own"),
        (f'keys = {{east = "{KEY}"}}', "east is none of the sites"),
        ('keys = {north = "ssh-ed25519 AAAA"}', "submission.keys.north"),
        ("at_least = 3", "more than there are sites"),
        ('encrypt_to = "AGE-SECRET-KEY-1QQ"', "submission.encrypt_to"),
    ],
)
def test_wrong_submission_table(tmp_path: Path, submission: str, reason: str) -> None:
    sites = 'sites = ["north", "south"]\n'
    with pytest.raises(OneRoundError, match=reason):
        read(tmp_path, f"{sites}{TEXT}[submission]\n{submission}\n")


def test_the_table_of_the_version_before(tmp_path: Path) -> None:
    table = "at_least = 2\ndeadline = 2027-01-31\n"
    now = read(tmp_path, f"{TEXT}[submission]\n{table}")
    with pytest.warns(RenamedWarning, match="table hand_in of a study is called submission now"):
        before = read(tmp_path, f"{TEXT}[hand_in]\n{table}")
    assert before == now
    assert before.hash == now.hash
    with pytest.raises(OneRoundError, match="hand_in"):
        read(tmp_path, f"{TEXT}[submission]\nat_least = 2\n[hand_in]\nat_least = 2\n")


def test_all_expected_sites_are_needed_unless_the_study_says_another_number() -> None:
    study = Study(name="x", classes=("a", "b"))
    assert study.at_least == 2
    assert study.model_copy(update={"sites": ("a", "b", "c")}).at_least == 3
    with_key = study.model_copy(update={"submission": SubmissionSpec(keys={"north": KEY})})
    assert with_key.at_least == 1
    few = SubmissionSpec(at_least=1)
    assert study.model_copy(update={"sites": ("a", "b"), "submission": few}).at_least == 1


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 5000])
def test_values_that_no_parser_takes(tmp_path: Path, value: str) -> None:
    with pytest.raises(OneRoundError) as caught:
        read(tmp_path, f"{TEXT}seed = {value}\n")
    assert caught.value.file
    with pytest.raises(OneRoundError, match=r"training\.epochs") as caught:
        parse_assignment(f"training.epochs={value}")
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("seed = true\n", "seed"),
        ('seed = "7"\n', "seed"),
        ('share_class_counts = "no"\n', "share_class_counts"),
        ("[training]\nepochs = 2.0\n", "training.epochs"),
        ('[training]\nlearning_rate = "0.1"\n', "training.learning_rate"),
        ("[training]\nlearning_rate = true\n", "training.learning_rate"),
        ("[training]\nlearning_rate = nan\n", "training.learning_rate"),
        ("[submission]\nat_least = true\n", "submission.at_least"),
    ],
)
def test_numbers_must_be_numbers(tmp_path: Path, table: str, key: str) -> None:
    text = TEXT if table.startswith("[") else TEXT.replace("seed = 3\n", "")
    with pytest.raises(OneRoundError, match=key):
        read(tmp_path, text + table if table.startswith("[") else table + text)


def test_a_whole_number_is_a_number(tmp_path: Path) -> None:
    found = read(tmp_path, f"{TEXT}[training]\nlearning_rate = 1\n").training.learning_rate
    assert found == 1.0
    assert isinstance(found, float)
