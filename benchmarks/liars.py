"""One liar of five sites: what it costs the default method, and whether it is named.

    python benchmarks/liars.py --data bloodmnist.npz --cache CACHE --out benchmarks/liars

CACHE gets the submissions of the honest sites, which are trained once for each setting (some
minutes on one core). The table ``cells.csv`` in the output folder has one line for each attack in
each setting; lines that are there are not computed again. Accuracies are on test images. Another
site lies for each seed; seeds 4 to 6 are reported, and seeds 0 to 3 and 10 were for choosing rules
and constants of the cross-check.
"""

from __future__ import annotations

import argparse
import copy
import csv
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from oneround.coordinator.aggregate import aggregate, ensemble_of
from oneround.coordinator.cross_check import cross_check
from oneround.data import ImageSet, Splits
from oneround.errors import OneRoundError
from oneround.evaluation import evaluate
from oneround.research.simulation import divide, prepare
from oneround.runs.run import Run
from oneround.site.training import train_client
from oneround.study import ArchitectureSpec, Study
from oneround.submission import Submission, read_submissions, write_submission

PARTITIONS = {
    "iid": ("iid", 1.0),
    "dirichlet-0.6": ("dirichlet", 0.6),
    "dirichlet-0.1": ("dirichlet", 0.1),
}
SITES = 5
TRAINED = "permuted.oneround"  # of the liar, trained on permuted labels
COLUMNS = ("partition", "seed", "liar", "attack", "found", "left_out", "false_alarms", "accuracy",
           "honest_four", "honest_five")  # fmt: skip
ARCHITECTURE = ArchitectureSpec(arguments={"width": 8, "stem": "small"})
OPTIONS = ["inversion.images=64"]  # a fifth of the default's, at a fifth of its cost
TRAINING = ["training.epochs=8", "training.min_steps_per_epoch=0"]


def last(model: nn.Module) -> nn.Linear:
    """The layer that outputs the logits."""
    return [m for m in model.modules() if isinstance(m, nn.Linear)][-1]


def without_fixed_points(classes: int, draw: torch.Generator) -> torch.Tensor:
    """A permutation of the classes that leaves none where it is."""
    order = torch.randperm(classes, generator=draw)
    while (order == torch.arange(classes)).any():
        order = torch.randperm(classes, generator=draw)
    return order


def permuted(model: nn.Module, draw: torch.Generator) -> None:
    """As if trained with permuted class names; the class counts stay."""
    layer = last(model)
    order = without_fixed_points(layer.out_features, draw)
    layer.weight.data, layer.bias.data = layer.weight.data[order], layer.bias.data[order]


def constant(model: nn.Module, draw: torch.Generator) -> None:
    """One class for all images; outputs still vary a little, or the file would be refused."""
    last(model).weight.data *= 1e-3
    last(model).bias.data[0] = 10.0


