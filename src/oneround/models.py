"""Networks by name. They come from MONAI; this file only names them and says what they need.

A user's own ``torch.nn.Module`` joins with :func:`register`, or, from an installed package,
with an entry point in the group ``oneround.architectures``. A submission names its
architecture but can never import code.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import entry_points
from itertools import chain
from typing import Any, TypeGuard

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from oneround.errors import OneRoundError
from oneround.study import ArchitectureSpec, ImageSpec

Builder = Callable[..., nn.Module]
"""``builder(channels, classes, **arguments)`` to a network from (B, C, H, W) to (B, classes)."""

_BUILDERS: dict[str, Builder] = {}


def register(name: str) -> Callable[[Builder], Builder]:
    """Make a network known by ``name``, at the sites and at the coordinator alike."""

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


def last_layer(model: nn.Module, image: ImageSpec, classes: int) -> nn.Linear:
    """The fully connected layer whose output the logits are, with its bias.

    Raises:
        OneRoundError: there is none.
    """
    x = torch.zeros(1, *image.shape, device=next(model.parameters()).device)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m.bias is not None]
    for layer in reversed([m for m in layers if m.out_features == classes]):
        silenced = layer.register_forward_hook(lambda *call: torch.zeros_like(call[2]))
        with silenced, torch.no_grad():
            if not model(x).any():
                return layer
    raise OneRoundError(
        "the network does not end with a fully connected layer that has a bias.",
        remedy="Give it one, or use a method that needs none, such as kang2025.",
    )


def _to_group_norm(model: nn.Module, groups: int) -> None:
    """Replace every BatchNorm layer; MONAI's ``norm`` argument reaches the first one only."""
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
    """Names that :func:`build` knows, those of installed packages included."""
    return sorted({*_BUILDERS, *(point.name for point in _installed())})


def build(
    architecture: ArchitectureSpec, image: ImageSpec, classes: int, seed: int = 0
) -> nn.Module:
    """A freshly initialized network from (B, C, H, W) to (B, ``classes``).

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
                remedy="Use numbers from 0 to 4096; lists of up to 16, that sum to at most 1024.",
            )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed reseeds GPUs too
            return _BUILDERS[architecture.name](image.channels, classes, **architecture.arguments)
    except (TypeError, KeyError, ValueError, ZeroDivisionError, RuntimeError) as error:
        raise OneRoundError(
            f"architecture {architecture}: {error}.",
            remedy="Correct its arguments in the study; docs/reference lists them.",
        ) from error


def expected_tensors(
    architecture: ArchitectureSpec, image: ImageSpec, classes: int
) -> dict[str, torch.Tensor]:
    """Name, shape and dtype of every tensor of the network, without allocating any."""
    with torch.device("meta"):
        return build(architecture, image, classes).state_dict()


def require_fit(model: nn.Module, image: ImageSpec, classes: int) -> None:
    """Refuse a network that does not turn an image of this size into one output for each class.

    Raises:
        OneRoundError: the image is too small for it, or its outputs have another shape.
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


class _Pointwise(nn.Conv2d):
    """A strided 1×1 convolution as one of stride 1 over the pixels that it looks at."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same output as with the stride."""
        seen = nn.functional.avg_pool2d(x, 1, self.stride)
        return nn.functional.conv2d(seen, self.weight, self.bias, groups=self.groups)


