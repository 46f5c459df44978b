from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from oneround.errors import OneRoundError
from oneround.research.benchmark import grid
from oneround.research.benchmark.grid import Bench, cells_of
from tests import tiny
from tests.tiny import splits, write_npz

from .tiny_bench import CONTENT, bench


def hashes(bench: Bench, folder: Path) -> list[str]:
    return [cell.hash for cell in cells_of(bench, folder)]


def read(folder: Path, **changes: Any) -> Bench:
    (folder / "bench.toml").write_text(tomlkit.dumps(CONTENT | changes), encoding="utf-8")
    return Bench.read(folder / "bench.toml")


def test_a_file_is_the_grid_that_it_says(folder: Path) -> None:
    assert read(folder) == bench()
    found = list(cells_of(bench(), folder))
    assert len(found) == len({cell.hash for cell in found}) == 2 * 2 * 2
    assert [cell.setting.seed for cell in found] == [1] * 4 + [2] * 4, "first seed first"
    assert str(found[1]) == "equal FLOPs, feddf: colors, iid, 2 sites, seed 1"


def test_entries_can_be_restricted(folder: Path) -> None:
    entry = {"method": "ensemble", "comparison": "reference"}
    for restricted, count in (
        ({"partitions": ["iid"]}, 2),
        ({"seeds": [2]}, 2),
        ({"partitions": ["iid"], "seeds": [1]}, 1),
        ({"data": ["other"]}, 0),
    ):
        assert len(hashes(bench(entries=[entry | restricted]), folder)) == count


def test_all_methods_share_the_client_models_of_a_setting(folder: Path) -> None:
    found = list(cells_of(bench(), folder))
    assert len({cell.setting.hash for cell in found}) == 4
    assert found[0].setting.hash == found[1].setting.hash


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": [3, 4]},
        {"sites": [3]},
        {"architectures": ["resnet18:width=3"]},
        {"training": ["epochs=2", "batch_size=8"]},
        {"partitions": ["dirichlet-1", "dirichlet-2"]},
        {"threads": 2},
        {"entries": [entry | {"flops": 1e6} for entry in CONTENT["entries"]]},
    ],
    ids=str,
)
def test_what_decides_a_result_changes_its_hash(folder: Path, changes: dict[str, Any]) -> None:
    assert not set(hashes(bench(**changes), folder)) & set(hashes(bench(), folder))


def test_names_and_places_do_not_change_a_hash(folder: Path, tmp_path: Path) -> None:
    renamed = [entry | {"name": "x", "comparison": "y"} for entry in CONTENT["entries"][:1]]
    changed = bench(title="another", entries=[*renamed, CONTENT["entries"][1]])
    assert hashes(changed, folder) == hashes(bench(), folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_npz(elsewhere / "colors.npz", splits())
    assert hashes(bench(), elsewhere) == hashes(bench(), folder)
    write_npz(elsewhere / "colors.npz", splits(train=46))
    other = bench(title="read anew")
    assert not set(hashes(other, elsewhere)) & set(hashes(bench(), folder))


def test_public_images_are_filled_in_where_a_method_takes_some(folder: Path) -> None:
    ensemble, feddf = list(cells_of(bench(), folder))[:2]
    assert "public" not in ensemble.options().model_dump()
    assert feddf.options().model_dump()["public"] == str(folder / "public.npz")


def test_real_sites_are_as_many_as_they_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, study = grid._load(bench().data[0], folder, bench())

    def hashes_of(count: int) -> set[str]:
        named = tuple(f"site {number % count}" for number in range(len(drawn.train)))
        train = tiny.with_sites(drawn.train, named)
        monkeypatch.setattr(
            grid, "_load", lambda *_: (dataclasses.replace(drawn, train=train), study)
        )
        grid._fingerprint.cache_clear()
        found = list(cells_of(bench(partitions=["site"], sites=[5, 20], seeds=[1]), folder))
        assert [cell.setting.sites for cell in found] == [count, count]
        return {cell.hash for cell in found}

    assert not hashes_of(3) & hashes_of(4)
    grid._fingerprint.cache_clear()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"partitions": ["dirichlet"]}, "'dirichlet' is no partition"),
        ({"partitions": ["random"]}, "'random' is no partition"),
        ({"entries": [{"method": "best", "comparison": "x"}]}, "no method 'best'"),
        (
            {"entries": [{"method": "ensemble", "comparison": "x", "set": ["rules=logits"]}]},
            "rules",
        ),
        ({"entries": CONTENT["entries"][:1] * 2}, "must be different"),
        ({"data": [{"name": "x"}]}, "either path or phantoms"),
        ({"seedz": [1]}, "seedz"),
        ({"seeds": []}, "seeds"),
    ],
)
def test_mistakes_in_the_file_are_named(folder: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(OneRoundError, match=reason) as caught:
        read(folder, **changes)
    assert caught.value.remedy


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OneRoundError, match="cannot read"):
        Bench.read(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("title = ")
    with pytest.raises(OneRoundError, match="not a TOML file") as caught:
        Bench.read(tmp_path / "bad.toml")
    assert caught.value.file == str(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "benchmarks").glob("*.toml")), ids=str
)
def test_shipped_benchmarks_are_valid(path: Path) -> None:
    assert Bench.read(path).entries
