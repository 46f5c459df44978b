from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric

from oneround.errors import OneRoundError
from oneround.runs.stage import Stage, derived_seed
from tests.tiny import Watching


def numbers(stage: Stage, *piece: object) -> list[int]:
    return torch.randint(2**40, (4,), generator=stage.generator(*piece)).tolist()


def test_randomness_depends_on_seed_name_and_piece_alone() -> None:
    stage = Stage("synthesis", seed=1)
    first = numbers(stage, 3)
    numbers(stage, 4)
    assert numbers(stage, 3) == first
    assert numbers(Stage("synthesis", seed=1), 3) == first
    others = [
        numbers(Stage("synthesis", seed=2), 3),
        numbers(Stage("training", seed=1), 3),
        numbers(stage, 4),
        numbers(stage),
    ]
    assert first not in others


def test_derived_seeds() -> None:
    assert derived_seed(0, "north") == 5539893367386375616
    assert len({derived_seed(1, 23), derived_seed(12, 3), derived_seed("123")}) == 3
    assert all(0 <= derived_seed(i) < 2**63 for i in range(100))


def test_folder_is_made_for_the_first_file(tmp_path: Path) -> None:
    stage = Stage("training", folder=tmp_path / "sites" / "north")
    assert not (tmp_path / "sites").exists()
    assert stage.file("a") == tmp_path / "sites" / "north" / "a"
    assert (tmp_path / "sites" / "north").is_dir()
    assert Stage("training").file("a") is None


def test_progress_names_the_stage() -> None:
    told = []
    Stage("training", callbacks=[Watching(lambda *all_of_it: told.append(all_of_it))]).tell(
        1, 2, "note"
    )
    assert told == [("training", 1, 2, "note")]


def test_scaled_losses_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    Stage("synthesis", fabric=fabric)
    monkeypatch.setattr(fabric.strategy.precision, "precision", "16-mixed")
    with pytest.raises(OneRoundError, match="16-mixed") as caught:
        Stage("synthesis", fabric=fabric)
    assert "bf16-mixed" in caught.value.remedy