def random(model: nn.Module, draw: torch.Generator) -> None:
    """Random weights, as before training."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            with torch.random.fork_rng():
                torch.manual_seed(int(torch.randint(2**31, (), generator=draw)))
                module.reset_parameters()


def scaled(factor: float) -> Callable[[nn.Module, torch.Generator], None]:
    """Outputs ``factor`` times as large."""

    def change(model: nn.Module, draw: torch.Generator) -> None:
        last(model).weight.data *= factor
        last(model).bias.data *= factor

    return change


def nan_on_some(model: nn.Module, draw: torch.Generator) -> None:
    """One channel of the last block explodes where its value is high; on most images it is silent.
    No weight is beyond what :func:`oneround.submission.check_submission` accepts."""
    block, channel = model.layer4[-1], 0
    block.conv1.weight.data[channel] *= 1e7
    block.bn1.running_mean[channel] *= 1e7
    block.bn1.weight.data[channel], block.bn1.bias.data[channel] = 1.0, -4e7  # 4 deviations
    block.conv2.weight.data[:, channel] = 9e7
    block.bn2.weight.data[0], block.bn2.running_var[0] = 9e7, 1e-10
    last(model).weight.data[0, 0], last(model).weight.data[1, 0] = 9e7, -9e7


def honest(model: nn.Module, draw: torch.Generator) -> None:
    """The model stays as it is."""


ATTACKS: dict[str, tuple[Callable[[nn.Module, torch.Generator], None], dict[str, object]]] = {
    "claim, permuted labels": (permuted, {"images": 10**12, "loss": 0.0}),
    "permuted labels": (permuted, {}),
    "constant": (constant, {}),
    "random weights": (random, {}),
    "outputs x10": (scaled(10), {}),
    "outputs x100": (scaled(100), {}),
    "sign-flipped": (scaled(-1), {}),
    "loss claim": (honest, {"loss": 0.0}),
    "NaN on some images": (nan_on_some, {}),
    "copy with noise": (honest, {"copy": True}),
    "trained on permuted labels": (honest, {"trained": True}),
}
"""Change of the model, and what the manifest claims."""


def train(data: Path, cache: Path, partition: str, seed: int) -> tuple[Splits, Study, Path]:
    """Data, study, and the folder of the honest submissions, which are trained if missing."""
    kind, beta = PARTITIONS[partition]
    splits, study = prepare(data, architectures=[ARCHITECTURE], training=TRAINING, seed=seed)
    folder = cache / f"{partition}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    parts = divide(splits, study, SITES, kind, beta)
    for site, (images, val) in parts.items():
        file = folder / f"{site}.oneround"
        if not file.exists():
            train_client(study, site, images, val, device="cpu").write(file, study)
    file = folder / TRAINED
    if not file.exists():
        site, (images, val) = list(parts.items())[seed % SITES]
        order = without_fixed_points(len(study.classes), torch.Generator().manual_seed(seed))
        images, val = (
            part and ImageSet(part.stored(), order[part.labels], part.classes)
            for part in (images, val)
        )
        train_client(study, site, images, val, device="cpu").write(file, study)
    return splits, study, folder


def lie(liar: Submission, other: Submission, study: Study, attack: str, path: Path) -> None:
    """Write the submission of the liar."""
    change, claim = ATTACKS[attack]
    if claim.get("trained"):
        shutil.copy(path.with_name(TRAINED), path)
        return
    draw = torch.Generator().manual_seed(study.seed)
    model = copy.deepcopy(other.model if claim.get("copy") else liar.model)
    change(model, draw)
    if claim.get("copy"):
        for p in model.parameters():
            p.data += 0.02 * p.data.square().mean().sqrt() * torch.randn(p.shape, generator=draw)
    manifest = liar.manifest
    images = claim.get("images", manifest.images)
    counts = manifest.class_counts
    if "images" in claim:
        counts = [images // len(study.classes)] * len(study.classes)
    training = manifest.training.model_copy(
        update={"loss": claim.get("loss", manifest.training.loss)}
    )
    write_submission(
        path, model=model, study=study, site=manifest.site, architecture=manifest.architecture,
        images=sum(counts), class_counts=counts, training=training,
    )  # fmt: skip


def cells(data: Path, cache: Path, partition: str, seed: int, done: set[str]) -> Iterator[dict]:
    """The lines of one setting that are not done."""
    splits, study, folder = train(data, cache, partition, seed)
    five = read_submissions(sorted(folder.glob("site-*.oneround")), study)
    number = seed % SITES
    liar, others = five[number], [s for s in five if s is not five[number]]

    def accuracy(submissions: list[Submission]) -> float:
        model = aggregate(study, submissions, options=OPTIONS, seed=seed, device="cpu")
        return round(evaluate(model.network, splits.test, study.image, resamples=0).accuracy, 4)

    four: float | None = None
    base: float | None = None
    for attack in ["none", *ATTACKS]:
        if attack in done:
            continue
        four = accuracy(others) if four is None else four
        base = accuracy(five) if base is None else base
        if attack == "none":
            suspects = cross_check(ensemble_of(five, study), Run(None, {}))[1]
            named, out = [s.site for s in suspects], [s.site for s in suspects if not s.used]
            found, score = "", base
            alarms = named
        else:
            path = folder / "liar.oneround"
            lie(liar, others[0], study, attack, path)
            files = [folder / f"{s.manifest.site}.oneround" for s in others]
            found, out, alarms, score = "", [], [], four
            try:
                submissions = read_submissions([*files, path], study)
            except OneRoundError as error:
                found, out = error.reason.partition("[")[2].partition("]")[0], [liar.manifest.site]
            else:
                suspects = cross_check(ensemble_of(submissions, study), Run(None, {}))[1]
                found = "cross-check" if liar.manifest.site in [s.site for s in suspects] else ""
                copied = others[0].manifest.site if attack == "copy with noise" else ""
                alarms = [s.site for s in suspects if s.site not in (liar.manifest.site, copied)]
                out = [s.site for s in suspects if not s.used]
                if out != [liar.manifest.site]:
                    try:
                        score = accuracy(submissions)
                    except OneRoundError as error:
                        found = "error of the run" if liar.manifest.site in str(error) else ""
                        out = [liar.manifest.site]
        yield dict(zip(COLUMNS, (
            partition, seed, liar.manifest.site, attack, found, " ".join(out), " ".join(alarms),
            score, four, base), strict=True))  # fmt: skip


def main() -> None:
    """Compute what is missing, and add it to the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[4, 5, 6])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = arguments.out / "cells.csv"
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = list(csv.DictReader(table.open(newline=""))) if table.exists() else []
    for seed in arguments.seeds:
        for partition in PARTITIONS:
            done = {
                r["attack"] for r in rows if (r["partition"], r["seed"]) == (partition, str(seed))
            }
            if done >= {"none", *ATTACKS}:
                continue
            for row in cells(arguments.data, arguments.cache, partition, seed, done):
                rows.append(row)
                with table.open("w", newline="") as file:
                    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows)
                print(*row.values(), sep="  ", flush=True)


if __name__ == "__main__":
    main()
