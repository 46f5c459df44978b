"""Distillation of client models and their noise-adapted copies on pseudo intermediate samples.

Kang et al., *Medical Image Analysis* 105 (2025) 103714; successor of FedISCA (Kang et al.,
MICCAI 2023). The paper's code is not public; this is our reading of its abstract:

1. images are synthesized from the client models, kept in a bank and used again;
2. mixup of bank images with structure noise of many kinds gives pseudo intermediate samples;
3. copies of the client models are adapted to noise through their BatchNorm statistics;
4. the student is distilled from both, the originals weighted by λ (the share of the bank
   image in the sample) and the noise-adapted copies by 1 − λ.

What the abstract does not say is an option: which clients judge an image, the weights of the
synthesis terms, the distribution of λ, the adaptation of statistics, the combination rule, the
temperature, the student's start. Preset ``paper`` takes FedISCA's public settings where there are
any (500 inversion steps at learning rate 0.05, α_TV 2.5e-5, α_BN 10, batch 256, T = 20, mean of
logits). ``quick`` is ours, for a CPU, chosen on validation images of other seeds than those
reported. It synthesizes from clients in turn, and distills on bank images alone: at its budget
every distribution of λ that we tried lowered the accuracy (docs/explanation/evidence.md).
``--set distillation.mix=noise`` turns on 2 and 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from oneround.data.augment import augment
from oneround.data.structure_noise import NoiseOptions, StructureNoise
from oneround.distillation.adaptation import AdaptationOptions, adapt_to_noise
from oneround.distillation.gallery import PER_KIND, NoisePictures, write_gallery
from oneround.distillation.student import broadest_client, new_student
from oneround.distillation.synthesis import ImageBank, InversionOptions, synthesize
from oneround.distillation.training import (
    DistillationOptions,
    bank_samples,
    recalibrates,
    train_student,
)
from oneround.model_file import WEIGHTS, Model, model_config
from oneround.models.ensemble import Client, Ensemble, Rule
from oneround.runs.run import Run
from oneround.runs.stage import Stage
from oneround.schema import Strict

NEEDS = "Client models with BatchNorm."

LEAST_STEPS = 0.25
"""Smallest share of the steps of a full run that an extension takes."""

MOST = 0.5
"""Share of the images of a class above which an extension may start from a client model of a
late-joining site."""

TEACHERS = ("original", "noise_adapted")


class NoiseDistillationOptions(DistillationOptions):
    """Options of a student that is trained on pseudo intermediate samples.

    Attributes:
        mix: Images that bank images are mixed with. ``noise``: structure noise, which gives
            pseudo intermediate samples; ``bank``: other bank images (mixup, Zhang et al. 2018);
            ``none``: no mixing.
        beta: Parameters a and b of λ ~ Beta(a, b), the share of the bank image in a mixture.
        weight_per: One λ for each ``image``, or one for each ``batch``, so that the student's
            BatchNorm sees one degree of noise at a time, as on FedISCA's trajectory.
        teachers: Teachers of the student: the client models (``original``), their
            ``noise-adapted`` copies, or ``both``, weighted by λ and 1 − λ.
        noise_pool: Images of structure noise, generated once and used again with random cyclic
            shifts.
    """

    mix: Literal["noise", "bank", "none"] = "noise"
    beta: tuple[float, float] = (1.0, 1.0)
    weight_per: Literal["image", "batch"] = "image"
    teachers: Literal["both", "original", "noise-adapted"] = "both"
    noise_pool: int = Field(default=2048, ge=1)


class Options(Strict):
    """Options of kang2025.

    Attributes:
        rule: Rule that combines the outputs of the client models; ``auto``: ``class-counts`` if
            all sites share their class counts, else ``probabilities``.
        synthesis_share: Share of the FLOPs that the image bank may cost, if the run has a limit
            of FLOPs.
        inversion: Options of the image bank.
        noise: Options of structure noise.
        adaptation: Options of the noise-adapted client models.
        distillation: Options of the student.
    """

    rule: Rule = "auto"
    synthesis_share: float = Field(default=0.5, gt=0, lt=1)
    inversion: InversionOptions = InversionOptions()
    noise: NoiseOptions = NoiseOptions()
    adaptation: AdaptationOptions = AdaptationOptions()
    distillation: NoiseDistillationOptions = NoiseDistillationOptions()


PRESETS: dict[str, Strict] = {
    "quick": Options(distillation=NoiseDistillationOptions(mix="none")),
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
        distillation=NoiseDistillationOptions(
            steps=50_000,
            batch_size=256,
            learning_rate=0.1,
            temperature=20,
            batches=0,
            start="scratch",
        ),
    ),
}


def extend(ensemble: Ensemble, options: Options, earlier: Path, added: Sequence[str]) -> Options:
    """Options of a run that adds late-joining sites to an earlier one.

    Images are synthesized only from the new client models, as many for each as for any other, and
    the student takes a share of the steps. It starts from the earlier global model. Exception: if
    the late-joining sites have more than half of the images of some class, which that model can
    hardly know, and a full run would start from one of their client models, so does this one.

    Args:
        ensemble: All client models, including the new ones.
        options: Options of a full run.
        earlier: RUN folder of the earlier global model.
        added: Names of the late-joining sites.
    """
    late = [client.site in added for client in ensemble.clients]
    share = sum(late) / len(late)
    inversion, distillation = options.inversion, options.distillation
    change: dict[str, Any] = {"steps": max(1, round(distillation.steps * max(share, LEAST_STEPS)))}
    brings_a_class = ensemble.weights[late].sum(0).max() > MOST
    first = broadest_client(ensemble, distillation.student)
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


def kang2025(ensemble: Ensemble, run: Run, options: Options) -> Model:
    """kang2025; a resumed run continues each stage from its last finished piece."""
    ensemble, task = ensemble.with_rule(options.rule), ensemble.task
    noise = StructureNoise(task.image, options.noise)
    synthesis = run.stage("synthesis", folder="bank", share=options.synthesis_share)
    bank = synthesize(ensemble, options.inversion, synthesis, run.kept)
    adapted = adapt_to_noise(ensemble, noise, options.adaptation, run.stage("adaptation"))
    stage, how = run.stage("distillation"), options.distillation
    samples = Mixtures(bank, noise, how, stage)
    write_gallery(run, task.image, bank, pictures(bank, noise, how, samples))
    student, architecture = new_student(ensemble, how, stage)
    teacher = Teachers(ensemble, adapted, how)
    end = bank if recalibrates(how, mixtures=how.mix != "none") else None
    train_student(teacher, samples, student, how, stage, names=teacher.names, recalibrate_on=end)
    return Model(student, task, (architecture,))


class Teachers:
    """The client models and their noise-adapted copies as teachers: both, or the one with a weight.

    Attributes:
        clients: The client models.
        names: Names of the teachers in the log, if there are two.
    """

    clients: tuple[Client, ...]
    names: tuple[str, ...]

    def __init__(
        self, original: Ensemble, adapted: Ensemble, options: NoiseDistillationOptions
    ) -> None:
        if options.teachers == "noise-adapted":
            asked = [adapted]
        elif options.teachers == "original" or options.mix != "noise":
            asked = [original]
        else:
            asked = [original, adapted]
        self.clients, self.draw = original.clients, original.draw
        self.names = TEACHERS if len(asked) > 1 else ()
        self._asked = [ensemble.folded() for ensemble in asked]

    def __call__(self, x: torch.Tensor, asked: Sequence[int] | None = None) -> torch.Tensor:
        """Log-probabilities of the one teacher, (B, classes), or of both, (2, B, classes), for
        network input (B, C, H, W)."""
        answers = [ensemble(x, asked) for ensemble in self._asked]
        return torch.stack(answers) if len(answers) > 1 else answers[0]


class Mixtures:
    """Pseudo intermediate samples x̃ = λ·x_s + (1 − λ)·x_n of bank images x_s and structure noise
    x_n, or the mixtures that ``options.mix`` names, with the weights of the teachers."""

    def __init__(
        self,
        bank: ImageBank,
        noise: StructureNoise,
        options: NoiseDistillationOptions,
        stage: Stage,
    ) -> None:
        self.bank, self.options = bank, options
        self.noise = torch.empty(0)
        if options.mix == "noise":
            self.noise = noise.sample(options.noise_pool, stage.generator("noise")).half()

    def __call__(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Samples x̃, (count, C, H, W), and the weights of the teachers: λ and 1 − λ, (2, count), if
        there are two, else 1, (count,)."""
        x, share = self.draw(count, generator)
        if self.options.mix == "noise" and self.options.teachers == "both":
            return x, torch.stack([share, 1 - share])
        return x, torch.ones(count)

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Samples x̃, (count, C, H, W), and the share λ of the bank image in each, (count,) in
        [0, 1]."""
        options = self.options
        if options.mix == "none":
            return bank_samples(self.bank, options.augment)(count, generator)
        images = self.bank.sample(count, generator)
        draws = 1 if options.weight_per == "batch" else count
        share = beta(draws, *options.beta, generator).expand(count)
        if options.mix == "noise":
            other = self._noise(count, generator)
        else:
            other = self.bank.sample(count, generator)
        part = share.view(-1, 1, 1, 1)
        return part * augment(images, options.augment, generator) + (1 - part) * other, share

    def _noise(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Images of structure noise from the pool, all with the same random cyclic shift."""
        noise = self.noise[torch.randint(len(self.noise), (count,), generator=generator)].float()
        shifts = [int(torch.randint(side, (), generator=generator)) for side in noise.shape[-2:]]
        return noise.roll(shifts, (-2, -1))


def beta(count: int, a: float, b: float, generator: torch.Generator) -> torch.Tensor:
    """Samples of Beta(a, b), (count,) in [0, 1]; torch's own sampler takes no generator."""
    if a == b == 1:
        return torch.rand(count, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return torch.distributions.Beta(a, b).sample((count,))


def pictures(
    bank: ImageBank,
    noise: StructureNoise,
    options: NoiseDistillationOptions,
    samples: Mixtures,
) -> NoisePictures:
    """Examples of structure noise and mixtures for the report, also if the run uses none."""
    generator = torch.Generator().manual_seed(0)
    names = noise.options.families
    families = torch.arange(len(names)).repeat_interleave(PER_KIND)
    if options.mix != "noise":
        shown = options.model_copy(update={"mix": "noise", "noise_pool": 64})
        samples = Mixtures(bank, noise, shown, Stage("gallery"))
    mixed, weight = samples.draw(2 * PER_KIND, generator)
    images = noise.sample_of(families, generator)
    return NoisePictures(images, families, tuple(names), mixed, weight, options.mix)
