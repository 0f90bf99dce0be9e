"""What generate() must know of a checkpoint's tokens, for checkpoints that do not tell it.

Whispers of 2022 and much that was fine-tuned from them have no generation_config.json, or one that
forces a prompt (``forced_decoder_ids``) instead of naming the tokens of languages and tasks. Their
tokenizers have those under the same names as any Whisper's.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig, WhisperTokenizer
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TASK_IDS

from distilwhisper_lib.model.hub import Source

ENGLISH_ONLY = 51_864  # tokens of a Whisper that has none for languages
_NEEDED = ("lang_to_id", "task_to_id", "no_timestamps_token_id")


def complete(generation: Any, config: PretrainedConfig, source: Source) -> None:
    """Give a generation config, in place, the tokens that it does not name, from the tokenizer.

    ``generation``: whatever has the attributes of transformers' GenerationConfig. It stays as it
    is where it knows them, and where no tokenizer does. The prompt that an old one forces
    goes: without a language, Whisper is to detect one. An English-only Whisper is marked as such.
    """
    known = {name: getattr(generation, name, None) for name in (*_NEEDED, "is_multilingual")}
    english = config.vocab_size == ENGLISH_ONLY and not known["lang_to_id"]
    if english or known["is_multilingual"] is False:
        generation.is_multilingual = False  # its tokenizer may name languages all the same
        return
    if all(known[name] for name in _NEEDED):
        return
    tokens = {name: n for name, n in _vocabulary(source).items() if n < config.vocab_size}
    names = [f"<|{code}|>" for code in LANGUAGES]
    found = {
        "lang_to_id": {name: tokens[name] for name in names if name in tokens},
        "task_to_id": {task: tokens.get(f"<|{task}|>") for task in TASK_IDS},
        "no_timestamps_token_id": tokens.get("<|notimestamps|>"),
        "prev_sot_token_id": tokens.get("<|startofprev|>"),
        "is_multilingual": True,
        "max_length": config.max_target_positions,  # transformers' own default is 20
    }
    if not all(found.values()) or None in found["task_to_id"].values():
        return
    for name, value in found.items():
        setattr(generation, name, getattr(generation, name, None) or value)
    generation.forced_decoder_ids = config.forced_decoder_ids = None
    generation._from_model_config = False  # else a saved one is read back without these


def _vocabulary(source: Source) -> dict[str, int]:
    """Name -> id; empty where there is no tokenizer."""
    try:
        return WhisperTokenizer.from_pretrained(source.name, **source.options).get_vocab()
    except (OSError, ValueError):
        return {}
