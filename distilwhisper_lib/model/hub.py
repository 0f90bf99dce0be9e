"""A folder or a hub repository, named once: its files, its commit, and saying what is wrong.

Files are asked for one by one: huggingface_hub.snapshot_download() gives what is cached without a
word where it cannot ask, so that a file that was never asked for would look like one that a
repository lacks.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError

from distilwhisper_lib.config.settings import locate
from distilwhisper_lib.errors import UserError, reason


class NotThere(UserError):
    """A folder or repository that could be looked into has none of the files asked for."""


# What a caller can say about a repository, as huggingface_hub and transformers call it.
OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")


@dataclass(frozen=True)
class Source:
    """Where files are: in a folder, in a hub repository, or one file itself, whose name is free.

    ``options``: how a repository is asked, see OPTIONS; UserError for any other. ``commit``: of a
    repository, as soon as at_commit() knows it.
    """

    name: str | Path
    options: dict[str, Any] = field(default_factory=dict)
    commit: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.name, str):  # "embedded/..." is a folder
            object.__setattr__(self, "name", locate(self.name))
        if unknown := [name for name in self.options if name not in OPTIONS]:
            raise UserError(
                f"unknown option {unknown[0]!r} for reading files: expected one of "
                f"{', '.join(OPTIONS)}"
            )

    def find(self, names: Sequence[str], remedy: str) -> Path:
        """The first of ``names`` that is there, as a local path.

        Raises UserError, ending in ``remedy``, when there is no such place or it cannot be asked,
        and NotThere when none of the files is in it.
        """
        path = Path(self.name)
        if path.is_file():
            return path
        if path.is_dir():
            folder = path / (self.options.get("subfolder") or "")
            for name in names:
                if (folder / name).is_file():
                    return folder / name
            raise NotThere(f"no {_either(names)} in {folder}: {remedy}")
        if isinstance(self.name, Path) or not could_be_repository(self.name):
            raise UserError(
                f"there is no file or folder {str(self.name)!r} with {names[0]}: {remedy}"
            )
        return _download(self.name, names, remedy, self.options)

    def at_commit(self) -> Source:
        """Once its config.json was read: itself, to be asked at that commit for all the rest.

        A folder, and a repository without a config.json, as it is.
        """
        if Path(self.name).exists():
            return self
        read = self.options | {"local_files_only": True, "force_download": False}
        try:
            config = Source(self.name, read).find(["config.json"], "")
        except UserError:
            return self
        subfolder = Path(self.options.get("subfolder") or "")
        commit = config.parents[len(subfolder.parts)].name  # snapshots/<commit>/<subfolder>/...
        return Source(self.name, self.options | {"revision": commit}, commit)


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
