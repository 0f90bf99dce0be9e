"""Whether what a JSON file holds is what it must be, field by field.

The kinds: a type (float takes whole numbers too), a tuple of allowed values, {name: kind} with
these names required (unless Optional(kind)) and others allowed, [kind], Maybe(kind), EachOf(kind).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UserError


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


_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def check_fields(value: Any, kind: Any, source: str | Path, remedy: str) -> None:
    """Raise UserError for another kind, naming ``source`` and field, and ending in ``remedy``."""
    _check(value, kind, "", lambda told: UserError(f"{source}: {told}: {remedy}"))


def _check(value: Any, kind: Any, field: str, fault: Any) -> None:
    """Compare ``value`` with ``kind``, going down into objects and lists."""
    if isinstance(kind, Maybe):
        if value is not None:
            _check(value, kind.kind, field, fault)
    elif isinstance(kind, dict):
        _expect(isinstance(value, dict), value, "an object", field, fault)
        for name, inner in kind.items():
            path = f"{field}.{name}" if field else name
            if name not in value:
                if isinstance(inner, Optional):
                    continue
                raise fault(f"field {path!r} is missing, expected {_name(inner)}")
            inner = inner.kind if isinstance(inner, Optional) else inner
            _check(value[name], inner, path, fault)
    elif isinstance(kind, EachOf):
        _expect(isinstance(value, dict), value, "an object", field, fault)
        for name, item in value.items():
            _check(item, kind.kind, f"{field}.{name}", fault)
    elif isinstance(kind, list):
        _expect(isinstance(value, list), value, "a list", field, fault)
        for index, item in enumerate(value):
            _check(item, kind[0], f"{field}[{index}]", fault)
    elif isinstance(kind, tuple):
        known = isinstance(value, str) and value in kind
        _expect(known, value, _name(kind), field, fault)
    else:
        _expect(_is_a(value, kind), value, _name(kind), field, fault)


def _is_a(value: Any, kind: type) -> bool:
    if isinstance(value, bool) or kind is bool:  # True is an int for Python, not for a file
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, (int, float)) and _is_finite(value)
    if kind is int:
        return isinstance(value, int) and abs(value) < 2**63
    return isinstance(value, kind)


def _is_finite(value: float) -> bool:
    """NaN and infinity are not JSON, nor is a whole number that no float can hold a number here."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _expect(holds: bool, value: Any, expected: str, field: str, fault: Any) -> None:
    if not holds:
        raise fault(f"field {field!r} is {shown(value)}, expected {expected}")


def _name(kind: Any) -> str:
    if isinstance(kind, Maybe | Optional):
        null = " or null" if isinstance(kind, Maybe) else ""
        return f"{_name(kind.kind)}{null}"
    if isinstance(kind, tuple):
        return f"one of {', '.join(kind)}"
    if isinstance(kind, list):
        return "a list"
    return _NAMES.get(kind, "an object") if isinstance(kind, type) else "an object"


def shown(value: Any) -> str:
    """A value in a message: short, whatever it is."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
