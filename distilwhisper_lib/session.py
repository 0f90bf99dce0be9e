"""What the first cell of every notebook does: a working environment, and a word about it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
import sys
import tomllib
import warnings

from distilwhisper_lib.config.settings import PACKAGE

# Colab's own builds of these must stay: others would need a restart, or lose the GPU.
NEVER_INSTALL = ("torch", "numpy", "ipykernel")


def start() -> None:
    """Work in the checkout, install what Colab lacks, and say what runs here."""
    enter_checkout()
    if "google.colab" in sys.modules:
        install_missing()
    quieten()
    print(describe())


def enter_checkout() -> None:
    """Change into the folder whose outputs/ and results/ are meant.

    That is the checkout, wherever a notebook or command was started. A package that was installed
    without its checkout works in the folder it is started in.
    """
    if (PACKAGE.parent / "notebooks").is_dir():
        os.chdir(PACKAGE.parent)


def missing_requirements() -> list[str]:
    """Requirements of pyproject.toml that are absent here, without those that must stay."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    missing = []
    for requirement in project["project"]["dependencies"]:
        name = re.match(r"[\w.-]+", requirement)[0]
        if name not in NEVER_INSTALL and not installed(name):
            missing.append(requirement)
    return missing


def install_missing() -> None:
    """pip install just that; packages that are there stay as they are."""
    missing = missing_requirements()
    if missing:
        print("installing", ", ".join(missing))
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", *missing], check=True)


def describe() -> str:
    """One line each: the kit's commit, the versions, the device."""
    import torch
    import transformers

    from distilwhisper_lib.results.provenance import git_state

    commit, dirty = git_state(PACKAGE.parent)
    kit = f"{commit[:10]}{' with local changes' if dirty else ''}" if commit else "not in git"
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        device = f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB"
    else:
        device = "CPU (enough for the demo; on Colab: Runtime > Change runtime type > GPU)"
    return (
        f"kit      {kit}\n"
        f"Python   {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}\n"
        f"device   {device}"
    )


def installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return importlib.util.find_spec(name.replace("-", "_")) is not None
    return True


def quieten() -> None:
    """Whisper's generate() repeats advice that a caller cannot follow (about its own internals)."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
