"""The student: its start, and one step of knowledge distillation (Hinton et al. 2015)."""

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
from oneround.distillation.loss import kd_loss
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
"""Starts of a student other than a model file."""

NEAR = 0.25
"""Difference of log class counts (about a quarter more or fewer images) below which two sites
count as having equally many images, so that their training losses are compared."""


class StudentOptions(Strict):
    """Options of the student: its architecture, its start and its optimizer.

    Attributes:
        optimizer: Optimizer of the student: ``sgd`` with Nesterov momentum, or ``adam`` with
            betas (0.9, 0.999).
        learning_rate: Peak learning rate of the student.
        momentum: Momentum of SGD, in [0, 1).
        weight_decay: Weight decay of SGD or Adam.
        schedule: Learning rate over the steps; ``step``: a tenth of the peak from half of the
            steps on, a hundredth from three quarters on.
        temperature: Temperature T of the distillation loss.
        student: Architecture of the student; by default that of the client model that it starts
            from.
        start: Initial weights of the student. ``auto``: the client model, of the student's
            architecture, whose site has the most images of every class (the largest geometric
            mean of its class counts, taken as equal if they are withheld); of sites with about
            equally many images of every class, the one with the smallest training loss; from
            scratch if no client model has this architecture. ``corrected``: the same client
            model, corrected for the class mix of its site. ``scratch``: random weights.
            ``average``: the average of the client models. Or the path of a model file.
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

    Args:
        ensemble: The client models.
        options: Architecture and start of the student.
        stage: The stage that seeds a start from scratch.

    Raises:
        OneRoundError: the model file to start from cannot be read or has another architecture,
            or the client models cannot be averaged.
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
    """The client model whose site has the most images of every class.

    That is the largest mean of log(1 + class count); for a site that withholds its class counts,
    equal shares of its images are assumed. Among the sites whose logarithms differ from those of
    this one by less than :data:`NEAR` in every class, it is the client model with the smallest
    training loss, since losses can be compared if the sites had the same task.

    Counts and losses have passed the coordinator's cross-check, and a client model that it doubts
    is not chosen if there is another. If a client is marked as
    :attr:`~oneround.models.ensemble.Client.start`, it is that one.

    Args:
        ensemble: The client models.
        architecture: Architecture to choose from; ``None``: any.

    Returns:
        The client model; ``None`` if none has the architecture.
    """
    classes = len(ensemble.task.classes)

    def breadth(client: Client) -> float:
        counts = client.class_counts or (client.images / classes,)
        return sum(math.log1p(count) for count in counts) / len(counts)

    alike = [c for c in ensemble.clients if architecture in (None, c.architecture)]
    alike = [c for c in alike if c.start] or [c for c in alike if not c.doubted] or alike
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
"""Any callable from network input, (B, C, H, W), to log-probabilities, (B, classes), or to those of
S teachers, (S, B, classes); such as an :class:`~oneround.models.ensemble.Ensemble`."""


class Learner:
    """A student in training mode with its optimizer.

    Args:
        student: The network; changed in place.
        options: See :class:`StudentOptions`.
        stage: Device, precision and processes.

    Attributes:
        student: The network.
        model: The same network, wrapped for its device, precision and processes.
        parts: Objects whose state a checkpoint must hold, by name.
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
        """Take one step on each of ``count`` batches, until the loop is over.

        Args:
            loop: The loop whose current step contains all of these.
            batches: Network input, (B, C, H, W) each, on any device.
            count: Number of batches.
            teacher: From a batch to log-probabilities, (B, classes).
            change: A last change of each batch, which is part of the cost.

        Returns:
            Log entry of the last step, see :meth:`learn`; empty if no step was taken.

        Raises:
            OneRoundError: the loss is not finite.
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
        """The student in eval mode, so that its BatchNorm statistics stay, and without gradients of
        its weights: for a synthesis loss that depends on it."""
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
        """Take one step on :func:`kd_loss`; then an observer may measure the student.

        Args:
            loop: The loop that sets the learning rate and measures the step.
            x: Network input, (B, C, H, W); with several processes, this process's share of the
                batch (:meth:`oneround.runs.stage.Stage.mine`).
            taught: Log-probabilities of the teacher for ``x``, or of several; see
                :func:`kd_loss`.
            weight: Weight of each sample; see :func:`kd_loss`.
            names: Names of the teachers, if there are several; their loss terms are logged.

        Returns:
            Log entry: the loss, its terms by ``names``, the learning rate, and the share of
            samples on which student and first teacher agree, in [0, 1].

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
        require_finite_loss(loss, loop.stage, loop.done + 1)
        self.optimizer.step()
        loop.observe(self.student)
        first = taught if taught.ndim == 2 else taught[0]
        agreement = (logits.argmax(1) == first.argmax(1)).float().mean().item()
        parts = dict(zip(names, terms.tolist(), strict=True)) if names else {}
        return {"loss": loss.item(), **parts, "learning_rate": rate, "agreement": agreement}


def require_finite_loss(loss: torch.Tensor, stage: Stage, step: int) -> None:
    """Refuse a loss that is NaN or infinite: of the student, since teachers have been checked.

    Raises:
        OneRoundError: it is.
    """
    if not loss.isfinite():
        raise OneRoundError(
            f"the loss of {stage.name} is not finite at step {step}.",
            remedy="Set a smaller learning_rate of the student, in a new RUN folder.",
        )


def _from_file(path: str, task: Task, architecture: ArchitectureSpec) -> nn.Module:
    """A network of the student's architecture with the weights of a model file."""
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
