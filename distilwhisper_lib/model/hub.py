"""Folders and hub repositories: finding one file of several names, and saying what is wrong."""

from __future__ import annotations

import contextlib
import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError

from distilwhisper_lib.errors import UserError, reason


class NotThere(UserError):
    """A folder or repository that could be looked into has none of the files asked for."""


# What a caller can say about a repository, as huggingface_hub and transformers call it.
OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")


def hub_options(keywords: dict[str, Any]) -> dict[str, Any]:
    """Those of ``keywords`` that say where and how to look in a repository."""
    return {name: value for name, value in keywords.items() if name in OPTIONS}


def find_file(source: str | Path, names: Sequence[str], remedy: str, **hub: Any) -> Path:
    """The first of ``names`` that ``source`` has, as a local path.

    ``source``: the file itself (its name is then free), a folder, or the name of a hub repository,
    which is asked through huggingface_hub with the options ``hub`` (see OPTIONS). Raises UserError,
    ending in ``remedy``, when there is no such place, and NotThere when none of the files is in it.
    """
    unknown = [name for name in hub if name not in OPTIONS]
    if unknown:
        raise UserError(
            f"unknown option {unknown[0]!r} for reading files: expected one of {', '.join(OPTIONS)}"
        )
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        folder = path / (hub.get("subfolder") or "")
        for name in names:
            if (folder / name).is_file():
                return folder / name
        raise NotThere(f"no {_either(names)} in {folder}: {remedy}")
    if isinstance(source, Path) or not could_be_repository(source):
        raise UserError(f"there is no file or folder {str(source)!r} with {names[0]}: {remedy}")
    return _download(source, names, remedy, hub)


def commit_of(name: str, revision: str) -> str | None:
    """The commit at which a hub model was taken that has been loaded; None for a folder."""
    try:
        path = find_file(name, ["config.json"], "", revision=revision, local_files_only=True)
    except UserError:
        return None
    found = re.search(r"[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]", str(path))
    return found and found[1]


@contextlib.contextmanager
def loading(name: str | Path | None) -> Iterator[None]:
    """Say in one sentence, as a UserError, why a model or what belongs to it cannot be loaded."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        why = reason(error)[:300]
        if isinstance(error, pickle.UnpicklingError):  # torch then advises to switch safety off
            why = "its weights hold something other than tensors, and were not unpickled"
        raise UserError(
            f"model {str(name)!r} cannot be loaded ({why}): expected a folder or the hub name of a "
            "Whisper; check the name, the revision and the network, or get its files again"
        ) from None


def _download(repository: str, names: Sequence[str], remedy: str, hub: dict[str, Any]) -> Path:
    unasked = False
    for name in names:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, name, **hub))
        except LocalEntryNotFoundError:
            unasked = True
        except EntryNotFoundError:
            continue
        except (OSError, ValueError) as error:  # unknown, private or gated; no such revision
            said = " ".join(str(error).split())[:200]
            raise UserError(
                f"{repository!r} is no folder here and cannot be read as a hub repository "
                f"({said}): check its name, revision and token"
            ) from None
    if unasked:
        raise UserError(
            f"no {_either(names)} in the local cache of hub repository {repository!r}, which was "
            f"not asked: {remedy}"
        )
    raise NotThere(f"no {_either(names)} in hub repository {repository!r}: {remedy}")


def could_be_repository(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _either(names: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
