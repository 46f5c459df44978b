"""The tables of the reference say what the code does."""

from __future__ import annotations

import ast
import difflib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import oneround
from oneround import methods, models
from oneround.coordinator.results import Models, Results
from oneround.evaluation import Metrics
from oneround.models import registry
from oneround.research.benchmark.grid import Bench, DataSource, Entry
from oneround.runs.cost import Cost
from oneround.study import ArchitectureSpec, ImageSpec, Study, SubmissionSpec, TrainingSpec
from oneround.submission import Manifest, TrainingSummary
from tests.pages import DOCS, blocks, keys, module, tables


@pytest.mark.parametrize("name", ["options.md", "commands.md"])
def test_written_tables_are_up_to_date(name: str) -> None:
    pages = module(DOCS / "reference" / "write_tables.py").pages()
    path = DOCS / "reference" / name
    difference = difflib.unified_diff(
        path.read_text("utf-8").splitlines(), pages[path].splitlines(), "is", "should be", n=0
    )
    changed = "\n".join(difference)
    assert not changed, f"run python docs/reference/write_tables.py\n{changed}"


@pytest.mark.parametrize("name", methods.names())
def test_every_option_is_in_the_table(name: str) -> None:
    def names(content: dict[str, Any], prefix: str = "") -> Iterator[str]:
        parts = {key: value for key, value in content.items() if isinstance(value, dict)}
        yield from (f"{prefix}{key}" for key in content if key not in parts)
        for key, value in parts.items():
            yield from names(value, f"{prefix}{key}.")

    method = methods.get(name)
    text = (DOCS / "reference" / "options.md").read_text("utf-8")
    section = text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    written = re.findall(r"^\| `([\w.]+)` \|", section, re.M)
    assert written == list(names(method.presets["quick"].model_dump()))


@pytest.mark.parametrize(
    ("number", "model"),
    list(enumerate((Study, SubmissionSpec, ImageSpec, ArchitectureSpec, TrainingSpec))),
)
def test_keys_of_the_study(number: int, model: type[BaseModel]) -> None:
    table = tables(DOCS / "reference" / "study.md")[number]
    assert keys(table) == list(model.model_fields)
    for row, field in zip(table, model.model_fields.values(), strict=True):
        default = field.get_default(call_default_factory=True)
        nested = isinstance(default, BaseModel) or (
            isinstance(default, tuple) and bool(default) and isinstance(default[0], BaseModel)
        )
        expected = (
            "required"
            if default is PydanticUndefined
            else "see below"
            if nested
            else "none"
            if default is None
            else f"`{json.dumps(default)}`"
        )
        assert row[1] == expected, f"study.md: {row[0]} should have the default {expected}"


@pytest.mark.parametrize(("number", "model"), list(enumerate((Bench, DataSource, Entry))))
def test_keys_of_a_benchmark(number: int, model: type[BaseModel]) -> None:
    table = tables(DOCS / "reference" / "benchmark.md")[number]
    assert keys(table) == list(model.model_fields)
    for row, field in zip(table, model.model_fields.values(), strict=True):
        default = field.get_default(call_default_factory=True)
        expected = (
            "required"
            if default is PydanticUndefined
            else "none"
            if default is None
            else f"`{json.dumps(default)}`"
        )
        assert row[1] == expected, row[0]


def test_benchmark_of_the_reference_is_valid(tmp_path: Path) -> None:
    (block,) = blocks(DOCS / "reference" / "benchmark.md", "toml")
    (tmp_path / "bench.toml").write_text(block, encoding="utf-8")
    assert len(Bench.read(tmp_path / "bench.toml").entries) == 2


def test_study_of_the_reference_is_valid(tmp_path: Path) -> None:
    (block,) = blocks(DOCS / "reference" / "study.md", "toml")
    (tmp_path / "study.toml").write_text(block, encoding="utf-8")
    study = Study.read(tmp_path / "study.toml")
    models.build(study.architectures[0], study.image, len(study.classes))


def test_architectures() -> None:
    written: dict[str, dict[str, str]] = {}
    name = ""
    (table,) = tables(DOCS / "reference" / "architectures.md")
    for first, argument, default, _ in table:
        name = first.strip("`") or name
        written.setdefault(name, {})[argument.strip("`")] = default.strip("`")
    expected = {
        name: {
            key: json.dumps(parameter.default)
            for key, parameter in inspect.signature(builder).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }
        for name, builder in registry._BUILDERS.items()
    }
    assert written == expected


def test_keys_of_the_manifest() -> None:
    members, manifest, training, *_ = tables(DOCS / "reference" / "submission-format.md")
    assert keys(members) == ["manifest.json", "model.safetensors", "signature.json"]
    assert keys(manifest) == list(Manifest.model_fields)
    assert keys(training) == list(TrainingSummary.model_fields)


def test_codes_of_problems() -> None:
    """Every code in the source is in a table and the other way around."""
    codes = set()
    for path in Path(inspect.getfile(oneround.submission)).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                codes |= set(re.findall(r"^[a-z]+(?:-[a-z]+)+$", node.value))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                first = node.args[0]
                if node.func.id in ("Problem", "refuse") and isinstance(first, ast.Constant):
                    codes.add(first.value)
    _, _, _, *found = tables(DOCS / "reference" / "submission-format.md")
    written = [code for table in found for code in keys(table)]
    assert sorted(written) == sorted(codes - {"utf-8"})


def test_keys_of_the_results() -> None:
    files, *found = tables(DOCS / "reference" / "results.md")
    expected = (Results, Models, Metrics, Cost)
    for table, model in zip(found, expected, strict=True):
        names = [field.alias or name for name, field in model.model_fields.items()]
        assert keys(table) == names, f"results.md, {model.__name__}"
    assert "`results.json`" in [row[0] for row in files]
