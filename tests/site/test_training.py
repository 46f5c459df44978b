from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from oneround.data import ImageSet, as_image_set, batches
from oneround.data.augment import augment
from oneround.errors import OneRoundError
from oneround.evaluation import predict
from oneround.models.batch_norm import batch_norms
from oneround.runs.checkpoint import save_state
from oneround.runs.stage import Stage
from oneround.site import training
from oneround.site.training import class_weights, train_client
from oneround.study import ArchitectureSpec, Study
from oneround.submission import read_submission
from tests.tiny import (
    IMAGE,
    RESNET,
    STUDY,
    TRAINING,
    equal,
    images,
    interrupted,
    network,
    seeded,
    with_sites,
)


def study_with(**changes: Any) -> Study:
    """The tiny study with another training recipe."""
    return STUDY.model_copy(update={"training": TRAINING.model_copy(update=changes)})


def test_learns_and_hands_in(tmp_path: Path) -> None:
    study = study_with(epochs=6)
    stage = Stage("training", folder=tmp_path / "work")
    client = train_client(study, "north", images(72), images(24, seed=1), stage=stage)
    assert client.training.validation["accuracy"] > 0.6
    assert not client.model.training
    assert (client.site, client.images, client.class_counts) == ("north", 72, (24, 24, 24))
    assert len(stage.curve) == 6
    assert stage.cost.flops > 0
    manifest = client.write(tmp_path / "north.oneround", study)
    assert manifest.training == client.training
    assert equal(read_submission(tmp_path / "north.oneround", study).model, client.model)


def test_result_is_the_epoch_with_the_lowest_validation_loss() -> None:
    stage, val = Stage("training"), images(24, seed=1)
    study = study_with(epochs=3, learning_rate=0.2, schedule="constant")
    client = train_client(study, "north", images(), val, stage=stage)
    losses = [entry["val_loss"] for entry in stage.curve]
    assert client.training.best_epoch == 1 + losses.index(min(losses))
    assert client.training.best_epoch < 3, "this test needs a training that gets worse"
    assert client.training.loss == stage.curve[client.training.best_epoch - 1]["loss"]
    probabilities = predict(client.model, val, IMAGE)
    loss = nn.functional.nll_loss(probabilities.log(), val.labels).item()
    assert loss == pytest.approx(min(losses), rel=1e-4)


def test_seed_comes_from_study_and_site() -> None:
    one = train_client(STUDY, "north", images())
    assert equal(train_client(STUDY, "north", images()).model, one.model)
    assert not equal(train_client(STUDY, "south", images()).model, one.model)
    other = STUDY.model_copy(update={"seed": 1})
    assert not equal(train_client(other, "north", images()).model, one.model)


@pytest.mark.parametrize("when", ["between epochs", "in an epoch"])
def test_interrupted_and_resumed_is_bit_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    study = study_with(epochs=4, augment=("flip", "shift", "rotate", "intensity"))

    def train(folder: str, step: int = 0) -> tuple[nn.Module, Stage]:
        stage = Stage("training", 5, tmp_path / folder)
        if step:
            with interrupted(stage, step):
                train_client(study, "north", images(), stage=stage)
            return nn.Module(), stage
        return train_client(study, "north", images(), stage=stage).model, stage

    straight, whole = train("straight")
    if when == "between epochs":
        train("resumed", step=2)
    else:
        calls = iter(range(100))

        def fail(*arguments: Any) -> torch.Tensor:
            if next(calls) == 7:  # an epoch has three steps
                raise KeyboardInterrupt
            return augment(*arguments)

        monkeypatch.setattr(training, "augment", fail)
        with pytest.raises(KeyboardInterrupt):
            train("resumed")
        monkeypatch.undo()
    resumed, stage = train("resumed")
    assert equal(resumed, straight)
    assert stage.curve == whole.curve
    assert stage.cost.flops == whole.cost.flops
    assert equal(train("resumed")[0], straight), "a finished training is read, not repeated"


def inverted(data: ImageSet) -> ImageSet:
    return ImageSet(255 - data.images, data.labels, data.classes)


def swapped(data: ImageSet) -> ImageSet:
    """Other labels, as many of each."""
    return ImageSet(data.images, data.labels.flip(0), data.classes)


def test_refuses_the_checkpoint_of_another_training(tmp_path: Path) -> None:
    def train(study: Study, site: str, data: ImageSet) -> None:
        train_client(study, site, data, stage=Stage("training", 0, tmp_path))

    train(STUDY, "north", images())
    for study, site, data in [
        (study_with(epochs=3), "north", images()),
        (STUDY, "south", images()),
        (STUDY, "north", images(30)),
        (STUDY, "north", inverted(images())),
        (STUDY, "north", swapped(images())),
    ]:
        with pytest.raises(OneRoundError, match="belongs to another") as caught:
            train(study, site, data)
        assert caught.value.file == str(tmp_path / "checkpoint.pt")
        assert caught.value.remedy


