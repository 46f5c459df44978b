"""``oneround study``: write, change, sign and check the agreement."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tomlkit
import typer

from oneround import signing as key_pairs
from oneround.cli.console import (
    Architectures,
    AsJson,
    Download,
    Set,
    SignedBy,
    StudyFile,
    err,
    passphrase_of,
    print_json,
    say,
)
from oneround.errors import OneRoundError
from oneround.files import write_atomic
from oneround.schema import merged, parse_assignment
from oneround.study import ArchitectureSpec, ImageSpec, Study, preset

if TYPE_CHECKING:
    from oneround.data import DataDescription

Keys = Annotated[
    list[str] | None,
    typer.Option(
        "--key", metavar="SITE=FILE.pub", help="Public key of a site; repeat for several."
    ),
]
EncryptTo = Annotated[
    Path | None, typer.Option(help="The .recipient file that submissions are encrypted to.")
]

app = typer.Typer(no_args_is_help=True, help="Write or check a study: what all sites agree on.")


@app.command()
def init(
    path: Annotated[Path, typer.Argument(metavar="OUT.toml", help="TOML file to write.")],
    data: Annotated[
        str | None, typer.Option(help="Data set to take classes and image size from.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the study.")] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Class names in order, separated by commas; in double quotes if with a comma."
        ),
    ] = None,
    size: Annotated[int | None, typer.Option(help="Height and width of the images.")] = None,
    channels: Annotated[int | None, typer.Option(help="Channels; 1: gray, 3: color.")] = None,
    site: Annotated[
        list[str] | None,
        typer.Option(help="Site that may submit; repeat for several. Any by default."),
    ] = None,
    architecture: Architectures = None,
    preset_name: Annotated[str, typer.Option("--preset", help="Preset, quick or paper.")] = "quick",
    seed: Annotated[int, typer.Option(min=0, help="Seed of client training.")] = 0,
    share_class_counts: Annotated[
        bool,
        typer.Option(
            help="Class counts in every submission; otherwise sites withhold how many images of "
            "each class they have."
        ),
    ] = True,
    key: Keys = None,
    encrypt_to: EncryptTo = None,
    deadline: Annotated[
        str | None, typer.Option(help="Deadline of submissions, such as 2027-01-31.")
    ] = None,
    at_least: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of submissions that are enough for a global model; all that are "
            "expected by default, or 2 if any site may submit.",
        ),
    ] = None,
    download: Download = False,
    force: Annotated[bool, typer.Option(help="Replace an existing file.")] = False,
    changes: Set = None,
    as_json: AsJson = False,
) -> None:
    """Write a study, from a data set or from options.

    Example: `oneround study init blood.toml --data bloodmnist.npz --site north --site south`
    """
    if path.exists() and not force:
        raise OneRoundError(
            "the file exists; submissions made with it would not fit a changed study.",
            file=path,
            remedy="Choose another name, or add --force.",
        )
    found = _described(data, download) if data else None
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
        "submission": _keys(key, encrypt_to) | {"deadline": deadline, "at_least": at_least},
    }
    for change in changes or []:
        content = merged(content, parse_assignment(change))
    study = Study.validate_options(content, str(path))
    _build_all(study)
    study.write(path)
    _show(study, path, as_json)


@app.command()
def keys(
    path: StudyFile,
    key: Keys = None,
    encrypt_to: EncryptTo = None,
    as_json: AsJson = False,
) -> None:
    """Add keys to a study; its hash stays the same, so earlier submissions remain valid.

    A signature of the study is no longer valid then: sign it again.

    Example: `oneround study keys blood.toml --key north=north.pub`
    """
    Study.read(path)
    content = tomlkit.parse(path.read_text(encoding="utf-8-sig"))  # keeps comments
    if "hand_in" in content:  # the name of the version before
        content["submission"] = content.pop("hand_in")
    submission: Any = content.setdefault("submission", tomlkit.table())
    added = _keys(key, encrypt_to)
    submission.setdefault("keys", {})
    submission["keys"].update(added.pop("keys"))
    submission.update(added)
    study = Study.validate_options(content.unwrap(), str(path))
    write_atomic(path, tomlkit.dumps(content).encode())
    if (signature := key_pairs.signature_path(path)).exists():
        say(f"{signature} is no longer valid: sign the study again", "yellow", err)
    _show(study, path, as_json)


@app.command()
def sign(
    path: StudyFile,
    key: Annotated[Path, typer.Option(help="The coordinator's .key file.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Sign a study, so that sites can refuse a changed one; writes STUDY.sig beside it.

    Example: `oneround study sign blood.toml --key coordinator.key`
    """
    Study.read(path)
    passphrase = passphrase_of(key)
    signature = key_pairs.sign_file(path, key, passphrase)
    signer = key_pairs.fingerprint(key_pairs.public_key_of(key, passphrase))
    if as_json:
        print_json({"signature": str(signature), "signed_by": signer})
        return
    say(f"{signature}: send it with {path} and your .pub file", "bold")
    say(f"  fingerprint    {signer}, to be compared over the telephone")


@app.command()
def check(path: StudyFile, signed_by: SignedBy = None, as_json: AsJson = False) -> None:
    """Validate a study, and print its content.

    Example: `oneround study check blood.toml --signed-by coordinator.pub`
    """
    study = Study.read(path, signed_by=signed_by)
    _build_all(study)
    _show(study, path, as_json)


def _keys(pairs: list[str] | None, encrypt_to: Path | None) -> dict[str, Any]:
    """The content of these files, as keys of ``submission``."""
    keys = {}
    for pair in pairs or []:
        site, equals, file = pair.partition("=")
        if not (site and equals and file):
            raise OneRoundError(
                f"{pair!r} is not of the form SITE=FILE.", remedy="Write, e.g., north=north.pub."
            )
        keys[site] = key_pairs.read_public_key(file)
    recipient = {"encrypt_to": key_pairs.read_recipient(encrypt_to)} if encrypt_to else {}
    return {"keys": keys} | recipient


def _described(data: str, download: bool) -> DataDescription:
    from oneround.data import describe  # needs torch

    return describe(data, download=download)


def _build_all(study: Study) -> None:
    """Refuse a network that cannot be built or cannot take the images; nothing is allocated.

    Those of the presets fit every image, so a study with them alone needs no torch.
    """
    known = [preset(name, study.image)[0] for name in ("quick", "paper")]
    unknown = [one for one in study.architectures if one not in known]
    if not unknown:
        return
    import torch

    from oneround import models

    for architecture in unknown:
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
    submission = study.submission
    for site, key in submission.keys.items():
        say(f"  key            {key_pairs.fingerprint(key)} {site}")
    say(f"  encrypted to   {submission.encrypt_to or 'nobody'}")
    enough = f"{study.at_least} of {len(study.expected_sites) or 'any number'}"
    say(f"  deadline       {submission.deadline or 'none'}; {enough} are enough")
    say(f"  hash           {study.hash}")
