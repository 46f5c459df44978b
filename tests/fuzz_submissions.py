"""Random damage to submissions: a check never raises, and memory stays within a limit.

A short run is in ``tests/submission/test_fuzz.py``. By hand, for as long as you like; the same seed
gives the same files, and what is done is not done again::

    python -m tests.fuzz_submissions --seed 0 --count 100000 --out fuzzed.jsonl

The files are changed where their structure is: a value of the manifest, the header of the weights,
values of weights, the signature, fields and lengths of the ZIP, or any bytes. After most changes
checksums and hashes are made right again, so that they do not hide what lies behind them. An
exception, or a process that needs more memory than the limit, ends the run with exit code 1.
:file:`tests/submission/fuzz.py` does the same guided by coverage.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import json
import random
import struct
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oneround import models, signing
from oneround.models import registry
from oneround.study import ArchitectureSpec, ImageSpec, Study, SubmissionSpec
from oneround.submission import (
    TrainingSummary,
    check_submission,
    encrypted_path,
    seal_submission,
    write_submission,
)
from oneround.submission.container import MANIFEST, SIGNATURE, WEIGHTS, pack

PIECE = 1000
"""Files whose result is written at once; a run that was ended continues at the last piece."""

MORE_BYTES = 256 << 20
"""Memory in bytes that checks may need beyond what is needed before the first one."""

ODD: list[Any] = [
    None, True, False, -1, 0, 1, 0.5, -0.0, 1e308, -1e308, 2**31, 2**48, 2**63, 2**64, 10**400,
    float("nan"), float("inf"), "", "0", "\x00", "\u202e", "\ud800", "../a", "a" * 10**4, [], {},
    [[]], [0] * 1000, {"a": {}}, "north", "resnet18", "F32", "I64", "F64",
]  # fmt: skip


def tiny(channels: int, classes: int, *, width: int = 2) -> nn.Module:
    """A network that is built in no time, with every kind of weight and buffer."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes),
    )  # fmt: skip


@dataclass
class Kit:
    """Good submissions to begin with, and the study that they belong to."""

    folder: Path
    study: Study
    signed: Study
    encrypted: Study
    identity: signing.Identity
    starts: list[tuple[Study, dict[str, bytes]]] = field(default_factory=list)
    sealed: bytes = b""

    @classmethod
    def make(cls, folder: Path) -> Kit:
        """Tiny networks, a key of a site and one of the coordinator, in ``folder``."""
        models.register("fuzzed")(tiny)
        study = Study(
            name="cells",
            classes=("a", "b", "c"),
            sites=("north", "south"),
            image=ImageSpec(channels=1, height=8, width=8),
            architectures=(ArchitectureSpec(name="fuzzed", arguments={"width": 2}),),
        )
        key = signing.new_signing_key(folder / "north")
        other = signing.new_encryption_key(folder / "coordinator")
        keys = {"north": signing.read_public_key(key.public)}
        recipient = signing.read_recipient(other.public)
        signed = study.model_copy(update={"submission": SubmissionSpec(keys=keys)})
        encrypted = study.model_copy(update={"submission": SubmissionSpec(encrypt_to=recipient)})
        kit = cls(folder, study, signed, encrypted, signing.Identity(other.private))
        path = folder / "north.oneround"
        torch.manual_seed(0)
        spec = study.architectures[0]
        write_submission(
            path, model=models.build(spec, study.image, 3).eval(), study=study, site="north",
            architecture=spec, images=120, class_counts=[50, 40, 30],
            training=TrainingSummary(epochs=5, best_epoch=4, loss=0.25, validation={"a": 0.5}),
            created="2025-01-31T12:00:00+00:00",
        )  # fmt: skip
        kit.starts.append((study, _members(path.read_bytes())))
        seal_submission(path, encrypted)
        kit.sealed = encrypted_path(path).read_bytes()
        seal_submission(path, signed, key=key.private)
        kit.starts.append((signed, _members(path.read_bytes())))
        return kit


