"""DAFL: distillation on the images of a generator that is trained together with the student.

Chen et al., "Data-free learning of student networks", ICCV 2019. Generator G and student are
trained together; f̄ is the ensemble of client models, z ~ N(0, I) and x = G(z):

    L_oh = CE(f̄(x), argmax f̄(x))      the ensemble is sure of its class
    L_a  = −1/K Σ_k mean |a_k(x)|      features a_k before the last linear layer are strong
    L_ie = Σ_c p_c log₁₀ p_c           with p the mean of softmax f̄(x): all classes occur
    G minimizes α_oh·L_oh + α_a·L_a + α_ie·L_ie, the student KL(f̄(x) ‖ q(x)).

Preset ``paper`` is what the authors' README gives for CIFAR-10 (code of Huawei Noah's Ark Lab,
Efficient-Computing/DAFL, ``DAFL-train.py``): α_oh = 0.05, α_ie = 5, α_a = 0.01, 2000 epochs of 120
steps, batch 1024, 1000 latent numbers, Adam with rate 0.02 for G, SGD with rate 0.1, momentum 0.9
and weight decay 5e-4 for the student, temperature 1. As in that code, G receives no gradient from
the student, and the logarithm in L_ie is to base 10. ``quick`` is ours, for a CPU: fewer and
smaller steps, a narrower generator, and our defaults for the student except its learning rate.

Deviations: an ensemble of client models instead of one teacher, combined by ``rule``, with L_a
averaged over the clients (those without a linear layer are left out); last state of the student
instead of the best on test data; momentum is Nesterov's; the learning rate falls along a cosine
instead of to a tenth at epochs 800 and 1600; images do not have the mean and variance of the data,
which are unknown, but those of G's last BatchNorm, 0 and 1, in the study's normalization; the
generator adapts to any image size and has no bias before BatchNorm.
"""

from __future__ import annotations

from functools import partial

import torch
from pydantic import Field
from torch import nn

from oneround.distillation.epochs import EpochOptions, Epochs
from oneround.distillation.student import StudentOptions
from oneround.distillation.synthesis.generator import Generator
from oneround.distillation.synthesis.statistics import watch
from oneround.model_file import Model
from oneround.models.ensemble import Ensemble
from oneround.runs.optimization import make_optimizer
from oneround.runs.run import Run
from oneround.runs.stage import derived_seed
from oneround.schema import Strict

NEEDS = "Any client models."


class Options(EpochOptions):
    """Options of DAFL.

    Attributes:
        epochs: Epochs of generator and student, each with one log entry.
        batch_size: Images in each step, used once.
        iterations: Steps of generator and student in each epoch.
        latent: Random numbers that each image is made from.
        width: Channels before the last layer of the generator.
        generator_learning_rate: Learning rate of Adam on the generator.
        one_hot_weight: Weight α_oh of the one-hot term: confident predictions of the ensemble.
        activation_weight: Weight α_a of the activation term: strong features before the last
            linear layer.
        entropy_weight: Weight α_ie of the information entropy term: all classes equally frequent.
    """

    epochs: int = Field(default=16, ge=1)
    iterations: int = Field(default=12, ge=1)
    latent: int = Field(default=256, ge=1)
    width: int = Field(default=32, ge=1)
    generator_learning_rate: float = Field(default=0.02, gt=0)
    one_hot_weight: float = Field(default=0.05, ge=0)
    activation_weight: float = Field(default=0.01, ge=0)
    entropy_weight: float = Field(default=5.0, ge=0)
    distillation: StudentOptions = StudentOptions(learning_rate=0.01, temperature=1)


PRESETS: dict[str, Strict] = {
    "quick": Options(),
    "paper": Options(
        rule="logits",
        epochs=2000,
        iterations=120,
        batch_size=1024,
        latent=1000,
        width=64,
        checkpoint_every=10,
        distillation=StudentOptions(
            learning_rate=0.1, schedule="cosine", temperature=1, start="scratch"
        ),
    ),
}


def dafl(ensemble: Ensemble, run: Run, options: Options) -> Model:
    """DAFL; a resumed run continues after its last checkpoint."""
    seed = derived_seed(run.seed, "generator")
    network = Generator(ensemble.task.image, options.latent, options.width, "tanh", seed)
    network.to(run.fabric.device)
    adam = make_optimizer(
        network.parameters(), kind="adam", learning_rate=options.generator_learning_rate
    )
    epochs = Epochs(
        ensemble, run, options.distillation, epochs=options.epochs,
        keep_every=options.checkpoint_every, parts={"generator": network, "adam": adam},
    )  # fmt: skip
    learner, loop, stage = epochs.learner, epochs.loop, epochs.stage
    teacher = watch(ensemble.with_rule(options.rule))
    features = Features(teacher)
    for epoch, generator in epochs:
        for number in range(options.iterations):
            loop.within = number / options.iterations
            z = torch.randn(options.batch_size, options.latent, generator=generator)
            with loop.meter.step("generate"), stage.fabric.autocast():
                x = network(stage.fabric.to_device(z))
                log_p = teacher(x)
                terms = generator_terms(log_p, features.last, options)
                adam.zero_grad()
                stage.fabric.backward(torch.stack(list(terms.values())).sum())
            adam.step()
            entry = learner.learn(loop, stage.mine(x.detach()), stage.mine(log_p.detach()))
            if loop.over:
                break
        logged = {name: term.item() for name, term in terms.items()}
        stage.log({"epoch": epoch} | logged | entry)
        loop.note = f"loss {entry['loss']:.3f}"
    return epochs.result()


class Features:
    """Records the input of the last linear layer of each client model that has one.

    Attributes:
        last: Features in the last forward pass, (B, D_k), by client k.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        self.last: dict[int, torch.Tensor] = {}
        for k, model in enumerate(ensemble.models):
            layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
            for layer in layers[-1:]:
                layer.register_forward_pre_hook(partial(self._keep, k))

    def _keep(self, client: int, layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.last[client] = inputs[0]


def generator_terms(
    log_p: torch.Tensor, features: dict[int, torch.Tensor], options: Options
) -> dict[str, torch.Tensor]:
    """Weighted terms of the generator's loss, by name, from the ensemble's log-probabilities,
    (B, classes), and the features of the client models, (B, D_k) each."""
    mean = log_p.exp().mean(0)
    terms = {
        "one_hot": options.one_hot_weight * nn.functional.nll_loss(log_p, log_p.argmax(1)),
        "entropy": options.entropy_weight * (mean * mean.clamp_min(1e-12).log10()).sum(),
    }
    if features:
        strength = torch.stack([feature.abs().mean() for feature in features.values()])
        terms["activation"] = -options.activation_weight * strength.mean()
    return terms
