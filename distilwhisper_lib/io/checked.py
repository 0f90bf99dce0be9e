"""What a JSON file must hold, written down as data, and one sentence for what it does not.

A kind is a type (float takes whole numbers too), a tuple of allowed texts, [kind], {name: kind}
with these names required (unless `Optional`) and others allowed, {str: kind} with any names, or one
of the classes below. Not pydantic: its types for the same files are no shorter, cannot say what a
missing field should be, and reading a record would start twice as slowly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distilwhisper_lib.errors import UserError, reason
from distilwhisper_lib.io.files import parse_json
from distilwhisper_lib.languages import find_language


def one_of(what: str, value: Any, known: tuple[str, ...]) -> str:
    """``value``; UserError unless it is one of ``known``."""
    if value not in known:
        raise UserError(f"unknown {what} {value!r}: expected one of {', '.join(known)}")
    return value


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


Fault = Callable[[str], UserError]  # of what is wrong


def read_json(path: Path, missing: str, mend: str = MEND) -> Any:
    """What a JSON file holds, unchecked. UserError where it cannot be read: ``missing`` where there
    is none, else a sentence that names the file and ends in ``mend``."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(missing) from None
    except (OSError, UnicodeDecodeError) as error:
        said = reason(error)
        raise UserError(f"{path}: cannot be read as UTF-8 text ({said}): {mend}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno} is not JSON ({error.msg}): {mend}") from None
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({reason(error)}): {mend}") from None


def check(value: Any, kind: Any, source: str | Path, mend: str = MEND) -> None:
    """Raise UserError, naming ``source`` and the field, where ``value`` is not of this kind."""
    _check(value, kind, "", lambda told, remedy=mend: UserError(f"{source}: {told}: {remedy}"))


def _check(value: Any, kind: Any, field: str, fault: Fault) -> None:
    if isinstance(kind, Maybe):
        if value is not None:
            _check(value, kind.kind, field, fault)
    elif isinstance(kind, Where):
        _check(value, kind.kind, field, fault)
        _expect(kind.holds(value), value, kind.expected, field, fault)
    elif isinstance(kind, Named):
        _check_names(value, kind, field, fault)
        for name in kind.names:
            _check(value[name], kind.kind, f"{field}.{name}", fault)
    elif isinstance(kind, dict):
        _check_object(value, kind, field, fault)
    elif isinstance(kind, list):
        _expect(isinstance(value, list), value, "a list", field, fault)
        for index, item in enumerate(value):
            _check(item, kind[0], f"{field}[{index}]", fault)
    elif isinstance(kind, tuple):
        known = isinstance(value, str) and value in kind
        _expect(known, value, _kind_name(kind), field, fault)
    else:
        _expect(_is_a(value, kind), value, _kind_name(kind), field, fault)


def _check_object(value: Any, kind: dict[str, Any], field: str, fault: Fault) -> None:
    _expect(isinstance(value, dict), value, "an object", field, fault)
    if str in kind:
        kind = dict.fromkeys(value, kind[str])
    for name, inner in kind.items():
        path = f"{field}.{name}" if field else name
        optional = isinstance(inner, Optional)
        inner = inner.kind if optional else inner
        if name in value:
            _check(value[name], inner, path, fault)
        elif not optional:
            raise fault(f"field {path!r} is missing, expected {_kind_name(inner)}")


def _check_names(value: Any, kind: Named, field: str, fault: Callable[..., UserError]) -> None:
    _expect(isinstance(value, dict), value, "an object", field, fault)
    if any(name not in value for name in kind.names):
        found = " and ".join(map(shown, value)) or "nothing"
        expected = " and ".join(map(repr, kind.names))
        raise fault(
            f"field {field!r} is {kind.what} {found}, expected {expected}, which this version "
            "knows",
            kind.mend,
        )


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


def _expect(holds: bool, value: Any, expected: str, field: str, fault: Fault) -> None:
    if not holds:
        what = f"field {field!r} is" if field else "holds"
        raise fault(f"{what} {shown(value)}, expected {expected}")


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


def shown(value: Any) -> str:
    """A value in a message: short, whatever it is."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
