"""A short run of the fuzzer, and that its files reach what they are meant to reach."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from oneround.models import registry
from tests import fuzz_submissions as fuzz


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fuzz.Kit]:
    yield fuzz.Kit.make(tmp_path_factory.mktemp("fuzz"))
    del registry._BUILDERS["fuzzed"]


def test_no_damaged_file_raises(kit: fuzz.Kit) -> None:
    fuzz.run(kit, 0, 0, 20)
    before = fuzz.peak_bytes()
    tally = fuzz.run(kit, 0, 20, 300)
    assert not tally.failures
    assert fuzz.peak_bytes() - before < fuzz.MORE_BYTES
    deep = {
        "accepted", "manifest-invalid", "tensor-layout", "weights-not-finite",
        "not-safetensors", "wrong-signature", "other-recipient",
    }  # fmt: skip
    assert deep <= set(tally.codes)


def test_a_file_depends_on_its_number_alone(kit: fuzz.Kit) -> None:
    first, again = (fuzz.mutant(kit, random.Random("0/7"))[1] for _ in range(2))
    assert first == again
