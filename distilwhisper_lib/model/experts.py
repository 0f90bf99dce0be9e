"""Expert files: one language's experts and gates in one file.

Ours are safetensors. Names inside are ``{encoder,decoder}.{layer}.{fc1,fc2}.{weight,bias}``,
``...gate.inner.{weight,bias}`` and ``...gate.outer.weight``: nothing in them depends on the
language code, which stands in the metadata with the base model and the format version. Low-rank
experts have ``{fc1,fc2}.{down,up}.weight`` instead. Weights may be rounded, see rounding.py: int8
stands in the metadata as ``weights``. The authors' ``.bin`` files are read and written too;
authors.py knows their names.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save
from torch import Tensor

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.io.checked import one_of
from distilwhisper_lib.io.files import sha256_file, write_atomic
from distilwhisper_lib.languages import whisper_language
from distilwhisper_lib.model.authors import our_names, their_name
from distilwhisper_lib.model.clsr import AnyExpert
from distilwhisper_lib.model.hub import NotThere, Source
from distilwhisper_lib.model.rounding import unrounded
from distilwhisper_lib.model.tensors import (
    read_metadata,
    read_pickle,
    read_safetensors,
    write_pickle,
)

# 2: low-rank experts, int8, or any to be heard with other gates than 0 or 1, under another
# language's token or in a shorter window, which kits that know version 1 alone could not, or would
# hear wrongly. All else is 1.
FORMAT_VERSIONS = ("1", "2")
MODES = ("learned", "soft", "open")
WEIGHTS = ("float", "int8")
LAYOUTS = ("kit", "authors")
_IN_MODEL = re.compile(r"model\.(encoder|decoder)\.layers\.(\d+)\.clsr\.([a-z]+)\.(.+)")


# Names ---------------------------------------------------------------------------------------


def file_names(language: str) -> tuple[str, str, str]:
    """What a language's expert file may be called: ours first, then the authors' two ways."""
    code, name = whisper_language(language)
    return f"expert.{name}.safetensors", f"expert.{name}.bin", f"{code}-experts.bin"


class Routed(Protocol):
    """A Whisper whose layers take experts, as much of it as its expert files need to know."""

    model: torch.nn.Module
    dtype: torch.dtype

    def routed_layers(self) -> list[torch.nn.Module]: ...


def layer_names(model: Routed) -> list[str]:
    """``encoder.0``, ... for each of the model's routed layers, in its own order."""
    sides = ("encoder", "decoder")
    return [f"{s}.{i}" for s in sides for i in range(len(getattr(model.model, s).layers))]


def from_model_names(state: dict[str, Tensor], code: str) -> dict[str, Tensor]:
    """One language's tensors of a model's state dict, under the names of an expert file."""
    found = {}
    for name, tensor in state.items():
        match = _IN_MODEL.fullmatch(name)
        if match and match[3] == code:
            found[f"{match[1]}.{match[2]}.{match[4]}"] = tensor
    return found


def whole_networks(model: Routed, code: str) -> dict[str, Tensor]:
    """A resident language's experts as feed-forward networks, without gates, under the names of an
    expert file: low-rank ones as the sum of what they change and their change."""
    return {
        f"{prefix}.{name}": tensor
        for prefix, layer in zip(layer_names(model), model.routed_layers(), strict=True)
        for name, tensor in layer.whole_network(code).items()
    }


def to_model_names(tensors: dict[str, Tensor], code: str) -> dict[str, Tensor]:
    """The inverse of from_model_names()."""
    renamed = {}
    for name, tensor in tensors.items():
        side, layer, rest = name.split(".", 2)
        renamed[f"model.{side}.layers.{layer}.clsr.{code}.{rest}"] = tensor
    return renamed


# Writing -------------------------------------------------------------------------------------


def write_expert(
    tensors: dict[str, Tensor], code: str, folder: str | Path, about: dict[str, str]
) -> Path:
    """Write an expert file whole or not at all, with language and format in its metadata."""
    path = Path(folder) / file_names(code)[0]
    metadata = {k: str(v) for k, v in about.items()} | {"format": "pt", "language": code}
    usual = {"gate_mode": MODES[0], "weights": WEIGHTS[0]}
    int8 = any(tensor.dtype == torch.int8 for tensor in tensors.values())
    metadata["weights"] = WEIGHTS[int8]
    plain = rank_of(tensors) is None and usual.items() <= (usual | metadata).items()
    plain = plain and not metadata.keys() & {"speaks_as", "window_seconds", "window"}
    metadata["version"] = FORMAT_VERSIONS[not plain]
    metadata = {k: v for k, v in metadata.items() if usual.get(k) != v}
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return write_atomic(path, save(kept, metadata))


def write_authors_expert(tensors: dict[str, Tensor], code: str, folder: str | Path) -> Path:
    """Write ``expert.<name>.bin`` as the public code loads it; it has no room for metadata."""
    theirs = {their_name(name): t for name, t in to_model_names(tensors, code).items()}
    return write_pickle(theirs, Path(folder) / file_names(code)[1])


def convert_expert(path: str | Path, language: str) -> Path:
    """Write our safetensors beside an authors' ``.bin``, with its name and SHA-256 in the metadata.

    It is written again only when the ``.bin`` has changed since. Raises UserError when a file that
    was not made of it is in the way.
    """
    path, (code, _) = Path(path), whisper_language(language)
    about = {"source": path.name, "source_sha256": sha256_file(path)}
    target = path.parent / file_names(code)[0]
    if target.exists():
        earlier = read_metadata(target)
        if earlier.get("source_sha256") == about["source_sha256"]:
            return target
        if "source_sha256" not in earlier or earlier.get("source") != path.name:
            raise UserError(
                f"{target} is there already and is not made of {path.name}: move it away"
            )
    return write_expert(read_expert(path, code)[0], code, path.parent, about)


