"""Images from a generator network, as in DAFL, DENSE and Co-Boosting, and terms of their losses.

A generator is a few layers from random numbers z to images; it is fitted to what client models
(and the student) say of its images.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from oneround.distillation.student import kd_loss
from oneround.distillation.synthesis.statistics import statistics_distance
from oneround.models.ensemble import Ensemble
from oneround.models.inference import to_fast_layout
from oneround.runs.loop import Loop
from oneround.schema import Strict
from oneround.study import ImageSpec


class GeneratorOptions(Strict):
    """The generator, and how it is fitted for each batch of images.

    Attributes:
        latent: numbers that one image is made from.
        width: channels before the last layer; twice as many in the layers before.
        steps: T_G, optimization steps for each batch of images.
        learning_rate: of Adam, with betas (0.5, 0.999).
    """

    latent: int = Field(default=256, ge=1)
    width: int = Field(default=64, ge=1)
    steps: int = Field(default=30, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)


class Generator(nn.Module):
    """From z (B, ``latent``) to network input (B, C, H, W) of any height and width.

    A linear layer, and at least two times: doubling of the sides, convolution, BatchNorm. Up to
    64 pixels this is the network that the three papers share in their code. Larger images take
    further doublings, so that the linear layer stays small; sides that are not a multiple of 4
    are rounded up on the way.

    Args:
        image: shape and range of the images.
        latent: see :class:`GeneratorOptions`.
        width: the same.
        output: ``sigmoid``: pixels in [0, 1] that are then normalized, with all weights drawn
            from N(0, 0.02²) (DENSE, Co-Boosting); ``tanh``: scaled by a BatchNorm without
            parameters to mean 0 and variance 1 in every channel (DAFL).
        seed: of the weights.
    """

    def __init__(
        self,
        image: ImageSpec,
        latent: int,
        width: int,
        output: Literal["sigmoid", "tanh"],
        seed: int,
    ) -> None:
        super().__init__()
        self.image, self.output = image, output
        doublings = max(2, math.ceil(math.log2(max(image.shape) / 16)))
        sides = [2**n for n in range(doublings, -1, -1)]
        self.sizes = [(-(-image.height // n), -(-image.width // n)) for n in sides]
        eps = 0.8 if output == "tanh" else 1e-5
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.start = nn.Linear(latent, 2 * width * math.prod(self.sizes[0]))
            self.norm = nn.BatchNorm2d(2 * width)
            channels = [2 * width] * doublings + [width]
            self.blocks = nn.ModuleList(
                nn.Sequential(
                    nn.Conv2d(before, after, 3, padding=1, bias=False),
                    nn.BatchNorm2d(after, eps=eps),
                    nn.LeakyReLU(0.2),
                )
                for before, after in itertools.pairwise(channels)
            )
            self.end = nn.Conv2d(width, image.channels, 3, padding=1)
            if output == "sigmoid":
                self.apply(_draw_small_weights)
        self.scale = nn.BatchNorm2d(image.channels, affine=False)
        to_fast_layout(self)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Images, as networks see them."""
        x = self.norm(self.start(z).view(len(z), -1, *self.sizes[0]))
        for size, block in zip(self.sizes[1:], self.blocks, strict=True):
            x = block(nn.functional.interpolate(x, size))
        x = self.end(x).float()
        return (
            self.image.normalize(x.sigmoid()) if self.output == "sigmoid" else self.scale(x.tanh())
        )


def _draw_small_weights(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear | nn.Conv2d):
        nn.init.normal_(layer.weight, 0, 0.02)
    if isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1, 0.02)
    if isinstance(layer, nn.Linear | nn.Conv2d | nn.BatchNorm2d) and layer.bias is not None:
        nn.init.zeros_(layer.bias)


def fit_images(
    loop: Loop,
    image: ImageSpec,
    count: int,
    judge: Callable[[torch.Tensor], dict[str, torch.Tensor]],
    options: GeneratorOptions,
    generator: torch.Generator,
) -> tuple[torch.Tensor, dict[str, float]]:
    """A batch of images of a new generator, fitted together with the z of every image.

    Args:
        loop: meters every step; no further step is made when it is over.
        image: shape and range of the images.
        count: how many.
        judge: from images to the terms of their loss.
        options: see :class:`GeneratorOptions`.
        generator: of all random numbers.

    Returns:
        The images of the lowest loss, (count, C, H, W), and the terms of it.
    """
    fabric, seed = loop.stage.fabric, int(torch.randint(2**62, (), generator=generator))
    network = Generator(image, options.latent, options.width, "sigmoid", seed).to(fabric.device)
    z = torch.randn(count, options.latent, generator=generator).to(fabric.device).requires_grad_()
    variables = [*network.parameters(), z]
    optimizer = torch.optim.Adam(variables, lr=options.learning_rate, betas=(0.5, 0.999))
    lowest, images, seen = math.inf, torch.empty(0), {}
    for _ in range(options.steps):
        with loop.meter.step("generate", count), fabric.autocast():
            x = network(z)
            terms = judge(x)
            loss = torch.stack(list(terms.values())).sum()
            optimizer.zero_grad()
            fabric.backward(loss)
        optimizer.step()
        if loss.item() < lowest or not len(images):
            lowest, images = loss.item(), x.detach()
            seen = {name: term.item() for name, term in terms.items()}
        if loop.over:
            break
    return images, seen


def adversarial_term(
    log_p: torch.Tensor, student: torch.Tensor, temperature: float, *, boundary: bool = False
) -> torch.Tensor:
    """−1/B Σ_i m_i·T²·KL(p_i ‖ q_i): falls where the student does not say what the ensemble says.

    Args:
        log_p: log-probabilities of the ensemble at temperature 1, (B, classes).
        student: logits, (B, classes).
        temperature: T; both are softened by it.
        boundary: whether m_i is 1 only where the two decide for different classes, so that
            images come to lie between their decision boundaries (DENSE); else it is 1.
    """
    mask = log_p.argmax(1) != student.argmax(1) if boundary else torch.ones_like(log_p[:, 0])
    return -kd_loss(student, log_p, temperature, mask.float())


def batch_norm_term(watched: Ensemble) -> torch.Tensor:
    """1/K Σ_k Σ_l (‖μ_l(x̂) − μ_kl‖₂ + ‖σ²_l(x̂) − σ²_kl‖₂) of the last images that the client
    models of ``watched`` saw, see :func:`oneround.distillation.synthesis.statistics.watch`."""
    return statistics_distance(watched, "sum") / len(watched.clients)
