"""Where a result comes from: commit, versions, hardware, command; never whose machine."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distilwhisper_lib import PACKAGE, __version__

# What decides a result; data, outputs and notes that lie about in a checkout do not.
_CODE = ("distilwhisper_lib", "notebooks", "environment.yml", "pyproject.toml")
_PARAMETERS = {"parameters", "injected-parameters"}  # tags of the cells that a user sets
_PACKAGES = ("torch", "transformers", "datasets", "peft", "evaluate", "jiwer")


def provenance(
    command: str | None = None, device: str | None = None, root: str | Path | None = None
) -> dict[str, Any]:
    """What made a result: commit, versions, hardware and command, and nothing about whose machine.

    ``device`` is the torch device that the run used (default: CUDA where there is one), ``root``
    the folder of the checkout (default: the one that holds this package). Outside git ``commit``
    and ``dirty`` are None; ``dirty`` is about the code alone, and stepping through a notebook is
    no change of it. Absolute paths in ``command`` are cut to their last part.
    """
    root = Path(root) if root else PACKAGE.resolve().parent
    commit, dirty = git_state(root)
    return {
        "commit": commit,
        "dirty": dirty,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": package_versions(),
        "hardware": _hardware(device),
        "command": None if command is None else _without_host_paths(command, root),
    }


def git_state(root: Path) -> tuple[str | None, bool | None]:
    """(commit, dirty) of the checkout at ``root``; (None, None) where there is none."""
    top = _git(root, "rev-parse", "--show-toplevel")
    # A package installed somewhere inside another project's checkout must not claim its commit.
    if not top or Path(top).resolve() != root.resolve():
        return None, None
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if not commit:
        return None, None
    changed = _git(root, "diff", "--name-only", "-z", "HEAD", "--", *_CODE)
    added = _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", *_CODE)
    if changed is None or added is None:
        return commit, None
    dirty = [p for p in _paths(added) if ".ipynb_checkpoints" not in p.parts]
    dirty += [p for p in _paths(changed) if not only_stepped_through(root, p)]
    return commit, bool(dirty)


def only_stepped_through(root: Path, path: Path) -> bool:
    """Whether HEAD has the file at ``path`` below ``root`` as a notebook of the same sources.

    Jupyter saves outputs, counts and metadata over the notebook that somebody steps through, and
    what they set in the cell of the parameters.
    """
    try:
        here = (root / path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    sources = _sources(here) if path.suffix == ".ipynb" else None
    return sources is not None and sources == _sources(committed(root, path) or "")


def committed(root: Path, path: Path) -> str | None:
    """The text of the file at ``path`` below ``root`` as HEAD has it; None where it has none."""
    return _git(root, "show", f"HEAD:{path.as_posix()}")


def _sources(text: str) -> list[tuple[str, str]] | None:
    """Kind and source of a notebook's cells, without parameters and empty cells; None of no
    notebook."""
    try:
        cells = json.loads(text)["cells"]
        found = [
            (cell["cell_type"], "".join(cell["source"]).strip())
            for cell in cells
            if not (_PARAMETERS & {*cell["metadata"].get("tags", ())} and _is_plain(cell["source"]))
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return [(kind, source) for kind, source in found if source]


def _is_plain(source: str | list[str]) -> bool:
    """Whether a cell does nothing but set names to literals, as one of parameters does."""
    try:
        for statement in ast.parse("".join(source)).body:
            if not isinstance(statement, ast.Assign):
                return False
            ast.literal_eval(statement.value)
    except (SyntaxError, ValueError):
        return False
    return True


def _paths(text: str) -> list[Path]:
    return [Path(name) for name in text.split("\0") if name]


def _git(root: Path, *arguments: str) -> str | None:
    """A git command's output without the final line break; None when git cannot answer."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def package_versions() -> dict[str, str | None]:
    """Of Python, this package and those that decide a result; None where one is absent."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions | {"distilwhisper_lib": __version__}


def _hardware(device: str | None) -> dict[str, Any]:
    return {
        "device": device_name(device),
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_gib": memory_gib(),
    }


def device_name(device: str | None = None) -> str:
    """What records call a torch device, by default this machine's GPU, else "cpu"."""
    if device == "cpu":
        return "cpu"
    import torch  # here, because reading and tabulating records needs no torch

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.cuda.get_device_name(device) if str(device).startswith("cuda") else str(device)


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip().lower() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """The cores this process may use, which on shared machines are fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_gib() -> float | None:
    """What this machine has; None where the system does not say."""
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not every platform knows these names
        return None
    return round(size / 2**30, 1)


# An absolute path with at least one folder; not the tail of a URL or of a relative path.
_HOST_PATH = re.compile(r"""(?<![\w.:/\\~-])(?:~?/|[A-Za-z]:\\)(?:[^\s/\\'"]+[/\\])+""")


def _without_host_paths(text: str, root: Path) -> str:
    inside = text.replace(f"{root}{os.sep}", "")
    return _HOST_PATH.sub("", inside)
