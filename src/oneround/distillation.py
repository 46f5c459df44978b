"""Knowledge distillation: the student learns what the ensemble says of mixed samples.

    min_θ E[ λ·T²·KL(p_orig(x̃) ‖ q_θ(x̃)) + (1−λ)·T²·KL(p_noise(x̃) ‖ q_θ(x̃)) ]

with pseudo intermediate samples x̃ = λ·x_s + (1−λ)·x_n of bank images x_s and structure noise
x_n, the ensemble of client models (p_orig) and of their noise-adapted copies (p_noise); the
student is q_θ. Kang et al. 2025, in our reading; the temperature form is Hinton et al. 2015.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from oneround import models
from oneround.cost import Cost
from oneround.ensemble import Client, Ensemble
from oneround.errors import OneRoundError
from oneround.files import load_state, save_state
from oneround.model_file import load_model
from oneround.models import update_statistics
from oneround.noise import StructureNoise
from oneround.stage import Stage, derived_seed
from oneround.study import ArchitectureSpec, Strict, Study
from oneround.synthesis import ImageBank
from oneround.training import augment, schedule_for


class DistillationOptions(Strict):
    """How the student is trained.

    Attributes:
        steps: optimization steps.
        batch_size: samples in each.
        batches: different batches, each taught once and used again and again, which saves most
            of the teachers' work; 0: a fresh one in every step.
        learning_rate: peak rate of SGD.
        momentum: Nesterov momentum.
        weight_decay: of SGD.
        schedule: learning rate over the steps.
        temperature: T.
        mix: ``noise``: pseudo intermediate samples of bank image and structure noise;
            ``bank``: of two bank images (mixup, Zhang et al. 2018), ``none``: bank images.
        beta: λ ~ Beta(beta_a, beta_b) is the weight of the bank image.
        weight_per: one λ for every ``image``; or one for a ``batch``, so that BatchNorm of the
            student sees one degree of noise at a time, as on FedISCA's trajectory.
        teachers: ``both``, weighted by λ, or one of the two ensembles alone.
        noise_pool: structure noise images drawn ahead and used again in random positions.
        augment: random changes of every sample.
        average: decay of the exponential average of the student's weights; 0: the last state.
        batch_norm: statistics of the student. ``frozen``: those it starts with, which a warm
            start has from real images; ``train``: running statistics of the samples;
            ``recalibrated``: the same, and at the end taken anew from the bank images alone,
            which ruins a student that has learned from mixtures; ``auto``: ``train`` where there
            are mixtures, else ``recalibrated``.
        student: its architecture; by default that of the client model that ``start`` names.
        start: ``auto``: among the client models of the student's architecture the one with the
            most images in every class (the largest geometric mean of its class counts, taken as
            equal where they are kept), from scratch if there is none; ``scratch``; or a model
            file.
        checkpoint_every: steps between checkpoints.
    """

    steps: int = Field(default=1500, ge=1)
    batch_size: int = Field(default=128, ge=2)
    batches: int = Field(default=128, ge=0)
    learning_rate: float = Field(default=0.05, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    schedule: Literal["one-cycle", "constant"] = "one-cycle"
    temperature: float = Field(default=4.0, gt=0)
    mix: Literal["noise", "bank", "none"] = "noise"
    beta: tuple[float, float] = (1.0, 1.0)
    weight_per: Literal["image", "batch"] = "image"
    teachers: Literal["both", "original", "noise-adapted"] = "both"
    noise_pool: int = Field(default=2048, ge=1)
    augment: tuple[Literal["flip", "shift", "rotate", "intensity"], ...] = (
        "flip",
        "shift",
        "rotate",
        "intensity",
    )
    average: float = Field(default=0.0, ge=0, lt=1)
    batch_norm: Literal["auto", "frozen", "train", "recalibrated"] = "auto"
    student: ArchitectureSpec | None = None
    start: str = "auto"
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

    def batch(
        self, number: int
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Samples x̃, their weights λ of the original teacher, and both teachers' answers."""
        options, fabric = self.samples.options, self.stage.fabric
        drawn = self.samples.draw(options.batch_size, self.stage.generator(number))
        x, weight = fabric.to_device(drawn)
        answers = self.taught.get(number)
        if answers is None:
            answers = _teach(self.ensemble, self.adapted, x, options)
            if options.batches:
                self.taught[number] = answers
        return x, _teacher_weight(weight, options), answers


