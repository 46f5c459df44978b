"""Faster copies of networks for inference, and access to their last layer."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from oneround.errors import OneRoundError
from oneround.models.batch_norm import is_batch_norm
from oneround.study import ImageSpec


def last_layer(model: nn.Module, image: ImageSpec, classes: int) -> nn.Linear:
    """The fully connected layer, with a bias, that outputs the logits.

    Raises:
        OneRoundError: the network does not end with such a layer.
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


class _Pointwise(nn.Conv2d):
    """A strided 1×1 convolution, computed with stride 1 on the pixels that it reads."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same output as with the stride."""
        seen = nn.functional.avg_pool2d(x, 1, self.stride)
        return nn.functional.conv2d(seen, self.weight, self.bias, groups=self.groups)


def to_fast_layout(model: nn.Module) -> None:
    """Store the weights of ``model`` in channels-last order, if it is safe: it is faster on CPUs.

    In this order oneDNN writes out of bounds in the backward pass of a strided 1×1 convolution
    whose input channels do not fill a vector register (oneDNN issue 6035): torch then crashes or
    trains on wrong gradients. Such a layer is changed in place to compute without a stride. If it
    is not a plain ``nn.Conv2d`` without padding, the network stays as it is.
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


def inference_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode, without gradients, in the fast layout; ``model`` stays as it is."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    to_fast_layout(copied)
    return copied


class _Tracer(fx.Tracer):
    """Traces each convolution and BatchNorm layer as a whole, also those of other packages."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, nn.Conv2d | _BatchNorm)
        return whole or super().is_leaf_module(m, module_qualified_name)


def folded(model: nn.Module) -> nn.Module:
    """A copy, for inference only, with BatchNorm layers folded into the convolutions before them.

    A BatchNorm layer is folded if nothing else uses the output of the convolution; outputs and
    input gradients are the same up to rounding. All other BatchNorm layers stay, and so do all
    layers of a network whose forward pass torch.fx cannot trace.
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
