"""Typed files: the base of all that is read, the names and numbers in it, and its errors."""

from __future__ import annotations

import os
import tomllib
from datetime import UTC, datetime
from typing import Annotated, Any, Self, TypeGuard, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from oneround.errors import OneRoundError, printable

MOST_PROBLEMS = 10  #: that one error tells of


NAME = r"^[A-Za-z0-9][A-Za-z0-9._ -]{0,63}$"

Name = Annotated[str, Field(pattern=NAME)]
"""A name that is also safe as a file name: letters, digits, ``._-`` and spaces."""

Text = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
"""One line without control characters, so that it can be printed on a terminal."""

PublicKey = Annotated[
    str, Field(pattern=r"^MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE[A-Za-z0-9+/]{86}==$")
]
"""A P-256 key for signatures: what its PEM file has in the middle; see :mod:`oneround.signing`."""

Recipient = Annotated[str, Field(pattern=r"^age1[02-9ac-hj-np-z]{58}$")]
"""An age key that files are encrypted to."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

Finite = Annotated[float, Field(allow_inf_nan=False)]

Count = Annotated[int, Field(ge=0, le=10**12)]

Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    """Base of typed files: unknown keys, NaN and infinity are errors, instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def validate_options(cls, content: object, source: str) -> Self:
        """``content`` as this model; :class:`OneRoundError` names ``source`` and the key."""
        return validated(cls, content, source)


def validated(model: type[Model], content: object, file: str | os.PathLike[str]) -> Model:
    """``content`` as ``model``, or an error that names file, key and remedy.

    Raises:
        OneRoundError: with the rules that are broken.
    """
    try:
        return model.model_validate(content)
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
    """The keys of the table in which the last key of ``place`` stands, or would stand."""
    for part in place[:-1]:
        field = model.model_fields.get(str(part))
        if field is not None:
            inside = (field.annotation, *get_args(field.annotation))
            model = next((t for t in inside if _is_model(t)), model)
    return list(model.model_fields)


def _is_model(kind: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def parse_assignment(text: str) -> dict[str, object]:
    """``a.b=value`` as nested dict; the value as in TOML, or else as a plain string.

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
    """The time in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)