def _members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def mutant(kit: Kit, chance: random.Random) -> tuple[Study | None, bytes]:
    """A damaged submission, and the study to check it against."""
    if chance.random() < 0.03:
        return kit.encrypted, _any_bytes(kit.sealed, chance)
    study, members = kit.starts[chance.random() < 0.1]
    members = dict(members)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        _change_member(members, chance)
    if chance.random() < 0.85:
        members[MANIFEST] = _with_hash(members[MANIFEST], members[WEIGHTS])
    content = pack(members)
    if chance.random() < 0.15:
        content = chance.choice((_zip_field, _any_bytes, _cut))(content, chance)
    return (None if chance.random() < 0.05 else study), content


def _change_member(members: dict[str, bytes], chance: random.Random) -> None:
    name = chance.choice([*members, MANIFEST, WEIGHTS])
    ways: dict[str, tuple[Callable[[bytes, random.Random], bytes], ...]] = {
        MANIFEST: (_json_value, _json_value, _json_value, _json_text),
        WEIGHTS: (_header, _header, _values, _header_text),
        SIGNATURE: (_json_value, _json_text),
    }
    way = chance.choice((*ways.get(name, ()), _any_bytes))
    members[name] = way(members[name], chance)


def _json_value(text: bytes, chance: random.Random) -> bytes:
    """Another value, key or list entry somewhere in the JSON."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return _any_bytes(text, chance)
    place: Any = content
    while isinstance(place, dict | list) and place:
        key: Any = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not (isinstance(place[key], dict | list) and place[key]) or chance.random() < 0.25:
            break
        place = place[key]
    else:
        return text
    _change_at(place, key, chance)
    return json.dumps(content).encode("utf-8", "surrogatepass")


def _change_at(place: Any, key: Any, chance: random.Random) -> None:
    way, value = chance.randrange(6), place[key]
    if way == 0:
        del place[key]
    elif way == 1 and isinstance(place, dict):
        place[chance.choice((str(key) + "x", "__metadata__", "", "format"))] = value
    elif way == 2 and isinstance(place, list):
        place.insert(key, value)
    elif way == 3 and isinstance(value, int | float) and not isinstance(value, bool):
        place[key] = value + chance.choice((-1, 1, 0.5, -value, value))
    elif way == 4 and isinstance(value, str) and value:
        at = chance.randrange(len(value))
        place[key] = value[:at] + chr(chance.choice((0, 32, 65, 0x1F, 0x202E, 0xE9))) + value[at:]
    else:
        place[key] = chance.choice(ODD)


def _json_text(text: bytes, chance: random.Random) -> bytes:
    """Text that is no JSON, or that readers understand differently."""
    nested = b"[" * chance.choice((10, 10**3, 10**5))
    return chance.choice((
        text[:-1] + b',"site":"south"}', b"\xef\xbb\xbf" + text, text.replace(b"120", b"1e999"),
        text.replace(b"120", b"9" * 5000), text.replace(b"120", b"NaN"), b"[" + text + b"]", nested,
        text.replace(b"120", nested), text.decode("utf-8", "replace").encode("utf-16"), b"",
        b"null",
    ))  # fmt: skip


def _header(weights: bytes, chance: random.Random) -> bytes:
    """Another value in the header of the weights, whose length is right."""
    length = int.from_bytes(weights[:8], "little")
    head, rest = weights[8 : 8 + length], weights[8 + length :]
    head = _json_value(head, chance)
    if chance.random() < 0.2:
        rest = chance.choice((rest + bytes(chance.randrange(64)), rest[: -chance.randrange(1, 64)]))
    return struct.pack("<Q", len(head)) + head + rest


def _header_text(weights: bytes, chance: random.Random) -> bytes:
    length = chance.choice((0, 1, 2, len(weights), 2**20, 2**31, 2**63, 2**64 - 1))
    return struct.pack("<Q", length) + weights[8:]


def _values(weights: bytes, chance: random.Random) -> bytes:
    """Values of weights as a broken training gives them, or a liar."""
    start = 8 + int.from_bytes(weights[:8], "little")
    content = bytearray(weights)
    for _ in range(chance.choice((1, 10, 1000))):
        at = chance.randrange(start, len(content) - 4) if len(content) - 4 > start else 0
        value = chance.choice((float("nan"), float("inf"), -float("inf"), -1.0, 3e38, 1e-45, 0.0))
        content[at : at + 4] = struct.pack("<f", value)
    return bytes(content)


def _any_bytes(content: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, put in, taken away or repeated."""
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        at, way = chance.randrange(len(changed) + 1), chance.randrange(4)
        if way == 0 and at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
        elif way == 1:
            changed[at:at] = chance.randbytes(chance.choice((1, 4, 100)))
        elif way == 2:
            del changed[at : at + chance.choice((1, 4, 100))]
        else:
            changed[at:at] = changed[at : at + 50]
    return bytes(changed)


