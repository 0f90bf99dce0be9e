"""What a checkpoint's small files tell before its weights are loaded: whether a run can use it."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from transformers import PretrainedConfig, WhisperProcessor

from distilwhisper_lib.config.settings import DISTILLED, RunConfig
from distilwhisper_lib.config.values import check_teacher
from distilwhisper_lib.errors import UserError, reason
from distilwhisper_lib.languages import find_language
from distilwhisper_lib.model import authors
from distilwhisper_lib.model.generation import complete
from distilwhisper_lib.model.hub import NotThere, Source, loading
from distilwhisper_lib.model.layers import DistilWhisperConfig
from distilwhisper_lib.speech.audio import POSITIONS_PER_SECOND
from distilwhisper_lib.speech.features import SAMPLES_PER_POSITION

# One of each group must be there: the tokenizer, the features.
_PROCESSOR = (
    ("tokenizer.json", "vocab.json"),
    ("preprocessor_config.json", "processor_config.json"),
)


def check_models(config: RunConfig) -> float:
    """The seconds that a run's models hear at once; UserError where they cannot do what it asks.

    Each must pass check_model(), and have a token for every language that it will hear; a teacher
    must share tokens, features and window with the student.
    """
    check_teacher(config)
    with_teacher = config.method in (*DISTILLED, "teacher")
    untrained = [find_language(name).code for name in config.forgetting.split()]
    languages = {"student": [config.spoken, *untrained], "teacher": [config.spoken]}
    configs = {}
    for role in ("student", "teacher") if with_teacher else ("student",):
        name, revision = getattr(config, role), getattr(config, f"{role}_revision")
        checkpoint = check_model(name, revision, languages[role], role, config.borrowed)
        configs[role] = shorten_config(checkpoint.config, config.window_seconds)
    if with_teacher:
        check_pair(configs["teacher"], configs["student"])
    return configs["student"].max_source_positions / POSITIONS_PER_SECOND


class Checkpoint(NamedTuple):
    """What is read of a Whisper before its weights."""

    source: Source  # at its commit
    config: PretrainedConfig
    processor: WhisperProcessor


def check_model(
    name: str,
    revision: str | None,
    languages: Sequence[str] = (),
    role: str = "model",
    borrowers: Collection[str] = (),
) -> Checkpoint:
    """Read a Whisper's small files; UserError when the kit cannot use it.

    It must be multilingual, with a token for each of ``languages`` (codes), and have a tokenizer
    and features that fit; of its own for none of the ``borrowers``. ``role``: what messages call
    it. Of a hub's model, only its JSON files and tokenizer are read.
    """
    source = Source(name, {"revision": revision})
    config = DistilWhisperConfig.from_dict(read_fields(source))
    source, who = source.at_commit(), f"{role} {name!r}"
    for names in _PROCESSOR:
        source.find(names, f"the {role} needs it; copy it from the Whisper it stems from")
    generation = SimpleNamespace(**_generation(source))
    complete(generation, config, source)
    try:
        tokens = authors.language_tokens(generation)
        for code in languages:
            authors.language_token(generation, code)
    except UserError as error:
        raise UserError(f"the {who} cannot be used: {error}") from None
    tokens = {k: v for k, v in tokens.items() if k.strip("<|>") not in (config.speaks_as or {})}
    if own := [code for code in borrowers if f"<|{code}|>" in tokens]:
        raise UserError(f"the {who} has a token of its own for {own[0]!r}: leave speaks_as out")
    with loading(name):
        processor = WhisperProcessor.from_pretrained(source.name, **source.options)
    tasks = getattr(generation, "task_to_id", None) or {}
    tokens = tokens | {f"<|{task}|>": token for task, token in tasks.items()}
    _check_tokenizer(processor.tokenizer, tokens, who)
    _check_features(processor.feature_extractor, config, who)
    return Checkpoint(source, config, processor)


def _check_tokenizer(tokenizer: Any, tokens: dict[str, int], who: str) -> None:
    """Training reads a prompt's tokens from the tokenizer, decoding from the generation config."""
    for name, token in tokens.items():
        if (found := tokenizer.convert_tokens_to_ids(name)) != token:
            raise UserError(
                f"the tokenizer of the {who} takes {name} for token {found}, its generation_config "
                f"for {token}: copy both from the Whisper it stems from"
            )


def _check_features(extractor: Any, config: PretrainedConfig, who: str) -> None:
    made = extractor.feature_size, extractor.n_samples // SAMPLES_PER_POSITION
    heard = config.num_mel_bins, config.max_source_positions
    if made != heard:
        raise UserError(
            f"the preprocessor of the {who} makes {made[0]} mel bins and {made[1]} positions, its "
            f"config.json expects {heard[0]} and {heard[1]}: copy preprocessor_config.json from "
            "the Whisper it stems from"
        )


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
        fields = read_fields(source, "generation_config.json")
    except NotThere:
        return {}
    if not isinstance(fields, dict):
        raise UserError(
            f"generation_config.json of {source.name} holds no settings: copy it from the Whisper "
            "that the model stems from"
        )
    return fields
