"""What each part of kang2025 adds: one change at a time, with the same client models.

    python benchmarks/ablation.py bloodmnist.npz runs/bloodmnist/*

Each RUN folder comes from `oneround simulate --method kang2025`. Every variant starts from its
submissions, and from its image bank where the change leaves the bank as it was. Rows go to a CSV
file at once, so that an interrupted run goes on with the next variant. Test images only report.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, Any

import typer
from table import summary

from oneround import methods
from oneround.coordinator.aggregate import ensemble_of
from oneround.data import ImageSet, read_splits
from oneround.data.structure_noise import StructureNoise
from oneround.distillation.adaptation import adapt_to_noise
from oneround.distillation.student import new_student
from oneround.distillation.synthesis import synthesize
from oneround.distillation.training import Samples, train_student
from oneround.evaluation import evaluate
from oneround.files import read_json
from oneround.runs.stage import Stage
from oneround.schema import merged, parse_assignment
from oneround.study import Study
from oneround.submission import read_submissions

FIELDS = ["data", "run", "variant", "accuracy", "balanced_accuracy", "auroc", "seconds", "flops"]

NOISE = ["distillation.mix=noise"]
VARIANTS: dict[str, list[str]] = {
    "preset quick": [],
    "bank: all clients together, at equal cost": [
        "inversion.clients=together",
        "inversion.images=256",
        "inversion.bn_weight=1",
        "inversion.tv_weight=0.3",
    ],
    "bank: no companion": ["inversion.companions=0"],
    "bank: not reused, every image once": ["distillation.steps=5"],
    "bank: a tenth of the images": ["inversion.images=64"],
    "bank: 4 steps, no synthesis to speak of": ["inversion.steps=4"],
    "noise: structure noise, both teachers": NOISE,
    "noise: original teachers alone": [*NOISE, "distillation.teachers=original"],
    "noise: running statistics adapted": [*NOISE, "adaptation.statistics=running"],
    "mixup of two bank images": ["distillation.mix=bank"],
    "rule: logits": ["rule=logits"],
    "rule: probabilities": ["rule=probabilities"],
    "student: from scratch": ["distillation.start=scratch", "distillation.learning_rate=0.1"],
    "student: running BatchNorm statistics": ["distillation.batch_norm=train"],
    "student: fresh samples, 600 steps": ["distillation.batches=0", "distillation.steps=600"],
    "student: T = 20": ["distillation.temperature=20"],
}
"""Name of a variant, and the options that differ from the run's own."""


def main(
    data: Path,
    runs: Annotated[list[Path], typer.Argument(help="RUN folders of `oneround simulate`.")],
    table: Annotated[Path, typer.Option(help="CSV file; rows in it are kept.")] = Path(
        "ablation.csv"
    ),
    only: Annotated[str, typer.Option(help="Variants whose name contains this.")] = "",
    split: Annotated[str, typer.Option(help="test, or val to choose options by.")] = "test",
) -> None:
    """Run every variant that the table lacks."""
    rows = list(csv.DictReader(table.open())) if table.exists() else []
    for run in runs:
        for variant in (name for name in VARIANTS if only in name):
            if any((row["run"], row["variant"]) == (run.name, variant) for row in rows):
                continue
            row = {"data": data.stem, "run": run.name, "variant": variant}
            rows.append(row | measure(run, data, split, variant))
            print(rows[-1], flush=True)
            with table.open("w", newline="") as file:
                writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    partitions = [row | {"partition": row["run"].rpartition("-seed")[0]} for row in rows]
    print(summary(partitions, ["partition", "variant"], FIELDS[3:]))


def measure(run: Path, data: Path, split: str, variant: str) -> dict[str, Any]:
    """Distill as in ``run`` but for the changes of ``variant``; metrics and cost."""
    configuration = read_json(run / "configuration.json")
    study = Study.validate_options(configuration["study"], str(run))
    method = methods.get("kang2025")
    if configuration["method"] != method.name:
        raise typer.BadParameter(
            f"{run} is a run of {configuration['method']}, not of {method.name}"
        )
    own: Any = method.options.validate_options(configuration["options"], str(run))
    content = own.model_dump(mode="json")
    for assignment in VARIANTS[variant]:
        content = merged(content, parse_assignment(assignment))
    options: Any = method.options.validate_options(content, variant)
    images: ImageSet = getattr(read_splits(data, image=study.image, classes=study.classes), split)
    submissions = read_submissions(sorted((run / "submissions").glob("*.oneround")), study)

    ensemble = ensemble_of(submissions, study).with_rule(options.rule)
    noise = StructureNoise(study.image, options.noise)
    same_bank = own.inversion == options.inversion and (
        own.rule == options.rule or options.inversion.clients == "in-turn"
    )
    folder = run / "bank" if same_bank else run / "ablation" / variant
    stages = {name: Stage(name, study.seed) for name in ("adaptation", "distillation")}
    stages["synthesis"] = Stage("synthesis", study.seed, folder)
    bank = synthesize(ensemble, study, options.inversion, stages["synthesis"])
    adapted = adapt_to_noise(ensemble, noise, options.adaptation, stages["adaptation"])
    distillation = stages["distillation"]
    samples = Samples(bank, noise, options.distillation, distillation)
    student, _ = new_student(ensemble, study, options.distillation, distillation)
    train_student(ensemble, adapted, samples, student, options.distillation, distillation)

    metrics = evaluate(student, images, study.image, resamples=0)
    return {
        "accuracy": round(metrics.accuracy, 4),
        "balanced_accuracy": round(metrics.balanced_accuracy, 4),
        "auroc": round(metrics.auroc or 0, 4),
        "seconds": round(sum(stage.cost.seconds for stage in stages.values())),
        "flops": f"{sum(stage.cost.flops for stage in stages.values()):.3g}",
    }


if __name__ == "__main__":
    typer.run(main)
