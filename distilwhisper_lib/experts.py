"""Expert files: one language's experts and gates in one safetensors file.

Names inside are ``{encoder,decoder}.{layer}.{fc1,fc2}.{weight,bias}``,
``...gate.inner.{weight,bias}`` and ``...gate.outer.weight``: nothing in them depends on the
language code, which stands in the metadata with the base model and the format version.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import UserError
from .languages import find_language

if TYPE_CHECKING:
    from .model import DistilWhisperForConditionalGeneration

FORMAT_VERSION = "1"
_IN_MODEL = re.compile(r"model\.(encoder|decoder)\.layers\.(\d+)\.clsr\.([a-z]+)\.(.+)")


def file_name(language: str) -> str:
    """``expert.<English name>.safetensors``, after the authors' naming."""
    return f"expert.{find_language(language).name}.safetensors"


def expert_state(model: DistilWhisperForConditionalGeneration, code: str) -> dict[str, Tensor]:
    """One language's tensors under the names of an expert file."""
    found = {}
    for name, tensor in model.state_dict().items():
        match = _IN_MODEL.fullmatch(name)
        if match and match[3] == code:
            found[f"{match[1]}.{match[2]}.{match[4]}"] = tensor.detach().cpu().contiguous()
    return found


def to_model_names(tensors: dict[str, Tensor], code: str) -> dict[str, Tensor]:
    """The inverse of expert_state()'s naming."""
    renamed = {}
    for name, tensor in tensors.items():
        side, layer, rest = name.split(".", 2)
        renamed[f"model.{side}.layers.{layer}.clsr.{code}.{rest}"] = tensor
    return renamed


def write_expert(
    tensors: dict[str, Tensor], code: str, folder: str | Path, about: dict[str, str]
) -> Path:
    """Write an expert file whole or not at all, with language and format in its metadata."""
    path = Path(folder) / file_name(code)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", "version": FORMAT_VERSION, "language": code}
    metadata |= {key: str(value) for key, value in about.items()}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata=metadata)
    os.chmod(partial, 0o644)  # safetensors makes files that only the owner can read
    os.replace(partial, path)
    return path


def read_expert(source: str | Path, code: str) -> dict[str, Tensor]:
    """The tensors of an expert file (``source`` is the file or its folder).

    Raises UserError when it is missing, unreadable, of another language or a newer format.
    """
    path = Path(source)
    if not path.is_file():
        path = path / file_name(code)
    if not path.is_file():
        raise UserError(
            f"no expert file {path.name!r} in {path.parent}: train one, or name the folder that "
            "holds it"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"expert file {path} cannot be read ({error}): copy or train it again"
        ) from None
    if metadata.get("version") != FORMAT_VERSION:
        raise UserError(
            f"expert file {path} has format version {metadata.get('version')!r}, expected "
            f"{FORMAT_VERSION!r}: update the kit or write the file again"
        )
    if metadata.get("language") != code:
        raise UserError(
            f"expert file {path} is for {metadata.get('language')!r}, not {code!r}: "
            "load it under its own language"
        )
    return tensors


def check_expert(
    model: DistilWhisperForConditionalGeneration, code: str, tensors: dict[str, Tensor]
) -> None:
    """Raise UserError unless the tensors have just the names and shapes this model needs."""
    wanted = {}
    for side in ("encoder", "decoder"):
        for index, layer in enumerate(getattr(model.model, side).layers):
            blueprint = layer.new_expert("meta").state_dict()
            wanted |= {f"{side}.{index}.{k}": tuple(v.shape) for k, v in blueprint.items()}
    faults = [f"{name} is missing" for name in wanted if name not in tensors]
    faults += [f"{name} is not expected" for name in tensors if name not in wanted]
    faults += [
        f"{name} has shape {tuple(tensors[name].shape)}, not {shape}"
        for name, shape in wanted.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if faults:
        raise UserError(
            f"the expert file for {code!r} does not fit this model: {faults[0]}"
            + (f" (and {len(faults) - 1} more)" if len(faults) > 1 else "")
            + ": use the Whisper size and gate_dim that it was trained with"
        )
