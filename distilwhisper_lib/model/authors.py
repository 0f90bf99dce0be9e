"""The layout of the authors' released checkpoints, in one place: names, config and pickles.

Their feed-forward block is called ``ffn_clsr`` and holds, per language, ``gate_in.<language>``,
``gate_out.<language>`` and ``proj.<language>.{fc1,fc2}``; stock Whisper's FFN sits in
``proj.shared``. An expert file, ``expert.<language>.bin`` (in the 3k release
``<code>-experts.bin``), is a torch pickle of one flat dict of float tensors. Source: the model
cards and files of naver/multilingual-distilwhisper-{3k,10k,28k}.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.languages import whisper_language
from distilwhisper_lib.model.hub import Source
from distilwhisper_lib.model.tensors import read_pickle, read_safetensors

BASE_FILES = ("model.safetensors", "pytorch_model.bin")

_THEIRS = re.compile(r"(model\.(?:en|de)coder\.layers\.\d+)\.ffn_clsr\.(\w+)\.([^.]+)\.(.+)")
_OURS = re.compile(r"(model\.(?:en|de)coder\.layers\.\d+)\.clsr\.(\w+)\.(.+)")
_STOCK = re.compile(r"(model\.(?:en|de)coder\.layers\.\d+)\.(fc[12]\.\w+)")
_PARTS = {"gate_in": "gate.inner.", "gate_out": "gate.outer.", "proj": ""}
_CONFIG = {"clsr_gate_dim": "gate_dim", "skip_gate_prob": "skip"}
_CONFIG_UNUSED = ("use_gate_budget", "gate_budget")  # training, which RunConfig describes here


# Names ---------------------------------------------------------------------------------------


def our_name(name: str) -> tuple[str, str | None]:
    """An authors' tensor name -> (the kit's, the code of its language or None).

    ``...ffn_clsr.gate_in.catalan.weight`` -> ``...clsr.ca.gate.inner.weight``, and
    ``...ffn_clsr.proj.shared.fc1.weight`` -> stock Whisper's ``...fc1.weight``. Other names stay.
    """
    match = _THEIRS.fullmatch(name)
    if not match or match[2] not in _PARTS:
        return name, None
    layer, part, language, rest = match.groups()
    if language == "shared":
        return f"{layer}.{rest}", None
    code, _ = whisper_language(language)
    return f"{layer}.clsr.{code}.{_PARTS[part]}{rest}", code


def their_name(name: str) -> str:
    """The inverse of our_name()."""
    if match := _STOCK.fullmatch(name):
        return f"{match[1]}.ffn_clsr.proj.shared.{match[2]}"
    match = _OURS.fullmatch(name)
    if not match:
        return name
    layer, code, rest = match.groups()
    part = next(part for part, ours in _PARTS.items() if rest.startswith(ours))
    _, language = whisper_language(code)
    return f"{layer}.ffn_clsr.{part}.{language}.{rest.removeprefix(_PARTS[part])}"


def our_names(tensors: dict[str, Tensor], source: object) -> tuple[dict[str, Tensor], list[str]]:
    """A state dict under the kit's names, and the codes of its languages in order of appearance.

    Raises UserError when two tensors mean the same, or a language is unknown.
    """
    renamed: dict[str, Tensor] = {}
    languages: dict[str, None] = {}
    for name, tensor in tensors.items():
        ours, code = our_name(name)
        if ours in renamed:
            raise UserError(f"{source} holds {name} twice, under two names: export it again")
        renamed[ours] = tensor
        if code:
            languages[code] = None
    return renamed, list(languages)


# Configuration -------------------------------------------------------------------------------


def is_theirs(fields: dict[str, Any]) -> bool:
    """Whether a config.json describes a checkpoint of the authors' layout."""
    return any(name.startswith("clsr_") for name in fields)


def our_config(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of an authors' config.json as DistilWhisperConfig's; any other stays as it is.

    Which experts there are is read from the weights: the public code's ``clsr_langs`` may name
    "shared", or miss languages that were added later.
    """
    if not is_theirs(fields):
        return fields
    renamed = {_CONFIG.get(name, name): value for name, value in fields.items()}
    unused = [n for n in renamed if n.startswith("clsr_") or n in _CONFIG_UNUSED]
    return {name: value for name, value in renamed.items() if name not in unused}


def language_tokens(generation_config: Any) -> dict[str, int]:
    """The ids of the tokens of a model's languages; UserError when it has or knows none."""
    if getattr(generation_config, "is_multilingual", None) is False:
        raise UserError(
            "this is an English-only Whisper, without tokens for languages: take the "
            "multilingual one of its size, such as 'openai/whisper-small'"
        )
    if tokens := getattr(generation_config, "lang_to_id", None):
        return tokens
    raise UserError(
        "the tokens of this model's languages are unknown, because its generation_config has no "
        "lang_to_id and no tokenizer tells them: give it the generation_config.json of the "
        "Whisper it stems from"
    )


def language_token(generation_config: Any, code: str) -> int:
    """The id of a language's token, from ``generation_config.lang_to_id``."""
    tokens = language_tokens(generation_config)
    if f"<|{code}|>" not in tokens:
        raise UserError(
            f"it has no token for the language {code!r}: take a Whisper that has one, or lend it "
            'that of a near language which it knows, as in {"speaks_as": "es"}'
        )
    return tokens[f"<|{code}|>"]


# A whole checkpoint --------------------------------------------------------------------------


def read_base(source: Source) -> tuple[dict[str, Tensor], list[str]]:
    """A whole checkpoint, as our_names() gives it."""
    path = source.find(BASE_FILES, "name a checkpoint of the authors' layout")
    tensors = read_safetensors(path)[0] if path.suffix == ".safetensors" else read_pickle(path)
    return our_names(tensors, path)


def check_complete(info: dict[str, Any], name: str | Path) -> None:
    """Raise UserError unless transformers' loading info says that every weight found its place."""
    faults = [f"{key} is missing" for key in sorted(info["missing_keys"])]
    faults += [f"{key} is not expected" for key in sorted(info["unexpected_keys"])]
    faults += [
        f"{key} has shape {tuple(found)}, not {tuple(wanted)}"
        for key, found, wanted in sorted(info["mismatched_keys"])
    ]
    if faults:
        raise UserError(
            f"the weights of {str(name)!r} do not fit its config.json: {faults[0]}"
            + (f" (and {len(faults) - 1} more)" if len(faults) > 1 else "")
            + ": get the checkpoint again"
        )


def read_generation_config(source: Source) -> GenerationConfig | None:
    """A checkpoint's generation_config.json; None where it has none."""
    try:
        return GenerationConfig.from_pretrained(source.name, **source.options)
    except OSError:
        return None
