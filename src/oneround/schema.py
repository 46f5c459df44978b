"""Typed files: base class, types of names and numbers, validation, and options as text."""

from __future__ import annotations

import json
import os
import tomllib
import unicodedata
from collections.abc import Iterable
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal, Self, TypeGuard, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from oneround.errors import OneRoundError, printable

MOST_PROBLEMS = 10
"""Number of broken rules that one error lists at most."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9._ -]{0,63}$"
"""Pattern of a :data:`Name`."""

Name = Annotated[str, Field(pattern=NAME)]
"""A name that is also safe as a file name: letters, digits, ``._-`` and spaces."""

Text = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
"""One line without control characters, so that it can be printed on a terminal."""

PublicKey = Annotated[
    str, Field(pattern=r"^MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE[A-Za-z0-9+/]{86}==$")
]
"""A P-256 public key for signatures, base64 as in its PEM file; see :mod:`oneround.signing`."""

Recipient = Annotated[str, Field(pattern=r"^age1[02-9ac-hj-np-z]{58}$")]
"""An age recipient: the public key that files are encrypted to."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256, 64 hexadecimal digits."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
"""A number that is neither NaN nor infinite."""

Count = Annotated[int, Field(ge=0, le=10**12)]
"""A number of things, 0 to 10¹²."""

Share = Annotated[float, Field(ge=0, le=1)]
"""A number from 0 to 1."""


def _is_whole(value: object) -> object:
    if isinstance(value, bool | float):
        raise ValueError("must be a whole number")
    return value


WholeNumber = BeforeValidator(_is_whole)
"""For ``Literal`` numbers, which ``true`` and 1.0 would equal."""

FormatOne = Annotated[Literal[1], WholeNumber]
"""The version 1 of a file format."""


def _is_a_date(time: str) -> str:
    datetime.fromisoformat(time)
    return time


Time = Annotated[
    str,
    Field(
        max_length=40,
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?(Z|\+00:00)$",
    ),
    AfterValidator(_is_a_date),
]
"""A time in UTC, ISO 8601, of a day that there is."""

Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    """Base of typed files: unknown keys, NaN and infinity are errors, instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def validate_options(cls, content: object, source: str) -> Self:
        """``content`` as an instance of this class.

        Args:
            content: values by key.
            source: what the error names as their origin.

        Raises:
            OneRoundError: ``content`` breaks a rule; the message names ``source`` and the keys.
        """
        return validated(cls, content, source)


def read_strictly(model: type[Model], content: object) -> Model:
    """``content`` of a JSON or TOML file as an instance of ``model``.

    Numbers must be numbers: ``"120"``, ``true`` and, for a whole number, ``120.0`` are errors.
    Times may be those of TOML.

    Raises:
        ValidationError: ``content`` breaks a rule.
    """
    return model.model_validate_json(json.dumps(content, default=_time), strict=True)


def _time(value: object) -> str:
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is no value of JSON")


def validated(
    model: type[Model], content: object, file: str | os.PathLike[str], *, strictly: bool = False
) -> Model:
    """``content`` as an instance of ``model``.

    Args:
        model: class of the content.
        content: values by key.
        file: file that the content comes from, for the error.
        strictly: whether numbers must be numbers; see :func:`read_strictly`.

    Raises:
        OneRoundError: ``content`` breaks a rule; the message names file, keys and remedy.
    """
    try:
        return read_strictly(model, content) if strictly else model.model_validate(content)
    except ValidationError as error:
        problems = error.errors()
        lines = [
            printable(f"{'.'.join(map(str, problem['loc'])) or 'file'}: {problem['msg']}")
            for problem in problems[:MOST_PROBLEMS]
        ]
        if more := problems[MOST_PROBLEMS:]:
            lines.append(f"and {len(more)} more")
        keys = _keys_beside(model, problems[0]["loc"])
        raise OneRoundError(
            "; ".join(lines) + ".",
            file=file,
            remedy=f"Correct these keys; known are: {', '.join(keys)}.",
        ) from error


def _keys_beside(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """The keys that are known in the table of the last key of ``place``."""
    for part in place[:-1]:
        field = model.model_fields.get(str(part))
        if field is not None:
            inside = (field.annotation, *get_args(field.annotation))
            model = next((t for t in inside if _is_model(t)), model)
    return list(model.model_fields)


def _is_model(kind: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def comparable(name: str) -> str:
    """What two names of the same class or site have in common: names are compared by this alone.

    Case, white space, the way in which a letter with an accent is stored (a Mac stores two code
    points) and invisible characters make no difference (Unicode: NFKC, case folding).
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    visible = "".join(c for c in folded if unicodedata.category(c) != "Cf")
    return " ".join(visible.split())


def require_distinct(names: Iterable[str], what: str) -> None:
    """Refuse names that cannot be told apart.

    Raises:
        ValueError: two names are the same when compared; the message shows their difference.
    """
    seen: dict[str, str] = {}
    for name in names:
        key = comparable(name)
        if key in seen:
            same = "twice" if seen[key] == name else f"beside {visibly(seen[key])}"
            raise ValueError(
                f"{what} must be different from each other, not only in case, spaces or the way "
                f"that accents are stored: {visibly(name)} is there {same}"
            )
        seen[key] = name


def visibly(name: str) -> str:
    """A name in quotes, in which letters with accents and invisible characters are spelled out
    wherever another name could look the same."""
    plain = unicodedata.normalize("NFC", name) == name
    return repr(name) if plain and name.isprintable() else ascii(name)


def parse_assignment(text: str) -> dict[str, object]:
    """``a.b=value`` as a nested dict; the value is read as TOML, or else as a plain string.

    Raises:
        OneRoundError: there is no ``=`` or no key.
    """
    key, equals, value = text.partition("=")
    if not (key.strip() and equals):
        raise OneRoundError(
            f"{text!r} is not of the form key=value.", remedy="Write, e.g., inversion.steps=300."
        )
    content: object
    try:
        content = tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        content = value
    except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
        raise OneRoundError(
            f"the value of {printable(key, 40)} is no value ({printable(str(error), 100)}).",
            remedy="Write, e.g., inversion.steps=300.",
        ) from error
    for part in reversed(key.strip().split(".")):
        content = {part: content}
    assert isinstance(content, dict)
    return content


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` on top, table by table; neither is changed."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = merged(old, value)
        result[key] = value
    return result


def now() -> datetime:
    """The current time in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)
