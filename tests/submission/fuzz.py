"""The reader of submissions against a fuzzer that looks for new paths through it (atheris).

Not collected by pytest; by hand, for as long as you like, with options of libFuzzer::

    pip install atheris
    python tests/submission/fuzz.py -max_total_time=600 -rss_limit_mb=3000

Half of the inputs are bytes as the fuzzer makes them, half are a right ZIP around a manifest and
weights that it made, so that checksums and hashes do not hide what lies behind them.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import sys
import tempfile
import zipfile
from pathlib import Path

import atheris
import safetensors.torch
import torch

with atheris.instrument_imports(include=["oneround.submission", "oneround.study", "zipfile"]):
    from oneround.submission import check_submission, read_submission, write_submission
    from oneround.submission.container import MANIFEST, WEIGHTS, pack

from oneround import models
from oneround.errors import OneRoundError
from oneround.study import ArchitectureSpec, ImageSpec, Study
from oneround.submission import TrainingSummary

STUDY = Study(
    name="cells",
    classes=("a", "b", "c"),
    image=ImageSpec(channels=3, height=16, width=16),
    architectures=(ArchitectureSpec(arguments={"width": 2}),),
)
ODD = [
    None, True, -1, 0, 1e308, 2**63, 10**400, "", "\x00", "\u202e", "../a", [], {}, [[]],
]  # fmt: skip
FILE = Path(tempfile.mkdtemp(), "fuzzed.oneround")


def right() -> bytes:
    """A submission without any problem."""
    write_submission(
        FILE, model=models.build(STUDY.architectures[0], STUDY.image, 3).eval(), study=STUDY,
        site="north", architecture=STUDY.architectures[0], images=120, class_counts=[50, 40, 30],
        training=TrainingSummary(epochs=5, best_epoch=4, loss=0.25),
    )  # fmt: skip
    return FILE.read_bytes()


def changed(data: bytes, max_size: int, seed: int) -> bytes:
    """Change one member and put the rest in order again, or change the file itself."""
    chance = random.Random(seed)
    members = members_of(data)
    if members is None or chance.random() < 0.3:
        return bytes(atheris.Mutate(data, max_size))
    text, weights = members
    if chance.random() < 0.5:
        text = changed_manifest(text, chance)
    else:
        head = 8 + int.from_bytes(weights[:8], "little")
        front, rest = weights[:head], weights[head:]
        weights = bytes(atheris.Mutate(front, len(front) + 64)) + rest
        if chance.random() < 0.8:  # or else the header is at once too long
            weights = max(0, len(weights) - len(rest) - 8).to_bytes(8, "little") + weights[8:]
    if chance.random() < 0.8:
        text = with_hash(text, weights)
    return pack({MANIFEST: text, WEIGHTS: weights})[:max_size]


def members_of(data: bytes) -> tuple[bytes, bytes] | None:
    """Manifest and weights, if they can be had."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.read(MANIFEST), archive.read(WEIGHTS)
    except Exception:  # what the fuzzer made is no archive any more
        return None


def changed_manifest(text: bytes, chance: random.Random) -> bytes:
    """Another value somewhere in the JSON, or other bytes."""
    try:
        content = place = json.loads(text)
        while True:
            key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not (isinstance(place[key], dict | list) and place[key]) or chance.random() < 0.3:
                break
            place = place[key]
    except (ValueError, TypeError, IndexError, RecursionError):
        return bytes(atheris.Mutate(text, len(text) + 64))
    if chance.random() < 0.5 and isinstance(place[key], str):
        place[key] = atheris.Mutate(place[key].encode(), 300).decode("utf-8", "replace")
    else:
        place[key] = chance.choice(ODD)
    return json.dumps(content).encode()


def with_hash(text: bytes, weights: bytes) -> bytes:
    """The manifest with the right hash of the weights, if it is still one."""
    try:
        content = json.loads(text) | {"weights_sha256": hashlib.sha256(weights).hexdigest()}
        return json.dumps(content).encode()
    except (ValueError, TypeError, RecursionError):
        return text


def only_clear_errors(data: bytes) -> None:
    """A check never raises; reading does exactly when the check found something fatal, and what is
    read is what the safetensors library reads."""
    FILE.write_bytes(data)
    fatal = [problem for problem in check_submission(FILE, STUDY) if problem.fatal]
    try:
        found = read_submission(FILE, STUDY).model.state_dict()
    except OneRoundError:
        found = {}
    assert bool(found) == (not fatal), fatal
    if found:
        with zipfile.ZipFile(FILE) as archive:
            expected = safetensors.torch.load(archive.read(WEIGHTS))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


if __name__ == "__main__":
    corpus = Path(tempfile.mkdtemp())
    (corpus / "right").write_bytes(right())
    limits = ["-max_len=200000", "-timeout=30"]
    atheris.Setup([sys.argv[0], str(corpus), *limits, *sys.argv[1:]], only_clear_errors,
                  custom_mutator=changed)  # fmt: skip
    atheris.Fuzz()
