"""Images from a generator network, as in DAFL, DENSE and Co-Boosting, and terms of its loss.

A generator has a few layers from random numbers z to images; it is fitted to the outputs of the
client models, and of the student, for its images.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from oneround.distillation.loss import kd_loss
from oneround.distillation.synthesis.statistics import statistics_distance
from oneround.models.ensemble import Ensemble
from oneround.models.inference import to_fast_layout
from oneround.runs.loop import Loop
from oneround.runs.optimization import make_optimizer
from oneround.schema import Strict
from oneround.study import ImageSpec


class GeneratorOptions(Strict):
    """Options of the generator and of its fit for each batch of images.

    Attributes:
        latent: Random numbers that each image is made from.
        width: Channels before the last layer of the generator; twice as many in earlier layers.
        steps: Optimization steps of the generator for each batch of images, T_G in the papers.
        learning_rate: Learning rate of Adam on the generator, with betas (0.5, 0.999).
    """

    latent: int = Field(default=256, ge=1)
    width: int = Field(default=64, ge=1)
    steps: int = Field(default=30, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)


class Generator(nn.Module):
    """Generator network from z, (B, ``latent``), to network input, (B, C, H, W), of any size.

    A linear layer, followed at least twice by doubling of the sides, convolution and BatchNorm.
    Up to 64 pixels this is the network in the public code of all three papers. Larger images need
    more doublings, so that the linear layer stays small; sides that are not a multiple of 4 are
    rounded up at intermediate sizes.

    Args:
        image: Shape and normalization of the images.
        latent: See :class:`GeneratorOptions`.
        width: See :class:`GeneratorOptions`.
        output: ``sigmoid``: pixels in [0, 1] that are then normalized, and initial weights sampled
            from N(0, 0.02²) (DENSE, Co-Boosting); ``tanh``: scaled by a BatchNorm without
            parameters to mean 0 and variance 1 in each channel (DAFL).
        seed: Seed of the initial weights.
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
        """Images as network input, (B, C, H, W), from z, (B, ``latent``)."""
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
    """A batch of images from a new generator, fitted together with the z of each image.

    Args:
        loop: The loop that measures each step; fitting stops when the loop is over.
        image: Shape and normalization of the images.
        count: Number of images.
        judge: From images, (count, C, H, W), to the terms of their loss, by name.
        options: See :class:`GeneratorOptions`.
        generator: Source of randomness, on the CPU.

    Returns:
        The images of the step with the lowest loss, (count, C, H, W), and the terms of that loss.
    """
    fabric, seed = loop.stage.fabric, int(torch.randint(2**62, (), generator=generator))
    network = Generator(image, options.latent, options.width, "sigmoid", seed).to(fabric.device)
    z = torch.randn(count, options.latent, generator=generator).to(fabric.device).requires_grad_()
    variables = [*network.parameters(), z]
    optimizer = make_optimizer(
        variables, kind="adam", learning_rate=options.learning_rate, betas=(0.5, 0.999)
    )
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
    """−1/B Σ_i m_i·T²·KL(p_i ‖ q_i), a scalar that is low where student and ensemble disagree.

    Args:
        log_p: Log-probabilities of the ensemble at temperature 1, (B, classes).
        student: Logits of the student, (B, classes).
        temperature: Temperature T that softens both, above 0.
        boundary: Whether m_i is 1 only for images that the two assign to different classes, so
            that images move between their decision boundaries (DENSE); otherwise m_i is 1.
    """
    mask = log_p.argmax(1) != student.argmax(1) if boundary else torch.ones_like(log_p[:, 0])
    return -kd_loss(student, log_p, temperature, mask.float())


def batch_norm_term(watched: Ensemble) -> torch.Tensor:
    """1/K Σ_k Σ_l (‖μ_l(x̂) − μ_kl‖₂ + ‖σ²_l(x̂) − σ²_kl‖₂), a scalar, for the last input x̂ of the
    client models of ``watched``; see :func:`oneround.distillation.synthesis.statistics.watch`."""
    return statistics_distance(watched, "sum") / len(watched.clients)
