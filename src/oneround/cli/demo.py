"""``oneround demo``: a whole study on built-in images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from oneround import methods
from oneround.cli.console import AsJson, DeviceName, Threads, err
from oneround.cli.simulate import run_and_show
from oneround.data.phantoms import PHANTOM_CLASSES, phantoms
from oneround.runs.device import fabric_for
from oneround.study import ImageSpec, Study, preset

SEED = 7


def demo(
    run: Annotated[Path, typer.Option("--out", help="RUN folder.")] = Path("demo-run"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    device: DeviceName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Four sites, four files, one global model, on generated images of cells (no real ones).

    Needs no data, no network and no GPU; takes a few minutes on two cores.

    Example: `oneround demo`
    """
    err.print("Generating phantom images: six kinds of cells, made by a program, not real.")
    splits = phantoms(torch.Generator().manual_seed(SEED), train=2000, val=400, test=800)
    image = ImageSpec(channels=3, height=32, width=32)
    network, training = preset("quick", image)
    study = Study(
        name="phantom cells",
        classes=PHANTOM_CLASSES,
        image=image,
        architectures=(network,),
        training=training.model_copy(update={"epochs": 20, "batch_size": 32}),
        seed=SEED,
    )
    method = methods.get()
    run_and_show(
        splits, study, method, method.resolve(), run, as_json,
        sites=4, partition="dirichlet", beta=0.6, resume=resume,
        fabric=fabric_for(device, threads),
    )  # fmt: skip
