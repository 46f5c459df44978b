"""The student: where it starts, and one step of distillation (Hinton et al. 2015)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from oneround import models
from oneround.errors import OneRoundError
from oneround.model_file import load_model
from oneround.models.batch_norm import synchronize_batch_norms
from oneround.models.ensemble import Client, Ensemble, average, prior_corrected
from oneround.models.inference import to_fast_layout
from oneround.runs.loop import Loop, Stateful
from oneround.runs.optimization import learning_rate, make_optimizer, set_learning_rate
from oneround.runs.stage import Stage, derived_seed
from oneround.schema import Strict
from oneround.study import ArchitectureSpec, Task

STARTS = ("auto", "corrected", "scratch", "average")
"""What a student may start from besides a model file: the client models at hand, or nothing."""

NEAR = 0.25
"""Of sites whose logarithms of class counts differ by less (about a quarter more or fewer images),
the training losses are compared."""


class StudentOptions(Strict):
    """Where the student starts and how it learns.

    Attributes:
        optimizer: ``sgd`` with Nesterov momentum, or ``adam`` with betas (0.9, 0.999).
        learning_rate: peak rate.
        momentum: of SGD.
        weight_decay: of both.
        schedule: learning rate over the steps; ``step``: ten times less from half, and again
            from three quarters of them.
        temperature: T.
        student: its architecture; by default that of the client model that ``start`` names.
        start: ``auto``: among the client models of the student's architecture the one with the
            most images in every class (the largest geometric mean of its class counts, taken as
            equal where they are withheld), of several sites with as many images of every class the
            one with the smallest training loss; from scratch if there is none; ``corrected``: the
            same with the class mix of its site taken out; ``scratch``; ``average``: the client
            models averaged; or a model file.
    """

    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = Field(default=0.05, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    schedule: Literal["one-cycle", "constant", "cosine", "step"] = "one-cycle"
    temperature: float = Field(default=4.0, gt=0)
    student: ArchitectureSpec | None = None
    start: str = "auto"


def new_student(
    ensemble: Ensemble, options: StudentOptions, stage: Stage
) -> tuple[nn.Module, ArchitectureSpec]:
    """The student before training, and its architecture.

    Raises:
        OneRoundError: the model file to start from cannot be read, or is of another architecture.
    """
    task = ensemble.task
    clients = prior_corrected(ensemble) if options.start == "corrected" else ensemble
    broadest = broadest_client(clients, options.student)
    architecture = broadest.architecture if broadest else options.student
    assert architecture, "without a student's architecture every client model may be the start"
    if options.start == "average":
        student, architecture = average(ensemble), ensemble.clients[0].architecture
        if options.student not in (None, architecture):
            raise OneRoundError(
                f"the average of {architecture} cannot start a {options.student}.",
                remedy="Leave out distillation.student, or set distillation.start=scratch.",
            )
        student.requires_grad_(True)
    elif options.start not in STARTS:
        student = _from_file(options.start, task, architecture)
    elif options.start != "scratch" and broadest:
        student = copy.deepcopy(broadest.model).requires_grad_(True)
    else:
        seed = derived_seed(stage.seed, "student")
        student = models.build(architecture, task.image, len(task.classes), seed)
    return student, architecture


def broadest_client(
    ensemble: Ensemble, architecture: ArchitectureSpec | None = None
) -> Client | None:
    """Of the client models of an architecture the one that has seen most of every class; ``None``
    if there is none.

    That is the largest mean logarithm of its class counts, or, where a site withholds them, of equal
    shares of its images. Of the sites whose logarithms differ from its own by less than
    :data:`NEAR` in every class, it is the one with the smallest training loss, which says something
    where sites had the same task.
    """
    classes = len(ensemble.task.classes)

    def breadth(client: Client) -> float:
        counts = client.class_counts or (client.images / classes,)
        return sum(math.log1p(count) for count in counts) / len(counts)

    alike = [c for c in ensemble.clients if architecture in (None, c.architecture)]
    broadest = max(alike, key=breadth, default=None)
    if broadest is None:
        return None

    def same_task(client: Client) -> bool:
        counts = zip(client.class_counts or (), broadest.class_counts or (), strict=False)
        apart = [abs(math.log1p(mine) - math.log1p(its)) for mine, its in counts]
        return bool(apart) and max(apart) < NEAR and client.loss is not None

    same = [client for client in alike if same_task(client)]
    return min(same, key=lambda client: client.loss or 0.0, default=broadest)


Teacher = Callable[[torch.Tensor], torch.Tensor]
"""From network input, (B, C, H, W), to log-probabilities, (B, classes); or of S teachers at once,
(S, B, classes). An :class:`~oneround.models.ensemble.Ensemble` is one."""


def kd_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: float,
    weight: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """weight·T²·KL(p ‖ q), the mean over the batch (Hinton et al., 2015).

    Args:
        student: Logits, (B, classes); q is their softmax at temperature T.
        teacher: Log-probabilities at temperature 1, (B, classes), softened to p; or those of S
            teachers, (S, B, classes).
        temperature: T.
        weight: Of every sample, (B,), or of every sample for each teacher, (S, B).

    Returns:
        A number; of S teachers, (S,): one for each.
    """
    log_q = (student / temperature).log_softmax(-1)
    log_p = (teacher / temperature).log_softmax(-1)
    divergence = temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1)
    return (weight * divergence).mean(-1)


class Learner:
    """A student with its optimizer, in training mode; it is taught batch by batch.

    Attributes:
        student: the network; changed in place.
        model: the same, as the device layer calls it.
        parts: what a checkpoint must hold.
    """

    def __init__(self, student: nn.Module, options: StudentOptions, stage: Stage) -> None:
        to_fast_layout(student)
        if stage.fabric.world_size > 1:
            synchronize_batch_norms(student)
        self.options, self.fabric, self.student = options, stage.fabric, student
        self.model: Any
        self.optimizer: Any
        self.model, self.optimizer = stage.fabric.setup(
            student,
            make_optimizer(
                student.parameters(),
                kind=options.optimizer,
                learning_rate=options.learning_rate,
                momentum=options.momentum,
                weight_decay=options.weight_decay,
            ),
        )
        self.parts: dict[str, Stateful] = {"model": student, "optimizer": self.optimizer}
        self.model.train()

    def learn_all(
        self,
        loop: Loop,
        batches: Iterable[torch.Tensor],
        count: int,
        teacher: Teacher,
        change: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> dict[str, float]:
        """A step on each of ``count`` ``batches``, until the loop is over.

        Args:
            loop: its current step contains all of this.
            batches: network input, (B, C, H, W) each, on any device.
            count: how many they are.
            teacher: says what each class of a batch deserves.
            change: a last change of every batch, which is part of the cost.

        Returns:
            What is worth logging of the last step; nothing, if there was none.
        """
        entry: dict[str, float] = {}
        for number, batch in enumerate(batches):
            if loop.over:
                break
            loop.within = number / count
            x = self.fabric.to_device(loop.stage.mine(batch))
            with loop.meter.step("teach", len(x)):
                x = x if change is None else change(x)
                with torch.no_grad():
                    log_p = teacher(x)
            entry = self.learn(loop, x, log_p)
            loop.note = f"loss {entry['loss']:.3f}"
        return entry

    @contextmanager
    def judging(self) -> Iterator[nn.Module]:
        """The student as it is, for images to be made against it: in eval mode, so that its
        BatchNorm statistics stay, and without gradients of its weights."""
        self.model.eval()
        self.student.requires_grad_(False)
        try:
            yield self.model
        finally:
            self.student.requires_grad_(True)
            self.model.train()

    def learn(
        self,
        loop: Loop,
        x: torch.Tensor,
        taught: torch.Tensor,
        weight: torch.Tensor | float = 1.0,
        names: Sequence[str] = (),
    ) -> dict[str, float]:
        """One step on :func:`kd_loss`; then an observer may look.

        Args:
            loop: Gives the learning rate and meters the step.
            x: Network input, (B, C, H, W); of several processes, each gives the part of the
                batch that is its own (:meth:`oneround.runs.stage.Stage.mine`).
            taught: What the teacher, or each of several, says of ``x``; see :func:`kd_loss`.
            weight: Of the samples; see :func:`kd_loss`.
            names: Of the teachers, if there are several; their terms of the loss are logged.

        Returns:
            What is worth logging: the loss, its terms by ``names``, the learning rate, and the
            student's agreement with the first teacher, in [0, 1].

        Raises:
            OneRoundError: the loss is not finite.
        """
        options = self.options
        rate = learning_rate(options.schedule, options.learning_rate, loop.position, loop.steps)
        set_learning_rate(self.optimizer, rate)
        with loop.meter.step("learn", tuple(x.shape)):
            logits = self.model(x)
            terms = kd_loss(logits, taught, options.temperature, weight)
            loss = terms.sum()
            self.optimizer.zero_grad()
            self.fabric.backward(loss)
        if not loss.isfinite():
            raise OneRoundError(
                f"the loss of {loop.stage.name} is not finite at step {loop.done + 1}.",
                remedy="Set a smaller learning_rate of the student, in a new RUN folder.",
            )
        self.optimizer.step()
        loop.observe(self.student)
        first = taught if taught.ndim == 2 else taught[0]
        agreement = (logits.argmax(1) == first.argmax(1)).float().mean().item()
        parts = dict(zip(names, terms.tolist(), strict=True)) if names else {}
        return {"loss": loss.item(), **parts, "learning_rate": rate, "agreement": agreement}


def _from_file(path: str, task: Task, architecture: ArchitectureSpec) -> nn.Module:
    """Weights of a model file in a network of the student's architecture."""
    student = models.build(architecture, task.image, len(task.classes))
    try:
        student.load_state_dict(load_model(path).network.state_dict())
    except RuntimeError as error:
        raise OneRoundError(
            f"the model is not a {architecture} for {len(task.classes)} classes.",
            file=path,
            remedy="Set the student to its architecture, or start from scratch.",
        ) from error
    return student
