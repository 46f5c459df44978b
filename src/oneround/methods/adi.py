"""Adaptive DeepInversion: image synthesis where the client models and the student disagree.

Yin et al., "Dreaming to distill: data-free knowledge transfer via DeepInversion", CVPR 2020. f̄
is the ensemble of client models, q the student. In every epoch

1. one batch of images x̂ is optimized from noise, with fixed, balanced targets y, on

       CE(f̄(x̂), y) + α_TV·TV(x̂) + α_f·L_BN(x̂) + α_c·(1 − JS(f̄(x̂), q(x̂)))

   with L_BN the distance to BatchNorm statistics (see ``synthesis/inversion.py``) and JS the
   Jensen–Shannon divergence at temperature 3; the last term is left out in the first epoch, when
   the student has learned nothing;
2. the images join the pool;
3. the student is distilled for k steps on shuffled, augmented batches of the pool.

Preset ``paper``: batch 256, 2000 steps of Adam at 0.05, α_f = 10, α_TV = 2.5e-5 from the README of
``cifar10/`` in the authors' code (NVlabs/DeepInversion); temperature 3, k = 50 and 1000 batches in
all from its issues 6 and 9. α_c = 0.2 is in its main README for ImageNet; the CIFAR script has
0 as default, which is plain DeepInversion. The training of the student is in no public code: SGD as
in our other methods, at 0.1. ``quick`` is ours, for a CPU: fewer and shorter epochs, with a higher
learning rate on the pixels.

JS is computed as in that code: ½KL(m ‖ p) + ½KL(m ‖ q) with m = (p + q)/2, all three clipped to
[0.01, 0.99], and the sum to [0, 1].

Deviations: an ensemble of client models instead of one teacher, combined by ``rule``, with L_BN
averaged over the clients. Adam's betas are (0.5, 0.9) instead of (0.9, 0.999). Images stay in the
range of pixels. The last images of a trajectory are used, as in effect in that code. No weight on
the norm of the images (0 there). The start of the student is an option.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from oneround.data.augment import augment
from oneround.distillation.epochs import Epochs, PoolOptions
from oneround.distillation.student import StudentOptions
from oneround.distillation.synthesis.bank import Pool
from oneround.distillation.synthesis.inversion import (
    Batch,
    Competitor,
    InversionOptions,
    trajectory,
)
from oneround.distillation.synthesis.statistics import watch
from oneround.model_file import Model
from oneround.models.ensemble import Ensemble
from oneround.runs.run import Run
from oneround.schema import Strict

NEEDS = "Client models with BatchNorm."


class Options(PoolOptions):
    """Options of Adaptive DeepInversion.

    Attributes:
        synthesis_steps: Optimization steps for the images of each epoch.
        synthesis_learning_rate: Learning rate of Adam on the pixels.
        tv_weight: Weight α_TV of the total variation.
        bn_weight: Weight α_f of the distance to the BatchNorm statistics; set 0 if a client model
            has no BatchNorm.
        competition_weight: Weight α_c of the term for images on which ensemble and student
            disagree.
        jitter: Largest random shift before each step, as a fraction of the image side.
        steps: Steps of the student in each epoch, k in the equations.
    """

    epochs: int = Field(default=4, ge=1)
    synthesis_steps: int = Field(default=40, ge=1)
    synthesis_learning_rate: float = Field(default=0.1, gt=0)
    tv_weight: float = Field(default=2.5e-5, ge=0)
    bn_weight: float = Field(default=10.0, ge=0)
    competition_weight: float = Field(default=0.2, ge=0)
    jitter: float = Field(default=0.0625, ge=0, lt=0.5)
    steps: int = Field(default=25, ge=1)
    distillation: StudentOptions = StudentOptions(learning_rate=0.01, temperature=3)


PRESETS: dict[str, Strict] = {
    "quick": Options(),
    "paper": Options(
        rule="logits",
        epochs=1000,
        synthesis_batch_size=256,
        synthesis_steps=2000,
        synthesis_learning_rate=0.05,
        steps=50,
        batch_size=256,
        checkpoint_every=10,
        distillation=StudentOptions(learning_rate=0.1, temperature=3, start="scratch"),
    ),
}


def adi(ensemble: Ensemble, run: Run, options: Options) -> Model:
    """Adaptive DeepInversion; a resumed run continues after its last checkpoint."""
    pool = Pool()
    epochs = Epochs(
        ensemble, run, options.distillation, epochs=options.epochs,
        keep_every=options.checkpoint_every, parts={"pool": pool},
    )  # fmt: skip
    learner, loop, stage = epochs.learner, epochs.loop, epochs.stage
    ensemble = ensemble.with_rule(options.rule)
    watched, way = watch(ensemble, needed=options.bn_weight > 0), inversion(options, ensemble)
    batch = Batch(torch.arange(options.synthesis_batch_size) % len(ensemble.task.classes))
    for epoch, generator in epochs:
        with learner.judging() as rival:
            against = competitor(rival, options) if epoch > 1 else None
            for step in trajectory(watched, way, batch, generator, stage, loop.meter, against):
                images, terms = step
                if loop.over:
                    break
        pool.add(images, batch.targets)
        known = pool.batches(options.batch_size, generator, options.steps)
        batches = (augment(x, options.augment, generator) for x, _ in known)
        entry = learner.learn_all(loop, batches, options.steps, watched.unwatched)
        logged = {name: term.item() for name, term in terms.items()}
        stage.log({"epoch": epoch, "images": len(pool)} | logged | entry)
    return epochs.result()


def inversion(options: Options, ensemble: Ensemble) -> InversionOptions:
    """Options of the inversion of one batch; L_BN is summed over layers, averaged over clients."""
    return InversionOptions(
        clients="together",
        steps=options.synthesis_steps,
        learning_rate=options.synthesis_learning_rate,
        tv_weight=options.tv_weight,
        bn_weight=options.bn_weight / len(ensemble.clients),
        jitter=options.jitter,
    )


def competitor(student: nn.Module, options: Options) -> Competitor:
    """The term α_c·(1 − JS), from images and the ensemble's log-probabilities for them."""
    return lambda x, log_p: options.competition_weight * (1 - divergence(log_p, student(x)))


def divergence(log_p: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """JS divergence, a scalar in [0, 1], of the ensemble's log-probabilities and the student's
    logits, (B, classes) each; see the top of this module."""
    p, q = ((outputs / 3).softmax(-1) for outputs in (log_p, student))
    m = ((p + q) / 2).clamp(0.01, 0.99)
    p, q = p.clamp(0.01, 0.99), q.clamp(0.01, 0.99)
    parts = [(m * (m.log() - other.log())).sum(-1).mean() for other in (p, q)]
    return ((parts[0] + parts[1]) / 2).clamp(0, 1)
