"""The one file that a site submits: a manifest and the weights of its client model.

``NAME.oneround`` is an uncompressed ZIP file with ``manifest.json``, ``model.safetensors`` and, if
it is signed, ``signature.json``: no images, no pickle, no code. :func:`write_submission` writes it,
:func:`seal_submission` signs and encrypts it if the study asks for that,
:func:`check_submission` lists everything that is wrong with one, :func:`read_submission` and
:func:`read_submissions` restore client models and refuse files with fatal problems.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oneround.submission.checks import check_against_study, check_together
    from oneround.submission.container import FILE_NAME, LIMIT_BYTES
    from oneround.submission.manifest import Manifest, Privacy, Submission, TrainingSummary
    from oneround.submission.read import (
        check_submission,
        read_submission,
        read_submissions,
    )
    from oneround.submission.seal import encrypted_path, seal_submission
    from oneround.submission.write import write_submission

__all__ = [
    "FILE_NAME",
    "LIMIT_BYTES",
    "Manifest",
    "Privacy",
    "Submission",
    "TrainingSummary",
    "check_against_study",
    "check_submission",
    "check_together",
    "encrypted_path",
    "read_submission",
    "read_submissions",
    "seal_submission",
    "write_submission",
]

_WHERE = {
    "checks": ("check_against_study", "check_together"),
    "container": ("FILE_NAME", "LIMIT_BYTES"),
    "manifest": ("Manifest", "Privacy", "Submission", "TrainingSummary"),
    "read": ("check_submission", "read_submission", "read_submissions"),
    "seal": ("encrypted_path", "seal_submission"),
    "write": ("write_submission",),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}


def __getattr__(name: str) -> object:
    """A public name, imported when it is first used: a transfer of files needs no torch."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
