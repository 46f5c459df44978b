"""Knowledge distillation: the student learns what the ensemble says of mixed samples.

    min_θ E[ λ·T²·KL(p_orig(x̃) ‖ q_θ(x̃)) + (1−λ)·T²·KL(p_noise(x̃) ‖ q_θ(x̃)) ]

with pseudo intermediate samples x̃ = λ·x_s + (1−λ)·x_n of bank images x_s and structure noise
x_n, the ensemble of client models (p_orig) and of their noise-adapted copies (p_noise); the
student is q_θ. Kang et al. 2025, in our reading; the temperature form is Hinton et al. 2015.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from oneround.data.augment import augment
from oneround.data.structure_noise import StructureNoise
from oneround.distillation.student import Learner, StudentOptions
from oneround.distillation.synthesis import ImageBank
from oneround.models.batch_norm import batch_norms, update_statistics
from oneround.models.ensemble import Ensemble
from oneround.runs.loop import Loop
from oneround.runs.stage import Stage
from oneround.study import Augmentation


class DistillationOptions(StudentOptions):
    """How the student is trained.

    Attributes:
        steps: optimization steps.
        batch_size: samples in each.
        batches: different batches, each taught once and used again and again, which saves most
            of the teachers' work; 0: a fresh one in every step.
        mix: ``noise``: pseudo intermediate samples of bank image and structure noise;
            ``bank``: of two bank images (mixup, Zhang et al. 2018), ``none``: bank images.
        beta: λ ~ Beta(beta_a, beta_b) is the weight of the bank image.
        weight_per: one λ for every ``image``; or one for a ``batch``, so that BatchNorm of the
            student sees one degree of noise at a time, as on FedISCA's trajectory.
        asked: client models that teach a batch, drawn anew for each; 0: all. It makes the cost of
            a step independent of the number of sites.
        teachers: ``both``, weighted by λ, or one of the two ensembles alone.
        noise_pool: structure noise images drawn ahead and used again in random positions.
        augment: random changes of every sample.
        average: decay of the exponential average of the student's weights; 0: the last state.
        batch_norm: statistics of the student. ``frozen``: those it starts with, which a warm
            start has from real images; ``train``: running statistics of the samples;
            ``recalibrated``: the same, and at the end taken anew from the bank images alone,
            which ruins a student that has learned from mixtures; ``auto``: ``train`` where there
            are mixtures, else ``recalibrated``.
        checkpoint_every: steps between checkpoints.
    """

    steps: int = Field(default=1500, ge=1)
    batch_size: int = Field(default=128, ge=2)
    batches: int = Field(default=128, ge=0)
    mix: Literal["noise", "bank", "none"] = "noise"
    beta: tuple[float, float] = (1.0, 1.0)
    weight_per: Literal["image", "batch"] = "image"
    asked: int = Field(default=0, ge=0)
    teachers: Literal["both", "original", "noise-adapted"] = "both"
    noise_pool: int = Field(default=2048, ge=1)
    augment: tuple[Augmentation, ...] = (
        "flip",
        "shift",
        "rotate",
        "intensity",
    )
    average: float = Field(default=0.0, ge=0, lt=1)
    batch_norm: Literal["auto", "frozen", "train", "recalibrated"] = "auto"
    checkpoint_every: int = Field(default=100, ge=1)


class Samples:
    """An endless source of training samples for the student."""

    def __init__(
        self,
        bank: ImageBank,
        noise: StructureNoise,
        options: DistillationOptions,
        stage: Stage,
    ) -> None:
        self.bank, self.options = bank, options
        self.noise = torch.empty(0)
        if options.mix == "noise":
            self.noise = noise.sample(options.noise_pool, stage.generator("noise")).half()

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Samples x̃, (count, C, H, W), and the weight λ of the bank image in each, (count,)."""
        images = self.bank.sample(count, generator)
        if self.options.mix == "none":
            return augment(images, self.options.augment, generator), torch.ones(count)
        draws = 1 if self.options.weight_per == "batch" else count
        weight = beta(draws, *self.options.beta, generator).expand(count)
        if self.options.mix == "noise":
            other = self._noise(count, generator)
        else:
            other = self.bank.sample(count, generator)
        share = weight.view(-1, 1, 1, 1)
        mixed = share * augment(images, self.options.augment, generator) + (1 - share) * other
        return mixed, weight if self.options.mix == "noise" else torch.ones(count)

    def _noise(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Noise images from the pool, all at one random cyclic shift."""
        noise = self.noise[torch.randint(len(self.noise), (count,), generator=generator)].float()
        shifts = [int(torch.randint(side, (), generator=generator)) for side in noise.shape[-2:]]
        return noise.roll(shifts, (-2, -1))


class Lessons:
    """Batches of samples with what the teachers say of them.

    Attributes:
        taught: log-probabilities of both teachers for every batch that was taught already.
    """

    def __init__(
        self, samples: Samples, ensemble: Ensemble, adapted: Ensemble, stage: Stage
    ) -> None:
        self.samples, self.ensemble, self.adapted, self.stage = samples, ensemble, adapted, stage
        self.taught: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def number(self, step: int) -> int:
        """Which batch comes at ``step`` (from 1): all of them in each round, in random order."""
        batches = self.samples.options.batches
        if not batches:
            return step
        turn, place = divmod(step - 1, batches)
        order = torch.randperm(batches, generator=self.stage.generator("round", turn))
        return int(order[place])

    def asked(self, number: int) -> tuple[int, ...] | None:
        """Which client models teach a batch; ``None``: all of them."""
        return self.ensemble.draw(self.samples.options.asked, self.stage.generator("asked", number))

    def asks(self, number: int) -> tuple[str, ...]:
        """The networks that :meth:`batch` runs: none of a batch that was taught already."""
        if number in self.taught:
            return ()
        clients = self.ensemble.clients
        chosen = self.asked(number) or range(len(clients))
        return tuple(sorted(str(clients[k].architecture) for k in chosen))

    def batch(
        self, number: int
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Samples x̃, their weights λ of the original teacher, and both teachers' answers."""
        options, fabric = self.samples.options, self.stage.fabric
        drawn = self.samples.draw(options.batch_size, self.stage.generator(number))
        x, weight = (fabric.to_device(self.stage.mine(part)) for part in drawn)
        answers = self.taught.get(number)
        if answers is None:
            answers = _teach(self.ensemble, self.adapted, x, options, self.asked(number))
            if options.batches:
                self.taught[number] = answers
        return x, _teacher_weight(weight, options), answers

    def state_dict(self) -> dict[str, Any]:
        """What was taught; of several processes each knows its part alone, and asks again."""
        return {"taught": self.taught if self.stage.fabric.world_size == 1 else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        if self.stage.fabric.world_size == 1:
            self.taught = self.stage.fabric.to_device(state["taught"])


def beta(count: int, a: float, b: float, generator: torch.Generator) -> torch.Tensor:
    """(count,) draws from Beta(a, b), which torch cannot draw from a generator of its own."""
    if a == b == 1:
        return torch.rand(count, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return torch.distributions.Beta(a, b).sample((count,))


def train_student(
    ensemble: Ensemble,
    adapted: Ensemble,
    samples: Samples,
    student: nn.Module,
    options: DistillationOptions,
    stage: Stage,
) -> nn.Module:
    """Train ``student``; its last (or averaged) state is the result, nothing is selected.

    Args:
        ensemble: the client models.
        adapted: their noise-adapted copies.
        samples: what it is trained on.
        student: a network of any architecture; changed in place.
        options: see :class:`DistillationOptions`.
        stage: keeps a checkpoint every ``options.checkpoint_every`` steps.

    Returns:
        The student in eval mode, on the CPU.

    Raises:
        OneRoundError: the loss is not finite.
    """
    learner = Learner(student, options, stage)
    if options.batch_norm == "frozen":
        for layer in batch_norms(student):
            layer.eval()
    averaging = get_ema_multi_avg_fn(options.average)  # type: ignore[no-untyped-call]
    average = AveragedModel(student, multi_avg_fn=averaging, use_buffers=True)
    lessons = Lessons(samples, ensemble.folded(), adapted.folded(), stage)
    parts = learner.parts | {"average": average, "lessons": lessons}
    loop = Loop(stage, options.steps, parts, keep_every=options.checkpoint_every)
    for step in loop:
        number = lessons.number(step)
        with loop.meter.step("teach", *lessons.asks(number)):
            x, weight, (original, other) = lessons.batch(number)
        entry = learner.learn(loop, x, original, other, weight)
        if options.average:
            average.update_parameters(student)
        if step % 50 == 0 or step == options.steps:
            if options.mix != "noise":  # the original ensemble teaches alone
                del entry["original"], entry["noise_adapted"]
            stage.curve.append({"step": step} | entry)
        loop.note = f"loss {entry['loss']:.3f}"
    if options.average:
        student.load_state_dict(average.module.state_dict())
    if options.batch_norm == "recalibrated" or (
        options.batch_norm == "auto" and options.mix == "none"
    ):
        images = samples.bank.finished().images
        parts_of_bank = images.tensor_split(-(-len(images) // 256))  # of equal size
        batches = (stage.fabric.to_device(part.float()) for part in parts_of_bank)
        with loop.meter.step("recalibrate"):
            update_statistics(learner.model, batches)
        loop.close()
    return student.cpu().eval()


def _teacher_weight(weight: torch.Tensor, options: DistillationOptions) -> torch.Tensor:
    """Weight of the original ensemble: λ, or 1 or 0 when one of the two teaches alone."""
    alone = {"original": torch.ones_like(weight), "noise-adapted": torch.zeros_like(weight)}
    return alone.get(options.teachers, weight)


def _teach(
    ensemble: Ensemble,
    adapted: Ensemble,
    x: torch.Tensor,
    options: DistillationOptions,
    asked: tuple[int, ...] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of both teachers; a teacher that has no weight is not asked."""
    with torch.no_grad():
        alone = options.teachers != "both" or options.mix != "noise"
        if alone and options.teachers != "noise-adapted":
            original = ensemble(x, asked)
            return original, original
        other = adapted(x, asked)
        return (other if alone else ensemble(x, asked)), other
