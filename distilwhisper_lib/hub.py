"""Finding one file, of several names that it may have, in a local folder or a hub repository."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id

from .errors import UserError

# What a caller can say about a repository, as huggingface_hub and transformers call it.
OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")


def hub_options(keywords: dict[str, Any]) -> dict[str, Any]:
    """Those of ``keywords`` that say where and how to look in a repository."""
    return {name: value for name, value in keywords.items() if name in OPTIONS}


def find_file(source: str | Path, names: Sequence[str], remedy: str, **hub: Any) -> Path:
    """The first of ``names`` that ``source`` has, as a local path.

    ``source``: the file itself (its name is then free), a folder, or the name of a hub repository,
    which is asked through huggingface_hub with the options ``hub`` (see OPTIONS). Raises UserError,
    ending in ``remedy``, when there is no such place or none of the files in it.
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
        raise UserError(f"no {_either(names)} in {folder}: {remedy}")
    if isinstance(source, Path) or not could_be_repository(source):
        raise UserError(f"there is no file or folder {str(source)!r} with {names[0]}: {remedy}")
    return _download(source, names, remedy, hub)


def _download(repository: str, names: Sequence[str], remedy: str, hub: dict[str, Any]) -> Path:
    where = f"in hub repository {repository!r}"
    for name in names:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, name, **hub))
        except LocalEntryNotFoundError:
            where = f"in the local cache of hub repository {repository!r}, which was not asked"
        except EntryNotFoundError:
            continue
        except (OSError, ValueError) as error:  # unknown, private or gated; no such revision
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{repository!r} is no folder here and cannot be read as a hub repository "
                f"({reason}): check its name, revision and token"
            ) from None
    raise UserError(f"no {_either(names)} {where}: {remedy}")


def could_be_repository(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _either(names: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
