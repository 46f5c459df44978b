"""``oneround study``: write and check the agreement."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from oneround import models
from oneround.cli.console import (
    Architectures,
    AsJson,
    Download,
    Set,
    StudyFile,
    print_json,
    say,
)
from oneround.data import describe
from oneround.errors import OneRoundError
from oneround.study import ArchitectureSpec, ImageSpec, Study, merged, parse_assignment, preset

app = typer.Typer(no_args_is_help=True, help="Write or check a study: what all sites agree on.")


@app.command()
def init(
    path: Annotated[Path, typer.Argument(metavar="OUT.toml", help="The file to write.")],
    data: Annotated[
        str | None, typer.Option(help="Take classes and image size from this data set.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the study.")] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Class names in order, separated by commas; in double quotes if with a comma."
        ),
    ] = None,
    size: Annotated[int | None, typer.Option(help="Height and width of the images.")] = None,
    channels: Annotated[int | None, typer.Option(help="1: grey, 3: color.")] = None,
    site: Annotated[
        list[str] | None, typer.Option(help="A site that may hand in; repeat. Any by default.")
    ] = None,
    architecture: Architectures = None,
    preset_name: Annotated[str, typer.Option("--preset", help="quick or paper.")] = "quick",
    seed: Annotated[int, typer.Option(min=0, help="Seed of client training.")] = 0,
    share_class_counts: Annotated[
        bool, typer.Option(help="Whether sites tell how many images of each class they have.")
    ] = True,
    download: Download = False,
    force: Annotated[bool, typer.Option(help="Replace an existing file.")] = False,
    changes: Set = None,
    as_json: AsJson = False,
) -> None:
    """Write a study from a data set, or from answers given as options.

    Example: `oneround study init blood.toml --data bloodmnist.npz --site north --site south`
    """
    if path.exists() and not force:
        raise OneRoundError(
            "the file exists already; a changed study would not fit submissions made with it.",
            file=path,
            remedy="Choose another name, or add --force.",
        )
    found = describe(data, download=download) if data else None
    if found is None and not classes:
        raise OneRoundError(
            "neither --data nor --classes was given.", remedy="Give one of the two."
        )
    if found and not classes and len(found.classes) < 2:
        raise OneRoundError(
            f"there is only one class, {found.classes[0]}.",
            file=data,
            remedy="Add images of another class, or name all classes with --classes.",
        )
    base = found.image if found else ImageSpec()
    side = {"height": size, "width": size} if size else {}
    image = ImageSpec.validate_options(
        base.model_dump() | side | ({"channels": channels} if channels else {}), "image options"
    )
    network, training = preset(preset_name, image)
    chosen = [ArchitectureSpec.parse(text) for text in architecture or []]
    names = [part.strip() for part in next(csv.reader([classes or ""], skipinitialspace=True), [])]
    content: dict[str, Any] = {
        "name": name or path.stem,
        "classes": names or (found.classes if found else ()),
        "sites": site or (),
        "image": image.model_dump(),
        "architectures": [a.model_dump() for a in chosen or (network,)],
        "training": training.model_dump(),
        "share_class_counts": share_class_counts,
        "seed": seed,
    }
    for change in changes or []:
        content = merged(content, parse_assignment(change))
    study = Study.validate_options(content, str(path))
    _build_all(study)
    study.write(path)
    _show(study, path, as_json)


@app.command()
def check(path: StudyFile, as_json: AsJson = False) -> None:
    """Validate a study; prints what it says.

    Example: `oneround study check blood.toml`
    """
    study = Study.read(path)
    _build_all(study)
    _show(study, path, as_json)


def _build_all(study: Study) -> None:
    """Every network of the study can be built and takes its images; nothing is allocated."""
    for architecture in study.architectures:
        with torch.device("meta"):
            network = models.build(architecture, study.image, len(study.classes))
            models.require_fit(network, study.image, len(study.classes))


def _show(study: Study, path: Path, as_json: bool) -> None:
    if as_json:
        print_json(study.model_dump(mode="json") | {"hash": study.hash, "file": str(path)})
        return
    image = study.image
    say(f"{path}: study {study.name}, valid", "bold")
    say(f"  classes        {', '.join(study.classes)}")
    say(f"  image          {' × '.join(map(str, image.shape))}, mean {image.mean}, std {image.std}")
    say(f"  sites          {', '.join(study.sites) or 'any'}")
    say(f"  architectures  {', '.join(map(str, study.architectures))}")
    say(f"  hash           {study.hash}")
