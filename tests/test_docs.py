"""The documentation says what the code does: links, commands, code and tables are checked."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
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
from types import ModuleType
from typing import Any

import pytest
import typer.main
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import oneround
from oneround import methods, models
from oneround.cli import app, main
from oneround.coordinator import aggregate
from oneround.coordinator.results import Models, Results
from oneround.evaluation import Metrics
from oneround.methods import Method
from oneround.models import registry
from oneround.models.batch_norm import batch_norms
from oneround.research.benchmark.grid import Bench, DataSource, Entry
from oneround.runs.cost import Cost
from oneround.study import ArchitectureSpec, ImageSpec, Study, SubmissionSpec, TrainingSpec
from oneround.submission import Manifest, Submission, TrainingSummary
from tests import servers, tiny

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
PYTHON, CONSOLE = "python", "console"
COMMANDS: Any = typer.main.get_command(app)


def blocks(page: Path, language: str) -> list[str]:
    """Content of the fenced blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)


def prose(page: Path) -> str:
    """The page without fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)


def tables(page: Path) -> list[list[list[str]]]:
    """Cells of each table, without head."""
    found = re.findall(r"(?:^\|.*\n?)+", prose(page), re.M)
    return [
        [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]
        for lines in (table.splitlines() for table in found)
    ]


def keys(table: list[list[str]]) -> list[str]:
    """The first column, without the marks of code."""
    return [row[0].strip("`") for row in table]


def anchors(page: Path) -> set[str]:
    """What a link to a heading may be called, as GitHub does it."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def run(code: str, replaced: dict[str, str], page: Path) -> None:
    """Run a block with smaller numbers, each of which must be there."""
    for old, new in replaced.items():
        assert old in code, f"{page}: the test replaces {old!r}, which is not in the block any more"
        code = code.replace(old, new)
    exec(compile(code, page, "exec"), {"__name__": "__main__"})


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


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
    command = COMMANDS
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
    options = method.resolve("quick", [o for o in tiny.KANG2025 if not o.startswith("adaptation")])
    made = aggregate(tiny.STUDY, submissions, method=method, options=options, out=tmp_path / "run")
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


# Tables


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
