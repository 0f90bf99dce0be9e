"""The kit's notebooks as files: where they are, what they declare, and whether values fit.

papermill 2.7 only warns about a parameter that a notebook does not declare, writes parameter
names into the notebook as code, and hands values from a command line over as strings. So every
notebook is inspected first, and a wrong name or value stops a batch before it starts.
"""

from __future__ import annotations

import ast
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.io.leaks import is_checkout, refuse_tokens


def find_root(start: str | Path | None = None) -> Path:
    """The checkout: the nearest folder, from ``start`` upwards, that is one."""
    start = Path(start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if is_checkout(folder):
            return folder
    raise UserError(
        f"{start}: neither it nor a folder above holds notebooks/ and distilwhisper_lib/: change "
        "into the checkout, or pass --root FOLDER"
    )


def find_notebook(name: str | Path, root: Path) -> Path:
    """A notebook by path, by name, or by the start of a name that only one notebook has ("05")."""
    name = str(name)
    for path in (Path(name), root / name):
        if path.suffix == ".ipynb" and path.is_file():
            return path.resolve()
    known = sorted((root / "notebooks").glob("*.ipynb"))
    stem = Path(name).stem if name.endswith(".ipynb") else name
    exact = [path for path in known if path.stem == stem]
    found = exact or [path for path in known if stem and path.stem.startswith(stem)]
    if len(found) == 1 and "/" not in name:
        return found[0].resolve()
    problem = "fits several notebooks" if len(found) > 1 else "is no notebook"
    raise UserError(
        f"notebook {name!r} {problem}: expected a path or one of "
        f"{', '.join(path.stem for path in known) or 'the notebooks (there are none here)'}"
    )


def declared_parameters(notebook: str | Path) -> dict[str, Any]:
    """Name and default of each parameter in the cell tagged ``parameters``.

    UserError where papermill would misbehave: no such cell, a default that is no plain literal
    (it would go stale), or a parameter that papermill cannot see (``x: int | None = None``).
    """
    import nbformat

    notebook = Path(notebook)
    try:
        content = nbformat.read(notebook, as_version=4)
        inspected = _inspect(notebook)
    except Exception as error:  # nbformat and papermill raise many kinds on a malformed file
        raise UserError(
            f"{notebook}: cannot be read as a Python notebook ({one_line(error)}): save it again "
            "from Jupyter with a Python 3 kernel"
        ) from None
    tagged = [c for c in content.cells if "parameters" in c.metadata.get("tags", [])]
    if not tagged:
        raise UserError(
            f"{notebook}: has no cell tagged 'parameters', expected one: tag the cell that holds "
            "preset, language, seed and overrides"
        )
    assigned = _assigned_names(tagged[0].source, notebook)
    for name in assigned:
        if name not in inspected:
            raise UserError(
                f"{notebook}: papermill cannot see parameter {name!r}: write it as one plain "
                "assignment without an annotation, such as seed = 77"
            )
    return {name: _literal(inspected[name], name, notebook) for name in assigned}


def _inspect(notebook: Path) -> dict[str, str]:
    """Default, as source text, of every parameter that papermill itself sees."""
    import papermill

    logging.getLogger("papermill").setLevel(logging.ERROR)
    # papermill formats paths with str.format
    found = papermill.inspect_notebook(no_braces(notebook))
    return {name: parameter["default"] for name, parameter in found.items()}


def _assigned_names(source: str, notebook: Path) -> list[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise UserError(
            f"{notebook}: the parameters cell is no Python ({error.msg}): correct its line "
            f"{error.lineno}"
        ) from None
    targets = []
    for node in tree.body:
        targets += node.targets if isinstance(node, ast.Assign) else []
        targets += [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _literal(source: str, name: str, notebook: Path) -> Any:
    try:
        return ast.literal_eval(source)
    except (ValueError, SyntaxError):
        raise UserError(
            f"{notebook}: parameter {name!r} has the default {source}, expected a plain literal: "
            "compute it in a later cell"
        ) from None


def checked_parameters(notebook: str | Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` with the types that a notebook declares; UserError for a name or type it lacks."""
    return fitted(Path(notebook).name, declared_parameters(notebook), given)


def fitted(notebook: str, declared: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` with the types of what a notebook of this name declares, as `checked_parameters`.

    papermill writes names and values into the notebook as code: only names that are declared, and
    only values that are plain literals, and none that holds a token (io/leaks.py). Text becomes a
    number, a bool or (as JSON) a dict or list where the default is one, because command lines and
    YAML know text only.
    """
    for name in given:
        if name not in declared:
            raise UserError(
                f"{notebook}: unknown parameter {name!r}: expected one of {', '.join(declared)}"
            )
    for name, value in given.items():
        refuse_tokens(f"{notebook}: parameter {name!r}", value)
        if not _is_literal(value):
            raise UserError(
                f"{notebook}: parameter {name!r} is no plain literal: expected text, "
                "numbers, true or false, and lists or dicts of these"
            )
    return {
        name: _as_declared(name, value, declared[name], notebook) for name, value in given.items()
    }


def _is_literal(value: Any) -> bool:
    """Whether a value is what JSON has; not of a subclass, which may write itself as any code."""
    if type(value) is dict:
        return all(type(key) is str and _is_literal(item) for key, item in value.items())
    if type(value) in (list, tuple):
        return all(map(_is_literal, value))
    return value is None or type(value) in (bool, int, float, str)


def _as_declared(name: str, value: Any, default: Any, notebook: str) -> Any:
    kind = type(default)
    if default is None or type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(value, str):
        try:
            return _from_text(value, kind)
        except (ValueError, KeyError):  # JSON's own error is a ValueError
            pass
    raise UserError(
        f"{notebook}: parameter {name}={value!r} is {type(value).__name__}, expected "
        f"{kind.__name__} like the notebook's {default!r}"
    )


def _from_text(text: str, kind: type) -> Any:
    if kind is bool:
        return {"true": True, "false": False}[text.lower()]
    if kind in (int, float):
        return kind(text)
    value = json.loads(text)
    if type(value) is not kind:
        raise ValueError(text)
    return value


def no_braces(path: str | Path) -> str:
    """A path that papermill's str.format leaves as it is."""
    return str(path).replace("{", "{{").replace("}", "}}")


def one_line(error: Exception | str) -> str:
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines)[:500]
