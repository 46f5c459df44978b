"""Hospitals that come late, and hospitals that leave."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from oneround import methods
from oneround.coordinator.aggregate import aggregate
from oneround.coordinator.history import Ledger
from oneround.coordinator.results import Results
from oneround.coordinator.updates import require_fresh_start
from oneround.distillation.student import STARTS
from oneround.distillation.synthesis import ImageBank
from oneround.errors import OneRoundError
from oneround.model_file import load_model
from oneround.site.training import train_client
from oneround.submission import Submission, read_submission
from tests import tiny
from tests.tiny import Watching

STUDY = tiny.STUDY
OPTIONS = methods.get("kang2025").resolve(
    "quick", [*tiny.KANG2025, "distillation.mix=none", "distillation.steps=8"]
)
Distill = Callable[..., Path]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    for number, site in enumerate(("north", "south", "west", "north-again")):
        client = train_client(STUDY, site.partition("-")[0], tiny.images(24, seed=number))
        client.write(folder / site, STUDY)
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def distill(files: dict[str, Path], tmp_path: Path) -> Distill:
    def run(out: str, *sites: str, **arguments: object) -> Path:
        submissions = [read_submission(files[site], STUDY) for site in sites]
        if "extends" not in arguments:
            arguments = {"method": "kang2025", "options": OPTIONS} | arguments
        aggregate(STUDY, submissions, out=tmp_path / out, **arguments)
        return tmp_path / out

    return run


def shards(run: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((run / "bank").glob("*.safetensors"))]


def test_ledger_says_what_the_model_is_made_of(distill: Distill, files: dict[str, Path]) -> None:
    run = distill("run", "north", "south")
    [entry] = Ledger.read(run).entries
    results = Results.read(run)
    assert entry.model == results.hashes["global.safetensors"]
    assert entry.submissions == {s.site: s.sha256 for s in results.submissions}
    assert (entry.how, entry.added, entry.withdrawn) == ("full", (), ())
    assert entry.flops == sum(
        cost.flops for cost in results.cost.values() if not isinstance(cost, int)
    )


def test_late_site_adds_images_of_its_own_and_the_student_goes_on(distill: Distill) -> None:
    first = distill("first", "north", "south")
    second = distill("second", "north", "south", "west", extends=first)
    assert shards(second)[: len(shards(first))] == shards(first)
    added = [ImageBank.read(p) for p in sorted((second / "bank").glob("*.safetensors"))]
    assert len(added) == len(shards(first)) + 1
    assert len(added[-1]) == 2, "a third of six images, for one of three sites"
    options = Results.read(second).options["options"]
    assert options["distillation"]["start"] == str(first / "global.safetensors")
    assert options["distillation"]["steps"] == 3, "a third of eight"
    one, two = Ledger.read(second).entries
    assert [one] == Ledger.read(first).entries
    assert (two.how, two.added) == ("extension", ("west",))
    assert two.submissions.keys() == {"north", "south", "west"}
    assert two.flops < one.flops


def test_student_starts_as_the_earlier_model(
    distill: Distill, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oneround.methods import kang2025

    first = distill("first", "north", "south")
    expected = load_model(first).network.state_dict()
    seen = []

    def watch(
        teacher: object, samples: object, student: torch.nn.Module, *rest: object, **more: object
    ) -> None:
        seen.append({name: tensor.clone() for name, tensor in student.state_dict().items()})

    monkeypatch.setattr(kang2025, "train_student", watch)
    distill("second", "north", "south", "west", extends=first)
    assert all(torch.equal(seen[0][name], tensor) for name, tensor in expected.items())


def test_progress_is_that_of_the_new_work(distill: Distill) -> None:
    first, seen = distill("first", "north", "south"), []

    def watch(stage: str, done: int, total: int, note: str) -> None:
        seen.append((stage, done, total))

    distill("second", "north", "south", "west", extends=first, callbacks=[Watching(watch)])
    assert [entry for entry in seen if entry[0] == "synthesis"] == [
        ("synthesis", 1, 2),
        ("synthesis", 2, 2),
    ]


def test_two_late_sites_one_after_the_other(distill: Distill) -> None:
    first = distill("first", "north")
    second = distill("second", "north", "south", extends=first)
    shutil.rmtree(first)  # the second has all that it needs
    third = distill("third", "north", "south", "west", extends=second)
    assert [entry.added for entry in Ledger.read(third).entries] == [(), ("south",), ("west",)]
    options = Results.read(third).options["options"]
    assert options["distillation"]["steps"] == 3, "a third of the full eight, not of a half"
    assert len(shards(third)) == 2 + 1 + 1


def test_interrupted_extension_is_bit_equal(distill: Distill) -> None:
    first = distill("first", "north", "south")
    straight = distill("straight", "north", "south", "west", extends=first)
    for stage in ("synthesis", "distillation"):

        def stop(name: str, done: int, total: int, note: str, stage: str = stage) -> None:
            if name == stage and done >= total - 1:
                raise tiny.Interrupted

        with pytest.raises(tiny.Interrupted):
            distill(stage, "north", "south", "west", extends=first, callbacks=[Watching(stop)])
        run = distill(stage, "north", "south", "west", extends=first, resume=True)
        assert shards(run) == shards(straight)
        assert (run / "global.safetensors").read_bytes() == (
            straight / "global.safetensors"
        ).read_bytes()


def test_nothing_of_a_site_that_left_is_in_the_model(distill: Distill) -> None:
    """Equal, bit for bit, to a run in which it never took part."""
    first = distill("first", "north", "south", "west")
    second = distill("second", "north", "west", extends=first, without=["south"])
    never = distill("never", "north", "west")
    for name in ("global.safetensors", "gallery.safetensors"):
        assert (second / name).read_bytes() == (never / name).read_bytes()
    assert shards(second) == shards(never)
    last = Ledger.read(second).entries[-1]
    assert (last.how, last.withdrawn) == ("withdrawal", ("south",))
    assert last.submissions.keys() == {"north", "west"}


def test_older_model_as_start_is_refused_when_a_site_leaves(distill: Distill) -> None:
    first = distill("first", "north", "south")
    changes = [*tiny.KANG2025, f"distillation.start={first / 'global.safetensors'}"]
    options = methods.get("kang2025").resolve("quick", changes)
    second = distill("second", "north", "south", "west", options=options)
    with pytest.raises(OneRoundError, match="would start from"):
        distill("third", "north", "west", extends=second, without=["south"])
    for start in STARTS:
        changed = options.model_dump() | {"distillation": {"start": start}}
        require_fresh_start(methods.get("kang2025").options_from(changed))


def test_one_comes_and_one_leaves(distill: Distill) -> None:
    first = distill("first", "north", "south")
    second = distill("second", "north", "west", extends=first, without=["south"])
    last = Ledger.read(second).entries[-1]
    assert (last.how, last.added, last.withdrawn) == ("withdrawal", ("west",), ("south",))


@pytest.mark.parametrize(
    ("sites", "without", "reason"),
    [
        (("north", "west"), (), "no file of south is given"),
        (("north", "south"), (), "the submissions are those of that run"),
        (("north", "south"), ("south",), "south has withdrawn, and a file of it is given"),
        (("north", "south"), ("west",), "west has no part in that run"),
        (("north-again", "south", "west"), (), "north has submitted another file since"),
    ],
)
def test_every_change_must_be_asked_for(
    distill: Distill, tmp_path: Path, sites: tuple[str, ...], without: tuple[str, ...], reason: str
) -> None:
    first = distill("first", "north", "south")
    with pytest.raises(OneRoundError, match=reason) as caught:
        distill("second", *sites, extends=first, without=without)
    assert caught.value.remedy
    assert not (tmp_path / "second").exists()


def test_method_that_cannot_go_on(distill: Distill) -> None:
    fedavg = methods.get("fedavg")
    first = distill("first", "north", "south", method=fedavg, options=fedavg.resolve())
    with pytest.raises(OneRoundError, match="fedavg cannot be extended"):
        distill("second", "north", "south", "west", extends=first)


def test_another_method_cannot_go_on(distill: Distill, tmp_path: Path) -> None:
    """It would have a bank of the late sites alone."""
    fedavg = methods.get("fedavg")
    first = distill("first", "north", "south", method=fedavg, options=fedavg.resolve())
    late = {"extends": first, "method": "kang2025", "options": OPTIONS}
    with pytest.raises(OneRoundError, match="made by fedavg"):
        distill("second", "north", "south", "west", **late)
    assert not (tmp_path / "second").exists()
    left = distill("third", "north", "west", without=["south"], **late)
    assert Ledger.read(left).entries[-1].how == "withdrawal", "a full run may have any method"


def test_unfinished_run_cannot_be_extended(distill: Distill, tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    with pytest.raises(OneRoundError, match="no finished run"):
        distill("second", "north", extends=tmp_path / "first")


def test_submissions_are_told_by_their_content(
    distill: Distill, files: dict[str, Path], tmp_path: Path
) -> None:
    first = distill("first", "north", "south")
    moved = shutil.copy(files["north"], tmp_path / "renamed.oneround")
    submissions: list[Submission] = [
        read_submission(path, STUDY) for path in (moved, files["south"], files["west"])
    ]
    aggregate(STUDY, submissions, out=tmp_path / "second", extends=first)
