"""The example for NVIDIA FLARE in its simulator, with hospitals that fail.

FLARE is not among the packages of the tests, and without it these are skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from oneround import signing
from oneround.coordinator.evaluations import kept_evaluations
from oneround.coordinator.results import Results
from oneround.data import ImageSet
from oneround.study import SubmissionSpec
from tests import tiny

pytest.importorskip("nvflare")

EXAMPLE = Path(__file__).parents[1] / "examples" / "nvflare"
SITES = ("north", "south", "west")

RUBBISH = """
if name == "west":
    facts, files = {"site": "west", "done": True}, {"west.oneround": b"rubbish"}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Hospitals with images and keys, and the study; k is 1."""
    public = {}
    for seed, site in enumerate(SITES):
        parts: dict[str, ImageSet] = {
            "train": tiny.images(24, seed),
            "test": tiny.images(18, 10 + seed),
        }
        for part, images in parts.items():
            tiny.write_folder(tmp_path / "hospitals" / site / "images" / part, images)
        made = signing.new_signing_key(tmp_path / "hospitals" / site / site)
        public[site] = signing.read_public_key(made.public)
    recipient = signing.read_recipient(signing.new_encryption_key(tmp_path / "coordinator").public)
    submission = SubmissionSpec(keys=public, at_least=1, encrypt_to=recipient)
    study = tiny.STUDY.model_copy(update={"sites": SITES, "submission": submission})
    study.write(tmp_path / "hospitals" / "study.toml")
    return tmp_path


def simulate(folder: Path, example: Path = EXAMPLE) -> str:
    """Run the job; what it prints."""
    source = str(Path(signing.__file__).parents[1])
    given = {
        "hospitals": "hospitals",
        "study": "hospitals/study.toml",
        "inbox": "inbox",
        "out": "run",
        "identity": "coordinator.identity",
        "options": " ".join(tiny.HEADFIT),
    }
    done = subprocess.run(
        [sys.executable, example / "job.py", *(f"--{key}={value}" for key, value in given.items())],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def test_three_hospitals(folder: Path) -> None:
    simulate(folder)
    assert sorted(path.name for path in (folder / "inbox").iterdir()) == [
        f"{site}.oneround.age" for site in SITES
    ]
    assert (folder / "run" / "report.html").exists()
    whose, _ = Results.read(folder / "run").notes
    assert whose.startswith("All layers but the last")
    assert {found.site for found in kept_evaluations(folder / "run")} == {*SITES}


def test_a_wrong_key_and_rubbish_are_named_and_the_run_continues(folder: Path) -> None:
    hospitals, example = folder / "hospitals", folder / "example"
    shutil.copy(hospitals / "north" / "north.key", hospitals / "south" / "south.key")
    shutil.copytree(EXAMPLE, example)
    script, send = example / "client.py", "        flare.send("
    text = script.read_text("utf-8")
    assert send in text
    rubbish = "".join(f"        {line}\n" for line in RUBBISH.strip().splitlines())
    script.write_text(text.replace(send, rubbish + send), "utf-8")
    said = simulate(folder, example)
    assert [path.name for path in (folder / "inbox").iterdir()] == ["north.oneround.age"]
    notes = " ".join(Results.read(folder / "run").notes)
    reason = "the file does not begin as a submission does"
    for part in ("south: could not do it", f"west: sent a file that is refused: {reason}"):
        assert part in notes
        assert part in said
    assert "the study has the key" in (hospitals / "south" / "oneround.log").read_text("utf-8")
    assert "the study has the key" not in said  # an error may quote names of files
    assert [found.site for found in kept_evaluations(folder / "run")] == ["north"]
