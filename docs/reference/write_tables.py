"""Write the tables of options and commands again: ``python docs/reference/write_tables.py``.

They come from the code: what stands between the lines ``<!-- begin NAME -->`` and
``<!-- end NAME -->`` of ``options.md`` and ``commands.md`` is replaced.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from oneround import methods
from oneround.cli import COMMANDS, command_of

FOLDER = Path(__file__).parent


def pages() -> dict[Path, str]:
    """Each page with tables, as it should be."""
    every = "\n\n".join(f"## {name}\n\n{options(name)}" for name in methods.names())
    parts = {"commands": commands(), "methods": every}
    found = {}
    for path in (FOLDER / "options.md", FOLDER / "commands.md"):
        text = path.read_text(encoding="utf-8")
        for name, part in parts.items():
            begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
            if begin in text:
                before, _, rest = text.partition(begin)
                text = f"{before}{begin}\n{part}\n\n{end}{rest.partition(end)[2]}"
        found[path] = text
    return found


def options(name: str) -> str:
    """A table for each part of a method's options: values, presets, meaning."""
    method = methods.get(name)
    presets = {key: preset.model_dump(mode="json") for key, preset in method.presets.items()}
    tables = [
        f"### {title}\n\n{body}" if title else body
        for title, rows in _options(method.options, presets, "")
        for body in [table(["option", "values", *presets, "meaning"], rows)]
    ]
    about = [method.summary, f"Needs: {method.needs}"]
    return "\n\n".join([*about, *(tables or ["It has no options."])])


def _options(
    model: type[BaseModel], presets: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, list[list[str]]]]:
    """A title and the rows of ``model``, then those of every model in it."""
    schema = model.model_json_schema()
    documented = _attributes(model)
    rows, parts = [], []
    for key, field in model.model_fields.items():
        values = {name: preset[key] for name, preset in presets.items()}
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            parts.append((kind, values, f"{prefix}{key}."))
            continue
        allowed = schema["properties"][key]
        shown = [_value(value, allowed) for value in values.values()]
        meaning = documented[key]
        rows.append([f"`{prefix}{key}`", _allowed(allowed), *shown, meaning])
    if rows:
        yield prefix.rstrip("."), rows
    for part in parts:
        yield from _options(*part)


def _attributes(model: type[BaseModel]) -> dict[str, str]:
    """The section ``Attributes`` of a docstring and those it inherits, by name, as sentences."""
    inherited = [base for base in model.__bases__ if issubclass(base, BaseModel)]
    found = {k: v for base in inherited for k, v in _attributes(base).items()}
    section = (inspect.cleandoc(model.__doc__ or "")).partition("Attributes:\n")[2]
    for name, text in re.findall(r"^    (\w+): ((?:.|\n(?=        ))*)", section, re.MULTILINE):
        sentence = " ".join(text.split()).replace("``", "`")
        first = sentence[0].upper() if sentence[0].isascii() else sentence[0]
        found[name] = first + sentence[1:]
    return found


def _allowed(schema: Mapping[str, Any]) -> str:
    """What JSON schema allows, in words."""
    if "anyOf" in schema:
        return " or ".join(_allowed(part) for part in schema["anyOf"])
    if "$ref" in schema:
        return "[architecture](architectures.md)"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "array":
        if "prefixItems" in schema:
            items = schema["prefixItems"]
            return f"{len(items)} × {_allowed(items[0])}"
        return f"list of {_allowed(schema['items'])}"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    names = {"null": "none", "string": "text", "boolean": "true or false"}
    return " ".join([names.get(schema["type"], schema["type"]), ", ".join(bounds)]).strip()


def _value(value: object, schema: Mapping[str, Any]) -> str:
    every = schema.get("items", {}).get("enum")
    if every is not None and value == every:
        return "all"
    return (
        "none" if value is None else f"`{value if isinstance(value, str) else json.dumps(value)}`"
    )


def commands() -> str:
    """Every command: usage, what it does, its options."""
    return "\n\n".join(_command(name, command) for name, command in walk())


def walk() -> Iterator[tuple[str, Any]]:
    """Every command by its full name, such as ``study init``, but for earlier names; a study comes
    first."""
    found: dict[str, Any] = {name: command_of(name) for name in COMMANDS}
    shown = {name: command for name, command in found.items() if not command.hidden}
    for name, command in sorted(shown.items(), key=lambda item: item[0] != "study"):
        for below, part in getattr(command, "commands", {"": command}).items():
            yield f"{name} {below}".strip(), part


def _command(name: str, command: Any) -> str:
    paragraphs = inspect.cleandoc(command.help).split("\n\n")
    texts = [_with_example(" ".join(paragraph.split())) for paragraph in paragraphs]
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    usage = [f"oneround {name}", *(_argument(p) for p in arguments), "[OPTIONS]"]
    hints = get_type_hints(inspect.unwrap(command.callback))
    options = [p for p in command.params if p.param_type_name == "option" and p.name in hints]
    rows = [_option(p, hints[p.name]) for p in options]
    return "\n\n".join(
        [
            f"## {name}",
            f"`{' '.join(usage)}`",
            *texts,
            table(["option", "default", "meaning"], rows),
        ]
    )


def _with_example(text: str) -> str:
    """A paragraph that ends with a command, with that in a block of its own."""
    found = re.fullmatch(r"(.*): `(oneround [^`]*)`", text)
    if not found:
        return text
    lead, example = found.groups()
    return ("" if lead == "Example" else f"{lead}:\n\n") + f"```console\n{example}\n```"


def _argument(parameter: Any) -> str:
    shown = (parameter.metavar or parameter.name).strip("{}").rstrip("….").upper()
    return shown.replace(".TOML", ".toml") + ("…" if parameter.nargs == -1 else "")


def _option(parameter: Any, kind: Any) -> list[str]:
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    help_text = parameter.help or ""
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if not all(choice in help_text for choice in choices):
        help_text += f" One of {', '.join(choices)}."
    default = parameter.default
    if parameter.required:
        shown = "required"
    elif default is None or default == [] or default is False:
        shown = ""
    else:
        shown = "on" if default is True else f"`{default}`"
    return [names, shown, help_text]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


if __name__ == "__main__":
    for page, content in pages().items():
        page.write_text(content, encoding="utf-8")