def _zip_field(content: bytes, chance: random.Random) -> bytes:
    """Another value in one of the headers of the ZIP."""
    marks = (b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06")
    places = [at for mark in marks for at in range(len(content)) if content.startswith(mark, at)]
    at = chance.choice(places) + chance.randrange(4, 46)
    value = chance.choice((0, 1, 2, 8, 0x10, 0xFF, 0xFFFF, 0xFFFFFFFF, chance.randrange(2**32)))
    size = chance.choice((1, 2, 4))
    return content[:at] + (value % 256**size).to_bytes(size, "little") + content[at + size :]


def _cut(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content))
    return chance.choice((content[:at], content[at:], content + content[:at], content[:at] * 2))


def _with_hash(text: bytes, weights: bytes) -> bytes:
    """The manifest with the right hash of the weights, if it is still one."""
    try:
        content = json.loads(text)
        if "weights_sha256" in content:
            content["weights_sha256"] = hashlib.sha256(weights).hexdigest()
            return json.dumps(content).encode("utf-8", "surrogatepass")
    except (ValueError, TypeError, RecursionError):
        pass
    return text


@dataclass
class Tally:
    """What came of some files.

    Attributes:
        codes: Number of files by the problem found; ``accepted``: nothing fatal.
        failures: Number and traceback of files whose check raised.
    """

    codes: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, Any]] = field(default_factory=list)


def run(kit: Kit, seed: int, start: int, count: int) -> Tally:
    """Check the files ``start`` to ``start + count`` of a seed; a file depends on nothing else."""
    tally = Tally()
    for number in range(start, start + count):
        study, content = mutant(kit, random.Random(f"{seed}/{number}"))
        path = kit.folder / "fuzzed.oneround"
        path.write_bytes(content)
        try:
            problems = check_submission(path, study, identity=kit.identity)
        except Exception:
            tally.failures.append({"number": number, "error": traceback.format_exc()[-2000:]})
            continue
        codes = {problem.code for problem in problems if problem.fatal}
        tally.codes.update(codes or {"accepted"})
    return tally


def peak_bytes() -> int:
    """Most memory that this process has had so far, in bytes (Linux counts in KiB)."""
    import resource

    factor = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * factor


def main() -> int:
    """Check ``count`` files of a seed, one line of JSON for every piece; 1: something was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=PIECE)
    parser.add_argument("--out", type=Path, help="JSON lines, appended to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    registry._installed = functools.cache(registry._installed)  # or else for every file
    done = _done(options.out, options.seed)
    total, bad = Counter[str](), 0
    with tempfile.TemporaryDirectory(prefix="oneround-fuzz-") as folder:
        kit = Kit.make(Path(folder))
        run(kit, options.seed, 0, 20)  # what is allocated once, such as for imports
        models.expected_tensors(ArchitectureSpec(), kit.study.image, 3)
        before = peak_bytes()
        for start in range(0, options.count, PIECE):
            if start in done:
                continue
            count, since = min(PIECE, options.count - start), time.monotonic()
            tally = run(kit, options.seed, start, count)
            more = max(0, peak_bytes() - before)
            total += tally.codes
            bad += len(tally.failures) + (more > MORE_BYTES)
            line = {
                "seed": options.seed, "start": start, "count": count, "failures": tally.failures,
                "codes": dict(tally.codes), "more_bytes": more,
                "seconds": round(time.monotonic() - since, 2),
            }  # fmt: skip
            if options.out:
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
    sys.stdout.write(json.dumps({"bad": bad, "codes": dict(total.most_common())}, indent=1) + "\n")
    return int(bad > 0)


def _done(out: Path | None, seed: int) -> set[int]:
    """Where the pieces begin that are in the file already, whole."""
    if out is None or not out.exists():
        return set()
    lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    return {x["start"] for x in lines if x["seed"] == seed and x["count"] == PIECE}


if __name__ == "__main__":
    sys.exit(main())
