from __future__ import annotations

import pytest

from oneround.errors import OneRoundError
from oneround.schema import comparable, merged, parse_assignment, require_distinct


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


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Normal", "  NORMAL", True),
        ("no  sign", "no\u00a0sign", True),
        ("b\u00e9nin", "be\u0301nin", True),
        ("stra\u00dfe", "STRASSE", True),
        ("\ufb01ne", "fine", True),
        ("a\u200bb", "ab", True),
        ("benin", "b\u00e9nin", False),
        ("grade 1", "grade 2", False),
        ("no-sign", "no sign", False),
    ],
)
def test_names_are_compared(one: str, other: str, same: bool) -> None:
    assert (comparable(one) == comparable(other)) == same


def test_names_that_look_the_same_are_shown_apart() -> None:
    require_distinct(["a", "b"], "classes")
    with pytest.raises(ValueError, match=r"'be.u0301nin' is there beside 'b\u00e9nin'"):
        require_distinct(["b\u00e9nin", "x", "be\u0301nin"], "classes")
    with pytest.raises(ValueError, match="'a' is there twice"):
        require_distinct(["a", "a"], "classes")
