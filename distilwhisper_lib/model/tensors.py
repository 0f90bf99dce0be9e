"""Named tensors in files: safetensors, pickles that may come from anybody, and what trains."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.io.files import write_atomic
from distilwhisper_lib.model.hub import Source

# whisper-large's experts in float32 take 3.4 GB, whisper-large itself 6.2 GB.
MAX_BYTES = 8 * 1024**3
MAX_PICKLE_BYTES = 16 * 1024**2  # the part of a torch file that lists names and shapes
# Before, a crafted file could run code in spite of weights_only (CVE-2026-24747).
SAFE_TORCH = (2, 10)


def read_safetensors(path: Path, int8: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Float tensors and metadata of a safetensors file; with ``int8``, such tensors too."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): copy or train it again") from None
    _check_plain(path, {k: v for k, v in tensors.items() if not int8 or v.dtype != torch.int8})
    return tensors, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, without its tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): copy or train it again") from None


def read_pickle(path: Path, limit: int = MAX_BYTES) -> dict[str, Tensor]:
    """A torch file that holds nothing but a flat dict of names and float tensors.

    No object is ever rebuilt from it but tensors (``weights_only``), its size is checked before
    anything is read, and its tensors stay mapped from disk until they are copied.
    """
    require_safe_torch()
    _check_container(path, limit)
    try:
        loaded = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds something other than tensors, or is damaged: it was not unpickled; get "
            "it from its publisher again"
        ) from None
    except Exception as error:  # whatever else a hostile or damaged file can provoke
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {str(error)[:100]!r}): get it again"
        ) from None
    if not isinstance(loaded, dict):
        raise UserError(
            f"{path} holds a {type(loaded).__name__}, expected a dict of names and tensors: "
            "name an expert file"
        )
    _check_plain(path, loaded)
    return {name: value.detach() for name, value in loaded.items()}


def require_safe_torch() -> None:
    """Raise UserError where torch is too old to read a stranger's pickle."""
    version = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2]))
    if version < SAFE_TORCH:
        least = ".".join(map(str, SAFE_TORCH))
        raise UserError(
            f"torch {torch.__version__} can be made to run code by a file of weights "
            f"(CVE-2026-24747), expected {least} or later: pip install 'torch>={least}', or load "
            "safetensors only"
        )


@contextlib.contextmanager
def unpickling(folder: str | Path) -> Iterator[None]:
    """Around the Trainer's reading of its own pickles (optimiser, schedule, random state).

    transformers reads them with ``weights_only``; what it says then advises to switch that off.
    """
    require_safe_torch()
    try:
        yield
    except pickle.UnpicklingError:
        raise UserError(
            f"checkpoint {folder} holds something other than tensors and numbers, or is damaged: "
            "it was not unpickled; remove that folder to train on from an earlier one"
        ) from None


def write_pickle(tensors: dict[str, Tensor], path: Path) -> Path:
    """Write tensors as the authors' files hold them: float32, flat, whole or not at all."""
    buffer = io.BytesIO()
    # clone: torch.save writes the whole storage behind a view.
    torch.save({name: t.detach().cpu().float().clone() for name, t in tensors.items()}, buffer)
    return write_atomic(path, buffer.getvalue())


def _check_container(path: Path, limit: int) -> None:
    """Raise UserError unless a file is an uncompressed torch zip of a sane size."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise UserError(f"{path} has {size:,} bytes, more than {limit:,}: name a smaller file")
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except UserError:
        raise
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"{path} is truncated or no torch file ({error}): get it from its publisher again"
        ) from None
    for entry in entries:
        cap = MAX_PICKLE_BYTES if entry.filename.endswith(".pkl") else size
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > cap:
            raise UserError(
                f"{path} packs {entry.filename!r} in a way torch never does: it was not read; get "
                "it from its publisher again"
            )


def _check_plain(path: Path, loaded: dict) -> None:
    for name, value in loaded.items():
        if not isinstance(name, str) or not _is_plain(value):
            what = f"a {value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
            raise UserError(
                f"{path} holds {what} under {name!r}, expected names with dense float tensors: "
                "name an expert file"
            )


def _is_plain(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.is_floating_point()
        and value.element_size() > 1  # of 8 bits, torch cannot even say whether they are finite
        and not value.is_quantized
        and value.device.type == "cpu"
    )


_TIED = "proj_out.weight"  # the token embedding under a second name
_LISTS = "model.safetensors.index.json"


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What trains, by name: all that a checkpoint needs beside the base model."""
    return {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def weights_hash(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names and bytes, in the order of the names."""
    return _hash(tensors, lambda name: tensors[name])


def checkpoint_hash(source: Source) -> str | None:
    """weights_hash() of a Whisper as load_model() has it, in float32, read tensor by tensor.

    Nothing is loaded but one tensor at a time. None when the checkpoint holds no safetensors.
    """
    try:
        path = source.find(["model.safetensors", _LISTS], "")
        places = _places(path, source)
        return _hash(places.keys() - {_TIED}, lambda name: _read(places[name], name).float())
    except (UserError, SafetensorError, OSError, ValueError, KeyError):
        return None  # whoever loads the model will say what is wrong, if anything is


def _hash(names: Iterable[str], tensor: Callable[[str], Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(name.encode())
        digest.update(tensor(name).detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _places(path: Path, source: Source) -> dict[str, Path]:
    """Tensor name -> the file that holds it."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return dict.fromkeys(file.keys(), path)
    listed = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    if outside := [name for name in listed.values() if Path(name).name != name]:
        raise ValueError(f"{path} lists {outside[0]!r}, which is no file beside it")
    files = {name: source.find([name], "") for name in set(listed.values())}
    return {name: files[file] for name, file in listed.items()}


def _read(path: Path, name: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)
