"""The public names of the package."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import oneround
from oneround.coordinator.aggregate import aggregate
from oneround.errors import RenamedWarning
from oneround.model_file import Model

ROOT = Path(__file__).parents[1]

TYPES = {
    "ImageSet", "Metrics", "Model", "OneRoundError", "Problem", "Results", "Splits", "Submission",
    "Task", "TrainedClient",
}  # fmt: skip
"""What the functions take, return and raise."""


def used() -> set[str]:
    """The names that README and examples use."""
    text = (ROOT / "README.md").read_text("utf-8")
    found = set(
        re.findall(
            r"\boneround\.([A-Za-z_]+)", "".join(re.findall(r"```python(.*?)```", text, re.S))
        )
    )
    for path in (ROOT / "examples").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "oneround":
                found |= {name.name for name in node.names}
    return found


def test_public_names_are_those_that_are_used() -> None:
    public = set(oneround.__all__)
    assert used() - {"signing", "models"} <= public
    assert public - used() - TYPES == {"seal_submission"}
    assert list(oneround.__all__) == sorted(oneround.__all__)
    assert public <= set(dir(oneround))


def test_every_public_name_is_there_and_documented() -> None:
    for name in oneround.__all__:
        assert getattr(oneround, name).__doc__, name
    assert oneround.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = oneround.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("distill", "aggregate", aggregate),
        ("GlobalModel", "Model", Model),
        ("LoadedModel", "Model", Model),
    ],
)
def test_names_of_the_version_before(old: str, new: str, what: object) -> None:
    with pytest.warns(RenamedWarning, match=rf"oneround\.{old} is called oneround\.{new} now"):
        assert getattr(oneround, old) is what
