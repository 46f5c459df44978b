"""What the tests of the documentation share: pages, and what is in them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
PYTHON, CONSOLE = "python", "console"


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
