"""The documentation says what the code does: links, site, commands and code are checked."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import oneround
from oneround import cli, methods, models
from oneround.cli import main
from oneround.coordinator.results import Results
from oneround.methods import Method
from oneround.models import registry
from oneround.models.batch_norm import batch_norms
from oneround.study import ArchitectureSpec, Study, TrainingSpec
from oneround.submission import Submission
from tests import servers, tiny
from tests.pages import (
    CONSOLE,
    DOCS,
    PAGES,
    PYTHON,
    ROOT,
    anchors,
    blocks,
    module,
    prose,
    run,
    tables,
)

COMMANDS = {name: cli.command_of(name) for name in (*cli.COMMANDS, *cli.HIDDEN)}


# Links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), target
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{target}: there is no such file"
        assert ROOT in path.parents, f"{target} leads out of the repository"
        assert not anchor or anchor in anchors(path), f"{target}: {sorted(anchors(path))}"


def test_every_page_is_in_the_index() -> None:
    linked = re.findall(r"\]\((?!\.\.)([^)#]+\.md)\)", prose(DOCS / "README.md"))
    written = {*DOCS.rglob("*.md")} - {DOCS / "README.md"}
    assert {DOCS / name for name in linked} == written


# The site


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.M)
    written = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")]
    assert sorted(listed) == sorted([*written, "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"])


def test_every_public_name_is_in_the_reference() -> None:
    text = (DOCS / "reference" / "api.md").read_text("utf-8")
    assert sorted(re.findall(r"^::: oneround\.(\w+)$", text, re.M)) == sorted(oneround.__all__)


def test_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loads = re.compile(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\W?(?:https?:)?//[^>]*>")
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        assert not loads.findall(page.read_text("utf-8")), page


# Commands


def commands() -> Iterator[tuple[Path, list[str]]]:
    for page in PAGES:
        for block in blocks(page, CONSOLE):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] == "oneround":
                    yield page, words[1:]


def find(words: list[str]) -> tuple[Any, list[str]]:
    """The command that ``words`` call, and its arguments."""
    name, *words = words
    assert name in COMMANDS, f"there is no command {name!r}"
    command: Any = COMMANDS[name]
    while hasattr(command, "commands"):
        name, *words = words
        assert name in command.commands, f"there is no command {name!r}"
        command = command.commands[name]
    return command, words


def test_commands_parse() -> None:
    found = list(commands())
    assert len(found) > 20
    for page, words in found:
        command, arguments = find(words)
        try:
            given = command.make_context(words[0], list(arguments)).params
            name = (given["method"] or methods.DEFAULT) if "method" in given else ""
            if name in methods.names() and not given.get("extend"):
                changes = [c for c in given["changes"] or [] if not c.startswith("training.")]
                methods.get(name).resolve("quick", changes)
        except Exception as error:
            pytest.fail(f"{page.name}: oneround {shlex.join(words)}: {error}")


def test_commands_in_the_text_are_there() -> None:
    for page in PAGES:
        for text in re.findall(r"`oneround ([a-z][^`]*)`", prose(page)):
            command, words = find(text.split())
            known = {name for parameter in command.params for name in parameter.opts}
            options = {word for word in words if word.startswith("--")}
            assert options <= known | {"--help"}, f"{page.name}: {text}"


def test_options_of_the_examples_are_those_of_the_default_method() -> None:
    found = [
        options.split()
        for page in PAGES
        for options in re.findall(r'examples/\S+ .*--options "([^"]+)"', page.read_text("utf-8"))
    ]
    assert found
    for changes in found:
        methods.get().resolve("quick", changes)


def test_scripts_import_what_is_there() -> None:
    scripts = [
        p for part in ("benchmarks", "docs", "examples") for p in (ROOT / part).rglob("*.py")
    ]
    assert len(scripts) > 10
    for script in scripts:
        for node in ast.walk(ast.parse(script.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("oneround"):
                module = importlib.import_module(node.module or "")
                missing = [name.name for name in node.names if not hasattr(module, name.name)]
                assert not missing, f"{script}: {node.module} has no {missing}"


def test_targets_of_make_are_there() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
    for page in PAGES:
        text = prose(page) + "".join(blocks(page, CONSOLE))
        assert set(re.findall(r"(?:^|`)make (\w+)", text, re.M)) <= set(targets), page


# Code


def test_python_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study = Study(
        name="cells",
        classes=("basophil", "eosinophil", "lymphocyte"),
        image=tiny.IMAGE,
        architectures=(tiny.RESNET,),
        training=TrainingSpec(epochs=1, batch_size=12),
    )
    study.write("blood.toml")
    for seed, site in enumerate(("north", "south")):
        for split, count in (("train", 24), ("test", 12)):
            images = tiny.images(count, seed=seed, classes=study.classes)
            tiny.write_folder(Path(site, "images", split), images)
    monkeypatch.setitem(
        methods.get().presets, "quick", methods.get().resolve("quick", tiny.HEADFIT)
    )
    (block,) = blocks(ROOT / "README.md", PYTHON)
    run(block, {}, ROOT / "README.md")
    assert Path("global/global.safetensors").exists()


def test_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom, with fewer images and steps."""
    monkeypatch.chdir(tmp_path)
    page = DOCS / "tutorials" / "first-study.md"
    (drawing,) = blocks(page, PYTHON)
    run(drawing, dict.fromkeys(("160", "120", "80", "40"), "4"), page)
    changes = {
        "init": ["--architecture=resnet18:width=2", "--set=training.epochs=1"],
        "aggregate": [f"--set={option}" for option in tiny.HEADFIT],
    }
    lines = [line for block in blocks(page, CONSOLE) for line in block.splitlines()]
    assert lines.pop(0) == "python draw.py"
    for line in lines:
        _, *words = shlex.split(line)
        more = [option for name, options in changes.items() if name in words for option in options]
        if {"train", "aggregate"} & set(words):
            more.append("--device=cpu")
        assert main([*words, *more]) == 0, line
    metrics = json.loads(Path("north-metrics.json").read_text("utf-8"))
    assert metrics["images"] == 24
    assert len(Path("predictions.csv").read_text("utf-8").splitlines()) == 25
    assert Path("north.contact-sheet.png").exists()
    assert Path("run/report.html").exists()


