"""What `import oneround` costs and needs, and that an installed package has all its files."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "oneround"
FILES = sorted(PACKAGE.rglob("*.py"))
SLOW = {"matplotlib", "monai", "lightning_fabric", "pydicom", "torchvision"}
POSIX = {"fcntl", "grp", "pwd", "resource", "termios"}
POSIX_OF_OS = {"fork", "geteuid", "getgid", "getuid", "killpg", "setsid", "sysconf", "uname"}

EVERY_NAME = f"""
import json, logging, sys
sys.modules.update(dict.fromkeys({sorted(POSIX)}))
import oneround
for name in oneround.__all__:
    getattr(oneround, name)
names = [name for name in logging.root.manager.loggerDict if name.startswith("oneround")]
loggers = [logging.getLogger(name) for name in names]
changed = [log.name for log in loggers if log.level or log.handlers]
print(json.dumps([sorted(sys.modules), names, changed]))
"""


def python(code: str) -> str:
    """Output of ``code`` in a process of its own."""
    call = [sys.executable, "-c", code]
    return subprocess.run(call, check=True, capture_output=True, text=True).stdout


def test_the_bare_import_waits_for_everything_slow() -> None:
    loaded = python("import oneround, sys; print(*sys.modules)").split()
    assert not {"torch", "numpy", "pydantic", *SLOW} & set(loaded)


def test_every_public_name_on_a_system_without_posix() -> None:
    """As far as that can be seen on one that has it: the modules cannot be imported."""
    loaded, loggers, changed = json.loads(python(EVERY_NAME))
    assert {"torch", "oneround.methods"} <= set(loaded)
    assert not SLOW & set(loaded)
    assert loggers
    assert not changed, "a level or a handler is for the program to set"


def at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """All nodes but those inside functions."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [n for n in ast.iter_child_nodes(node) if not isinstance(n, functions)]


def posix_names(node: ast.AST) -> set[str]:
    """What ``node`` uses that only POSIX has."""
    match node:
        case ast.Import(names=names):
            return {name.name for name in names} & POSIX
        case ast.ImportFrom(module="os", names=names):
            return {name.name for name in names} & POSIX_OF_OS
        case ast.ImportFrom(module=str(module)):
            return {module} & POSIX
        case ast.Attribute(value=ast.Name(id="os"), attr=name):
            return {name} & POSIX_OF_OS
    return set()


def needs_posix(code: str) -> set[str]:
    """What only POSIX has of what runs when this is imported."""
    return set().union(*map(posix_names, at_import(ast.parse(code))))


def test_no_module_needs_posix() -> None:
    assert needs_posix("try:\n  import fcntl\nexcept ImportError:\n  pass") == {"fcntl"}
    assert needs_posix("class A:\n  user = os.getuid()") == {"getuid"}
    assert needs_posix("from os import fork\nfrom pwd import getpwuid") == {"fork", "pwd"}
    assert not needs_posix("def f():\n  import fcntl\n  os.getuid()")
    assert len(FILES) > 100
    found = {path: needs_posix(path.read_text("utf-8")) for path in FILES}
    assert not {path: names for path, names in found.items() if names}


def test_the_wheel_has_every_file_of_the_package(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    made_here = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=made_here)
    files = {path.relative_to(tmp_path / "src") for path in (tmp_path / "src").rglob("*.*")}
    assert {Path("oneround/py.typed"), Path("oneround/report/page.html.j2")} <= files
    code = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not {path.as_posix() for path in files} - set(archive.namelist())


def test_the_source_distribution_has_what_its_tests_read(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "Makefile"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("CONTRIBUTING.md", "constraints.txt", "mkdocs.yml"):
        shutil.copy(ROOT / name, tmp_path)
    made_here = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "tests", "docs", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=made_here)
    files = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    code = "from setuptools.build_meta import build_sdist; build_sdist('made')"
    (tmp_path / "made").mkdir()
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    (made,) = (tmp_path / "made").glob("*.tar.gz")
    with tarfile.open(made) as archive:
        inside = {Path(*Path(name).parts[1:]) for name in archive.getnames()}
    assert Path("tests/conftest.py") in files
    assert not files - inside
