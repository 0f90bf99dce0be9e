"""Files as they are committed, whatever somebody who steps through notebooks leaves over them."""

from __future__ import annotations

from pathlib import Path

from distilwhisper_lib.results import provenance

ROOT = Path(__file__).parents[1]
CHECKPOINTS = ".ipynb_checkpoints"


def text_of(path: Path) -> str:
    """What a file says; of a notebook that was only stepped through, what it says in HEAD."""
    if path.suffix == ".ipynb" and path.is_relative_to(ROOT):
        below = path.relative_to(ROOT)
        if provenance.only_stepped_through(ROOT, below):
            return provenance.committed(ROOT, below)
    return path.read_text(encoding="utf-8")
