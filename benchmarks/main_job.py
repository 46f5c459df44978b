"""The main job on one data set, for several seeds and partitions: one row for every model.

    python benchmarks/main_job.py bloodmnist.npz --runs runs/bloodmnist

Every cell is one `oneround simulate` (the command is printed); a cell that is finished is read,
one that was interrupted goes on. Rows are written to a CSV file, and a summary with mean and
standard deviation over the seeds is printed as Markdown. Test images only report.
"""

from __future__ import annotations

import csv
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from table import summary

from oneround.coordinator.results import Results

FIELDS = ["data", "partition", "seed", "model", "accuracy", "balanced_accuracy", "auroc"]


def main(
    data: Annotated[Path, typer.Argument(help="MedMNIST file or class folders.")],
    runs: Annotated[Path, typer.Option(help="Folder of the RUN folders.")],
    table: Annotated[Path, typer.Option(help="CSV file to write.")] = Path("main_job.csv"),
    partitions: Annotated[str, typer.Option(help="iid, or dirichlet-BETA.")] = "iid,dirichlet-0.6",
    seeds: str = "1,2,3",
    sites: int = 5,
    extra: Annotated[str, typer.Option(help="Further options of `oneround simulate`.")] = "",
) -> None:
    """Run what is missing, then write the table."""
    rows: list[dict[str, object]] = []
    for partition in partitions.split(","):
        for seed in seeds.split(","):
            run = runs / f"{partition}-seed{seed}"
            if not (run / "results.json").exists():
                kind, _, beta = partition.partition("-")
                command = [
                    "oneround", "simulate", "--data", str(data), "--sites", str(sites),
                    "--partition", kind, *(["--beta", beta] if beta else []),
                    "--seed", seed, "--out", str(run), *shlex.split(extra),
                ]  # fmt: skip
                command += ["--resume"] if run.exists() else []
                print(shlex.join(command), flush=True)
                call = [sys.executable, "-m", "oneround", *command[1:]]
                subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
            cell = {"data": data.stem, "partition": partition, "seed": int(seed)}
            rows += [cell | row for row in rows_of(Results.read(run))]
            with table.open("w", newline="") as file:
                writer = csv.DictWriter(file, FIELDS, extrasaction="ignore", lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    print(summary(rows, ["partition", "model"], FIELDS[4:]))


def rows_of(results: Results) -> list[dict[str, object]]:
    """One row for every model; of the sites, the best one and the mean."""
    models = results.models
    best = max(models.sites, key=lambda site: site.accuracy)
    rows = [_row("best site", best)]
    mean = {f: sum(getattr(s, f) for s in models.sites) / len(models.sites) for f in FIELDS[4:]}
    rows.append({"model": "mean of sites"} | mean)
    rows += [_row(f"ensemble, {rule}", metrics) for rule, metrics in models.rules.items()]
    if models.fedavg:
        rows.append(_row("fedavg", models.fedavg))
    if models.global_model:
        rows.append(_row(f"global, {results.method}", models.global_model))
    return rows


def _row(name: str, metrics: object) -> dict[str, object]:
    return {"model": name} | {field: getattr(metrics, field) for field in FIELDS[4:]}


if __name__ == "__main__":
    typer.run(main)
