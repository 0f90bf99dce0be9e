"""What a JSON file must hold, written down as data, and one sentence for what it does not.

A kind is a type (float takes whole numbers too), a tuple of allowed texts, [kind], {name: kind}
with these names required (unless `Optional`) and others allowed, or one of the classes below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UserError
from .languages import find_language

MEND = "run the notebook again, or take the file from version control"


@dataclass(frozen=True)
class Maybe:
    """The kind, or null."""

    kind: Any


@dataclass(frozen=True)
class Optional:
    """The kind, where the field is there: files of earlier versions lack it."""

    kind: Any


@dataclass(frozen=True)
class EachOf:
    """An object with free names whose values all have this kind."""

    kind: Any


@dataclass(frozen=True)
class Where:
    """The kind, and besides a value for which ``holds`` is true: ``expected`` says which."""

    kind: Any
    holds: Callable[[Any], bool]
    expected: str


@dataclass(frozen=True)
class Named:
    """An object with an entry of this kind under each of the names, and maybe under others.

    ``what`` is done under a name, and ``mend`` what to do where one is missing.
    """

    names: Sequence[str]
    kind: Any
    what: str
    mend: str


def at_least(kind: type, low: float) -> Where:
    return Where(kind, lambda value: value >= low, f"{_KIND_NAMES[kind]} of {low} or more")


def between(low: float, high: float) -> Where:
    return Where(float, lambda value: low <= value <= high, f"a number from {low} to {high}")


def _is_language(code: str) -> bool:
    try:
        return find_language(code).code == code
    except UserError:
        return False


LANGUAGE = Where(str, _is_language, "a language of Whisper by its code, such as 'ca'")
_KIND_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def check(value: Any, kind: Any, source: str | Path, field: str = "") -> None:
    """Raise UserError, naming ``source`` and the field, where ``value`` is not of this kind."""
    if isinstance(kind, Maybe):
        if value is not None:
            check(value, kind.kind, source, field)
    elif isinstance(kind, Where):
        check(value, kind.kind, source, field)
        _expect(kind.holds(value), value, kind.expected, source, field)
    elif isinstance(kind, Named):
        _check_names(value, kind, source, field)
        for name in kind.names:
            check(value[name], kind.kind, source, f"{field}.{name}")
    elif isinstance(kind, dict):
        _check_object(value, kind, source, field)
    elif isinstance(kind, EachOf):
        _expect(isinstance(value, dict), value, "an object", source, field)
        for name, item in value.items():
            check(item, kind.kind, source, f"{field}.{name}")
    elif isinstance(kind, list):
        _expect(isinstance(value, list), value, "a list", source, field)
        for index, item in enumerate(value):
            check(item, kind[0], source, f"{field}[{index}]")
    elif isinstance(kind, tuple):
        known = isinstance(value, str) and value in kind
        _expect(known, value, _kind_name(kind), source, field)
    else:
        _expect(_is_a(value, kind), value, _kind_name(kind), source, field)


def _check_object(value: Any, kind: dict[str, Any], source: str | Path, field: str) -> None:
    _expect(isinstance(value, dict), value, "an object", source, field)
    for name, inner in kind.items():
        path = f"{field}.{name}" if field else name
        optional = isinstance(inner, Optional)
        inner = inner.kind if optional else inner
        if name in value:
            check(value[name], inner, source, path)
        elif not optional:
            raise UserError(
                f"{source}: field {path!r} is missing, expected {_kind_name(inner)}: {MEND}"
            )


def _check_names(value: Any, kind: Named, source: str | Path, field: str) -> None:
    _expect(isinstance(value, dict), value, "an object", source, field)
    if any(name not in value for name in kind.names):
        found = " and ".join(repr(shown(name)) for name in value) or "nothing"
        expected = " and ".join(map(repr, kind.names))
        raise UserError(
            f"{source}: field {field!r} is {kind.what} {found}, expected {expected}, which this "
            f"version knows: {kind.mend}"
        )


def _is_a(value: Any, kind: type) -> bool:
    if isinstance(value, bool) or kind is bool:  # True is an int for Python, not for a file
        return isinstance(value, bool) and kind is bool
    if kind is float:  # NaN and infinity are not JSON
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, kind)


def _expect(holds: bool, value: Any, expected: str, source: str | Path, field: str) -> None:
    if not holds:
        raise UserError(
            f"{source}: field {field!r} is {shown(repr(value))}, expected {expected}: {MEND}"
        )


def _kind_name(kind: Any) -> str:
    if isinstance(kind, Maybe):
        return f"{_kind_name(kind.kind)} or null"
    if isinstance(kind, Where):
        return kind.expected
    if isinstance(kind, tuple):
        return f"one of {', '.join(kind)}"
    if isinstance(kind, list):
        return "a list"
    return _KIND_NAMES.get(kind, "an object") if isinstance(kind, type) else "an object"


def shown(text: str) -> str:
    """The beginning of a text that may be long."""
    return text if len(text) <= 60 else f"{text[:57]}..."
