"""Which runs a study consists of: a grid file, or the same on the command line.

    # grid.yaml
    methods: [zero_shot, lora, js]      # default: all
    languages: [ca, cs]
    presets: [demo]                     # default: demo
    seeds: [77, 78]                     # default: 77
    overrides: {epochs: 3}              # default: none
    tables: true                        # notebooks 07 and 08 at the end; the default
    studies:                            # default: one, with what stands above
      - {}
      - {methods: [js], overrides: {budget: 0.3}}

Every entry of ``studies`` starts from what stands above it; its own lists replace those, its
overrides are added to them.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from distilwhisper_lib.config.presets import SEED
from distilwhisper_lib.config.settings import METHODS, NOTEBOOK_OF, WITH_EXPERTS
from distilwhisper_lib.config.values import parse_overrides
from distilwhisper_lib.errors import UserError, reason
from distilwhisper_lib.io.checked import one_of

MAX_BYTES = 64 * 1024
MAX_DEPTH = 8
MAX_RUNS = 10_000
_LISTS = ("methods", "languages", "presets", "seeds")
_KEYS = (*_LISTS, "overrides", "tables")
_DEFAULTS: dict[str, Any] = {
    "methods": METHODS,
    "presets": ("demo",),
    "languages": ("ca",),
    "seeds": (SEED,),
    "overrides": {},
    "tables": True,
}
TABLES, GATES = "07_evaluation_tables", "08_gate_activations"


@dataclass(frozen=True)
class Study:
    """Notebooks x languages x seeds under one preset with one set of overrides.

    ``notebooks`` empty: all of the checkout. ``parameters``: what notebooks declare beyond the
    four.
    """

    notebooks: tuple[str | Path, ...] = ()
    preset: str = "demo"
    languages: tuple[str, ...] = ("ca",)
    seeds: tuple[int, ...] = (SEED,)
    overrides: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)


def read_grid(path: str | Path) -> list[Study]:
    """The studies of a grid file; UserError, in one sentence, for anything that is not one."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UserError(f"{path.name}: is no file: expected a grid as YAML")
    content = _read(path)
    try:
        return _studies(content)
    except UserError as error:
        raise UserError(f"{path.name}: {error}") from None


def studies_of(**given: Any) -> list[Study]:
    """One study a preset, from a grid's keys; those that are None or absent have their default."""
    return _expand(_checked({k: v for k, v in given.items() if v is not None}, "the grid"))


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: the grid cannot be read ({reason(error)})") from None
    if len(text) > MAX_BYTES:
        raise UserError(f"{path.name}: a grid of more than {MAX_BYTES // 1024} KiB: split it")
    try:
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:  # of which the reader's time is the square
                raise ValueError("nested too deep")
            if isinstance(event, yaml.AliasEvent):  # a few lines of them can stand for gigabytes
                raise ValueError(f"*{event.anchor} refers to another place: write it out")
        _refuse_repeated_keys(yaml.compose(text, yaml.SafeLoader))
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        problem = getattr(error, "problem", None) or reason(error)
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise UserError(
            f"{path.name}: is no YAML ({problem}{line}): expected lines such as languages: [ca, cs]"
        ) from None


def _refuse_repeated_keys(node: yaml.Node | None) -> None:
    """YAML itself would keep the last of two equal keys and say nothing."""
    seen: set[str] = set()
    for child in getattr(node, "value", ()) if not isinstance(node, yaml.ScalarNode) else ():
        key, value = child if isinstance(child, tuple) else (None, child)
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise ValueError(f"{key.value} stands there twice")
            seen.add(key.value)
        _refuse_repeated_keys(value)


def _studies(content: Any) -> list[Study]:
    if not isinstance(content, dict) or not content:
        raise UserError(f"expected keys such as languages and methods, found {_short(content)}")
    entries = content.get("studies", [{}])
    common = _checked({k: v for k, v in content.items() if k != "studies"}, "the grid", "studies")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"studies: expected a list of at least one, found {_short(entries)}")
    found = []
    for number, entry in enumerate(entries, 1):
        own = _checked({} if entry is None else entry, f"study {number}")
        overrides = common.get("overrides", {}) | own.get("overrides", {})
        found += _expand(common | own | {"overrides": overrides})
        _check_size(sum(len(s.notebooks) * len(s.languages) * len(s.seeds) for s in found))
    return found


def _checked(given: Any, where: str, *more: str) -> dict[str, Any]:
    """The keys that a grid or one of its studies gives, each of its kind."""
    if not isinstance(given, Mapping):
        raise UserError(f"{where}: expected keys such as methods, found {_short(given)}")
    for name in given:
        if name not in _KEYS:
            raise UserError(
                f"{where}: unknown key {_short(name)}: expected one of {', '.join((*_KEYS, *more))}"
            )
    found = {name: _list(name, given[name]) for name in _LISTS if name in given}
    if "overrides" in given:
        found["overrides"] = parse_overrides(given["overrides"])
        if wrong := next((k for k in found["overrides"] if not isinstance(k, str)), None):
            raise UserError(f"overrides: {_short(wrong)} is no name of a setting")
    if "tables" in given:
        if not isinstance(given["tables"], bool):
            raise UserError(f"tables: expected true or false, found {_short(given['tables'])}")
        found["tables"] = given["tables"]
    for method in found.get("methods", ()):
        one_of("method", method, METHODS)
    return found


def _list(name: str, values: Any) -> tuple[Any, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise UserError(f"{name}: expected a list such as [{_example(name)}], found "
                        f"{_short(values)}")  # fmt: skip
    kind = int if name == "seeds" else str
    for value in values:
        if type(value) is not kind:
            quotes = ' (in quotes: no alone is "false")' if value is False else ""
            raise UserError(
                f"{name}: {_short(value)} is {type(value).__name__}, expected {kind.__name__} "
                f"such as {_example(name).split(',')[0]}{quotes}"
            )
        if kind is int and not 0 <= value < 2**32:
            raise UserError(f"{name}: {_short(value)}, expected from 0 to 4294967295")
    return tuple(dict.fromkeys(values))


def _example(name: str) -> str:
    return {"seeds": "77, 78", "methods": "clsr, js", "presets": "cv3k, cv10k"}.get(name, "ca, cs")


def _expand(given: Mapping[str, Any]) -> list[Study]:
    keys = _DEFAULTS | given
    methods = [method for method in METHODS if method in keys["methods"]]
    _check_size(len(methods) * math.prod(len(keys[name]) for name in _LISTS[1:]))
    notebooks = sorted({NOTEBOOK_OF[method] for method in methods})
    if keys["tables"]:
        notebooks += [TABLES, GATES] if set(methods) & set(WITH_EXPERTS) else [TABLES]
    return [
        Study(tuple(notebooks), preset, keys["languages"], keys["seeds"], dict(keys["overrides"]))
        for preset in keys["presets"]
    ]


def _check_size(count: int) -> None:
    if count > MAX_RUNS:
        raise UserError(f"a grid of {count} runs, expected at most {MAX_RUNS}")


def _short(value: Any) -> str:
    if type(value) is int and abs(value) > 2**64:
        return "a very large number"  # Python may refuse to write it out
    return reprlib.repr(value)
