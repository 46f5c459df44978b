"""Networks by name. The networks are MONAI's; this file names them and builds them.

:func:`register` adds a ``torch.nn.Module`` of your own; an installed package adds one with an
entry point in the group ``oneround.architectures``. A submission names its architecture but can
never import code.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from itertools import chain

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from oneround.errors import OneRoundError
from oneround.study import ArchitectureSpec, ImageSpec

Builder = Callable[..., nn.Module]
"""``builder(channels, classes, **arguments)`` returns a network from (B, C, H, W) to logits,
(B, classes)."""

_BUILDERS: dict[str, Builder] = {}


def register(name: str) -> Callable[[Builder], Builder]:
    """Decorator that registers a :data:`Builder` as architecture ``name`` in this process.

    Both the sites and the coordinator have to register it.
    """

    def remember(builder: Builder) -> Builder:
        _BUILDERS[name] = builder
        return builder

    return remember


def _resnet(layers: list[int]) -> Builder:
    def build(
        channels: int, classes: int, *, width: int = 64, stem: str = "small", norm: str = "batch"
    ) -> nn.Module:
        """ResNet of basic blocks (He et al., CVPR 2016).

        ``width``: channels of the first stage. ``stem``: ``small`` (3×3, stride 1, no pooling,
        for images below about 64 pixels) or ``standard`` (7×7, stride 2, pooling).
        ``norm``: ``batch`` or ``group`` (8 groups where the width can be divided by 8, else 1).
        """
        from monai.networks.nets import ResNet  # takes a second to import

        small = {"small": True, "standard": False}[stem]
        network: nn.Module = ResNet(
            "basic",
            layers,
            [width, 2 * width, 4 * width, 8 * width],
            spatial_dims=2,
            n_input_channels=channels,
            conv1_t_size=3 if small else 7,
            conv1_t_stride=1 if small else 2,
            no_max_pool=small,
            num_classes=classes,
        )
        if {"batch": False, "group": True}[norm]:
            _to_group_norm(network, 8 if width % 8 == 0 else 1)
        return network

    return build


def _to_group_norm(model: nn.Module, groups: int) -> None:
    """Replace every BatchNorm layer; MONAI's ``norm`` argument changes only the first one."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm):
                setattr(parent, name, nn.GroupNorm(groups, child.num_features))


def _densenet(
    channels: int,
    classes: int,
    *,
    init_features: int = 32,
    growth_rate: int = 12,
    block_config: list[int] = [6, 12, 8],  # noqa: B006 (never changed)
) -> nn.Module:
    """DenseNet with BatchNorm (Huang et al., CVPR 2017); three short blocks by default."""
    from monai.networks.nets import DenseNet

    network: nn.Module = DenseNet(
        spatial_dims=2,
        in_channels=channels,
        out_channels=classes,
        init_features=init_features,
        growth_rate=growth_rate,
        block_config=tuple(block_config),
    )
    return network


_BUILDERS |= {
    "resnet18": _resnet([2, 2, 2, 2]),
    "resnet34": _resnet([3, 4, 6, 3]),
    "densenet": _densenet,
}


def names() -> list[str]:
    """Names of all architectures, including those of installed packages."""
    return sorted({*_BUILDERS, *(point.name for point in _installed())})


def build(
    architecture: ArchitectureSpec, image: ImageSpec, classes: int, seed: int = 0
) -> nn.Module:
    """A newly initialized network from (B, C, H, W) to logits, (B, ``classes``).

    Args:
        architecture: Name and arguments of the network.
        image: Channels and size of its input.
        classes: Number of its outputs.
        seed: Seed of the initial weights.

    Raises:
        OneRoundError: the name is unknown, or the arguments do not fit it.
    """
    if architecture.name not in _BUILDERS:
        for point in _installed():  # it takes longer to look than to build a small network
            if point.name == architecture.name:
                _BUILDERS[point.name] = point.load()
    if architecture.name not in _BUILDERS:
        raise OneRoundError(
            f"unknown architecture {architecture.name!r}.",
            remedy=f"Known are {', '.join(names())}; add your own with oneround.models.register.",
        )
    for key, value in architecture.arguments.items():
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(n, int | float) and not 0 <= n <= 4096 for n in numbers) or (
            isinstance(value, list) and (len(value) > 16 or sum(value) > 1024)
        ):
            raise OneRoundError(
                f"architecture {architecture}: {key} is out of range.",
                remedy="Use numbers from 0 to 4096; at most 16 in a list, with a sum up to 1024.",
            )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed reseeds GPUs too
            return _BUILDERS[architecture.name](image.channels, classes, **architecture.arguments)
    except (TypeError, KeyError, ValueError, ZeroDivisionError, RuntimeError) as error:
        raise OneRoundError(
            f"architecture {architecture}: {error}.",
            remedy="Correct its arguments in the study; see docs/reference/architectures.md.",
        ) from error


def expected_tensors(
    architecture: ArchitectureSpec, image: ImageSpec, classes: int
) -> dict[str, torch.Tensor]:
    """Every tensor of the network by name, with shape and type but without data.

    Raises:
        OneRoundError: as :func:`build`.
    """
    with torch.device("meta"):
        return build(architecture, image, classes).state_dict()


def require_fit(model: nn.Module, image: ImageSpec, classes: int) -> None:
    """Refuse a network that does not map images of this size to one logit for each class.

    Raises:
        OneRoundError: the image is too small for the network, or its output has another shape.
    """
    training = model.training
    device = next(chain(model.parameters(), model.buffers()), torch.empty(0)).device
    remedy = "Use other arguments or another architecture, or agree on larger images in the study."
    try:
        with torch.no_grad():
            outputs = model.eval()(torch.zeros(1, *image.shape, device=device))
    except RuntimeError as error:
        raise OneRoundError(
            f"the network cannot take images of shape {image.shape}: {error}.", remedy=remedy
        ) from error
    finally:
        model.train(training)
    if outputs.shape != (1, classes):
        raise OneRoundError(
            f"the network gives {tuple(outputs.shape)} for one image; (1, {classes}) is needed.",
            remedy="Give it one output, a logit, for each class of the study.",
        )


def size_in_bytes(model: nn.Module) -> int:
    """Size of the weights and buffers of ``model``, in bytes."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def _installed() -> list:  # type: ignore[type-arg]
    return list(entry_points(group="oneround.architectures"))
