"""Small checkouts for the batch runner: notebooks that do next to nothing."""

from __future__ import annotations

from pathlib import Path

import nbformat

from distilwhisper_lib.batch import NOTEBOOKS
from distilwhisper_lib.config import resolve

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
    folder = root / resolve(method, "demo", language, seed).output_dir
    folder.mkdir(parents=True)
    (folder / "record.json").write_text("{}")
