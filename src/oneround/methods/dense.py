"""DENSE: distillation on generated images on which ensemble and student disagree.

Zhang et al., "DENSE: Data-free one-shot federated learning", NeurIPS 2022. In every epoch

1. a new generator is fitted, for one batch of images x with random targets y, to

       α_oh·CE(f̄(x̂), y) + α_BN·L_BN(x̂) − α_adv·mean_i m_i·KL(f̄(x̂_i) ‖ q(x̂_i))

   with x̂ the augmented x, f̄ the ensemble of client models, q the student, m_i = 1 where the two
   decide for different classes, and L_BN the distance to the clients' BatchNorm statistics;
2. the images of the lowest loss join the pool;
3. the student is distilled in one shuffled pass over the augmented pool.

Preset ``paper`` is the command in the README of the authors' code (zj-jayzhang/DENSE): 200 epochs,
30 generator steps with Adam at 1e-3, all three weights 1, batch 256, 256 latent numbers, SGD at
0.005 with momentum 0.9 and without weight decay, temperature 20 for the student and 1 in step 1,
mean of logits. (The defaults of its parser are different: 10 epochs, 20 steps, weights 0, rate
0.01, temperature 1.) ``quick`` is ours, for a CPU: fewer epochs, steps and channels, and our
defaults for the student except its learning rate.

Deviations: L_BN works, while in that code no BatchNorm layer is found and the term is zero; it is
averaged over the clients, so that its weight means the same for any number of them. The student is
in eval mode in step 1 from the first epoch on. Last state of the student instead of the best on
test data. Momentum is Nesterov's. Augmentation is our flip and shift (up to 8 %, reflecting)
instead of flip and crop (4 of 32 pixels, zeros). Images are kept as float16 instead of 8 bits, and
networks see them in the study's normalization. The start of the student and the combination rule
are options. A pass leaves out images that do not fill a batch. The generator adapts to any image
size.
"""

from __future__ import annotations

from functools import partial

import torch
from pydantic import Field
from torch import nn

from oneround.data.augment import augment
from oneround.distillation.epochs import Epochs, PoolOptions
from oneround.distillation.student import StudentOptions
from oneround.distillation.synthesis.bank import Pool
from oneround.distillation.synthesis.generator import (
    GeneratorOptions,
    adversarial_term,
    batch_norm_term,
    fit_images,
)
from oneround.distillation.synthesis.statistics import watch
from oneround.model_file import Model
from oneround.models.ensemble import Ensemble
from oneround.runs.run import Run
from oneround.schema import Strict

NEEDS = "Client models with BatchNorm, unless bn_weight is 0."


class Options(PoolOptions):
    """Options of DENSE.

    Attributes:
        one_hot_weight: Weight α_oh of the cross-entropy to the targets (one-hot term).
        bn_weight: Weight α_BN of the distance to the BatchNorm statistics; set 0 if a client
            model has no BatchNorm.
        adversarial_weight: Weight α_adv of the divergence between ensemble and student.
        augment: Random changes of each image, both in the loss of the generator and for the
            student.
        generator: Options of the generator.
    """

    epochs: int = Field(default=14, ge=1)
    one_hot_weight: float = Field(default=1.0, ge=0)
    adversarial_weight: float = Field(default=1.0, ge=0)
    generator: GeneratorOptions = GeneratorOptions(width=32, steps=10)
    distillation: StudentOptions = StudentOptions(learning_rate=0.005)


PRESETS: dict[str, Strict] = {
    "quick": Options(),
    "paper": Options(
        rule="logits",
        epochs=200,
        synthesis_batch_size=256,
        batch_size=256,
        checkpoint_every=10,
        generator=GeneratorOptions(),
        distillation=StudentOptions(
            learning_rate=0.005,
            weight_decay=0,
            schedule="constant",
            temperature=20,
            start="scratch",
        ),
    ),
}


def dense(ensemble: Ensemble, run: Run, options: Options) -> Model:
    """DENSE; a resumed run continues after its last checkpoint."""
    pool, size, task = Pool(), options.batch_size, ensemble.task
    epochs = Epochs(
        ensemble, run, options.distillation, epochs=options.epochs,
        keep_every=options.checkpoint_every, parts={"pool": pool},
    )  # fmt: skip
    learner, loop, stage = epochs.learner, epochs.loop, epochs.stage
    ensemble = ensemble.with_rule(options.rule)
    teacher, watched = ensemble.folded(), watch(ensemble, needed=options.bn_weight > 0)
    for epoch, generator in epochs:
        y = torch.randint(len(task.classes), (options.synthesis_batch_size,), generator=generator)
        with learner.judging() as rival:
            targets = stage.fabric.to_device(y)
            judge = partial(
                judged, watched, rival, targets=targets, options=options, generator=generator
            )
            images, terms = fit_images(
                loop, task.image, len(y), judge, options.generator, generator
            )
        pool.add(images, y)
        known, count = pool.batches(size, generator), pool.batches_in_pass(size)
        batches = (augment(x, options.augment, generator) for x, _ in known)
        entry = learner.learn_all(loop, batches, count, teacher)
        stage.log({"epoch": epoch, "images": len(pool)} | terms | entry)
    return epochs.result()


def judged(
    watched: Ensemble,
    student: nn.Module,
    x: torch.Tensor,
    targets: torch.Tensor,
    options: Options,
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:
    """Weighted terms of the loss of generated images ``x``, (B, C, H, W), by name."""
    x = augment(x, options.augment, generator)
    log_p, logits = watched(x), student(x)
    boundary = adversarial_term(log_p, logits, 1, boundary=True)
    terms = {
        "one_hot": options.one_hot_weight * nn.functional.nll_loss(log_p, targets),
        "adversarial": options.adversarial_weight * boundary,
    }
    if options.bn_weight:
        terms["batch_norm"] = options.bn_weight * batch_norm_term(watched)
    return terms