def to_fast_layout(model: nn.Module) -> None:
    """Put the weights into channels-last order, which is faster on CPUs, where that is safe.

    oneDNN writes out of bounds in the backward pass of a strided 1×1 convolution in this
    order when its input channels do not fill a vector register (oneDNN issue 6035): torch then
    crashes or trains on wrong gradients. Such a layer is made to work without its stride; a
    network where it is not a plain one stays as it is.
    """
    unsafe = [
        layer
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d)
        and not isinstance(layer, _Pointwise)
        and (layer.in_channels % 16 and set(layer.kernel_size) == {1} and max(layer.stride) > 1)
    ]
    if any(type(layer) is not nn.Conv2d or set(layer.padding) != {0} for layer in unsafe):
        return
    for layer in unsafe:
        layer.__class__ = _Pointwise  # its tensors, their names and its output are the same
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class _Tracer(fx.Tracer):
    """Sees every convolution and BatchNorm layer as a whole, those of other packages too."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, nn.Conv2d | _BatchNorm)
        return whole or super().is_leaf_module(m, module_qualified_name)


def folded(model: nn.Module) -> nn.Module:
    """A copy for inference alone, in which convolutions do the work of BatchNorm layers.

    Where nothing else uses the output of a convolution, the BatchNorm layer after it becomes
    part of its weights; outputs and input gradients are the same up to rounding. The others
    stay, as do all of a network whose forward pass torch.fx cannot follow.
    """
    original = copy.deepcopy(model).eval()
    traced = copy.deepcopy(original)
    try:
        graph = _Tracer().trace(traced)
    except Exception:  # anything: it has run the forward pass of somebody else's network
        return original
    layers, calls = dict(traced.named_modules()), Counter(node.target for node in graph.nodes)
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        convolution, norm = layers[str(before.target)], layers[str(node.target)]
        alone = len(before.users) == calls[before.target] == calls[node.target] == 1
        if alone and isinstance(convolution, nn.Conv2d) and is_batch_norm(norm):
            traced.set_submodule(str(before.target), fuse_conv_bn_eval(convolution, norm))
            node.replace_all_uses_with(before)
            graph.erase_node(node)
    return fx.GraphModule(traced, graph).eval()


def is_batch_norm(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether ``module`` is a BatchNorm layer that keeps running statistics."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def batch_norms(model: nn.Module) -> Iterator[_BatchNorm]:
    """The BatchNorm layers of ``model`` that keep running statistics, in order."""
    return filter(is_batch_norm, model.modules())


def require_batch_norm(model: nn.Module, site: str) -> None:
    """Refuse a network whose training images left no statistics to invert.

    Raises:
        OneRoundError: ``model`` has no BatchNorm layer.
    """
    if next(batch_norms(model), None) is None:
        raise OneRoundError(
            f"the client model of {site} has no BatchNorm layer, so it keeps no statistics of "
            "its training images and noise adaptation has nothing to update.",
            remedy="Use an architecture with BatchNorm, or do without: `--method oneround --set "
            "inversion.bn_weight=0`, `--method ensemble` or `--method fedavg`.",
        )


class SynchronizedBatchNorm(_BatchNorm):
    """BatchNorm whose batch is that of all processes together; of one, torch's own.

    ``torch.nn.SyncBatchNorm`` does the same on GPUs alone; this one runs on any device, so that
    two processes on a CPU give what one gives.
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """Any number of dimensions will do."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The normalized input, (B, C, …); running statistics follow in training mode."""
        batch_statistics = self.training or self.running_mean is None
        several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
        if not (batch_statistics and several):
            return super().forward(input)
        others, world = [0, *range(2, input.ndim)], torch.distributed.get_world_size()
        wide = input.float()  # half a number has no room for the difference of two squares
        sums = torch.stack([wide.mean(others), wide.square().mean(others)])
        total = _SumOverProcesses.apply(sums)  # type: ignore[no-untyped-call]
        mean, square = total / world  # parts are of equal size
        variance = square - mean.square()
        if self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            count = input.numel() // input.shape[1] * world
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                share = self.momentum
                if share is None:  # the mean over all batches
                    share = 1 / int(self.num_batches_tracked)
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * count / (count - 1), share)
        scale = (variance + self.eps).rsqrt()
        scale = scale if self.weight is None else scale * self.weight
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        per_channel = (1, -1, *(1,) * (input.ndim - 2))
        normal = torch.addcmul(shift.view(per_channel), wide, scale.view(per_channel))
        return normal.to(input.dtype)


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        torch.distributed.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous().clone()
        torch.distributed.all_reduce(gradient)
        return gradient


def synchronize_batch_norms(model: nn.Module) -> None:
    """Make every BatchNorm layer of ``model`` a :class:`SynchronizedBatchNorm`, in place."""
    for layer in batch_norms(model):
        layer.__class__ = SynchronizedBatchNorm


def size_in_bytes(model: nn.Module) -> int:
    """Size of the weights and buffers."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def update_statistics(
    model: nn.Module, batches: Iterable[torch.Tensor], momentum: float | None = None
) -> None:
    """Move the BatchNorm statistics of ``model`` to those of ``batches``; weights stay.

    Args:
        batches: network inputs, (B, C, H, W), on the device of ``model``.
        momentum: after n batches (1 − momentum)ⁿ of the old statistics is left; ``None``:
            replace them by the mean over all batches.
    """
    training, layers = model.training, list(batch_norms(model))
    model.eval()
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.train()
        layer.momentum = momentum
        if momentum is None:
            layer.reset_running_stats()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for layer, old in zip(layers, before, strict=True):
        layer.momentum = old
    model.train(training)


def _installed() -> list:  # type: ignore[type-arg]
    return list(entry_points(group="oneround.architectures"))
