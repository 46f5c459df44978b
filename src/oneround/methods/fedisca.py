"""FedISCA: distillation on every step of an inversion, from noise to image.

Kang et al., "One-shot federated learning on medical data using knowledge distillation with image
synthesis and client model adaptation", MICCAI 2023. In every epoch one batch x̂_0, …, x̂_M is
inverted from noise (:mod:`oneround.distillation.synthesis.inversion`, all clients together), and
at each of its M steps the student takes a step on

    λ·T²·KL(p_orig(x̂_m) ‖ q_θ(x̂_m)) + (1−λ)·T²·KL(p_noise(x̂_m) ‖ q_θ(x̂_m)),  λ = m/M,

with p_orig the ensemble of the client models and p_noise that of the noise-adapted ones.

Settings of the authors' public code at 28×28: 100 epochs of 500 steps at batch 256, Adam at rate
0.05 on the pixels, α_TV 2.5e-5, α_BN 10 summed over clients and layers; SGD at rate 1e-3, ten
times less from half and from three quarters of the epochs, momentum 0.9, weight decay 5e-4,
T = 20; mean of logits; student from scratch. At 224×224: 1000 steps at batch 50.

Its noise-adapted models are left in training mode, so that they normalize every batch by its own
statistics; the running statistics that its backward pass over the trajectory collects are never
used. That pass is left out here. Deviations: the last state is the result (the code
keeps the epoch that is best on test images); pixels stay in their range; Nesterov momentum; betas
of Adam (0.5, 0.9) as in DeepInversion's ImageNet code (its default: 0.9, 0.999).
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator

from oneround.distillation.adaptation import with_batch_statistics
from oneround.distillation.epochs import Epochs
from oneround.distillation.student import StudentOptions
from oneround.distillation.synthesis import InversionOptions
from oneround.distillation.synthesis.inversion import Batch, trajectory
from oneround.distillation.synthesis.statistics import watch
from oneround.model_file import Model
from oneround.models.ensemble import Ensemble, Rule
from oneround.runs.run import Run
from oneround.schema import Strict

NEEDS = "Client models with BatchNorm."


class Options(Strict):
    """Options of FedISCA.

    Attributes:
        rule: Rule that combines the outputs of the client models; ``auto``: ``class-counts`` if
            all sites share their class counts, else ``probabilities``.
        epochs: Epochs, each with one trajectory of one batch from noise to image.
        inversion: Options of the inversion by all clients together; ``inversion.images`` is the
            size of the batch.
        distillation: Options of the student.
    """

    rule: Rule = "logits"
    epochs: int = Field(default=100, ge=1)
    inversion: InversionOptions = InversionOptions(
        images=256,
        batch_size=256,
        clients="together",
        steps=500,
        tv_weight=2.5e-5,
        bn_weight=10,
    )
    distillation: StudentOptions = StudentOptions(
        learning_rate=1e-3, schedule="step", temperature=20, start="scratch"
    )

    @model_validator(mode="after")
    def _all_clients_together(self) -> Options:
        if self.inversion.clients != "together":
            raise ValueError("fedisca inverts all clients together: inversion.clients=together")
        return self


PRESETS: dict[str, Strict] = {
    "quick": Options(
        rule="auto",
        epochs=8,
        inversion=InversionOptions(
            images=64, batch_size=64, clients="together", steps=150, tv_weight=0.3, bn_weight=1
        ),
        distillation=StudentOptions(),
    ),
    "paper": Options(),
}


def fedisca(ensemble: Ensemble, run: Run, options: Options) -> Model:
    """FedISCA; a resumed run begins the interrupted epoch again."""
    ensemble = ensemble.with_rule(options.rule)
    teacher, adapted, watched = ensemble.folded(), with_batch_statistics(ensemble), watch(ensemble)
    batch = Batch(torch.arange(options.inversion.images) % len(ensemble.task.classes))
    epochs = Epochs(ensemble, run, options.distillation, epochs=options.epochs)
    learner, loop, stage = epochs.learner, epochs.loop, epochs.stage
    for epoch, generator in epochs:
        way = trajectory(watched, options.inversion, batch, generator, stage, loop.meter)
        for step, (x, terms) in enumerate(way):  # noqa: B007
            loop.within = step / options.inversion.steps
            x = stage.mine(x)
            share = torch.full((len(x),), loop.within, device=x.device)  # λ of the originals
            with loop.meter.step("teach"), torch.no_grad():
                taught = torch.stack([teacher(x), adapted(x)])
            weight = torch.stack([share, 1 - share])
            entry = learner.learn(loop, x, taught, weight, ("original", "noise_adapted"))
            if loop.over:
                break
        inverted = {name: term.item() for name, term in terms.items()}
        stage.log({"epoch": epoch} | entry | inverted)
        loop.note = f"loss {entry['loss']:.3f}"
    return epochs.result()
