"""What a checkpoint's small files tell before its weights are loaded: whether a run can use it."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from transformers import PretrainedConfig, WhisperProcessor

from distilwhisper_lib.config.settings import RunConfig
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
    must pass check_pair() with the student.
    """
    check_teacher(config)
    untrained = [find_language(name).code for name in config.forgetting.split()]
    languages = {"student": [config.spoken, *untrained], "teacher": [config.spoken]}
    checkpoints: dict[str, Checkpoint] = {}
    for role in ("student", "teacher") if config.needs_teacher else ("student",):
        name, revision = getattr(config, role), getattr(config, f"{role}_revision")
        checkpoint = check_model(name, revision, languages[role], role, config.borrowed)
        shorten_config(checkpoint.config, config.window_seconds)
        checkpoints[role] = checkpoint
    if config.needs_teacher:
        check_pair(checkpoints["teacher"], checkpoints["student"])
    return checkpoints["student"].config.max_source_positions / POSITIONS_PER_SECOND


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


def check_pair(teacher: Checkpoint, student: Checkpoint) -> None:
    """Raise UserError unless a teacher can be asked in the student's tokens, about what it hears.

    Both must have the same window and the same tokens of text. Mel bins and the places of special
    tokens may differ, as large-v3's do from those of earlier Whispers.
    """
    theirs, mine = teacher.config, student.config
    if mine.max_source_positions != theirs.max_source_positions:
        heard = (c.max_source_positions / POSITIONS_PER_SECOND for c in (theirs, mine))
        raise UserError(
            "the teacher hears {:g} s at once, the student {:g}: set window_seconds to the shorter "
            "of them, or take another teacher".format(*heard)
        )
    tokens = teacher_tokens(teacher.processor.tokenizer, student.processor.tokenizer)
    if tokens is None and mine.vocab_size == theirs.vocab_size:
        return
    for role, checkpoint in (("teacher", teacher), ("student", student)):
        rows, names = checkpoint.config.vocab_size, len(checkpoint.processor.tokenizer)
        if rows != names:
            raise UserError(
                f"the {role} has {rows} tokens in its config.json and names for {names}, so that "
                "the tokens of teacher and student cannot be matched by name: take Whispers as "
                "they were published"
            )


# A token that changed its name with large-v3: there is no speech.
_RENAMED = {"<|nocaptions|>": "<|nospeech|>", "<|nospeech|>": "<|nocaptions|>"}


def teacher_tokens(teacher: Any, student: Any) -> list[int] | None:
    """The teacher's token for each of the student's, by name; None where all are the same.

    Of two tokenizers. Raises UserError where text is cut into other tokens, and where the teacher
    lacks one that the student has.
    """
    theirs, mine = teacher.get_vocab(), student.get_vocab()
    if theirs == mine:
        return None
    special = student.get_added_vocab()
    found = [-1] * len(mine)
    for name, token in mine.items():
        other = theirs.get(name, theirs.get(_RENAMED.get(name, name)))
        if name not in special and other != token:
            raise UserError(
                f"token {token} of the student is {name!r}, and the teacher's "
                f"{teacher.convert_ids_to_tokens(token)!r}: take a teacher that cuts text into "
                "the same tokens, as all multilingual Whispers of OpenAI do"
            )
        if other is None:
            raise UserError(
                f"the teacher lacks the student's token {name}: take a teacher that has it, as "
                "large-v3 and turbo have all that other Whispers do"
            )
        found[token] = other
    return found


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
