"""A prior-corrected client model whose last layer learns from the others what its site lacks.

Our combination of known parts: prior correction (Saerens et al., *Neural Computation* 2002; Menon
et al., ICLR 2021), model inversion (Yin et al., CVPR 2020), distillation (Hinton et al., 2015) and
a last layer that is trained again on fixed features (Kirichenko et al., ICLR 2023). It rests on
three observations, measured in docs/research-log.md:

1. The class mix of a site is in its model. Subtracting it costs nothing (the bias of the last
   layer) and improves single models and ensemble:
   :func:`oneround.models.ensemble.prior_corrected`.
2. With little compute, a student that learns from synthesized images in all its layers loses more
   than it gains, compared with the client model of the site that has the most images of every
   class, on most data.
3. The features of this client model separate classes that its site lacks, to a degree: the last
   layer alone, trained on few synthesized images, learns as much of them as the whole network, at
   less risk.

So, with experts f_k (the prior-corrected client models) and their class-count-weighted mixture p:

    start:      f_0, the expert of the site with the most images of every class; of sites with
                about equally many of every class, the one with the smallest training loss
    images:     model inversion of the experts in turn, few images and few steps
    last layer: min_W E[ T²·KL(p(x) ‖ softmax(W·h(x))) + Σ_c s_c·(W·h(x) − f_0(x))_c² ]

with h the features of f_0, which were trained on real images and stay as they are, and
s_c = ρ·n_0c/(n_0c + 10) + ε: for a class of which its site has images, the student's answers stay;
for a class that its site lacks, it learns from the others, with caution. If sites withhold their
class counts, their models are used as they are, and the student stays close to its start.

Class counts and losses are what sites state. Before a method begins, the coordinator has bounded
them, and has left out client models that contradict the others.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from pydantic import Field
from torch import nn

from oneround.data.augment import augment
from oneround.distillation.gallery import write_gallery
from oneround.distillation.student import broadest_client, require_finite_loss
from oneround.distillation.synthesis import ImageBank, InversionOptions, synthesize
from oneround.model_file import Model
from oneround.models.ensemble import Client, Ensemble, Rule, prior_corrected
from oneround.models.inference import last_layer
from oneround.runs.cost import Meter
from oneround.runs.loop import Loop, Stateful
from oneround.runs.optimization import learning_rate, make_optimizer, set_learning_rate
from oneround.runs.run import Run
from oneround.runs.stage import Stage
from oneround.schema import Strict
from oneround.study import Augmentation

NEEDS = (
    "Client models with BatchNorm that end with a fully connected layer; better with class counts."
)


LESSONS = 0.9  #: share of the FLOPs of distillation that views may cost; steps cost very little


class LastLayerOptions(Strict):
    """Options of the distillation of the last layer.

    Attributes:
        views: Views of each bank image, with random changes in each; fewer if a limit of FLOPs
            requires it.
        steps: Optimization steps of Adam on the last layer.
        batch_size: Views in each step.
        learning_rate: Learning rate of Adam in the first step; it falls along a cosine.
        temperature: Temperature T of the distillation loss.
        trust: Weight ρ that keeps the student's answers for classes of which its site has images.
        caution: Weight ε that keeps the student's answers for all classes.
        augment: Random changes of each view.
        checkpoint_every: Steps between checkpoints.
    """

    views: int = Field(default=4, ge=1)
    steps: int = Field(default=400, ge=1)
    batch_size: int = Field(default=512, ge=2)
    learning_rate: float = Field(default=0.01, gt=0)
    temperature: float = Field(default=4.0, gt=0)
    trust: float = Field(default=10.0, ge=0)
    caution: float = Field(default=0.05, ge=0)
    augment: tuple[Augmentation, ...] = ("flip", "shift", "rotate", "intensity")
    checkpoint_every: int = Field(default=100, ge=1)


class Options(Strict):
    """Options of headfit.

    Attributes:
        rule: Rule that combines the outputs of the experts; ``auto``: ``class-counts`` if all
            sites share their class counts, else ``probabilities``.
        synthesis_share: Share of the FLOPs that the image bank may cost, if the run has a limit
            of FLOPs.
        inversion: Options of the image bank.
        last_layer: Options of the student.
    """

    rule: Rule = "auto"
    synthesis_share: float = Field(default=0.8, gt=0, lt=1)
    inversion: InversionOptions = InversionOptions(images=320, steps=50)
    last_layer: LastLayerOptions = LastLayerOptions()


PRESETS: dict[str, Strict] = {"quick": Options(), "paper": Options()}


def extend(ensemble: Ensemble, options: Options, earlier: Path, added: Sequence[str]) -> Options:
    """Options of a run that adds late-joining sites to an earlier one.

    Images are synthesized only from the new client models; the last layer, which costs very
    little, is trained again.

    Args:
        ensemble: All client models, including the new ones.
        options: Options of a full run.
        earlier: RUN folder of the earlier global model.
        added: Names of the late-joining sites.
    """
    images = max(1, round(options.inversion.images * len(added) / len(ensemble.clients)))
    inversion = options.inversion.model_copy(update={"images": images})
    return options.model_copy(update={"inversion": inversion})


def headfit(ensemble: Ensemble, run: Run, options: Options) -> Model:
    """headfit; a resumed run continues each stage from its last finished piece."""
    experts = prior_corrected(ensemble.with_rule(options.rule))
    first = broadest_client(experts)
    assert first, "there is a client model"
    synthesis = run.stage("synthesis", folder="bank", share=options.synthesis_share)
    bank = synthesize(experts, options.inversion, synthesis, run.kept)
    write_gallery(run, experts.task.image, bank)
    stage = run.stage("distillation")
    student = teach_last_layer(experts, first, bank, options.last_layer, stage)
    about = tuple(notes(first, experts.task.classes))
    return Model(student, experts.task, (first.architecture,), notes=about)


def notes(first: Client, classes: Sequence[str]) -> Iterator[str]:
    """Notes on the client model that most layers come from, and on the classes its site lacks."""
    yield (
        f"All layers but the last are those of the client model of {first.site}: whoever gets the "
        "global model gets them."
    )
    known = knowledge(first, len(classes)) >= 0.5
    lacks = [name for name, enough in zip(classes, known, strict=True) if not enough]
    if lacks:
        yield (
            f"{first.site} has hardly any image of {', '.join(lacks)}: what the global model knows "
            "of them comes from synthesized images. Check its recall."
        )


def teach_last_layer(
    experts: Ensemble,
    first: Client,
    bank: ImageBank,
    options: LastLayerOptions,
    stage: Stage,
) -> nn.Module:
    """Train the last layer of one expert on the answers of all.

    Args:
        experts: The prior-corrected client models.
        first: The expert that the student starts from.
        bank: The image bank.
        options: See :class:`LastLayerOptions`.
        stage: The stage; it keeps a checkpoint every ``options.checkpoint_every`` steps.

    Returns:
        The student, in eval mode, on the CPU.
    """
    task = experts.task
    student = copy.deepcopy(first.model).eval().requires_grad_(False)
    layer = last_layer(student, task.image, len(task.classes)).requires_grad_(True)
    optimizer = make_optimizer(layer.parameters(), kind="adam", learning_rate=options.learning_rate)
    parts: dict[str, Stateful] = {"layer": layer, "optimizer": optimizer}
    loop = Loop(stage, options.steps, parts, keep_every=options.checkpoint_every)
    with loop.meter.paused() if loop.done else nullcontext():
        meter = Meter() if loop.done else loop.meter  # a run that continues has paid already
        own, taught, features = lessons(experts, first, bank, options, stage, meter)
    soft = (taught / options.temperature).softmax(1)
    stay = options.trust * knowledge(first, len(task.classes)).to(own.device) + options.caution
    for step in loop:
        rate = learning_rate("cosine", options.learning_rate, loop.done, loop.steps)
        set_learning_rate(optimizer, rate)
        size = min(options.batch_size, len(features))
        chosen = torch.randint(len(features), (size,), generator=stage.generator(step))
        chosen = chosen.to(features.device)
        with loop.meter.step("learn", size):
            logits = layer(features[chosen])
            log_q = (logits / options.temperature).log_softmax(1)
            divergence = nn.functional.kl_div(log_q, soft[chosen], reduction="batchmean")
            change = (logits - own[chosen]).square().mean(0)
            loss = options.temperature**2 * divergence + (stay * change).sum()
            require_finite_loss(loss, stage, step)
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        loop.observe(student)
        if step % 50 == 0 or step == options.steps:
            agreement = (logits.argmax(1) == soft[chosen].argmax(1)).float().mean().item()
            entry = {"loss": loss.item(), "learning_rate": rate, "agreement": agreement}
            stage.log({"step": step} | entry)
        loop.note = f"loss {loss.item():.3f}"
    return student.requires_grad_(False).cpu().eval()


def lessons(
    experts: Ensemble,
    first: Client,
    bank: ImageBank,
    options: LastLayerOptions,
    stage: Stage,
    meter: Meter,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Outputs for N views of the bank images: ``options.views`` of each or, with a limit of FLOPs,
    as many as it allows, at least one.

    Returns:
        Logits of ``first``, (N, classes), log-probabilities of the ensemble of experts,
        (N, classes), and features of ``first``, (N, D).
    """
    task = experts.task
    model = copy.deepcopy(first.model).eval()
    layer = last_layer(model, task.image, len(task.classes))
    features: list[torch.Tensor] = []
    own, taught = [], []
    quick = experts.folded()
    most = LESSONS * stage.flops / stage.fabric.world_size
    with layer.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0])):
        for view in range(options.views):
            if view and meter.flops * (view + 1) / view > most:
                break
            with meter.step("view"):
                for part in range(0, len(bank), options.batch_size):
                    images = bank.images[part : part + options.batch_size].float()
                    x = augment(images, options.augment, stage.generator("view", view, part))
                    with torch.no_grad():
                        x = stage.fabric.to_device(x)
                        own.append(model(x))
                        taught.append(quick(x))
    return torch.cat(own), torch.cat(taught), torch.cat(features)


def knowledge(client: Client, classes: int) -> torch.Tensor:
    """n_c / (n_c + 10) for each class c, (classes,) in [0, 1], with n_c its training images at the
    site of ``client``; 1 if the site withholds its class counts."""
    if client.class_counts is None:
        return torch.ones(classes)
    counts = torch.tensor(client.class_counts, dtype=torch.float32)
    return counts / (counts + 10)
