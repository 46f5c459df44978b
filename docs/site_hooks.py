"""What the site needs beside the pages: links that leave ``docs/``, and roles in docstrings.

Pages are written for a code host, where a link may lead to any file of the repository. On the site,
Markdown files outside ``docs/`` become pages under the path that they have in the repository; of a
link to anything else, such as source code, the text is left.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from griffe import Extension, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

ROOT = Path(__file__).parents[1]
OUTSIDE = [
    *(f"{name}.md" for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY")),
    *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("benchmarks/*/*.md")),
]
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)
ROLE = re.compile(r":\w+:`(?:~[\w.]*?)?([\w.]+)`")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Anchors of headings as a code host makes them."""
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside ``docs/``."""
    for path in OUTSIDE:
        kept = InclusionLevel.NOT_IN_NAV if "/" in path else InclusionLevel.UNDEFINED
        text = (ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, path, content=text, inclusion=kept))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links to files of the repository into links to pages of the site."""
    source = page.file.src_uri

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        if re.match(r"[a-z]+:", target):
            return found[0]
        place = repository_path(source)
        goal = site_path(posixpath.normpath(posixpath.join(posixpath.dirname(place), target)))
        if goal is None:
            return text
        return f"[{text}]({posixpath.relpath(goal, posixpath.dirname(source) or '.')}{anchor})"

    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(link, part) for part in parts)


def repository_path(page: str) -> str:
    """Path of a page of the site in the repository."""
    return page if page in OUTSIDE else f"docs/{page}"


def site_path(path: str) -> str | None:
    """Path on the site of a file of the repository; ``None``: it is not there."""
    if path in OUTSIDE:
        return path
    inside = path.startswith("docs/") and path.endswith((".md", ".png", ".svg"))
    return path.removeprefix("docs/") if inside else None


class Roles(Extension):
    """Sphinx roles in docstrings, such as ``:func:`~oneround.aggregate```, as code."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Change the docstring of ``obj``."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)
