"""Your own ``torch.nn.Module`` and your own data set as a client model.

Runs in a few seconds: ``python examples/own_network.py``.
"""

import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset

from oneround import (
    ArchitectureSpec,
    ImageSpec,
    Study,
    TrainingSpec,
    read_submission,
    register,
    train_client,
)


@register("two-layers")
def two_layers(channels: int, classes: int, *, width: int = 16) -> nn.Module:
    """A network from (B, channels, H, W) to (B, classes). BatchNorm is what can be inverted."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes),
    )  # fmt: skip


class Lesions(Dataset[tuple[torch.Tensor, int]]):
    """Dark discs, small or large, on a noisy ground; yields pixels in [0, 1] and a label."""

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        label = index % 2
        y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
        disc = (y.square() + x.square()).sqrt() < (0.3, 0.6)[label]
        noise = torch.rand(32, 32, generator=torch.Generator().manual_seed(index))
        return (0.5 * noise + 0.4 * ~disc)[None], label


# The study names the network, so every hospital and the coordinator register it: a submission
# brings weights and the name, never code.
study = Study(
    name="lesions",
    classes=("small", "large"),
    image=ImageSpec(channels=1, height=32, width=32),
    architectures=(ArchitectureSpec(name="two-layers", arguments={"width": 8}),),
    training=TrainingSpec(epochs=4, batch_size=20),
)
client = train_client(study, "north", Lesions())
print(f"own validation: {client.training.validation}")

path = Path(tempfile.mkdtemp(prefix="oneround-")) / "north.oneround"
client.write(path, study)
submission = read_submission(path, study)
print(f"{path}: {submission.size:,} bytes, a {submission.manifest.architecture}")
print(f"restored exactly: {type(submission.model).__name__} on {submission.manifest.images} images")
