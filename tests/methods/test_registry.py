from __future__ import annotations

import inspect
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

from oneround import methods
from oneround.errors import OneRoundError
from oneround.methods import Method
from oneround.model_file import Model
from oneround.schema import Strict


@pytest.mark.parametrize("name", methods.names())
def test_every_method_is_complete(name: str) -> None:
    method = methods.get(name)
    assert method.name == name
    assert {"quick", "paper"} <= method.presets.keys()
    assert all(isinstance(preset, method.options) for preset in method.presets.values())
    assert list(inspect.signature(method.function).parameters) == [
        "ensemble",
        "run",
        "options",
    ]
    assert method.needs.endswith(".")
    assert method.summary.endswith(".")
    module = inspect.getmodule(method.function)
    assert module is not None
    assert "et al." in (module.__doc__ or ""), "the paper is named"


def test_names() -> None:
    assert {"kang2025", "ensemble", "fedavg"} <= set(methods.names())
    with pytest.raises(OneRoundError, match="no method 'kang'") as caught:
        methods.get("kang")
    assert "kang2025" in caught.value.remedy


def test_options_are_resolved() -> None:
    method = methods.get("kang2025")
    assert method.resolve("paper") == method.presets["paper"]
    one = method.resolve("quick", "inversion.steps=7")
    assert one == method.resolve("quick", ["inversion.steps=7"])
    changed = method.resolve("quick", ["inversion.steps=7", "rule=logits", "inversion.images=3"])
    content = method.presets["quick"].model_dump()
    content["rule"] = "logits"
    content["inversion"] |= {"steps": 7, "images": 3}
    assert changed == method.options.model_validate(content)


@pytest.mark.parametrize(
    ("preset", "assignment", "reason"),
    [
        ("fast", "rule=logits", "no preset 'fast'"),
        ("quick", "inversion.stepz=7", r"inversion\.stepz"),
        ("quick", "inversion.steps=0", r"inversion\.steps"),
        ("quick", "inversion.steps=many", r"inversion\.steps"),
        ("quick", "inversion", "key=value"),
    ],
)
def test_options_that_are_not_possible(preset: str, assignment: str, reason: str) -> None:
    with pytest.raises(OneRoundError, match=reason) as caught:
        methods.get("kang2025").resolve(preset, [assignment])
    assert caught.value.remedy


class Options(Strict):
    """Of the method below."""


def test_an_installed_package_adds_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("package.newest")

    def newest(*parts: object) -> Model:
        raise NotImplementedError

    vars(module).update(newest=newest, Options=Options, PRESETS={"quick": Options()})
    point = EntryPoint("newest", "package.newest", "oneround.methods")
    monkeypatch.setattr(EntryPoint, "load", lambda self: module)
    monkeypatch.setattr(methods, "entry_points", lambda group: [point])
    assert "newest" in methods.names()
    assert methods.get("newest") == Method("newest", newest, Options, {"quick": Options()})
