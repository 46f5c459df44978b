"""How near the work on images comes to the bare convolutions in it, on this machine.

    OMP_NUM_THREADS=1 python benchmarks/engine.py

The floor is the time of all convolutions of one ResNet-18, forward and back to their inputs,
in the layout of the library and with nothing between them. Every kind of work is compared to
as many floors as it needs; repetitions are interleaved with those of the floor, and a share is
the median of their ratios, so that other work on the machine does as little harm as possible.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import torch
import typer
from torch import nn

from oneround import models
from oneround.distillation.synthesis.inversion import (
    InversionOptions,
    _in_turn,
    _together,
    jitter,
    total_variation,
)
from oneround.distillation.synthesis.statistics import watch
from oneround.models.batch_norm import batch_norms, update_statistics
from oneround.models.ensemble import Client, Ensemble
from oneround.models.inference import to_fast_layout
from oneround.study import ArchitectureSpec, ImageSpec, Task

CLASSES = 8
OPTIONS = InversionOptions()
Work = Callable[[], object]


def main(
    widths: Annotated[str, typer.Option(help="Channels of the first stage.")] = "8,16",
    batch: Annotated[int, typer.Option(help="Images in a batch.")] = 128,
    side: Annotated[int, typer.Option(help="Height and width of the images.")] = 28,
    clients: Annotated[int, typer.Option(help="Client models.")] = 5,
    repetitions: Annotated[int, typer.Option(help="Of everything, in turn.")] = 15,
) -> None:
    """Print a table."""
    print(f"{torch.get_num_threads()} thread(s), {batch} images of {side}×{side}×3, ms\n")
    print("| width | work | GFLOP | ms | floor, ms | share of the floor | GFLOP/s |")
    print("|---|---|---|---|---|---|---|")
    for width in map(int, widths.split(",")):
        architecture = ArchitectureSpec(arguments={"width": width})
        image = ImageSpec(channels=3, height=side, width=side)
        task = Task(image, tuple(map(str, range(CLASSES))))
        ensemble = Ensemble([client(k, architecture, image) for k in range(clients)], task)
        forward, backward, flops = bare_convolutions(ensemble.models[0], batch, image)
        x = torch.randn(batch, *image.shape)
        teachers = [partial(torch.no_grad()(e), x) for e in (ensemble, ensemble.folded())]
        # name: what is done, and how many passes forward, and back to the inputs, are in it
        works: dict[str, tuple[Work, int, int]] = {
            "floor: forward": (forward, 1, 0),
            "floor: forward and back": (lambda f=forward, b=backward: (f(), b()), 1, 1),
            "synthesis, hooks, together": (hooked(ensemble, image, x), clients, clients),
            "synthesis, together": (synthesis(ensemble, x, None), clients, clients),
            "synthesis, hooks, one client": (hooked(ensemble, image, x, [0]), 1, 1),
            "synthesis, in turn, no companion": (synthesis(ensemble, x, (0,)), 1, 1),
            "synthesis, in turn, one companion": (synthesis(ensemble, x, (0, 1)), 2, 2),
            "teachers, as sent": (teachers[0], clients, 0),
            "teachers, folded": (teachers[1], clients, 0),
            # the gradient of a weight costs what that of an input does, or about that
            "student, a step": (distillation(architecture, image, x), 1, 2),
        }
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(repetitions + 1):  # the first is not counted
            for name, (work, _, _) in works.items():
                start = time.perf_counter()
                work()
                seconds[name].append(time.perf_counter() - start)
        ahead, both = (seconds[name][1:] for name in list(works)[:2])
        for name, (_, forwards, backwards) in works.items():
            floors = [
                (forwards - backwards) * f + backwards * b for f, b in zip(ahead, both, strict=True)
            ]
            own = seconds[name][1:]
            share = statistics.median(f / s for f, s in zip(floors, own, strict=True))
            giga, median = (forwards + backwards) * flops / 1e9, statistics.median(own)
            print(
                f"| {width} | {name} | {giga:.2f} | {median * 1e3:.1f} | "
                f"{statistics.median(floors) * 1e3:.1f} | {share:.0%} | {giga / median:.0f} |"
            )


def client(number: int, architecture: ArchitectureSpec, image: ImageSpec) -> Client:
    """A client model with random weights and the statistics of noise."""
    model = models.build(architecture, image, CLASSES, number)
    update_statistics(model, [torch.randn(64, *image.shape)])
    return Client(str(number), model, architecture, 100, tuple(range(1, CLASSES + 1)))


def bare_convolutions(model: nn.Module, batch: int, image: ImageSpec) -> tuple[Work, Work, int]:
    """All convolutions of ``model``, each on an input of its own; their input gradients; and the
    FLOPs of either."""
    calls: list[tuple[torch.Tensor, ...]] = []
    kinds: list[tuple[int, ...]] = []

    def remember(layer: nn.Conv2d, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        x, stride = inputs[0], layer.stride
        if type(layer) is not nn.Conv2d:  # without its stride; see to_fast_layout
            x, stride = x[..., :: stride[0], :: stride[1]], (1, 1)
        layout = {"memory_format": torch.channels_last}
        x = torch.randn(x.shape).contiguous(**layout)
        calls.append((x, layer.weight, torch.randn(output.shape).contiguous(**layout)))
        kinds.append((*stride, *layer.padding))

    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    hooks = [layer.register_forward_hook(remember) for layer in convolutions]
    with torch.no_grad():
        model(torch.zeros(batch, *image.shape))
    for hook in hooks:
        hook.remove()

    def forward() -> None:
        for (x, weight, _), kind in zip(calls, kinds, strict=True):
            torch.conv2d(x, weight, None, kind[:2], kind[2:])

    def backward() -> None:
        for (x, weight, dy), kind in zip(calls, kinds, strict=True):
            torch.ops.aten.convolution_backward(
                dy, x, weight, None, kind[:2], kind[2:], (1, 1), False, (0, 0), 1, (True, 0, 0)
            )

    return forward, backward, sum(2 * dy.numel() * w[0].numel() for _, w, dy in calls)


def optimized(x: torch.Tensor, loss_of: Callable[[torch.Tensor], torch.Tensor]) -> Work:
    """One step of Adam on the pixels."""
    pixels, generator = x.clone().requires_grad_(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([pixels], lr=0.05, betas=(0.5, 0.9))

    def step() -> None:
        loss = loss_of(jitter(pixels, OPTIONS.jitter, generator))
        loss = loss + OPTIONS.tv_weight * total_variation(pixels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def synthesis(ensemble: Ensemble, x: torch.Tensor, asked: tuple[int, ...] | None) -> Work:
    """A step of the library."""
    watched, targets = watch(ensemble), torch.arange(len(x)) % CLASSES

    def loss_of(moved: torch.Tensor) -> torch.Tensor:
        judge = _together if asked is None else _in_turn
        everybody = tuple(range(len(ensemble.clients)))
        terms = judge(watched, moved, targets, asked or everybody, OPTIONS)
        return torch.stack(list(terms.values())).sum()

    return optimized(x, loss_of)


def hooked(
    ensemble: Ensemble, image: ImageSpec, x: torch.Tensor, asked: Sequence[int] = ()
) -> Work:
    """A step with hooks on stock BatchNorm layers, as in most public code."""
    networks = [models.build(c.architecture, image, CLASSES) for c in ensemble.clients]
    for network, model in zip(networks, ensemble.models, strict=True):
        network.load_state_dict(model.state_dict())  # in the layout it was built in
        network.eval().requires_grad_(False)
    networks = [networks[k] for k in asked] or networks
    targets, terms = torch.arange(len(x)) % CLASSES, []

    def compare(layer: nn.BatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
        mean = inputs[0].mean((0, 2, 3))
        variance = inputs[0].var((0, 2, 3), unbiased=False)
        terms.append((mean - layer.running_mean).norm() + (variance - layer.running_var).norm())

    for network in networks:
        for layer in batch_norms(network):
            layer.register_forward_pre_hook(compare)

    def loss_of(moved: torch.Tensor) -> torch.Tensor:
        terms.clear()
        logits = torch.stack([network(moved) for network in networks]).mean(0)
        distance = torch.stack(terms).sum()
        return nn.functional.cross_entropy(logits, targets) + OPTIONS.bn_weight * distance

    return optimized(x, loss_of)


def distillation(architecture: ArchitectureSpec, image: ImageSpec, x: torch.Tensor) -> Work:
    """Forward, backward and SGD of the student."""
    student = models.build(architecture, image, CLASSES).train()
    to_fast_layout(student)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
    targets = torch.randn(len(x), CLASSES).softmax(1)

    def step() -> None:
        loss = nn.functional.cross_entropy(student(x), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    typer.run(main)
