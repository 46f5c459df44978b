"""Options and loop of the methods that alternate synthesis and distillation, epoch by epoch: ADI,
DAFL, DENSE, Co-Boosting and FedISCA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from pydantic import Field

from oneround.distillation.student import Learner, StudentOptions, new_student
from oneround.model_file import Model
from oneround.models.ensemble import Ensemble, Rule
from oneround.runs.loop import Loop, Stateful
from oneround.runs.run import Run
from oneround.schema import Strict
from oneround.study import Augmentation


class EpochOptions(Strict):
    """Options that all of these methods have.

    Attributes:
        rule: Rule that combines the outputs of the client models; ``auto``: ``class-counts`` if
            all sites share their class counts, else ``probabilities``.
        epochs: Epochs, each with synthesis and distillation.
        batch_size: Images in each step of the student.
        checkpoint_every: Epochs between checkpoints.
        distillation: Options of the student.
    """

    rule: Rule = "auto"
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=64, ge=2)
    checkpoint_every: int = Field(default=1, ge=1)
    distillation: StudentOptions = StudentOptions()


class PoolOptions(EpochOptions):
    """Options of the methods that keep their images in a pool.

    Attributes:
        synthesis_batch_size: Images that each epoch adds to the pool.
        bn_weight: Weight of the distance to the BatchNorm statistics; set 0 if a client model has
            no BatchNorm.
        augment: Random changes of each image from the pool.
    """

    synthesis_batch_size: int = Field(default=64, ge=2)
    bn_weight: float = Field(default=1.0, ge=0)
    augment: tuple[Augmentation, ...] = ("flip", "shift")


class Epochs:
    """The distillation stage of such a method: a student, its learner, and the loop over epochs.

    Iterating yields the number of each remaining epoch, from 1, and the generator of its random
    numbers; an interrupted run continues after its last checkpoint.

    Args:
        ensemble: The client models.
        run: The run; its stage is called ``distillation``.
        distillation: Options of the student.
        epochs: Number of epochs.
        keep_every: Epochs between checkpoints.
        parts: Objects whose state a checkpoint holds beside the student's, by name.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        run: Run,
        distillation: StudentOptions,
        *,
        epochs: int,
        keep_every: int = 1,
        parts: Mapping[str, Stateful] | None = None,
    ) -> None:
        self.stage = run.stage("distillation")
        self.task = ensemble.task
        self._student, self._architecture = new_student(ensemble, distillation, self.stage)
        self.learner = Learner(self._student, distillation, self.stage)
        kept = self.learner.parts | dict(parts or {})
        self.loop = Loop(self.stage, epochs, kept, keep_every=keep_every)

    def __iter__(self) -> Iterator[tuple[int, torch.Generator]]:
        for epoch in self.loop:
            yield epoch, self.stage.generator(epoch)

    def result(self) -> Model:
        """The student in its last state, as the global model."""
        return Model(self._student.cpu().eval(), self.task, (self._architecture,))
