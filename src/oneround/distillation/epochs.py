"""What methods share that synthesize and distill in turn, epoch by epoch: ADI, DAFL, DENSE,
Co-Boosting and FedISCA."""

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
    """What every one of these methods can choose.

    Attributes:
        rule: How the outputs of the client models become one; ``auto``: ``class-counts`` if
            all sites share theirs, else ``probabilities``.
        epochs: Rounds of synthesis and distillation.
        batch_size: Images in each step of the student.
        checkpoint_every: Epochs between checkpoints.
        distillation: The student.
    """

    rule: Rule = "auto"
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=64, ge=2)
    checkpoint_every: int = Field(default=1, ge=1)
    distillation: StudentOptions = StudentOptions()


class PoolOptions(EpochOptions):
    """What those of them can choose that keep their images in a pool.

    Attributes:
        synthesis_batch_size: Images that each epoch adds.
        bn_weight: Weight of the distance to BatchNorm statistics; 0 where a client model has no
            BatchNorm.
        augment: Random changes of every image from the pool.
    """

    synthesis_batch_size: int = Field(default=64, ge=2)
    bn_weight: float = Field(default=1.0, ge=0)
    augment: tuple[Augmentation, ...] = ("flip", "shift")


class Epochs:
    """The stage of such a method: a student, its learner, and the loop over epochs.

    Iterating gives the number of every epoch that is still to be done, and the generator of its
    random numbers; a run that was interrupted continues after the last epoch that was kept.

    Args:
        ensemble: The client models.
        run: The run; its stage is called ``distillation``.
        distillation: Options of the student.
        epochs: How many there are.
        keep_every: Epochs between checkpoints.
        parts: What a checkpoint holds beside the student.
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
        """The last state of the student."""
        return Model(self._student.cpu().eval(), self.task, (self._architecture,))
