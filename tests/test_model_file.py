from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch.utils.data import DataLoader, TensorDataset

from oneround.errors import OneRoundError
from oneround.model_file import load_model
from oneround.models.ensemble import RULES, Client, Ensemble
from tests.tiny import (
    CLASSES,
    DENSENET,
    IMAGE,
    RESNET,
    STUDY,
    TASK,
    clients,
    equal,
    global_model,
    images,
    network,
)

X = torch.randn(3, *IMAGE.shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    global_model(network(3), RESNET).save(tmp_path)
    return tmp_path


def edit(folder: Path, **changes: Any) -> None:
    """Change values in config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_network_comes_back(saved: Path) -> None:
    loaded = load_model(saved / "global.safetensors")
    assert equal(loaded.network, network(3))
    assert torch.equal(loaded.network(X), network(3)(X))
    assert not loaded.network.training
    assert not any(p.requires_grad for p in loaded.network.parameters())
    assert loaded.task == STUDY.task
    assert equal(load_model(saved).network, network(3)), "the RUN folder will do too"
    config = json.loads((saved / "config.json").read_text())
    assert config["study_hash"] == STUDY.hash
    assert "Not a medical device" in config["intended_use"]


@pytest.mark.parametrize("rule", RULES)
def test_an_ensemble_comes_back(tmp_path: Path, rule: Any) -> None:
    members = [*clients(2), Client("other", network(5, DENSENET), DENSENET, 9, (1, 2, 3))]
    ensemble = Ensemble(members, TASK, rule)
    global_model(ensemble, RESNET, RESNET, DENSENET, method="ensemble").save(tmp_path)
    loaded = load_model(tmp_path).network
    assert isinstance(loaded, Ensemble)
    assert torch.equal(loaded(X), ensemble(X))


def test_an_ensemble_without_votes_and_priors_comes_back(tmp_path: Path) -> None:
    """Version 0.1.0 wrote neither."""
    ensemble = Ensemble(clients(2), TASK)
    global_model(ensemble, RESNET, RESNET, method="ensemble").save(tmp_path)
    weights = load_file(tmp_path / "global.safetensors")
    del weights["votes"], weights["log_priors"]
    content = save(weights)
    (tmp_path / "global.safetensors").write_bytes(content)
    edit(tmp_path, weights_sha256=hashlib.sha256(content).hexdigest())
    assert torch.equal(load_model(tmp_path).network(X), ensemble(X))


def test_saving_again_replaces(saved: Path) -> None:
    global_model(network(4), RESNET).save(saved)
    assert equal(load_model(saved).network, network(4))


def test_a_submission_is_a_model_too(submission_files: list[Path]) -> None:
    loaded = load_model(submission_files[0])
    assert equal(loaded.network, clients()[0].model)
    assert loaded.task.classes == CLASSES


def test_weights_that_were_changed_are_refused(saved: Path) -> None:
    weights = load_file(saved / "global.safetensors")
    weights["fc.bias"] += 1
    save_file(weights, saved / "global.safetensors")
    with pytest.raises(OneRoundError, match=r"not those that config\.json describes") as caught:
        load_model(saved)
    assert caught.value.file == str(saved / "global.safetensors")
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architectures": [DENSENET.model_dump()]}, "do not fit the architecture"),
        ({"classes": ["a", "b"]}, "do not fit the architecture"),
        ({"rule": "logits"}, "do not fit the architecture"),
        ({"architectures": []}, "architectures"),
        ({"architectures": [{"name": "unheard-of"}]}, "unknown architecture"),
        ({"format": 2}, "format"),
        ({"extra": 1}, "extra"),
    ],
)
def test_config_that_does_not_fit(saved: Path, changes: dict[str, Any], reason: str) -> None:
    edit(saved, **changes)
    with pytest.raises(OneRoundError, match=reason) as caught:
        load_model(saved)
    assert caught.value.remedy


def test_missing_config(saved: Path) -> None:
    (saved / "config.json").unlink()
    with pytest.raises(OneRoundError, match="No such file") as caught:
        load_model(saved / "global.safetensors")
    assert caught.value.file == str(saved / "config.json")


@pytest.mark.parametrize("name", ["no.oneround", "no.safetensors", "no-folder"])
def test_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(OneRoundError, match="no such file or folder") as caught:
        load_model(tmp_path / name)
    assert caught.value.file == str(tmp_path / name)


def test_missing_weights(saved: Path) -> None:
    (saved / "global.safetensors").unlink()
    with pytest.raises(OneRoundError, match="cannot read the weights"):
        load_model(saved)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(OneRoundError):
        load_model(path)


def test_probabilities_of_any_kind_of_images(saved: Path) -> None:
    model, data = load_model(saved), images(7)
    expected = network(3)(IMAGE.normalize(data.pixels())).softmax(1)
    pairs = TensorDataset(data.pixels(), data.labels)
    for given in (data, data.pixels(), pairs, DataLoader(pairs, batch_size=3)):
        found = model.predict_proba(given, device="cpu")
        assert found.shape == (7, 3)
        assert torch.allclose(found, expected, atol=1e-5)
    assert model.evaluate(DataLoader(pairs, batch_size=3)) == model.evaluate(data)
    with pytest.raises(OneRoundError, match="the study says"):
        model.predict_proba(torch.zeros(2, 3, 8, 8))


def test_pixels_that_the_network_was_not_made_for(saved: Path) -> None:
    model = load_model(saved)
    bytes_ = (images(5).pixels() * 255).round().to(torch.uint8)
    assert torch.equal(model.predict_proba(bytes_), model.predict_proba(bytes_.float() / 255))
    for wrong in (bytes_.float(), bytes_.float() * float("nan"), images(5).pixels() - 1):
        with pytest.raises(OneRoundError, match="pixels range"):
            model.predict_proba(wrong)
    with pytest.raises(OneRoundError, match="empty"):
        model.predict_proba(torch.zeros(0, *IMAGE.shape))
    with pytest.raises(OneRoundError, match="of shape") as caught:
        model.predict_proba(torch.zeros(IMAGE.shape))
    assert "image[None]" in caught.value.remedy


def test_a_file_is_no_folder_to_save_in(saved: Path) -> None:
    model = load_model(saved)
    before = (saved / "config.json").read_bytes()
    with pytest.raises(OneRoundError, match="folder"):
        model.save(saved / "config.json")
    assert (saved / "config.json").read_bytes() == before


def test_saved_again_it_is_the_same_file(saved: Path, tmp_path: Path) -> None:
    path = load_model(saved).save(tmp_path / "new" / "folder")
    assert path.read_bytes() == (saved / "global.safetensors").read_bytes()
    assert load_model(path) != load_model(saved), "two networks"
    assert equal(load_model(path).network, load_model(saved).network)
    assert (tmp_path / "new/folder/config.json").read_bytes() == (
        saved / "config.json"
    ).read_bytes()
