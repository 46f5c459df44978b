"""A corpus of files that nobody should trust, each with the problem that it must give.

The files are put together here byte by byte, not by the code under test.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import struct
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_by_the_library
from safetensors.torch import save as save_by_the_library
from torch import nn

from oneround.errors import OneRoundError
from oneround.models import registry
from oneround.study import Study
from oneround.submission import check_submission, read_submission, weights

from .conftest import ARCHITECTURE, CREATED

MANIFEST, WEIGHTS = "manifest.json", "model.safetensors"
DTYPE_NAMES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}


def safetensors(tensors: dict[str, torch.Tensor], **changes: Any) -> bytes:
    """A safetensors file; ``changes`` replace entries of its header."""
    header: dict[str, Any] = {}
    buffer = b""
    for name, tensor in tensors.items():
        content = tensor.numpy().tobytes()
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(buffer), len(buffer) + len(content)],
        }
        buffer += content
    for name, change in changes.items():
        header[name] = header.get(name, {}) | change
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + buffer


def archive(members: Iterable[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as file:
        warnings.simplefilter("ignore")  # zipfile warns of names that are there twice
        for name, content in members:
            info = zipfile.ZipInfo(name)  # as packed: without the time and the machine
            info.create_system, info.external_attr = 3, 0o644 << 16
            info.compress_type = compression
            file.writestr(info, content)
    return buffer.getvalue()


class Kit:
    """The parts of a good submission, to be put together wrongly."""

    def __init__(self, study: Study, model: nn.Module) -> None:
        self.study = study
        self.tensors = dict(model.state_dict())
        self.weights = safetensors(self.tensors)

    def manifest(self, weights: bytes | None = None, **changes: Any) -> dict[str, Any]:
        values = {
            "format": 1,
            "study": self.study.name,
            "study_hash": self.study.hash,
            "site": "north",
            "architecture": ARCHITECTURE.model_dump(),
            "classes": list(self.study.classes),
            "image": self.study.image.model_dump(),
            "images": 120,
            "class_counts": [50, 40, 30],
            "training": {"epochs": 5, "best_epoch": 5, "loss": 0.5, "validation": {}},
            "versions": {"torch": "2.6.0"},
            "weights_sha256": hashlib.sha256(weights or self.weights).hexdigest(),
            "created": CREATED,
            "privacy": None,
        }
        return values | changes

    def file(self, manifest: bytes | None = None, weights: bytes | None = None) -> bytes:
        text = json.dumps(self.manifest(weights)).encode() if manifest is None else manifest
        return archive([(MANIFEST, text), (WEIGHTS, weights or self.weights)])

    def changed(self, **changes: Any) -> bytes:
        """A file whose manifest differs from a good one."""
        return self.file(json.dumps(self.manifest(**changes)).encode())

    def text(self, old: str, new: str) -> bytes:
        """A file with other text in the JSON of its manifest."""
        text = json.dumps(self.manifest())
        assert old in text
        return self.file(text.replace(old, new).encode())

    def header(self, name: str = "fc.bias", **change: Any) -> bytes:
        """A file with another header entry, its hash in the manifest right."""
        return self.file(weights=safetensors(self.tensors, **{name: change}))

    def valued(self, name: str, value: float) -> bytes:
        """A file with one other value, its hash in the manifest right."""
        tensor = self.tensors[name].clone()
        tensor.view(-1)[0] = value
        return self.file(weights=safetensors(self.tensors | {name: tensor}))

    def members(self, *extra: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
        text = json.dumps(self.manifest()).encode()
        return archive([(MANIFEST, text), (WEIGHTS, self.weights), *extra], compression)


@pytest.fixture(scope="module")
def kit(study: Study, model: nn.Module) -> Kit:
    return Kit(study, model)


def patched(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def in_directory(content: bytes, name: str, offset: int, new: bytes) -> bytes:
    """Change a field of the last entry of the ZIP directory, that of ``name``."""
    return patched(content, content.rindex(name.encode()) - 46 + offset, new)


def raw(header: str, buffer: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + buffer


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.abort, ()


def torch_file(kit: Kit) -> bytes:
    buffer = io.BytesIO()
    torch.save(kit.tensors, buffer)
    return buffer.getvalue()


CORPUS: dict[str, tuple[Callable[[Kit], bytes], str]] = {
    # the file
    "zero bytes": (lambda k: b"", "not-a-submission"),
    "text": (lambda k: b"Dear coordinator,\n" * 100, "not-a-submission"),
    "a pickle": (lambda k: pickle.dumps(Bomb()), "not-a-submission"),
    "a file of torch.save": (torch_file, "unexpected-member"),
    "only the weights": (lambda k: k.weights, "not-a-submission"),
    "an empty ZIP": (lambda k: archive([]), "not-a-submission"),
    "four bytes": (lambda k: b"PK\x03\x04", "truncated"),
    "half of it": (lambda k: k.file()[: len(k.file()) // 2], "truncated"),
    "the last byte missing": (lambda k: k.file()[:-1], "truncated"),
    "the first byte missing": (lambda k: k.file()[1:], "not-a-submission"),
    "a part in the middle missing": (lambda k: k.file()[:900] + k.file()[950:], "unexpected-data"),
    "something after it": (lambda k: k.file() + b"x", "truncated"),
    "something before it": (lambda k: b"#!/bin/sh\n" + k.file(), "not-a-submission"),
    "another ZIP before it": (lambda k: k.file() + k.file(), "unexpected-data"),
    "a ZIP comment": (lambda k: k.file()[:-2] + b"\x02\x00hi", "truncated"),
    "sent as text": (lambda k: k.file().replace(b"\n", b"\r\n") + b"\r\n", "truncated"),
    # the members
    "a third member": (lambda k: k.members(("image.png", b"x")), "unexpected-member"),
    "a pickle as third member": (
        lambda k: k.members(("data.pkl", pickle.dumps(Bomb()))),
        "unexpected-member",
    ),
    "a signature of another name": (lambda k: k.members(("signature", b"x")), "unexpected-member"),
    "a signature twice": (
        lambda k: k.members(("signature.json", b"{}"), ("signature.json", b"{}")),
        "unexpected-member",
    ),
    "a signature without an end": (
        lambda k: k.members(("signature.json", b"{" * 70_000)),
        "signature-too-large",
    ),
    "nothing but a signature": (lambda k: archive([("signature.json", b"{}")]), "missing-member"),
    "encrypted to somebody": (lambda k: b"age-encryption.org/v1\n" + bytes(500), "encrypted"),
    "encrypted, and cut after its name": (lambda k: b"age-encryption.org/v1\n", "encrypted"),
    "a path that climbs out": (lambda k: k.members(("../../x", b"x")), "unexpected-member"),
    "an absolute path": (lambda k: k.members(("/etc/cron.d/x", b"x")), "unexpected-member"),
    "a folder": (lambda k: k.members(("folder/", b"")), "unexpected-member"),
    "a submission in it": (lambda k: k.members(("s.oneround", k.file())), "unexpected-member"),
    "the manifest twice": (lambda k: k.members((MANIFEST, b"{}")), "unexpected-member"),
    "10 000 members": (
        lambda k: k.members(*((f"{i}", b"") for i in range(10_000))),
        "unexpected-member",
    ),
    "a NUL in a name": (
        lambda k: k.file().replace(b"model.safetensors", b"model\0safetensors"),
        "unexpected-member",
    ),
    "no weights": (lambda k: archive([(MANIFEST, b"{}" * 50)]), "missing-member"),
    "compressed": (lambda k: k.members(compression=zipfile.ZIP_DEFLATED), "compressed-member"),
    "encrypted": (lambda k: in_directory(k.file(), WEIGHTS, 8, b"\1"), "encrypted-member"),
    "a size larger than the file": (
        lambda k: in_directory(k.file(), WEIGHTS, 20, struct.pack("<II", 2**31, 2**31)),
        "member-size",
    ),
    "bytes between the members": (
        lambda k: in_directory(k.file(), WEIGHTS, 20, struct.pack("<II", 100, 100)),
        "unexpected-data",
    ),
    "two members in one place": (
        lambda k: in_directory(k.file(), WEIGHTS, 42, struct.pack("<I", 0)),
        "damaged",
    ),
    "a bit of the weights flipped": (
        lambda k: patched(k.file(), len(k.file()) // 2, b"\xff\x00\xff"),
        "damaged",
    ),
    "a bit of the manifest flipped": (
        lambda k: k.file().replace(b'"north"', b'"nOrth"'),
        "damaged",
    ),
    # the manifest
    "a large manifest": (lambda k: k.file(b" " * (1 << 20) + b"{}"), "manifest-too-large"),
    "a manifest that is no JSON": (lambda k: k.file(b"site: north"), "manifest-invalid"),
    "a manifest that is no text": (lambda k: k.file(b"\xff\xfe\x00"), "manifest-invalid"),
    "a list as manifest": (lambda k: k.file(b"[]"), "manifest-invalid"),
    "nested JSON": (lambda k: k.file(b"[" * 500_000), "manifest-invalid"),
    "nested objects": (lambda k: k.file(b'{"a":' * 100_000), "manifest-invalid"),
    "a huge integer": (
        lambda k: k.text('"images": 120', '"images": ' + "9" * 5000),
        "manifest-invalid",
    ),
    "a large integer": (lambda k: k.changed(images=10**300), "manifest-invalid"),
    "a key twice": (
        lambda k: k.text('"site": "north"', '"site": "south", "site": "north"'),
        "manifest-invalid",
    ),
    "NaN in JSON": (lambda k: k.text('"loss": 0.5', '"loss": NaN'), "manifest-invalid"),
    "infinity in JSON": (lambda k: k.text('"loss": 0.5', '"loss": 1e999'), "manifest-invalid"),
    "an unknown key": (lambda k: k.changed(code="import os"), "manifest-invalid"),
    "many unknown keys": (
        lambda k: k.changed(**{f"k{i}": 0 for i in range(50_000)}),
        "manifest-invalid",
    ),
    "a missing key": (lambda k: k.text('"site": "north", ', ""), "manifest-invalid"),
    "a path as site": (lambda k: k.changed(site="../north"), "manifest-invalid"),
    "terminal codes in a class": (
        lambda k: k.changed(classes=["a", "b", "\x1b[2J"]),
        "manifest-invalid",
    ),
    "a lone surrogate": (lambda k: k.text('"torch"', '"\\ud800"'), "manifest-invalid"),
    "a class twice": (lambda k: k.changed(classes=["a", "b", "b"]), "manifest-invalid"),
    "negative counts": (lambda k: k.changed(class_counts=[-1, 40, 30]), "manifest-invalid"),
    "a long text": (lambda k: k.changed(versions={"torch": "x" * 10_000}), "manifest-invalid"),
    "a newer format": (lambda k: k.changed(format=2), "newer-format"),
    "an unknown network": (
        lambda k: k.changed(architecture={"name": "os.system", "arguments": {}}),
        "unknown-architecture",
    ),
    "wrong arguments": (
        lambda k: k.changed(architecture={"name": "resnet18", "arguments": {"depth": 9}}),
        "architecture-arguments",
    ),
    "huge arguments": (
        lambda k: k.changed(architecture={"name": "resnet18", "arguments": {"width": 10**9}}),
        "architecture-arguments",
    ),
    # the weights
    "a pickle as weights": (lambda k: k.file(weights=pickle.dumps(Bomb())), "not-safetensors"),
    "torch.save as weights": (lambda k: k.file(weights=torch_file(k)), "not-safetensors"),
    "no header": (lambda k: k.file(weights=b"abc"), "not-safetensors"),
    "a huge header": (lambda k: k.file(weights=b"\xff" * 100), "not-safetensors"),
    "a header past the end": (lambda k: k.file(weights=raw("{}")[:-1]), "not-safetensors"),
    "a header of spaces": (lambda k: k.file(weights=raw(" " * 99)), "not-safetensors"),
    "a list as header": (lambda k: k.file(weights=raw("[]")), "not-safetensors"),
    "a nested header": (lambda k: k.file(weights=raw("[" * 500_000)), "not-safetensors"),
    "no tensors": (lambda k: k.file(weights=raw("{}")), "tensor-missing"),
    "a tensor twice": (
        lambda k: k.file(weights=raw('{"a": {}, "a": {}}')),
        "not-safetensors",
    ),
    "an entry that is a number": (lambda k: k.file(weights=raw('{"a": 1}')), "not-safetensors"),
    "metadata of another kind": (
        lambda k: k.header("__metadata__", a=[1]),
        "not-safetensors",
    ),
    "10^12 elements": (lambda k: k.header(shape=[10**6, 10**6]), "tensor-too-large"),
    "10^12 elements and the offsets for them": (
        lambda k: k.header(shape=[10**12], data_offsets=[0, 4 * 10**12]),
        "tensor-too-large",
    ),
    "a size that overflows": (lambda k: k.header(shape=[2**32] * 4), "tensor-too-large"),
    "a huge dimension": (lambda k: k.header(shape=[2**64, 0]), "not-safetensors"),
    "sizes that overflow before a zero": (
        lambda k: k.header(shape=[2**47, 2**47, 0], data_offsets=[0, 0]),
        "not-safetensors",
    ),
    "many dimensions": (lambda k: k.header(shape=[1] * 10_000), "not-safetensors"),
    "a negative dimension": (lambda k: k.header(shape=[-1, -3]), "not-safetensors"),
    "a fraction as dimension": (lambda k: k.header(shape=[3.0]), "not-safetensors"),
    "true as dimension": (lambda k: k.header(shape=[True, 3]), "not-safetensors"),
    "negative offsets": (lambda k: k.header(data_offsets=[-12, 0]), "not-safetensors"),
    "one offset": (lambda k: k.header(data_offsets=[0]), "not-safetensors"),
    "offsets of another size": (lambda k: k.header(data_offsets=[0, 13]), "tensor-size"),
    "overlapping tensors": (lambda k: k.header(data_offsets=[0, 12]), "tensor-layout"),
    "bytes after the last tensor": (
        lambda k: k.file(weights=k.weights + b"1234"),
        "tensor-layout",
    ),
    "the buffer cut": (lambda k: k.file(weights=k.weights[:-8]), "tensor-layout"),
    "an unknown type": (lambda k: k.header(dtype="OBJECT"), "tensor-dtype"),
    "a list as type": (lambda k: k.header(dtype=["F32"]), "tensor-dtype"),
    "double precision": (
        lambda k: k.file(weights=safetensors({n: t.double() for n, t in k.tensors.items()})),
        "tensor-dtype",
    ),
    "another type": (
        lambda k: k.file(
            weights=safetensors(k.tensors | {"bn1.num_batches_tracked": torch.tensor(3.0)})
        ),
        "tensor-dtype",
    ),
    "another shape": (lambda k: k.header(shape=[1, 3]), "tensor-shape"),
    "one more tensor": (
        lambda k: k.file(weights=safetensors(k.tensors | {"patient": torch.zeros(4)})),
        "tensor-unexpected",
    ),
    "one tensor less": (
        lambda k: k.file(
            weights=safetensors({n: t for n, t in k.tensors.items() if n != "fc.bias"})
        ),
        "tensor-missing",
    ),
    "other weights than the manifest names": (
        lambda k: k.changed(weights_sha256="0" * 64),
        "weights-hash",
    ),
    # the values
    "NaN": (lambda k: k.valued("fc.weight", float("nan")), "weights-not-finite"),
    "infinity": (lambda k: k.valued("fc.weight", float("inf")), "weights-not-finite"),
    "minus infinity": (lambda k: k.valued("bn1.bias", float("-inf")), "weights-not-finite"),
    "NaN as variance": (lambda k: k.valued("bn1.running_var", float("nan")), "weights-not-finite"),
    "a negative variance": (lambda k: k.valued("bn1.running_var", -1e-3), "negative-variance"),
    "a negative count": (
        lambda k: k.valued("bn1.num_batches_tracked", -1),
        "negative-batch-count",
    ),
}


@pytest.mark.parametrize("name", CORPUS)
def test_hostile_file(name: str, kit: Kit, tmp_path: Path) -> None:
    build, code = CORPUS[name]
    path = tmp_path / "hostile.oneround"
    path.write_bytes(build(kit))
    started = time.perf_counter()
    problems = check_submission(path)
    assert time.perf_counter() - started < 10
    assert code in [problem.code for problem in problems]
    for problem in problems:
        assert problem.what
        assert problem.why.endswith(".")
        assert problem.remedy
        assert len(str(problem)) < 1500
        assert str(problem).isprintable()
    with pytest.raises(OneRoundError, match=code) as caught:
        read_submission(path)
    assert caught.value.file == str(path)
    assert caught.value.remedy
    assert list(tmp_path.iterdir()) == [path]


def test_the_kit_itself_is_good(kit: Kit, tmp_path: Path) -> None:
    path = tmp_path / "good.oneround"
    path.write_bytes(kit.file())
    assert check_submission(path, kit.study) == []
    assert torch.equal(read_submission(path).model.state_dict()["fc.bias"], kit.tensors["fc.bias"])


def test_every_problem_is_found_not_only_the_first(kit: Kit, tmp_path: Path) -> None:
    bad = kit.tensors | {
        "fc.weight": torch.full_like(kit.tensors["fc.weight"], float("nan")),
        "bn1.running_var": -kit.tensors["bn1.running_var"],
        "patient": torch.zeros(1),
    }
    del bad["fc.bias"]
    manifest = kit.manifest(site="east", study_hash="0" * 64, images=1, class_counts=None)
    path = tmp_path / "bad.oneround"
    path.write_bytes(kit.file(json.dumps(manifest).encode(), safetensors(bad)))
    assert [problem.code for problem in check_submission(path, kit.study)] == [
        "few-images",
        "other-study",
        "unknown-site",
        "weights-hash",
        "tensor-missing",
        "tensor-unexpected",
        "weights-not-finite",
        "negative-variance",
    ]


@pytest.mark.parametrize("name", ["a key twice", "a tensor twice"])
def test_repeated_key_is_named_as_the_reason(name: str, kit: Kit, tmp_path: Path) -> None:
    path = tmp_path / "twice.oneround"
    path.write_bytes(CORPUS[name][0](kit))
    assert any("a key is repeated" in problem.what for problem in check_submission(path))


def test_what_is_not_a_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", "nul\0name", tmp_path / ("x" * 5000)):
        [problem] = check_submission(path)
        assert problem.code in ("not-a-file", "unreadable")
        with pytest.raises(OneRoundError):
            read_submission(path)


def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert [p.code for p in check_submission(tmp_path / "pipe")] == ["not-a-file"]


def test_limit_comes_before_reading(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.oneround"
    path.write_bytes(kit.file())
    size = path.stat().st_size
    assert check_submission(path, limit_bytes=size) == []
    monkeypatch.setattr(Path, "open", None)
    assert [p.code for p in check_submission(path, limit_bytes=size - 1)] == ["too-large"]


def test_failing_disk_is_a_problem(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "good.oneround"
    path.write_bytes(kit.file())

    def fail(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(hashlib, "file_digest", fail)
    [problem] = check_submission(path)
    assert problem.code == "unreadable"
    assert "Input/output error" in problem.what


def test_wrong_shapes_are_known_before_the_network_is_allocated(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "huge.oneround"
    huge = {"name": "resnet34", "arguments": {"width": 4096}}  # 10^11 bytes if it were built
    path.write_bytes(kit.changed(architecture=huge))
    devices = []
    build = registry.build

    def watched(*arguments: Any) -> nn.Module:
        network = build(*arguments)
        devices.append({str(tensor.device) for tensor in network.state_dict().values()})
        return network

    monkeypatch.setattr(registry, "build", watched)
    with pytest.raises(OneRoundError, match="tensor-shape"):
        read_submission(path)
    assert devices == [{"meta"}]


def test_tensors_are_looked_at_where_they_lie() -> None:
    """So memory stays at the size of the file, not twice that."""
    tensors = {"a": torch.randn(3, 5), "b": torch.arange(7), "c": torch.randn(0, 2)}
    content = save_by_the_library(tensors)
    found = weights.views(content, weights.parse_header(content))
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    a, b = found["a"].data_ptr(), found["b"].data_ptr()
    whole = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    assert abs(a - b) < len(whole), "in one block of memory"


@pytest.mark.parametrize("spaces", range(1, 8))
def test_tensors_at_odd_places(spaces: int) -> None:
    """A header of any length is allowed by the format, though writers fill it up to 8 bytes."""
    content = save_by_the_library({"a": torch.randn(3, 5), "b": torch.arange(7)})
    length = int.from_bytes(content[:8], "little")
    header, buffer = content[8 : 8 + length].rstrip(b" "), content[8 + length :]
    header += b" " * spaces
    odd = len(header).to_bytes(8, "little") + header + buffer
    found = weights.views(odd, weights.parse_header(odd))
    assert torch.equal(found["b"], torch.arange(7))


def only_clear_errors(path: Path, content: bytes, study: Study) -> None:
    path.write_bytes(content)
    fatal = [problem for problem in check_submission(path, study) if problem.fatal]
    if fatal:
        with pytest.raises(OneRoundError, match=fatal[0].code):
            read_submission(path, study)
    else:
        same_as_the_library_reads(path, read_submission(path, study).model)


def same_as_the_library_reads(path: Path, model: nn.Module) -> None:
    """We look at tensors where they lie; safetensors must find the same ones there."""
    with zipfile.ZipFile(path) as archive:
        expected = load_by_the_library(archive.read(WEIGHTS))
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


FEW = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
CHANGES = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), max_size=3)


def damaged(content: bytes, changes: list[tuple[float, bytes]], keep: float) -> bytes:
    for where, new in changes:
        content = patched(content, int(where * (len(content) - len(new))), new)
    return content[: int(keep * len(content))]


@FEW
@given(changes=CHANGES, keep=st.just(1.0) | st.floats(0, 1), at_the_end=st.booleans())
def test_damage_anywhere_gives_clear_errors(
    kit: Kit,
    tmp_path: Path,
    changes: list[tuple[float, bytes]],
    keep: float,
    at_the_end: bool,
) -> None:
    content = kit.file()
    start = len(content) - 200 if at_the_end else 0  # the directory is small and at the end
    content = content[:start] + damaged(content[start:], changes, keep)
    only_clear_errors(tmp_path / "damaged.oneround", content, kit.study)


@FEW
@given(changes=CHANGES, keep=st.just(1.0) | st.floats(0, 1), part=st.integers(0, 2))
def test_damage_under_a_right_checksum_gives_clear_errors(
    kit: Kit, tmp_path: Path, changes: list[tuple[float, bytes]], keep: float, part: int
) -> None:
    manifest, weights = json.dumps(kit.manifest()).encode(), kit.weights
    header = 8 + int.from_bytes(weights[:8], "little")
    if part == 0:
        manifest = damaged(manifest, changes, keep)
    elif part == 1:
        weights = damaged(weights[:header], changes, 1.0) + weights[header:]
    else:
        weights = damaged(weights, changes, keep)
    content = archive([(MANIFEST, manifest), (WEIGHTS, weights)])
    only_clear_errors(tmp_path / "damaged.oneround", content, kit.study)