@pytest.mark.parametrize("carrier", ["folder", "sftp"])
def test_three_hospitals(
    carrier: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Line by line, with fewer images and steps; by SFTP with another word for the folder."""
    monkeypatch.chdir(tmp_path)
    page = DOCS / "tutorials" / "three-hospitals.md"
    (drawing,) = blocks(page, PYTHON)
    run(drawing, dict.fromkeys(("160", "120", "80", "40"), "8"), page)
    changes = {
        "init": ["--architecture=resnet18:width=2", "--set=training.epochs=1"],
        "train": ["--device=cpu"],
        "aggregate": ["--device=cpu", *(f"--set={option}" for option in tiny.HEADFIT)],
    }
    with servers.sftp_server(tmp_path / "server") as server:
        monkeypatch.setenv("HOME", str(tmp_path / "server"))
        codes = []
        for line in (line for block in blocks(page, CONSOLE) for line in block.splitlines()):
            command, *words = shlex.split(line)
            if command != "oneround":
                if carrier == "sftp":
                    line = line.replace("drop/", f"{server.home}/")
                line = line.replace("-c 100000", "-c 10000")  # the files here are small
                if command != "python":
                    assert subprocess.run(line, shell=True, check=False).returncode == 0, line
                continue
            if "--extend" in words:
                words += ["--device=cpu"]
            else:
                words += [more for name, all_ in changes.items() if name in words for more in all_]
            place = server.url if carrier == "sftp" else "drop"
            code = main([place if word == "drop" else word for word in words])
            codes.append((words[0], code))
            assert code == 0 or words[0] == "status", line
    assert [code for name, code in codes if name == "status"] == [1, 0]
    text = capsys.readouterr().out
    for part in ("other-recipient", "1 of 3 sites, 2 needed: not enough yet", "added west for"):
        assert part in text
    assert "At the sites" in Path("coordinator/run-2/report.html").read_text("utf-8")


def test_settings_of_flower() -> None:
    """Each option and setting, with its default."""
    pytest.importorskip("flwr", reason="needs the extra flower")
    from oneround.federation.flower.server import Settings
    from oneround.federation.site import Site

    _, options, settings = tables(DOCS / "how-to" / "flower.md")
    for table, model in ((options, Settings), (settings, Site)):
        written = [key for row in table for key in re.findall(r"`([\w-]+)`", row[0])]
        assert written == [name.replace("_", "-") for name in sorted_as(model, written)]
    app = tomllib.loads((ROOT / "examples/flower/pyproject.toml").read_text("utf-8"))
    given = app["tool"]["flwr"]["app"]["config"]
    read = Settings.validate_options({k.replace("-", "_"): v for k, v in given.items()}, "app")
    assert set(given) == {name.replace("_", "-") for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        assert field.is_required() or getattr(read, name) == field.default, name


def sorted_as(model: type[BaseModel], written: list[str]) -> list[str]:
    """The fields of a model in the order in which a page has them, the others last."""
    places = {key.replace("-", "_"): place for place, key in enumerate(written)}
    return sorted(model.model_fields, key=lambda name: places.get(name, len(places)))


def test_method_of_the_guide(tmp_path: Path, submissions: list[Submission]) -> None:
    (block,) = blocks(DOCS / "how-to" / "add-a-method.md", PYTHON)
    assert len([line for line in block.splitlines() if line.strip()]) < 40
    file = tmp_path / "bankonly.py"
    file.write_text(block, encoding="utf-8")
    method = Method.of(module(file))
    assert {"quick", "paper"} <= method.presets.keys()
    noise = ("adaptation.", "distillation.noise_pool", "distillation.mix")
    options = method.resolve("quick", [o for o in tiny.KANG2025 if not o.startswith(noise)])
    made = oneround.aggregate(
        tiny.STUDY, submissions, method=method, options=options, out=tmp_path / "run"
    )
    assert made.architectures == (tiny.RESNET,)
    assert Results.read(tmp_path / "run").method == "bankonly"


def test_network_of_the_guide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))
    page = DOCS / "how-to" / "own-network.md"
    (block,) = blocks(page, PYTHON)
    run(block, {}, page)
    architecture = ArchitectureSpec(name="two-layers", arguments={"width": 8})
    network = models.build(architecture, tiny.IMAGE, 3)
    assert network(tiny.images(2).pixels()).shape == (2, 3)
    assert len(list(batch_norms(network))) == 2


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_examples_compile(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("oneround"):
            source = importlib.import_module(node.module or "")
            assert all(hasattr(source, name.name) for name in node.names)
    assert f"python examples/{path.name}" in (ast.get_docstring(tree) or "")


def test_the_shortest_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    runpy.run_path(str(ROOT / "examples" / "own_network.py"))
    assert "restored exactly" in capsys.readouterr().out
