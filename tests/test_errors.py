"""The whole error taxonomy of mrgc/errors.py, walked class by class."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mrgc import errors

OPERATIONS = Path(__file__).parents[1] / "docs" / "operations.md"

#: | `code` | `Class` | action | what the operator does |
ROW = re.compile(
    r"^\| `(?P<code>[a-z_]+)` \| `(?P<name>\w+)` \| (?P<action>\w+) \| (?P<text>[^|]{10,}) \|$",
    re.MULTILINE,
)


def subclasses(cls: type[errors.MrgcError]) -> list[type[errors.MrgcError]]:
    """Return every class below `cls`."""
    return [found for child in cls.__subclasses__() for found in (child, *subclasses(child))]


ALL = sorted(
    {cls for cls in subclasses(errors.MrgcError) if cls.__module__ == errors.__name__}, key=lambda cls: cls.__name__
)
DOCUMENTED = {row["code"]: row for row in ROW.finditer(OPERATIONS.read_text(encoding="utf-8"))}

each_class = pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)


def test_the_walk_finds_the_taxonomy() -> None:
    """The walk of subclasses sees at least one class of every action."""
    assert {cls.action for cls in ALL} == set(errors.Action)


@each_class
def test_every_class_names_its_own_code(cls: type[errors.MrgcError]) -> None:
    """No class inherits its code: two causes under one code could not be told apart in a dead-letter stream."""
    assert "code" in vars(cls)
    assert re.fullmatch(r"[a-z][a-z_]{1,31}", cls.code)


def test_codes_are_unique() -> None:
    """No two classes share a code."""
    by_code: dict[str, list[str]] = {}
    for cls in ALL:
        by_code.setdefault(cls.code, []).append(cls.__name__)
    assert {code: names for code, names in by_code.items() if len(names) > 1} == {}


@each_class
def test_every_class_says_what_happens_next(cls: type[errors.MrgcError]) -> None:
    """Every class has an action and a one-sentence docstring that starts with 'Raised'."""
    assert isinstance(cls.action, errors.Action)
    assert (cls.__doc__ or "").startswith("Raised")


@each_class
def test_every_code_turns_back_into_its_class(cls: type[errors.MrgcError]) -> None:
    """A code that crossed a socket becomes the same class with the same action on the other side."""
    rebuilt = errors.from_code(cls.code, "why")
    assert type(rebuilt) is cls
    assert rebuilt.action is cls.action


def test_an_unknown_code_is_retried() -> None:
    """A code from a newer peer loses no job."""
    assert errors.from_code("made_up_by_a_newer_peer").action is errors.Action.RETRY


def test_authentication_failures_are_all_alike() -> None:
    """An authentication error takes no text, so that it cannot become an oracle."""
    assert str(errors.from_code("auth", "the tag of byte 17")) == str(errors.AuthenticationError())
    with pytest.raises(TypeError):
        errors.AuthenticationError("the tag of byte 17")  # type: ignore[call-arg]


@each_class
def test_every_class_has_a_row_for_the_operator(cls: type[errors.MrgcError]) -> None:
    """docs/operations.md lists each code with its class, its action and what to do."""
    row = DOCUMENTED.get(cls.code)
    assert row is not None, f"docs/operations.md has no row for {cls.code}"
    assert row["name"] == cls.__name__
    assert row["action"] == cls.action.name


def test_no_row_is_left_over() -> None:
    """docs/operations.md lists no code that no class has."""
    assert set(DOCUMENTED) - {cls.code for cls in ALL} == set()
