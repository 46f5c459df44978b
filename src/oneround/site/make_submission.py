"""All that a hospital does before it submits: images in, the one file out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from oneround.data import Splits, as_image_set
from oneround.data.image_set import Images
from oneround.errors import OneRoundError
from oneround.runs.callbacks import Callback
from oneround.runs.cost import Cost
from oneround.runs.device import fabric_for
from oneround.runs.loop import CHECKPOINT
from oneround.runs.stage import Stage, derived_seed
from oneround.site.contact_sheet import write_contact_sheet
from oneround.site.training import TrainedClient, train_client
from oneround.study import ArchitectureSpec, Study
from oneround.submission import Manifest, check_submission

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Made:
    """A submission that was just written.

    Attributes:
        file: path of the one file to submit.
        contact_sheet: path of a picture of what the network sees; it stays at the site.
        client: trained client model in the file.
        manifest: manifest in the file.
        cost: cost of the training.
    """

    file: Path
    contact_sheet: Path
    client: TrainedClient
    manifest: Manifest
    cost: Cost


def make_submission(
    study: Study,
    site: str,
    splits: Splits | Images,
    file: str | os.PathLike[str],
    *,
    architecture: ArchitectureSpec | None = None,
    device: str = "auto",
    fabric: Fabric | None = None,
    callbacks: Sequence[Callback] = (),
) -> Made:
    """All that a site does with its images: train, and write the file beside a contact sheet.

    An interrupted training continues when the same call is made again: until the file is written,
    epochs are stored in ``NAME.training`` beside it.

    Args:
        study: The agreement.
        site: Name of the site.
        splits: Images of the site; or its training images alone, as any data set or data loader of
            pixels in [0, 1] and labels.
        file: The submission to write; an older one is replaced.
        architecture: Network, one of the study's; its first by default.
        device: Where to train; see :data:`oneround.runs.device.Device`.
        fabric: Device and precision, in place of ``device``.
        callbacks: Callbacks that watch the training.

    Raises:
        OneRoundError: as for :func:`oneround.site.training.train_client`, or ``file`` is there and
            is not a submission.
    """
    file = Path(file)
    if not isinstance(splits, Splits):
        splits = Splits(as_image_set(splits, study.classes))
    if file.exists() and any(problem.fatal for problem in check_submission(file)):
        raise OneRoundError(
            "there is a file already, and it is something else than a submission.",
            file=file,
            remedy="Choose another --out, such as NAME.oneround, or move that file away.",
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet, work = file.with_suffix(".contact-sheet.png"), file.with_suffix(".training")
    write_contact_sheet(sheet, study, splits.train)
    fabric = fabric or fabric_for(device)
    stage = Stage("training", derived_seed(study.seed, site), work, fabric, tuple(callbacks))
    client = train_client(
        study, site, splits.train, splits.val, architecture=architecture, stage=stage
    )
    manifest = client.write(file, study, skipped=splits.unreadable)
    with suppress(OSError):  # the folder may be one that was there, with other files
        (work / CHECKPOINT).unlink(missing_ok=True)
        work.rmdir()
    return Made(file, sheet, client, manifest, stage.cost)
