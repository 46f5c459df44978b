"""Methods: published ways from submissions to one global model, one file each.

The name of a method is the name of its file. The file defines

- ``Options``: a typed model of everything that can be chosen,
- ``PRESETS``: complete options by name, ``quick`` and ``paper`` among them,
- ``NEEDS``: what it needs of client models or of the run, one sentence,
- a function of the same name: ``(ensemble, study, run, options) -> GlobalModel``,
- if it can go on when sites come late, a function ``extend``: ``(ensemble, study, options, RUN
  folder of the earlier model, new sites) -> options``.

Nothing else has to be edited. An installed package adds a method with an entry point in the
group ``oneround.methods`` that names such a module.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from oneround.errors import OneRoundError, warn_renamed
from oneround.models.ensemble import Ensemble
from oneround.runs.run import Run
from oneround.schema import Strict, merged, parse_assignment
from oneround.study import ArchitectureSpec, Study

DEFAULT = "headfit"
"""The method of every command and function where none is named."""

RENAMED = {"oneround": "headfit"}
"""Names that methods had in the version before; they still work, and say what to use."""


@dataclass(frozen=True)
class GlobalModel:
    """What a method returns.

    Attributes:
        model: one network, or an :class:`~oneround.models.ensemble.Ensemble`; in eval mode.
        architectures: of the network, or of every network of the ensemble.
        bytes_sent: up and down in all, where this is not one submission of each site and the
            global model back to it.
        notes: what those who get it should know, one sentence each.
    """

    model: nn.Module
    architectures: tuple[ArchitectureSpec, ...]
    bytes_sent: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Method:
    """A method as its file defines it; ``summary`` is the first line of its docstring."""

    name: str
    function: Callable[[Ensemble, Study, Run, Any], GlobalModel]
    options: type[Strict]
    presets: dict[str, Strict]
    summary: str = ""
    needs: str = ""
    extend: Callable[[Ensemble, Study, Any, Path, Sequence[str]], Any] | None = None

    @classmethod
    def of(cls, module: ModuleType) -> Method:
        """The method that ``module`` defines."""
        name = module.__name__.rpartition(".")[2]
        summary = (module.__doc__ or "").strip().partition("\n")[0]
        needs = getattr(module, "NEEDS", "")
        extend = getattr(module, "extend", None)
        function = getattr(module, name)
        return cls(name, function, module.Options, module.PRESETS, summary, needs, extend)

    def resolve(self, preset: str = "quick", assignments: Sequence[str] = ()) -> Strict:
        """Options of ``preset`` with ``key.subkey=value`` assignments on top.

        Raises:
            OneRoundError: the preset or a key is unknown, or a value is not allowed.
        """
        if preset not in self.presets:
            raise OneRoundError(
                f"method {self.name} has no preset {preset!r}.",
                remedy=f"It has {', '.join(self.presets)}.",
            )
        return self.options_from(self.presets[preset].model_dump(mode="json"), assignments)

    def options_from(self, content: dict[str, Any], assignments: Sequence[str] = ()) -> Strict:
        """Options from plain ``content`` with assignments on top.

        Raises:
            OneRoundError: a key is unknown, or a value is not allowed.
        """
        for assignment in assignments:
            content = merged(content, parse_assignment(assignment))
        return self.options.validate_options(content, f"options of {self.name}")


def names() -> list[str]:
    """Names of all methods, those of installed packages included."""
    own = [module.name for module in pkgutil.iter_modules(__path__)]
    return sorted({*own, *(point.name for point in entry_points(group="oneround.methods"))})


def current_name(name: str) -> str:
    """The name that a method has now; a warning where that is another one."""
    if name in RENAMED:
        warn_renamed(f"the method {name}", RENAMED[name])
    return RENAMED.get(name, name)


def get(name: str = DEFAULT) -> Method:
    """The method called ``name``.

    Raises:
        OneRoundError: there is none.
    """
    name = current_name(name)
    if name not in names():
        raise OneRoundError(
            f"there is no method {name!r}.", remedy=f"Methods are {', '.join(names())}."
        )
    for point in entry_points(group="oneround.methods"):
        if point.name == name:
            return Method.of(point.load())
    return Method.of(importlib.import_module(f"{__name__}.{name}"))