def test_one_image_only() -> None:
    client = train_client(STUDY, "north", images(1))
    assert client.images == 1
    assert client.class_counts == (1, 0, 0)
    assert "auroc" not in client.training.validation


@pytest.mark.parametrize(
    ("stem", "side", "enough"),
    [("small", 8, False), ("small", 16, True), ("standard", 32, False), ("standard", 33, True)],
)
def test_one_image_that_shrinks_to_one_pixel(stem: str, side: int, enough: bool) -> None:
    image = IMAGE.model_copy(update={"height": side, "width": side})
    architecture = ArchitectureSpec(arguments={"width": 2, "stem": stem})
    study = STUDY.model_copy(update={"image": image, "architectures": (architecture,)})
    if enough:
        assert train_client(study, "north", images(1, image=image)).images == 1
        return
    with pytest.raises(OneRoundError, match="one training image is too few") as caught:
        train_client(study, "north", images(1, image=image))
    assert "more images" in caught.value.remedy
    assert train_client(study, "north", images(3, image=image)).images == 3, "one of each class"


def test_other_errors_of_a_users_network_are_not_hidden() -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3 * 16 * 16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                raise ValueError("strange")
            outputs: torch.Tensor = self.layer(x.flatten(1))
            return outputs

    with pytest.raises(ValueError, match="strange"):
        train_client(STUDY, "north", images(), model=Strange())


def test_a_network_with_other_outputs_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5))
    with pytest.raises(OneRoundError, match=r"\(1, 5\) for one image"):
        train_client(STUDY, "north", images(), model=model)


def test_a_class_without_images() -> None:
    data = images()
    data = data.subset(torch.nonzero(data.labels != 1).flatten())
    client = train_client(study_with(class_weighted=True), "north", data, images(6))
    assert client.class_counts == (8, 0, 8)
    with torch.no_grad():
        assert client.model(torch.randn(2, *IMAGE.shape)).isfinite().all()


def test_without_validation_images_a_part_is_held_out() -> None:
    client = train_client(STUDY, "north", images(20))
    assert client.images == 16  # validation_fraction is 0.2
    empty = images(20).subset(torch.tensor([], dtype=torch.int64))
    assert train_client(STUDY, "north", images(20), empty).images == 16


def test_class_weights_are_inverse_frequencies() -> None:
    counts = torch.tensor([10, 30, 0, 60])
    weights = class_weights(counts)
    assert torch.allclose(weights, torch.tensor([100 / 30, 100 / 90, 0, 100 / 180]))
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1)


def test_class_weights_reach_the_loss() -> None:
    data = images().subset(torch.tensor([0, 1, 2, 3, 6, 9, 12, 15]))
    plain = train_client(STUDY, "north", data, images(6))
    weighted = train_client(study_with(class_weighted=True), "north", data, images(6))
    assert not equal(plain.model, weighted.model)


def test_refuses_what_cannot_be_trained() -> None:
    with pytest.raises(OneRoundError, match="no training image"):
        train_client(STUDY, "north", images(0))
    other = ArchitectureSpec(arguments={"width": 3})
    with pytest.raises(OneRoundError, match=r"does not allow .*width=3") as caught:
        train_client(STUDY, "north", images(), architecture=other)
    assert str(RESNET) in caught.value.remedy
    for site in ("São Paulo", "../north", ""):
        with pytest.raises(OneRoundError, match="cannot be the name of a site"):
            train_client(STUDY, site, images())
    closed = STUDY.model_copy(update={"sites": ("north", "south")})
    with pytest.raises(OneRoundError, match="knows no site 'west'") as caught:
        train_client(closed, "west", images())
    assert "north, south" in caught.value.remedy
    large = IMAGE.model_copy(update={"height": 20})
    with pytest.raises(OneRoundError, match=r"\(3, 20, 16\), the study says \(3, 16, 16\)"):
        train_client(STUDY, "north", images(image=large))


@pytest.mark.parametrize("images_in_all", [8, 24])
def test_a_training_that_diverges_says_so(images_in_all: int) -> None:
    """With one step an epoch, the loss itself is computed before the weights explode."""
    study = study_with(epochs=1, learning_rate=1e30, schedule="constant")
    with pytest.raises(OneRoundError, match="not finite in epoch 1") as caught:
        train_client(study, "north", images(images_in_all), images(6))
    assert "learning rate" in caught.value.remedy


