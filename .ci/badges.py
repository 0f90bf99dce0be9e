"""Write the repository's address into every place that needs it: ``make badges REPO=owner/name``.

pyproject.toml holds it; the notebooks' badges and set-up cells and the README repeat it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from distilwhisper_lib import PACKAGE
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.io.files import write_atomic

_ADDRESS = re.compile(r'^Repository = "https://github.com/([^/"]+/[^/"]+)"$', re.M)
_VALID = re.compile(r"[\w.-]+/[\w.-]+")


def repository(root: Path = PACKAGE.parent) -> str:
    """owner/name as pyproject.toml has it."""
    return _ADDRESS.search((root / "pyproject.toml").read_text(encoding="utf-8"))[1]


def write_badges(repo: str, root: Path = PACKAGE.parent) -> list[Path]:
    """Replace the old address by ``repo`` wherever it stands; returns the files that changed."""
    if not _VALID.fullmatch(repo):
        raise UserError(f"repository {repo!r}: expected owner/name, as in REPO=you/your-fork")
    old = repository(root)
    files = [root / "pyproject.toml", root / "README.md", *sorted(root.glob("notebooks/*.ipynb"))]
    changed = []
    for path in files:
        text = path.read_text(encoding="utf-8")
        # The address stands behind github.com/ or, in Colab's links, behind its github/.
        new = re.sub(rf"(github(?:\.com)?/){re.escape(old)}(?![\w.-])", rf"\g<1>{repo}", text)
        if new != text:
            changed.append(write_atomic(path, new))
    return changed


if __name__ == "__main__":
    try:
        for path in write_badges("".join(sys.argv[1:])):
            print(path.name)
    except UserError as error:
        sys.exit(f"error: {error}")
