"""Small checkouts for the batch runner: notebooks that do next to nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
from make_records import make_record

from distilwhisper_lib.batch.command import NOTEBOOKS

PARAMETERS = 'preset = "demo"  # a\nlanguage = "ca"  # b\nseed = 77  # c\noverrides = {}  # d'


def make_notebook(path: Path, *cells: str, parameters: str | None = PARAMETERS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = nbformat.v4.new_notebook(
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        }
    )
    if parameters is not None:
        content.cells.append(
            nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
        )
    content.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbformat.write(content, path)
    return path


def make_kit(root: Path) -> Path:
    """A checkout with every notebook of the kit, empty."""
    for name in NOTEBOOKS:
        make_notebook(root / "notebooks" / f"{name}.ipynb")
    (root / "distilwhisper_lib").mkdir()
    return root


def names(tasks) -> list[str]:
    return [task.name for task in tasks]


def finish(root: Path, method: str, language: str = "ca", seed: int = 77) -> None:
    record = make_record(method, language, seed)
    leave_record(root / "outputs" / record["run_id"] / "record.json", record)


def leave_record(place: Path, record: dict[str, Any] | None = None) -> None:
    """As a demo run leaves it: in its folder, and with the results."""
    run = place.parent
    shown = run.parent / "results" / "demo" / "runs" / f"{run.name}.json"
    for path in (place, shown):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record or {"run_id": run.name, "demo": True}))
