"""FedDF: distillation of the ensemble on unlabeled public images.

The control with public data, for methods that have none. Lin et al., "Ensemble distillation
for robust model fusion in federated learning", NeurIPS 2020, one round of algorithm 3. From the
average of the client models, θ_0 = Σ_k n_k/n · θ_k,

    θ_{j+1} = Adam(θ_j, ∇ KL(softmax(1/K Σ_k z_k(d)) ‖ softmax(z_θ(d)))),  d a public mini-batch.

Settings of the authors' public code: Adam at rate 1e-3 with cosine annealing over 10 000 steps,
T = 1, mean of logits; the batch size is 64 in its published command. Deviations: the average is
weighted by images (theirs: unweighted) and includes BatchNorm statistics (theirs: those of the
last client); no early stopping and no best step, since both need labeled validation images at the
coordinator, so the result is the last step; random flips and shifts of the public images.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from oneround.data.augment import augment
from oneround.data.reading import read_unlabeled
from oneround.distillation.student import Learner, StudentOptions, new_student
from oneround.errors import OneRoundError
from oneround.model_file import Model
from oneround.models.ensemble import Ensemble, Rule
from oneround.runs.loop import Loop
from oneround.runs.run import Run
from oneround.schema import Strict
from oneround.study import Augmentation

NEEDS = "Unlabeled public images; one architecture for all sites, to start from the average."


class Options(Strict):
    """Options of FedDF.

    Attributes:
        public: Path of the public images: a folder, a MedMNIST file or a CSV list. Labels, if
            there are any, are not used.
        split: Split of the public images, if they are in a file.
        rule: Rule that combines the outputs of the client models; ``auto``: ``class-counts`` if
            all sites share their class counts, else ``probabilities``.
        steps: Optimization steps of the student.
        batch_size: Public images in each step.
        augment: Random changes of each public image.
        distillation: Options of the student.
    """

    public: str = ""
    split: Literal["train", "val"] = "train"
    rule: Rule = "logits"
    steps: int = Field(default=10_000, ge=1)
    batch_size: int = Field(default=64, ge=2)
    augment: tuple[Augmentation, ...] = ("flip", "shift")
    distillation: StudentOptions = StudentOptions(
        optimizer="adam",
        learning_rate=1e-3,
        weight_decay=0,
        schedule="cosine",
        temperature=1,
        start="average",
    )


PRESETS: dict[str, Strict] = {
    "quick": Options(rule="auto", steps=1500, distillation=StudentOptions()),
    "paper": Options(),
}


def feddf(ensemble: Ensemble, run: Run, options: Options) -> Model:
    """FedDF, one round.

    Raises:
        OneRoundError: no public images are given, or they cannot be read.
    """
    if not options.public:
        raise OneRoundError(
            "feddf distills on public images, and none are given.",
            remedy="Add --set public=PATH, or use a method that needs no images.",
        )
    ensemble = ensemble.with_rule(options.rule)
    teacher = ensemble.folded()
    image = ensemble.task.image
    images = image.normalize(read_unlabeled(options.public, image, options.split))
    stage = run.stage("distillation")
    student, architecture = new_student(ensemble, options.distillation, stage)
    learner = Learner(student, options.distillation, stage)
    loop = Loop(stage, options.steps, learner.parts, keep_every=100)
    for step in loop:
        generator = stage.generator(step)
        chosen = torch.randint(len(images), (options.batch_size,), generator=generator)
        x = augment(images[chosen], options.augment, generator)
        x = stage.fabric.to_device(stage.mine(x))
        with loop.meter.step("teach"), torch.no_grad():
            log_p = teacher(x)
        entry = learner.learn(loop, x, log_p)
        if step % 50 == 0:
            stage.log({"step": step} | entry)
        loop.note = f"loss {entry['loss']:.3f}"
    return Model(student.cpu().eval(), ensemble.task, (architecture,))
