"""Distillation on an image bank: the teacher labels each batch once, the student learns from it.

Independent of the method: a sampler returns samples and their weights, a teacher returns its
log-probabilities for them, and the student takes steps on
:func:`oneround.distillation.loss.kd_loss`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from oneround.data.augment import augment
from oneround.distillation.student import Learner, StudentOptions, Teacher
from oneround.distillation.synthesis import ImageBank
from oneround.errors import OneRoundError
from oneround.models.batch_norm import batch_norms, update_statistics
from oneround.models.ensemble import Client
from oneround.runs.loop import Loop
from oneround.runs.stage import Stage
from oneround.study import Augmentation

Sampler = Callable[[int, torch.Generator], tuple[torch.Tensor, torch.Tensor]]
"""``sampler(count, generator)`` returns samples as network input, (count, C, H, W), and their
weights, (count,), or their weights for each of S teachers, (S, count)."""


class DistillationOptions(StudentOptions):
    """Options of a student that is trained on an image bank.

    Attributes:
        steps: Optimization steps of the student.
        batch_size: Samples in each step of the student.
        batches: Different batches, each labeled once by the teacher and used again and again,
            which saves most of the teacher's work; 0: a new batch in every step.
        asked: Client models that label a batch, sampled for each batch, so that the cost of a
            step does not depend on the number of sites; 0: all.
        augment: Random changes of each bank image.
        average: Decay of the exponential moving average of the student's weights, in [0, 1); 0:
            the last state.
        batch_norm: BatchNorm statistics of the student. ``frozen``: those it starts with, which
            at a warm start come from real images; ``train``: running statistics of the samples;
            ``recalibrated``: the same and, at the end, those of the bank images alone, which
            ruins a student that has learned from mixtures; ``auto``: ``train`` if the samples are
            mixtures, else ``recalibrated``.
        checkpoint_every: Steps between checkpoints.
    """

    steps: int = Field(default=1500, ge=1)
    batch_size: int = Field(default=128, ge=2)
    batches: int = Field(default=128, ge=0)
    asked: int = Field(default=0, ge=0)
    augment: tuple[Augmentation, ...] = ("flip", "shift", "rotate", "intensity")
    average: float = Field(default=0.0, ge=0, lt=1)
    batch_norm: Literal["auto", "frozen", "train", "recalibrated"] = "auto"
    checkpoint_every: int = Field(default=100, ge=1)


def bank_samples(bank: ImageBank, kinds: Sequence[Augmentation]) -> Sampler:
    """A sampler of augmented bank images, all of weight 1."""

    def sample(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        images = bank.sample(count, generator)
        return augment(images, kinds, generator), torch.ones(count)

    return sample


@runtime_checkable
class ClientTeacher(Protocol):
    """A teacher of several client models, of which a random subset can be asked."""

    clients: tuple[Client, ...]

    def __call__(self, x: torch.Tensor, asked: Sequence[int] | None = None) -> torch.Tensor:
        """Log-probabilities, as of any teacher, from all client models or those ``asked``."""

    def draw(self, count: int, generator: torch.Generator) -> tuple[int, ...] | None:
        """Indices of ``count`` different clients, sampled at random; ``None``, which means all, if
        ``count`` is 0."""


class Lessons:
    """Batches of samples with the teacher's log-probabilities for them.

    Args:
        sampler: Source of samples and their weights.
        teacher: Any :data:`~oneround.distillation.student.Teacher`.
        options: See :class:`DistillationOptions`.
        stage: The stage that seeds the batches.

    Attributes:
        taught: Log-probabilities for each batch that was labeled already, by its number.

    Raises:
        OneRoundError: ``options.asked`` is not 0 and the teacher is not a :class:`ClientTeacher`.
    """

    def __init__(
        self, sampler: Sampler, teacher: Teacher, options: DistillationOptions, stage: Stage
    ) -> None:
        if options.asked and not isinstance(teacher, ClientTeacher):
            raise OneRoundError(
                "distillation.asked samples client models, and this teacher has none to sample.",
                remedy="Set distillation.asked=0.",
            )
        self.sampler, self.teacher, self.options, self.stage = sampler, teacher, options, stage
        self.taught: dict[int, torch.Tensor] = {}

    def number(self, step: int) -> int:
        """Number of the batch at ``step`` (from 1): each once per round, in random order."""
        batches = self.options.batches
        if not batches:
            return step
        turn, place = divmod(step - 1, batches)
        order = torch.randperm(batches, generator=self.stage.generator("round", turn))
        return int(order[place])

    def kind(self, number: int) -> tuple[str, ...]:
        """Kind of work of :meth:`batch`, for the meter: the networks that label the batch."""
        if number in self.taught:
            return ("known",)
        asked = self._asked(number)
        if asked is None or not isinstance(self.teacher, ClientTeacher):
            return ("all",)
        return tuple(sorted(str(self.teacher.clients[k].architecture) for k in asked))

    def batch(self, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Samples, their weights and the teacher's log-probabilities; see :data:`Sampler` and
        :data:`~oneround.distillation.student.Teacher` for the shapes."""
        stage = self.stage
        x, weight = self.sampler(self.options.batch_size, stage.generator(number))
        x = stage.fabric.to_device(stage.mine(x))
        weight = stage.mine(weight.movedim(-1, 0)).movedim(0, -1)  # samples are its last dimension
        taught = self.taught.get(number)
        if taught is None:
            asked = self._asked(number)
            with torch.no_grad():
                taught = self.teacher(x) if asked is None else self._ask(x, asked)
            if self.options.batches:
                self.taught[number] = taught
        return x, stage.fabric.to_device(weight), taught

    def _asked(self, number: int) -> tuple[int, ...] | None:
        if not self.options.asked or not isinstance(self.teacher, ClientTeacher):
            return None
        return self.teacher.draw(self.options.asked, self.stage.generator("asked", number))

    def _ask(self, x: torch.Tensor, asked: tuple[int, ...]) -> torch.Tensor:
        assert isinstance(self.teacher, ClientTeacher)
        return self.teacher(x, asked)

    def state_dict(self) -> dict[str, Any]:
        """Labels so far; empty with several processes, of which each has only its share."""
        return {"taught": self.taught if self.stage.fabric.world_size == 1 else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that :meth:`state_dict` returned."""
        if self.stage.fabric.world_size == 1:
            self.taught = self.stage.fabric.to_device(state["taught"])


def train_student(
    teacher: Teacher,
    sampler: Sampler,
    student: nn.Module,
    options: DistillationOptions,
    stage: Stage,
    *,
    names: Sequence[str] = (),
    recalibrate_on: ImageBank | None = None,
) -> nn.Module:
    """Train ``student``; the result is its last or averaged state, and nothing is selected.

    Args:
        teacher: Any callable from a batch to log-probabilities, such as ``ensemble.folded()``.
        sampler: Source of samples and their weights.
        student: A network of any architecture; changed in place.
        options: See :class:`DistillationOptions`.
        stage: The stage; it keeps a checkpoint every ``options.checkpoint_every`` steps.
        names: Names of the teachers in the log, if there are several.
        recalibrate_on: Image bank whose images give the final BatchNorm statistics; ``None``:
            the statistics of the samples stay.

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
    lessons = Lessons(sampler, teacher, options, stage)
    parts = learner.parts | {"average": average, "lessons": lessons}
    loop = Loop(stage, options.steps, parts, keep_every=options.checkpoint_every)
    for step in loop:
        number = lessons.number(step)
        with loop.meter.step("teach", *lessons.kind(number)):
            x, weight, taught = lessons.batch(number)
        entry = learner.learn(loop, x, taught, weight, names)
        if options.average:
            average.update_parameters(student)
        if step % 50 == 0 or step == options.steps:
            stage.log({"step": step} | entry)
        loop.note = f"loss {entry['loss']:.3f}"
    if options.average:
        student.load_state_dict(average.module.state_dict())
    if recalibrate_on is not None:
        images = recalibrate_on.finished().images
        parts_of_bank = images.tensor_split(-(-len(images) // 256))  # of equal size
        batches = (stage.fabric.to_device(part.float()) for part in parts_of_bank)
        with loop.meter.step("recalibrate"):
            update_statistics(learner.model, batches)
        loop.close()
    return student.cpu().eval()


def recalibrates(options: DistillationOptions, *, mixtures: bool) -> bool:
    """Whether the final BatchNorm statistics of the student are those of the bank images.

    Args:
        options: See :class:`DistillationOptions`.
        mixtures: Whether the samples are mixtures with other images.
    """
    return options.batch_norm == "recalibrated" or (options.batch_norm == "auto" and not mixtures)