# Reading -------------------------------------------------------------------------------------


def find_expert(language: str, source: Source) -> Path:
    """The expert file of a language in ``source``.

    A ``.bin`` of a repository gives way to the safetensors that it was once converted to.
    """
    remedy = "train one, or name the folder or hub repository that holds it"
    names = file_names(language)
    path = source.find(names, remedy)
    converted = path.with_name(names[0])
    return converted if not Path(source.name).is_file() and converted.is_file() else path


def look_for_expert(language: str, source: str | Path, **hub: Any) -> Path | None:
    """As find_expert(), but None when ``source`` could be looked into and has none.

    ``source``: a file, a folder or a hub repository, asked with the options ``hub``.
    """
    try:
        return find_expert(language, Source(source, hub))
    except NotThere:
        return None


def up_to_date(path: Path, convert: bool) -> Path:
    """``path``, unless it was converted from a ``.bin`` beside it that has changed since.

    Then it is the ``.bin`` that counts, with ``convert``; else a UserError.
    """
    about = read_metadata(path) if path.suffix == ".safetensors" else {}
    if not about.keys() >= {"source", "source_sha256"}:
        return path
    source = path.parent / Path(about["source"]).name
    if not source.is_file():  # gone; the authors' other name may hold a newer one
        named = [path.parent / name for name in file_names(about["language"])[1:]]
        source = next((other for other in named if other.is_file()), source)
    if not source.is_file() or sha256_file(source) == about["source_sha256"]:
        return path
    if not convert:
        raise UserError(
            f"{path} was made of another {source.name} than the one that lies beside it: load with "
            "convert=True to make it again, or move one of the two away"
        )
    return source


def read_expert(path: Path, code: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of an expert file, ours or (any suffix but .safetensors) the authors', and its
    metadata, which the authors' has none of.

    Raises UserError when it is unreadable, of another language or a newer format.
    """
    if path.suffix != ".safetensors":
        return _read_authors(path, code), {}
    metadata = read_metadata(path)
    if metadata.get("version") not in FORMAT_VERSIONS:
        raise UserError(
            f"expert file {path} has format version {metadata.get('version')!r}, expected "
            f"{' or '.join(map(repr, FORMAT_VERSIONS))}: update the kit or write the file again"
        )
    _check_language(path, [metadata.get("language")], code)
    one_of(f"gate_mode of {path}", metadata.get("gate_mode", MODES[0]), MODES)
    weights = one_of(f"weights of {path}", metadata.get("weights", WEIGHTS[0]), WEIGHTS)
    tensors, _ = read_safetensors(path, int8=weights == "int8")
    return unrounded(tensors, path), metadata


def _read_authors(path: Path, code: str) -> dict[str, Tensor]:
    renamed, languages = our_names(read_pickle(path), path)
    _check_language(path, languages, code)
    tensors = from_model_names(renamed, code)
    if len(tensors) < len(renamed):
        alien = next(n for n in renamed if not from_model_names({n: renamed[n]}, code))
        raise UserError(
            f"expert file {path} holds {alien!r}, which belongs to no expert (one of "
            f"{len(renamed) - len(tensors)}): name a file with experts only"
        )
    return tensors


def _check_language(path: Path, found: list[str | None], code: str) -> None:
    if found != [code]:
        names = ", ".join(map(repr, found)) or "no language"
        raise UserError(
            f"expert file {path} is for {names}, not {code!r}: load it under its own language"
        )


def rank_of(tensors: dict[str, Tensor]) -> int | None:
    """The rank of the experts of a file; None of whole feed-forward networks."""
    down = [tensor for name, tensor in tensors.items() if name.endswith(".fc1.down.weight")]
    return len(down[0]) if down and down[0].dim() else None


def build_experts(model: Routed, tensors: dict[str, Tensor]) -> list[AnyExpert]:
    """Checked tensors -> an expert for each layer, with the layer's dtype and device."""
    built, rank = [], rank_of(tensors)
    for prefix, layer in zip(layer_names(model), model.routed_layers(), strict=True):
        like = layer.fc1.weight
        # Without drawing weights first, which takes time and numbers from the random generator.
        expert = layer.new_expert("meta", rank).to(like.dtype).to_empty(device=like.device)
        mine = [name for name in tensors if name.startswith(f"{prefix}.")]
        expert.load_state_dict({name.removeprefix(f"{prefix}."): tensors[name] for name in mine})
        built.append(expert)
    return built


def check_expert(model: Routed, code: str, tensors: dict[str, Tensor]) -> None:
    """Raise UserError unless the tensors are just those this model needs, in name and shape.

    Their values must be finite, and stay so in the model's dtype.
    """
    wanted, rank = {}, rank_of(tensors)
    if rank == 0:
        raise UserError(
            f"the expert file for {code!r} has rank 0, expected 1 or more: get it again"
        )
    for prefix, layer in zip(layer_names(model), model.routed_layers(), strict=True):
        blueprint = layer.new_expert("meta", rank).state_dict()
        wanted |= {f"{prefix}.{k}": tuple(v.shape) for k, v in blueprint.items()}
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
    largest = torch.finfo(model.dtype).max
    for name, tensor in tensors.items():
        # Both are NaN where one value is. isfinite takes ten times as long.
        lowest, highest = (bound.item() for bound in tensor.aminmax())
        if not -largest <= lowest <= highest <= largest:
            raise UserError(
                f"the expert file for {code!r} holds values in {name} that are not finite in "
                f"{model.dtype}: get the file again, train it anew or load the model in float32"
            )
