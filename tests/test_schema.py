from __future__ import annotations

import pytest

from oneround.errors import OneRoundError
from oneround.schema import merged, parse_assignment


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("steps=3", {"steps": 3}),
        ("a.b.c=0.5", {"a": {"b": {"c": 0.5}}}),
        ("a = true", {"a": True}),
        ("a=[1, 2]", {"a": [1, 2]}),
        ('a={name = "x"}', {"a": {"name": "x"}}),
        ("a=plain words", {"a": "plain words"}),
        ("a=x=y", {"a": "x=y"}),
        ("a=", {"a": ""}),
    ],
)
def test_parse_assignment(text: str, expected: dict[str, object]) -> None:
    assert parse_assignment(text) == expected


@pytest.mark.parametrize("text", ["steps", "=3", " = 3"])
def test_assignment_without_key_or_value(text: str) -> None:
    with pytest.raises(OneRoundError, match="not of the form key=value"):
        parse_assignment(text)


def test_merged_changes_neither() -> None:
    base, changes = {"a": {"x": 1, "y": 2}, "b": 1}, {"a": {"y": 3}, "c": {"z": 4}}
    assert merged(base, changes) == {"a": {"x": 1, "y": 3}, "b": 1, "c": {"z": 4}}
    assert base == {"a": {"x": 1, "y": 2}, "b": 1}
    assert changes == {"a": {"y": 3}, "c": {"z": 4}}
    assert merged({"a": {"x": 1}}, {"a": 2}) == {"a": 2}
