"""``oneround doctor``: what a bug report needs."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, requires, version

import torch
import typer
from packaging.requirements import Requirement
from rich.markup import escape
from rich.table import Table

from oneround.cli.console import AsJson, out, print_json, say
from oneround.data.dicom import decoders


def doctor(as_json: AsJson = False) -> None:
    """Show versions, device, packages and which DICOM files can be read; exit code 1 if a required
    package is missing.

    Example: `oneround doctor --json`
    """
    packages, missing = _packages()
    facts = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "device": _device(),
        "free temporary bytes": shutil.disk_usage(tempfile.gettempdir()).free,
    }
    if as_json:
        dicom = decoders()
        print_json({"facts": facts, "packages": packages, "missing": missing, "dicom": dicom})
    else:
        table = Table(show_header=False)
        for name, value in {**facts, **packages, **_dicom()}.items():
            table.add_row(name, escape(str(value)))
        out.print(table)
        for name in missing:
            say(f"missing: {name}", "red")
    if missing:
        raise typer.Exit(1)


def _packages() -> tuple[dict[str, str], list[str]]:
    """Version of every dependency; and those that are required and missing or too old."""
    found, missing = {"oneround": version("oneround")}, []
    for line in requires("oneround") or []:
        requirement = Requirement(line)
        optional = requirement.marker is not None
        try:
            found[requirement.name] = version(requirement.name)
        except PackageNotFoundError:
            found[requirement.name] = "not installed (optional)" if optional else "missing"
            if not optional:
                missing.append(requirement.name)
            continue
        if not optional and not requirement.specifier.contains(found[requirement.name], True):
            missing.append(f"{line} (found {found[requirement.name]})")
    return found, missing


def _dicom() -> dict[str, str]:
    """Decoders of each DICOM transfer syntax, or how to get them."""
    install = "not readable: pip install 'oneround[dicom]'"
    found = decoders()
    if found is None:
        return {"DICOM": install}
    return {f"DICOM {name}": ", ".join(by) or install for name, by in found.items()}


def _device() -> str:
    if torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name()}"
    return "mps" if torch.backends.mps.is_available() else "cpu"
