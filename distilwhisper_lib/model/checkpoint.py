"""What a checkpoint's small files tell before its weights are loaded: whether a run can use it."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from transformers import PretrainedConfig

from distilwhisper_lib.config.settings import DISTILLED, RunConfig
from distilwhisper_lib.errors import UserError, reason
from distilwhisper_lib.model import authors
from distilwhisper_lib.model.hub import NotThere, Source
from distilwhisper_lib.model.layers import DistilWhisperConfig
from distilwhisper_lib.speech.audio import POSITIONS_PER_SECOND

ENGLISH_ONLY = 51_864  # tokens of a Whisper that has none for languages
# One of each group must be there: the tokenizer, the features.
_PROCESSOR = (
    ("tokenizer.json", "vocab.json"),
    ("preprocessor_config.json", "processor_config.json"),
)


def check_models(config: RunConfig) -> None:
    """Raise UserError where a run's models cannot do what it asks, before anything is read.

    A model must be a multilingual Whisper with a token for the run's language, its tokenizer and
    features; a teacher must share tokens, features and window with the student. Reads config.json,
    generation_config.json and names of files; of the hub's models, these files alone.
    """
    with_teacher = config.method in (*DISTILLED, "teacher")
    fields = {}
    for role in ("student", "teacher") if with_teacher else ("student",):
        name, revision = getattr(config, role), getattr(config, f"{role}_revision")
        source = Source(name, {"revision": revision})
        fields[role] = read_fields(source)
        check_language(fields[role], _generation(source), config.language, f"{role} {name!r}")
        for names in _PROCESSOR:
            source.find(names, f"the {role} needs it; copy it from the Whisper it stems from")
    if with_teacher:
        check_pair(*(_shortened(fields[role], config) for role in ("teacher", "student")))


def _shortened(fields: dict[str, Any], config: RunConfig) -> PretrainedConfig:
    return shorten_config(DistilWhisperConfig.from_dict(fields), config.window_seconds)


def shorten_config(config: PretrainedConfig, seconds: int | None) -> PretrainedConfig:
    """Set the positions of a model's configuration to a window; None leaves all of them.

    Raises UserError when the model's own window is shorter.
    """
    if seconds is None:
        return config
    if seconds * POSITIONS_PER_SECOND > config.max_source_positions:
        raise UserError(
            f"window_seconds={seconds} is longer than what the model hears at once, "
            f"{config.max_source_positions // POSITIONS_PER_SECOND} s: expected that or less"
        )
    config.max_source_positions = seconds * POSITIONS_PER_SECOND
    return config


def check_language(
    fields: dict[str, Any], generation: dict[str, Any], code: str, model: str
) -> None:
    """Raise UserError unless a checkpoint has a token for a language.

    ``fields``: its config.json; ``generation``: its generation_config.json, empty without one;
    ``model``: how the message calls it.
    """
    english = not generation.get("lang_to_id") and fields.get("vocab_size") == ENGLISH_ONLY
    if english or generation.get("is_multilingual") is False:
        raise UserError(
            f"the {model} is an English-only Whisper, without tokens for languages: take the "
            "multilingual one of its size, such as 'openai/whisper-small'"
        )
    try:
        authors.language_token(SimpleNamespace(**generation), code)
    except UserError as error:
        raise UserError(f"the {model} cannot be used: {error}") from None


def check_pair(teacher: PretrainedConfig, student: PretrainedConfig) -> None:
    """Raise UserError unless both speak the same vocabulary and hear the same mel bins."""
    for name in ("vocab_size", "num_mel_bins", "max_source_positions"):
        theirs, mine = getattr(teacher, name), getattr(student, name)
        if mine != theirs:
            raise UserError(
                f"the teacher has {name} {theirs}, the student {mine}: distil between Whispers "
                "that share tokenizer and features (large-v2, not large-v3, for whisper-small)"
            )


def read_fields(source: Source, name: str = "config.json") -> dict[str, Any]:
    """One of a checkpoint's JSON files; UserError when it is missing or unreadable."""
    try:
        path = source.find([name], "check the name, the revision and the network")
        fields = json.loads(path.read_text(encoding="utf-8"))
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name} of {str(source.name)!r} cannot be read ({reason(error)}): get it again"
        ) from None
    return fields if isinstance(fields, dict) else {}


def _generation(source: Source) -> dict[str, Any]:
    try:
        return read_fields(source, "generation_config.json")
    except NotThere:
        return {}
