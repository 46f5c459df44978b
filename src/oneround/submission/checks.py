"""Checks of a manifest: on its own, against the study, and against those of the other sites."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from pydantic import ValidationError

from oneround import models, signing
from oneround.errors import Problem
from oneround.files import parse_json
from oneround.schema import read_strictly
from oneround.study import Study
from oneround.submission.container import ASK_AGAIN, MANIFEST, refuse, some
from oneround.submission.manifest import Manifest

if TYPE_CHECKING:
    from oneround.submission.manifest import Submission

K = TypeVar("K")

FEW_IMAGES = 50
"""Number of training images below which a check warns."""

_SAME_STUDY = "Send the study file to the site again and let it train with that one."


def parse_manifest(content: bytes) -> Manifest:
    """The content of ``manifest.json`` as a :class:`Manifest`.

    Raises:
        Refused: it is not JSON, has a newer format version, or breaks a rule of the schema.
    """
    why = "What the weights mean is not known without it."
    try:
        values = parse_json(content)
    except ValueError as error:
        refuse("manifest-invalid", f"{MANIFEST} is not valid JSON ({str(error)[:120]!r})", why)
    if isinstance(values, dict) and type(values.get("format")) is int and values["format"] > 1:
        refuse(
            "newer-format",
            f"the submission has a newer format than 1 ({str(values['format'])[:20]})",
            "This version of oneround cannot know what it means.",
            "Update oneround, or ask the site to use the version that you use.",
        )
    try:
        return read_strictly(Manifest, values)
    except ValidationError as error:
        broken = [
            f"{'.'.join(str(part) for part in problem['loc']) or 'file'}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False)
        ]
        refuse("manifest-invalid", f"{MANIFEST} breaks its rules: {some(broken)}", why)


def check_manifest(manifest: Manifest) -> Iterable[Problem]:
    """Warnings about a valid manifest: a class without images, few images, many unreadable ones."""
    counts = manifest.class_counts or ()
    if empty := [name for name, n in zip(manifest.classes, counts, strict=False) if n == 0]:
        yield Problem(
            "empty-class",
            f"{manifest.site} has no training image of {some(empty)}",
            "This is allowed; the client model cannot recognize these classes.",
            "Nothing to do if other sites have them; class-count weights help the ensemble.",
            fatal=False,
        )
    if manifest.images < FEW_IMAGES:
        yield Problem(
            "few-images",
            f"{manifest.site} trained on {manifest.images} image(s)",
            f"This is allowed; a client model of fewer than {FEW_IMAGES} images is rarely good.",
            "Look at its validation metrics before you trust it.",
            fatal=False,
        )
    if manifest.skipped:
        yield Problem(
            "images-skipped",
            f"{manifest.site} could not read {manifest.skipped} image(s), and trained on "
            f"{manifest.images}",
            "If the unreadable ones are of one scanner or class, the client model lacks them.",
            "Ask the site which files `oneround train` named, and whether they can be converted.",
            fatal=False,
        )


def check_against_study(manifest: Manifest, study: Study) -> Iterable[Problem]:
    """Differences between the manifest and the study that the sites agreed on."""
    if manifest.study_hash != study.hash:
        what = f"written for the study {manifest.study!r}, hash {manifest.study_hash[:12]}…"
        why = f"This is the study {study.name!r}, hash {study.hash[:12]}…; any value changes it."
        yield Problem("other-study", what, why, _SAME_STUDY)
    if study.sites and manifest.site not in study.sites:
        what = f"{manifest.site!r} is not a site of the study"
        why = f"Its sites are {some(study.sites)}."
        remedy = "Correct the name at the site, or add it to the study before anyone trains."
        yield Problem("unknown-site", what, why, remedy)
    most = study.submission.most_images
    if most is not None and manifest.images > most:
        what = f"{manifest.site} claims {manifest.images} images, the study allows {most}"
        why = "Sites with more images weigh more, so the sites agreed on a bound."
        remedy = "Ask the site; correct submission.most_images in the study if it is too small."
        yield Problem("too-many-images", what, why, remedy)
    if manifest.classes != study.classes:
        yield _classes_differ(manifest.classes, study.classes, manifest.site)
    if manifest.image != study.image:
        what = f"trained on images of {manifest.image}, the study has {study.image}"
        why = "The same picture would be a different input to this client model."
        yield Problem("image-differs", what, why, _SAME_STUDY)
    if str(manifest.architecture) not in map(str, study.architectures):  # to Python, true equals 1
        allowed = ", ".join(str(architecture) for architecture in study.architectures)
        what = f"the architecture {some([str(manifest.architecture)])} is not allowed"
        yield Problem("architecture-not-allowed", what, f"Allowed are {allowed}.", _SAME_STUDY)


def check_signature(
    signed: Mapping[str, bytes], signature: bytes | None, public_key: str | None, site: str
) -> None:
    """Refuse a submission that its site has not signed.

    Args:
        signed: content of the signed members, by name.
        signature: content of ``signature.json``, if there is one.
        public_key: key of the site in the study, if there is one.
        site: name of the site.

    Raises:
        Refused: the study has no key of the site, or the file is not signed with that key.
    """
    if public_key is None:
        refuse(
            "unknown-key",
            f"the study has no key of {site!r}",
            "It lists keys, so every submission must be signed with one of them.",
            "Ask the site for its .pub file, and add it: "
            "oneround study keys STUDY --key SITE=FILE.pub.",
        )
    if signature is None:
        refuse(
            "not-signed",
            f"{site} has a key in the study, and the file is not signed",
            "Without a signature, anybody could have written it.",
            "Ask the site to sign it: oneround seal STUDY FILE --key KEY.",
        )
    try:
        signing.verify(signed, signature, public_key)
    except signing.WrongSignatureError as error:
        refuse(
            "wrong-signature",
            f"it is not what {site} signed with the key {signing.fingerprint(public_key)} "
            f"({some([str(error)])})",
            "It was changed after it was signed, or signed with another key.",
            ASK_AGAIN + " If the site has a new key, compare fingerprints over the telephone.",
        )


def expected_tensors(manifest: Manifest, study: Study | None) -> dict[str, torch.Tensor] | None:
    """The tensors of the network that the manifest names, by name, on the meta device.

    ``None`` if the study does not allow the network: then it is not even built.

    Raises:
        Refused: the network is unknown here, or cannot be built with these arguments.
    """
    architecture = manifest.architecture
    if study is not None and str(architecture) not in map(str, study.architectures):
        return None
    if architecture.name not in models.names():
        refuse(
            "unknown-architecture",
            f"the architecture {some([architecture.name])} is not known here",
            "A submission never brings code, so the reader must know the network.",
            "Register it with oneround.models.register, or install the package that has it.",
        )
    try:
        return models.expected_tensors(architecture, manifest.image, len(manifest.classes))
    except Exception as error:  # a builder, also one of a user, can raise anything
        refuse(
            "architecture-arguments",
            f"{some([str(architecture)])} cannot be built ({str(error)[:200]!r})",
            "Its arguments do not fit the network.",
            "Correct the arguments in the study, then train again.",
        )


def check_together(submissions: Sequence[Submission]) -> list[Problem]:
    """Problems of submissions that are each valid on their own."""
    problems = []
    for site, group in _grouped(submissions, lambda s: s.manifest.site).items():
        if len(group) > 1:
            what = f"{_paths(group)} are all from {site!r}"
            why = "Its images would count more than once."
            remedy = "Keep the one that the site wants to submit."
            problems.append(Problem("site-twice", what, why, remedy))
    for group in _grouped(submissions, lambda s: s.manifest.weights_sha256).values():
        if len({submission.manifest.site for submission in group}) > 1:
            what = f"{_paths(group)} hold the same weights under different site names"
            why = "Training at two sites never gives equal weights, so all but one are copies."
            remedy = "Ask the sites which file is theirs."
            problems.append(Problem("same-weights", what, why, remedy))
    studies = _grouped(submissions, lambda s: s.manifest.study_hash)
    if len(studies) > 1:
        what = "written for different studies: " + "; ".join(map(_paths, studies.values()))
        why = "Client models work together only if their sites agreed on everything."
        problems.append(Problem("different-studies", what, why, _SAME_STUDY))
    first, *others = _grouped(submissions, lambda s: s.manifest.classes).items() or [((), [])]
    problems += [_classes_differ(classes, first[0], _paths(group)) for classes, group in others]
    return problems


def _grouped(
    submissions: Iterable[Submission], key: Callable[[Submission], K]
) -> dict[K, list[Submission]]:
    groups: dict[K, list[Submission]] = {}
    for submission in submissions:
        groups.setdefault(key(submission), []).append(submission)
    return groups


def _paths(group: Iterable[Submission]) -> str:
    return ", ".join(str(submission.path) for submission in group)


def _classes_differ(found: Sequence[str], expected: Sequence[str], where: str) -> Problem:
    if sorted(found) == sorted(expected):
        what = f"{where}: the classes are the right ones in another order"
    else:
        what = f"{where}: the classes are {some(found)}, expected {some(expected)}"
    why = "Output number i of every client model must mean the same class."
    return Problem("classes-differ", what, why, _SAME_STUDY)
