"""Distillation of client models and their noise-adapted copies on pseudo intermediate samples.

Kang et al., *Medical Image Analysis* 105 (2025) 103714; successor of FedISCA (Kang et al.,
MICCAI 2023). The paper's code is not public and this is our reading of its abstract:

1. images are synthesized from the client models, kept in a bank and used again;
2. mixup of bank images with structure noise of many kinds gives pseudo intermediate samples;
3. copies of the client models are adapted to noise through their BatchNorm statistics;
4. the student is distilled from both, the originals weighted by λ (the share of the bank
   image in the sample) and the noise-adapted copies by 1 − λ.

What the abstract does not say is an option: which clients judge an image, the balance of the
synthesis terms, the law of λ, how statistics are adapted, the combination rule, the temperature,
the student's start. Preset ``paper`` takes FedISCA's public settings where there are any (500
inversion steps at learning rate 0.05, α_TV 2.5e-5, α_BN 10, batch 256, T = 20, mean of logits).
``quick`` is ours, for a CPU, chosen on validation images of other seeds than those reported. It
synthesizes from clients in turn, and distills on bank images alone: at its budget every law of
λ that we tried lowered the accuracy (docs/explanation/evidence.md). ``--set
distillation.mix=noise`` switches 2 and 3 on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from oneround.data.structure_noise import NoiseOptions, StructureNoise
from oneround.distillation.adaptation import AdaptationOptions, adapt_to_noise
from oneround.distillation.gallery import write_gallery
from oneround.distillation.student import broadest_client, new_student
from oneround.distillation.synthesis import InversionOptions, synthesize
from oneround.distillation.training import DistillationOptions, Samples, train_student
from oneround.methods import GlobalModel
from oneround.model_file import WEIGHTS, model_config
from oneround.models.ensemble import Ensemble, Rule
from oneround.runs.run import Run
from oneround.schema import Strict
from oneround.study import Study

NEEDS = "Client models with BatchNorm."

LEAST_STEPS = 0.25
"""Of the steps of a full run, what an extension takes at least."""

MOST = 0.5
"""Of the images of a class: what late sites must have more of, if an extension is to start from
one of their client models."""


class Options(Strict):
    """Everything that can be chosen, part by part.

    Attributes:
        rule: how the outputs of the client models become one; ``auto``: ``class-counts`` if
            all sites share theirs, else ``probabilities``.
        synthesis_share: where the run has a limit of FLOPs, the share that the bank may cost.
        inversion: the image bank.
        noise: structure noise.
        adaptation: the noise-adapted copies.
        distillation: the student.
    """

    rule: Rule = "auto"
    synthesis_share: float = Field(default=0.5, gt=0, lt=1)
    inversion: InversionOptions = InversionOptions()
    noise: NoiseOptions = NoiseOptions()
    adaptation: AdaptationOptions = AdaptationOptions()
    distillation: DistillationOptions = DistillationOptions()


PRESETS: dict[str, Strict] = {
    "quick": Options(distillation=DistillationOptions(mix="none")),
    "paper": Options(
        rule="logits",
        inversion=InversionOptions(
            images=2560,
            batch_size=256,
            clients="together",
            steps=500,
            tv_weight=2.5e-5,
            bn_weight=10,
        ),
        noise=NoiseOptions(contrast=1),
        distillation=DistillationOptions(
            steps=50_000,
            batch_size=256,
            learning_rate=0.1,
            temperature=20,
            batches=0,
            start="scratch",
        ),
    ),
}


def extend(
    ensemble: Ensemble, study: Study, options: Options, earlier: Path, added: Sequence[str]
) -> Options:
    """Options for a run that goes on from an earlier one when sites come late.

    Images of the new client models alone, as many for each as every other has, and a share of the
    steps. From the earlier global model; but where the late sites have more than half of the
    images of some class, which that model can hardly know, and a full run would start from one of
    them, from there.

    Args:
        ensemble: all client models, the new ones too.
        study: the agreement.
        options: of a full run.
        earlier: RUN folder of the earlier global model.
        added: sites that are new.
    """
    late = [client.site in added for client in ensemble.clients]
    share = sum(late) / len(late)
    inversion, distillation = options.inversion, options.distillation
    change: dict[str, Any] = {"steps": max(1, round(distillation.steps * max(share, LEAST_STEPS)))}
    brings_a_class = ensemble.weights[late].sum(0).max() > MOST
    first = broadest_client(ensemble, study, distillation.student)
    from_a_client = distillation.start in ("auto", "corrected")
    late_is_first = from_a_client and first is not None and first.site in added
    if not (brings_a_class and late_is_first):
        [architecture] = model_config(earlier).architectures
        change |= {"start": str(earlier / WEIGHTS), "student": architecture}
    return options.model_copy(
        update={
            "inversion": inversion.model_copy(
                update={"images": max(1, round(inversion.images * share))}
            ),
            "distillation": distillation.model_copy(update=change),
        }
    )


def kang2025(ensemble: Ensemble, study: Study, run: Run, options: Options) -> GlobalModel:
    """The method; every stage resumes where it was."""
    ensemble = ensemble.with_rule(options.rule)
    noise = StructureNoise(study.image, options.noise)
    synthesis = run.stage("synthesis", folder="bank", share=options.synthesis_share)
    bank = synthesize(ensemble, study, options.inversion, synthesis, run.kept)
    adapted = adapt_to_noise(ensemble, noise, options.adaptation, run.stage("adaptation"))
    distillation = run.stage("distillation")
    samples = Samples(bank, noise, options.distillation, distillation)
    if run.leads:
        write_gallery(run.path, study.image, bank, noise, samples)
    student, architecture = new_student(ensemble, study, options.distillation, distillation)
    train_student(ensemble, adapted, samples, student, options.distillation, distillation)
    return GlobalModel(student, (architecture,))