def test_a_users_own_network_and_data_set() -> None:
    class Own(Dataset):
        def __len__(self) -> int:
            return 24

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return images()[index]

    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    before = model[0].weight.clone()
    client = train_client(STUDY, "north", as_image_set(Own(), STUDY.classes), model=model)
    assert client.model is model
    assert not torch.equal(model[0].weight, before)


def test_trains_a_given_network_on() -> None:
    start = network(4)
    study = study_with(epochs=1, learning_rate=1e-6)
    client = train_client(study, "north", images(), model=network(4))
    old, new = start.get_parameter("fc.weight"), client.model.get_parameter("fc.weight")
    assert torch.allclose(old, new, atol=1e-3)


def test_sites_with_few_images_take_smaller_batches() -> None:
    spec = TRAINING.model_copy(update={"batch_size": 64, "min_steps_per_epoch": 8})
    sizes = {images: training.batch_size(images, spec) for images in (1, 64, 100, 320, 512, 9000)}
    assert sizes == {1: 8, 64: 8, 100: 12, 320: 40, 512: 64, 9000: 64}
    assert training.batch_size(9, spec.model_copy(update={"batch_size": 4})) == 4
    assert training.batch_size(9, spec.model_copy(update={"min_steps_per_epoch": 0})) == 64


@pytest.mark.parametrize("least", [0, 3])
@pytest.mark.parametrize("size", [2, 7, 8])
def test_steps_are_the_batches_of_all_epochs(size: int, least: int) -> None:
    changes = {"batch_size": size, "epochs": 3, "min_steps_per_epoch": least}
    spec = TRAINING.model_copy(update=changes)
    for count in range(1, 30):
        batch = training.batch_size(count, spec)
        expected = 3 * len(list(batches(count, batch, seeded())))
        assert training.training_steps(count, spec) == expected, count


def test_batch_norm_statistics_are_trained() -> None:
    client = train_client(STUDY, "north", images())
    first = next(batch_norms(client.model))
    assert not torch.allclose(first.running_mean, torch.zeros_like(first.running_mean))


def test_all_sites_start_from_the_same_weights() -> None:
    still = study_with(learning_rate=1e-12, epochs=1)
    north, south = (train_client(still, site, images()).model for site in ("north", "south"))
    for a, b in zip(north.parameters(), south.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_data_set_and_a_data_loader_train_as_an_image_set_does() -> None:
    data, val = images(24), images(6, seed=4)

    def pairs(part: ImageSet) -> TensorDataset:
        return TensorDataset(part.pixels(), part.labels)

    def float_set(part: ImageSet) -> ImageSet:
        return ImageSet(part.pixels(), part.labels, part.classes)

    expected = train_client(STUDY, "north", float_set(data), float_set(val))
    for train in (pairs(data), DataLoader(pairs(data), batch_size=5)):
        client = train_client(STUDY, "north", train, pairs(val), device="cpu")
        assert equal(client.model, expected.model)
        assert client.training == expected.training


def test_a_checkpoint_of_another_version_is_named(tmp_path: Path) -> None:
    stage = Stage("training", folder=tmp_path)
    save_state(tmp_path / "checkpoint.pt", {"epoch": 1, "identity": "of version 0.1"})
    with pytest.raises(OneRoundError, match="another version") as caught:
        train_client(STUDY, "north", images(12), stage=stage)
    assert "checkpoint.pt" in str(caught.value)


def test_images_of_other_sites_are_refused() -> None:
    data = with_sites(images(6), ["north", "North", "south"] * 2)
    with pytest.raises(OneRoundError, match="images of other sites than north: south") as caught:
        train_client(STUDY, "north", data)
    assert "site='north'" in caught.value.remedy
    own = data.subset(torch.tensor([0, 1, 3, 4]))
    assert train_client(STUDY, "north", own).images + 2 >= 4


def test_what_the_validation_images_lack_is_told() -> None:
    data = images(24)
    rare = data.subset(torch.cat([torch.nonzero(data.labels != 1).flatten(), torch.tensor([1])]))
    client = train_client(STUDY, "north", rare)
    assert client.class_counts[1] == 1, "the only image of a class is trained on"
    assert client.held_out == 3
    assert client.notes == ("no validation image of green",)


def test_without_an_image_to_hold_out_there_is_no_validation() -> None:
    client = train_client(STUDY, "north", images(3))
    assert (client.images, client.held_out, client.training.validation) == (3, 0, {})
    assert "no image could be held out" in client.notes[0]


def test_patients_stay_together_in_the_validation_split() -> None:
    data = images(24)
    patients = torch.arange(24) // 4
    grouped = ImageSet(data.images, data.labels, data.classes, patients=patients)
    client = train_client(STUDY, "north", grouped)
    assert client.held_out % 4 == 0
    assert client.notes == ()
