"""Write a submission: from a client model to the one file."""

from __future__ import annotations

import io
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version

from torch import nn

from oneround.files import sha256, write_atomic
from oneround.schema import now, validated
from oneround.study import ArchitectureSpec, Study, SubmissionSpec
from oneround.submission import weights
from oneround.submission.container import MANIFEST, WEIGHTS, pack
from oneround.submission.manifest import Manifest, Privacy, TrainingSummary
from oneround.submission.read import examine, raise_if_fatal


def write_submission(
    path: str | os.PathLike[str],
    *,
    model: nn.Module,
    study: Study,
    site: str,
    architecture: ArchitectureSpec,
    images: int,
    class_counts: Sequence[int] | None,
    training: TrainingSummary,
    skipped: int = 0,
    privacy: Privacy | None = None,
    created: str | None = None,
) -> Manifest:
    """Write the submission of ``site``, not yet signed or encrypted, and return its manifest.

    :func:`oneround.submission.seal_submission` does both if the study asks for it.
    The content is checked as a reader would check it, against ``study`` too, before anything is
    written; only the outputs of the model are left to
    :func:`~oneround.submission.check_submission`. Equal arguments, with ``created`` given, make an
    equal file.

    Args:
        path: file to write, by convention ``NAME.oneround``; an older one is replaced in one step.
        model: trained client model, built by :func:`oneround.models.build` from ``architecture``.
        study: agreement that the site trained with.
        site: name of the site.
        architecture: network, one of the study's.
        images: number of training images.
        class_counts: training images of each class, in the study's order; withheld (not written)
            unless the study has ``share_class_counts``.
        training: summary of the training.
        skipped: number of images that could not be read and were left out.
        privacy: differential privacy of the training, if any.
        created: time in UTC, ISO 8601; the current time by default.

    Raises:
        OneRoundError: the content would be refused by a reader (NaN weights, a site or an
            architecture that the study does not allow), or the file cannot be written; then
            an older file stays as it was.
    """
    tensors = weights.serialize(model)
    shared = class_counts if study.share_class_counts else None
    content = {
        "study": study.name,
        "study_hash": study.hash,
        "site": site,
        "architecture": architecture,
        "classes": study.classes,
        "image": study.image,
        "images": images,
        "skipped": skipped,
        "class_counts": None if shared is None else tuple(int(count) for count in shared),
        "training": training,
        "versions": _versions(),
        "weights_sha256": sha256(tensors),
        "created": created or now().isoformat(),
        "privacy": privacy,
    }
    manifest = validated(Manifest, content, path)
    file = pack({MANIFEST: manifest.model_dump_json(indent=2).encode(), WEIGHTS: tensors})
    not_yet_signed = study.model_copy(update={"submission": SubmissionSpec()})
    raise_if_fatal(examine(io.BytesIO(file), not_yet_signed, ask=False), path)
    write_atomic(path, file)
    return manifest


def _versions() -> dict[str, str]:
    packages = ("oneround", "torch", "monai", "safetensors")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
