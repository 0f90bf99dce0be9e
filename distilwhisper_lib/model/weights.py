"""Which of a model's weights train, and the hash by which records name weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.model.hub import find_file

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


def checkpoint_hash(source: str | Path, revision: str = "main") -> str | None:
    """weights_hash() of a Whisper as load_model() has it, in float32, read tensor by tensor.

    Nothing is loaded but one tensor at a time. None when the checkpoint holds no safetensors.
    """
    try:
        path = find_file(source, ["model.safetensors", _LISTS], "", revision=revision)
        places = _places(path, source, revision)
        return _hash(places.keys() - {_TIED}, lambda name: _read(places[name], name).float())
    except (UserError, SafetensorError, OSError, ValueError, KeyError):
        return None  # whoever loads the model will say what is wrong, if anything is


def _hash(names: Iterable[str], tensor: Callable[[str], Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(name.encode())
        digest.update(tensor(name).detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _places(path: Path, source: str | Path, revision: str) -> dict[str, Path]:
    """Tensor name -> the file that holds it."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return dict.fromkeys(file.keys(), path)
    listed = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    if outside := [name for name in listed.values() if Path(name).name != name]:
        raise ValueError(f"{path} lists {outside[0]!r}, which is no file beside it")
    files = {n: find_file(source, [n], "", revision=revision) for n in set(listed.values())}
    return {name: files[file] for name, file in listed.items()}


def _read(path: Path, name: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)
