"""Methods: ways from client models to one global model, most of them published, one file each.

The name of a method is the name of its file. The file defines

- ``Options``: a typed model of all options of the method,
- ``PRESETS``: complete options by name, ``quick`` and ``paper`` among them,
- ``NEEDS``: what the method needs of client models or of the run, in one sentence,
- a function of the same name: ``(ensemble, run, options) -> Model``; ``ensemble.task`` has the
  image size and the classes,
- if the method can add late-joining sites, a function ``extend``: ``(ensemble, options, RUN folder
  of the earlier model, late-joining sites) -> options``.

Nothing else has to be edited. An installed package adds a method with an entry point in the
group ``oneround.methods`` that names such a module.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from oneround.data import ImageSet
from oneround.errors import OneRoundError, warn_renamed
from oneround.model_file import Model
from oneround.models.ensemble import Ensemble
from oneround.runs.run import Run
from oneround.schema import Strict, merged, parse_assignment
from oneround.study import Study

DEFAULT = "headfit"
"""Default method of commands and functions."""

RENAMED = {"oneround": "headfit"}
"""Earlier names of methods with their new ones; they still work, with a warning."""


@dataclass(frozen=True)
class SimulatedSites:
    """Images of all sites of a simulation, for centralized training and for FedAvg of many rounds.

    Attributes:
        study: The study, with the training recipe.
        images: Training and validation images of each site, by its name.
    """

    study: Study
    images: Mapping[str, tuple[ImageSet, ImageSet | None]]

    @classmethod
    def of(cls, run: Run, purpose: str) -> SimulatedSites:
        """The simulated sites of a run.

        Args:
            run: The run.
            purpose: Name of what needs them, for the error.

        Raises:
            OneRoundError: the run is not a simulation.
        """
        if not isinstance(run.simulated, SimulatedSites):
            raise OneRoundError(
                f"{purpose} needs the images of all sites, which only a simulation has.",
                remedy="Use `oneround simulate`, or a method that works from submissions.",
            )
        return run.simulated


@dataclass(frozen=True)
class Method:
    """A method, as its file defines it.

    Attributes:
        name: Name of the method.
        function: Function ``(ensemble, run, options) -> Model``.
        options: Type of its options.
        presets: Complete options by name.
        summary: First line of the docstring of its file.
        needs: What it needs of client models or of the run, in one sentence.
        extend: Options of a run that adds late-joining sites; ``None``: the method cannot.
    """

    name: str
    function: Callable[[Ensemble, Run, Any], Model]
    options: type[Strict]
    presets: dict[str, Strict]
    summary: str = ""
    needs: str = ""
    extend: Callable[[Ensemble, Any, Path, Sequence[str]], Any] | None = None

    @classmethod
    def of(cls, module: ModuleType) -> Method:
        """The method that ``module`` defines."""
        name = module.__name__.rpartition(".")[2]
        summary = (module.__doc__ or "").strip().partition("\n")[0]
        needs = getattr(module, "NEEDS", "")
        extend = getattr(module, "extend", None)
        function = getattr(module, name)
        return cls(name, function, module.Options, module.PRESETS, summary, needs, extend)

    def resolve(
        self,
        preset: str = "quick",
        changes: Sequence[str] | Mapping[str, Any] = (),
    ) -> Strict:
        """Options of ``preset`` with changes.

        Args:
            preset: Name of a preset.
            changes: Assignments such as ``distillation.steps=500``, or nested mappings such as
                ``{"distillation": {"steps": 500}}``.

        Raises:
            OneRoundError: the preset or a key is unknown, or a value is not allowed.
        """
        if preset not in self.presets:
            raise OneRoundError(
                f"method {self.name} has no preset {preset!r}.",
                remedy=f"It has {', '.join(self.presets)}.",
            )
        return self.options_from(self.presets[preset].model_dump(mode="json"), changes)

    def options_from(
        self, content: dict[str, Any], changes: Sequence[str] | Mapping[str, Any] = ()
    ) -> Strict:
        """Options from plain ``content`` with changes, as for :meth:`resolve`.

        Raises:
            OneRoundError: a key is unknown, or a value is not allowed.
        """
        if isinstance(changes, Mapping):
            content = merged(content, dict(changes))
        else:
            for assignment in [changes] if isinstance(changes, str) else changes:
                content = merged(content, parse_assignment(assignment))
        return self.options.validate_options(content, f"options of {self.name}")


def names() -> list[str]:
    """Names of all methods, including those of installed packages."""
    own = [module.name for module in pkgutil.iter_modules(__path__)]
    return sorted({*own, *(point.name for point in entry_points(group="oneround.methods"))})


def current_name(name: str) -> str:
    """The current name of a method, with a warning if ``name`` is an earlier one."""
    if name in RENAMED:
        warn_renamed(f"the method {name}", RENAMED[name])
    return RENAMED.get(name, name)


def get(name: str = DEFAULT) -> Method:
    """The method called ``name``.

    Raises:
        OneRoundError: there is no such method.
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


def configured(
    method: str | Method = DEFAULT,
    preset: str | None = None,
    options: Strict | Mapping[str, Any] | Sequence[str] | None = None,
) -> tuple[Method, Strict]:
    """A method and its options, given by names.

    Args:
        method: Name of a method, or a method of your own.
        preset: Name of a preset; ``quick`` by default.
        options: Changes to the preset, see :meth:`Method.resolve`; or complete options.

    Raises:
        OneRoundError: there is no such method, preset or option, or the options are those of
            another method.
    """
    method = get(method) if isinstance(method, str) else method
    if not isinstance(options, Strict):
        return method, method.resolve(preset or "quick", options or ())
    if not isinstance(options, method.options):
        raise OneRoundError(
            f"the options are not those of the method {method.name}.",
            remedy="Name their method too: aggregate(..., method=..., options=...).",
        )
    return method, options