def beta(count: int, a: float, b: float, generator: torch.Generator) -> torch.Tensor:
    """(count,) draws from Beta(a, b), which torch cannot draw from a generator of its own."""
    if a == b == 1:
        return torch.rand(count, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return torch.distributions.Beta(a, b).sample((count,))


def distillation_loss(
    student: torch.Tensor,
    original: torch.Tensor,
    adapted: torch.Tensor,
    weight: torch.Tensor,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two terms above, each the mean over the batch.

    Args:
        student: logits, (B, classes).
        original: log-probabilities of the ensemble at temperature 1, (B, classes).
        adapted: those of the noise-adapted ensemble.
        weight: λ, (B,).
        temperature: T; teacher and student are both softened by it.
    """
    log_q = (student / temperature).log_softmax(-1)

    def divergence(teacher: torch.Tensor) -> torch.Tensor:
        log_p = (teacher / temperature).log_softmax(-1)
        return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1)

    return (weight * divergence(original)).mean(), ((1 - weight) * divergence(adapted)).mean()


def new_student(
    ensemble: Ensemble, study: Study, options: DistillationOptions, stage: Stage
) -> tuple[nn.Module, ArchitectureSpec]:
    """The student before training, and its architecture.

    Raises:
        OneRoundError: the model file to start from cannot be read, or is of another architecture.
    """
    classes = len(study.classes)
    best_first = sorted(ensemble.clients, key=lambda client: -_breadth(client, classes))
    architecture = options.student or best_first[0].architecture
    alike = [client.model for client in best_first if client.architecture == architecture]
    if options.start not in ("auto", "scratch"):
        student = _from_file(options.start, study, architecture)
    elif options.start == "auto" and alike:
        student = copy.deepcopy(alike[0]).requires_grad_(True)
    else:
        seed = derived_seed(stage.seed, "student")
        student = models.build(architecture, study.image, classes, seed)
    return student, architecture


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
    fabric = stage.fabric
    models.to_fast_layout(student)
    optimizer = torch.optim.SGD(
        student.parameters(),
        lr=options.learning_rate,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        nesterov=options.momentum > 0,
    )
    schedule = schedule_for(optimizer, options.schedule, options.learning_rate, options.steps)
    model, optimizer = fabric.setup(student, optimizer)
    averaging = get_ema_multi_avg_fn(options.average)  # type: ignore[no-untyped-call]
    average = AveragedModel(student, multi_avg_fn=averaging, use_buffers=True)
    parts: dict[str, Any] = {
        "model": student,
        "optimizer": optimizer,
        "schedule": schedule,
        "average": average,
    }
    lessons = Lessons(samples, ensemble.folded(), adapted.folded(), stage)
    done = _resume(parts, lessons, stage)
    meter = stage.meter()
    model.train()
    if options.batch_norm == "frozen":
        for layer in models.batch_norms(student):
            layer.eval()
    for step in range(done + 1, options.steps + 1):
        number = lessons.number(step)
        with meter.step(number in lessons.taught):
            x, weight, (original, other) = lessons.batch(number)
            logits = model(x)
            terms = distillation_loss(logits, original, other, weight, options.temperature)
            loss = terms[0] + terms[1]
            optimizer.zero_grad()
            fabric.backward(loss)
        if not loss.isfinite():
            raise OneRoundError(
                f"the loss of distillation is not finite at step {step}.",
                remedy="Set a smaller distillation.learning_rate, in a new RUN folder.",
            )
        optimizer.step()
        schedule.step()
        if options.average:
            average.update_parameters(student)
        if step % 50 == 0 or step == options.steps:
            agreement = (logits.argmax(1) == original.argmax(1)).float().mean().item()
            entry = {"step": step, "loss": loss.item()}
            if options.mix == "noise":  # otherwise the original ensemble teaches alone
                entry |= {"original": terms[0].item(), "noise_adapted": terms[1].item()}
            entry |= {"learning_rate": optimizer.param_groups[0]["lr"], "agreement": agreement}
            stage.curve.append(entry)
        if step % options.checkpoint_every == 0 or step == options.steps:
            _checkpoint(parts, lessons, step, stage, meter.cost)
        stage.tell(step, options.steps, f"loss {loss.item():.3f}")
    if options.average:
        student.load_state_dict(average.module.state_dict())
    if options.batch_norm == "recalibrated" or (
        options.batch_norm == "auto" and options.mix == "none"
    ):
        images = samples.bank.finished().images
        parts_of_bank = images.tensor_split(-(-len(images) // 256))  # of equal size
        update_statistics(model, (fabric.to_device(part.float()) for part in parts_of_bank))
    stage.cost = meter.cost
    return student.cpu().eval()


def _breadth(client: Client, classes: int) -> float:
    """How much a site has seen of every class: mean logarithm of its class counts, or, where it
    keeps them, of equal shares of its images."""
    counts = client.class_counts or (client.images / classes,)
    return sum(math.log1p(count) for count in counts) / len(counts)


def _from_file(path: str, study: Study, architecture: ArchitectureSpec) -> nn.Module:
    """Weights of a model file in a network of the student's architecture."""
    student = models.build(architecture, study.image, len(study.classes))
    try:
        student.load_state_dict(load_model(path).model.state_dict())
    except RuntimeError as error:
        raise OneRoundError(
            f"the model is not a {architecture} for {len(study.classes)} classes.",
            file=path,
            remedy="Set distillation.student to its architecture, or start from scratch.",
        ) from error
    return student


def _teacher_weight(weight: torch.Tensor, options: DistillationOptions) -> torch.Tensor:
    """Weight of the original ensemble: λ, or 1 or 0 when one of the two teaches alone."""
    alone = {"original": torch.ones_like(weight), "noise-adapted": torch.zeros_like(weight)}
    return alone.get(options.teachers, weight)


def _teach(
    ensemble: Ensemble, adapted: Ensemble, x: torch.Tensor, options: DistillationOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of both teachers; a teacher that has no weight is not asked."""
    with torch.no_grad():
        alone = options.teachers != "both" or options.mix != "noise"
        if alone and options.teachers != "noise-adapted":
            original = ensemble(x)
            return original, original
        other = adapted(x)
        return (other if alone else ensemble(x)), other


def _checkpoint(
    parts: dict[str, Any], lessons: Lessons, step: int, stage: Stage, cost: Cost
) -> None:
    path = stage.file("checkpoint.pt")
    if path is not None:
        state = {name: part.state_dict() for name, part in parts.items()}
        state |= {"step": step, "cost": cost.model_dump(), "curve": stage.curve}
        state["taught"] = lessons.taught
        save_state(path, state)


def _resume(parts: dict[str, Any], lessons: Lessons, stage: Stage) -> int:
    """Load the last checkpoint, if there is one; the number of steps done."""
    path = stage.file("checkpoint.pt")
    if path is None or not path.exists():
        return 0
    state = load_state(path)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    stage.cost, stage.curve = Cost(**state["cost"]), state["curve"]
    lessons.taught = stage.fabric.to_device(state["taught"])
    step: int = state["step"]
    return step
