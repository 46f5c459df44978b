"""Co-Boosting: distillation on hard generated images, with learned votes of the client models.

Dai et al., "Enhancing one-shot federated learning through data and ensemble co-boosting",
ICLR 2024. f̄_v is the ensemble of client models with votes v (K,), q the student. In every epoch

1. a new generator is fitted, for one batch of images x with random targets y, to

       α_oh·mean_i (1 − p_i)^h·CE(f̄_v(x_i), y_i) − α_adv·mean_i T²·KL_T(f̄_v(x_i) ‖ q(x_i))
       + α_BN·L_BN(x),    with p_i the probability of y_i and T = 3: hard images count more;

2. the votes learn from the pool of earlier epochs: after every batch
   v ← clip(v − μ·δ^(epoch − 1)·sign ∂CE(f̄_v(x), y)/∂v), up to 1;
3. the images of the lowest loss join the pool;
4. the student is distilled in one shuffled pass over the pool, on images that are made harder:
   x + ε·sign ∂⟨u, softmax(f̄_v(x)/4)⟩/∂x with u ~ U(−1, 1) (Tashiro et al., NeurIPS 2020).

Preset ``paper`` is the script in the authors' code (rong-dai/Co-Boosting, ``co_boosting.sh``,
otherwise the defaults of its parser): 200 epochs, 30 generator steps with Adam at 1e-3, α_oh = 1,
α_adv = 1, α_BN = 0, h = 1, batch 128, 256 latent numbers, μ = 0.01, δ = 0.99, ε = 8/255 in
normalized space, SGD at 0.01 with momentum 0.9 and weight decay 1e-4 along a cosine, temperature
4, mean of logits. ``quick`` is ours, for a CPU: fewer epochs, steps and channels, and our defaults
for the student except its learning rate.

Deviations: votes start at 1/K as there, but stay above 0.001 instead of 0, so that their sum is
never 0, and apply in any combination rule. Last state of the student instead of the best on test
data. Momentum is Nesterov's, and the cosine falls from step to step. Gradients are not clipped (10
there). Augmentation is our flip and shift instead of flip and crop. Images are kept as float16
instead of 8 bits. L_BN is averaged over the clients. The start of the student is an option. A pass
leaves out images that do not fill a batch. The generator adapts to any image size.
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

NEEDS = "Any client models; with BatchNorm if bn_weight is not 0."


class Options(PoolOptions):
    """Options of Co-Boosting.

    Attributes:
        batch_size: Images in each step of the votes and of the student.
        one_hot_weight: Weight α_oh of the cross-entropy to the targets (one-hot term).
        hardness: Exponent of the weight of hard images, (1 − p)^h in the one-hot term; 0: all
            images count the same.
        adversarial_weight: Weight α_adv of the divergence between ensemble and student.
        bn_weight: Weight α_BN of the distance to the BatchNorm statistics; set 0 if a client
            model has no BatchNorm.
        vote_step: Change of each vote with one batch in the first epoch, μ in the equations.
        vote_decay: Factor on the change of the votes from epoch to epoch, δ in the equations.
        perturbation: Change of each value that makes images harder, ε in the equations, in units
            of the network input.
        generator: Options of the generator.
    """

    one_hot_weight: float = Field(default=1.0, ge=0)
    hardness: float = Field(default=1.0, ge=0)
    adversarial_weight: float = Field(default=1.0, ge=0)
    bn_weight: float = Field(default=0.0, ge=0)
    vote_step: float = Field(default=0.01, ge=0)
    vote_decay: float = Field(default=0.99, gt=0, le=1)
    perturbation: float = Field(default=8 / 255, ge=0)
    generator: GeneratorOptions = GeneratorOptions(width=32, steps=10)
    distillation: StudentOptions = StudentOptions(learning_rate=0.01)


PRESETS: dict[str, Strict] = {
    "quick": Options(),
    "paper": Options(
        rule="logits",
        epochs=200,
        synthesis_batch_size=128,
        batch_size=128,
        checkpoint_every=10,
        generator=GeneratorOptions(),
        distillation=StudentOptions(
            learning_rate=0.01, weight_decay=1e-4, schedule="cosine", start="scratch"
        ),
    ),
}


def coboosting(ensemble: Ensemble, run: Run, options: Options) -> Model:
    """Co-Boosting; a resumed run continues after its last checkpoint."""
    pool, size, task = Pool(), options.batch_size, ensemble.task
    teacher = watch(ensemble.with_rule(options.rule), needed=options.bn_weight > 0)
    votes = Votes(teacher)
    epochs = Epochs(
        ensemble, run, options.distillation, epochs=options.epochs,
        keep_every=options.checkpoint_every, parts={"pool": pool, "votes": votes},
    )  # fmt: skip
    learner, loop, stage = epochs.learner, epochs.loop, epochs.stage
    for epoch, generator in epochs:
        y = torch.randint(len(task.classes), (options.synthesis_batch_size,), generator=generator)
        with learner.judging() as rival:
            targets = stage.fabric.to_device(y)
            judge = partial(judged, teacher, rival, targets=targets, options=options)
            images, terms = fit_images(
                loop, task.image, len(y), judge, options.generator, generator
            )
        step = options.vote_step * options.vote_decay ** (epoch - 1)
        for x, known in pool.batches(size, generator):
            if loop.over:
                break
            x = stage.fabric.to_device(augment(x, options.augment, generator))
            with loop.meter.step("vote", len(x)):
                votes.move(teacher, x, stage.fabric.to_device(known), step)
        pool.add(images, y)
        pooled, count = pool.batches(size, generator), pool.batches_in_pass(size)
        batches = (augment(x, options.augment, generator) for x, _ in pooled)
        change = partial(harder, teacher, size=options.perturbation, generator=generator)
        entry = learner.learn_all(loop, batches, count, teacher, change)
        named = {f"vote_{k + 1}": vote for k, vote in enumerate(votes.value.tolist())}
        stage.log({"epoch": epoch, "images": len(pool)} | terms | entry | named)
    return epochs.result()


class Votes(nn.Module):
    """Learned votes of an ensemble, 1/K each at first.

    Attributes:
        value: Vote of each client, (K,) in [0.001, 1]; the same tensor as ``teacher.votes``.
    """

    value: torch.Tensor

    def __init__(self, teacher: Ensemble) -> None:
        super().__init__()
        teacher.votes = torch.full_like(teacher.votes, 1 / len(teacher.votes))
        self.register_buffer("value", teacher.votes)

    def move(self, teacher: Ensemble, x: torch.Tensor, targets: torch.Tensor, step: float) -> None:
        """Move each vote by ``step`` in the direction that lowers the cross-entropy of the teacher
        on ``x``, (B, C, H, W), with ``targets``, (B,)."""
        with torch.no_grad():
            logits = teacher.client_logits(x).float()
        votes = self.value.clone().requires_grad_()
        log_p = teacher.combine(logits, votes=votes)
        torch.autograd.backward(nn.functional.nll_loss(log_p, targets))
        assert votes.grad is not None
        self.value.sub_(step * votes.grad.sign()).clamp_(1e-3, 1)


def judged(
    teacher: Ensemble,
    student: nn.Module,
    x: torch.Tensor,
    targets: torch.Tensor,
    options: Options,
) -> dict[str, torch.Tensor]:
    """Weighted terms of the loss of generated images ``x``, (B, C, H, W), by name."""
    log_p, logits = teacher(x), student(x)
    losses = nn.functional.nll_loss(log_p, targets, reduction="none")
    hardness = (1 - (-losses.detach()).exp()) ** options.hardness
    terms = {
        "one_hot": options.one_hot_weight * (hardness * losses).mean(),
        "adversarial": options.adversarial_weight * adversarial_term(log_p, logits, 3),
    }
    if options.bn_weight:
        terms["batch_norm"] = options.bn_weight * batch_norm_term(teacher)
    return terms


def harder(
    teacher: Ensemble, x: torch.Tensor, size: float, generator: torch.Generator
) -> torch.Tensor:
    """Images ``x``, (B, C, H, W), with each value changed by ``size`` so that the ensemble's
    outputs change along a random direction u."""
    x = x.detach().requires_grad_()
    p = (teacher(x) / 4).softmax(-1)
    u = torch.rand(p.shape, generator=generator).to(p.device) * 2 - 1
    torch.autograd.backward((u * p).sum())
    assert x.grad is not None
    return (x + size * x.grad.sign()).detach()
