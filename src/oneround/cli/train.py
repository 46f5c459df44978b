"""``oneround train``: a hospital makes its submission."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oneround.cli.console import (
    Architectures,
    AsJson,
    CacheFolder,
    DataPath,
    DeviceName,
    Download,
    MaxSkipped,
    ProgressBars,
    SignedBy,
    StudyFile,
    Threads,
    print_json,
    read_with_progress,
    say,
)
from oneround.errors import OneRoundError
from oneround.runs.device import fabric_for
from oneround.site.make_submission import make_submission
from oneround.site.training import training_steps
from oneround.study import ArchitectureSpec, Study

FEW_STEPS = 200
"""Training steps below which a site is warned: with 30, a ResNet-18 hardly learns anything."""


def train(
    study_file: StudyFile,
    data: DataPath,
    site: Annotated[str, typer.Option(help="Name of this site.", show_default=False)],
    file: Annotated[Path, typer.Option("--out", help="Submission to write.", show_default=False)],
    signed_by: SignedBy = None,
    architecture: Architectures = None,
    max_skipped: MaxSkipped = 0.05,
    download: Download = False,
    cache: CacheFolder = None,
    device: DeviceName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Train the client model on local images and write the one file to submit.

    Only `--out` is for the coordinator: weights and a manifest, no image. An interrupted
    training continues when the same command is given again. The contact sheet beside it shows
    what the network sees; look at it, and keep it here.

    Example: `oneround train blood.toml --data images/ --site north --out north.oneround`
    """
    study = Study.read(study_file, signed_by=signed_by)
    study.require_site(site, study_file)
    splits = read_with_progress(
        data, study.task, site=site, max_skipped=max_skipped, download=download, cache=cache
    )
    if not len(splits.train):
        raise OneRoundError(
            "there is no training image.", file=data, remedy="Give images in the train split."
        )
    chosen = [ArchitectureSpec.parse(text) for text in architecture or []]
    with ProgressBars() as bars:
        made = make_submission(
            study,
            site,
            splits,
            file,
            architecture=chosen[0] if chosen else None,
            fabric=fabric_for(device, threads),
            callbacks=[bars],
        )
    client, manifest, sheet = made.client, made.manifest, made.contact_sheet
    if as_json:
        print_json(
            {
                "file": str(file),
                "bytes": file.stat().st_size,
                "contact_sheet": str(sheet),
                "skipped": list(splits.skipped),
                "held_out": made.client.held_out,
                "notes": list(made.client.notes),
                "cost": made.cost.model_dump(),
                "manifest": manifest.model_dump(mode="json"),
            }
        )
        return
    validation = ", ".join(f"{k} {v:.3f}" for k, v in client.training.validation.items())
    to_seal = bool(study.submission.keys or study.submission.encrypt_to)
    ready = "look at it, then seal it" if to_seal else "ready to submit"
    say(f"{file} ({file.stat().st_size:,} bytes) is written: {ready}", "bold")
    say(f"  trained on     {client.images} images; best epoch {client.training.best_epoch}")
    say(f"  own validation {validation or 'none'} ({client.held_out} images)")
    for note in client.notes:
        say(f"                 {note}", "yellow")
    if (steps := training_steps(client.images, study.training)) < FEW_STEPS:
        say(
            f"  few steps      {steps}: ask for more epochs, or a larger min_steps_per_epoch, "
            "in the study",
            "yellow",
        )
    say("  it contains    weights and a manifest; no image, no patient data")
    if manifest.class_counts is not None:
        say(f"  it reports     class counts {list(manifest.class_counts)}")
    else:
        say("  it withholds   class counts, as the study says")
    counts = client.class_counts or ()
    empty = [name for name, count in zip(study.classes, counts, strict=True) if count == 0]
    if empty:
        say(f"  no image of    {', '.join(empty)} (this is allowed)")
    say(f"  look at        {sheet} (stays here)")
    if to_seal:
        sign = " --key KEY" if study.submission.keys else ""
        say(f"  next           oneround seal {study_file} {file}{sign}")
