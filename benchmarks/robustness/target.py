"""What a fuzz target is; by itself, so that it is known without loading all that is fuzzed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

Files = dict[str, bytes]  # name -> content


class Target(NamedTuple):
    """Sound files, and what reads them from the folder that they were written into."""

    files: Callable[[], Files]
    read: Callable[[Path], object]


class Escape(AssertionError):
    """Something that was read led out of the working folder."""
