"""How long transcripts are for a model: what its decoder can learn has an end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from distilwhisper_lib.config.settings import RunConfig, locate
from distilwhisper_lib.errors import UserError, reason

PROMPT = 4  # start, language, task, no-timestamps; the end token takes the place of the start
_AT_ONCE = 500  # texts: a tokenizer remembers several kilobytes of each


class LabelLimit:
    """Counts label tokens as features.Collator lays them out, and knows how many are too many.

    `limit` is the decoder's number of positions (448 for every Whisper); the tokenizer is loaded
    when first asked for, which `over` seldom has to.
    """

    def __init__(self, limit: int, load: Callable[[], Any]) -> None:
        self.limit, self._load = limit, load

    @cached_property
    def tokenizer(self) -> Any:
        return self._load()

    def tokens(self, text: str) -> int:
        """The decoder positions that a transcript takes, prompt included."""
        return self.count([text])[0]

    def count(self, texts: Sequence[str]) -> list[int]:
        """`tokens` of many transcripts at once."""
        counts: list[int] = []
        for start in range(0, len(texts), _AT_ONCE):
            some = list(texts[start : start + _AT_ONCE])
            ids = self.tokenizer(some, add_special_tokens=False).input_ids
            counts += [len(tokens) + PROMPT for tokens in ids]
        return counts

    def over(self, text: str) -> str | None:
        """What is wrong when a transcript is too long to be learnt, else None."""
        # A token of byte-level BPE is one byte at least, so most texts need no counting.
        if len(text.encode()) + PROMPT <= self.limit or (tokens := self.tokens(text)) <= self.limit:
            return None
        return f"{tokens} tokens, at most {self.limit}"


def label_limit(config: RunConfig) -> LabelLimit:
    """The limit of the model that a run trains; `UserError` when it cannot be found."""
    source, revision = locate(config.student), config.student_revision
    return LabelLimit(
        _settings(source, revision).get("max_target_positions", 448),
        lambda: _load_tokenizer(source, revision),
    )


def _settings(source: str, revision: str) -> dict[str, Any]:
    """A model's config.json, without transformers: that takes seconds to import."""
    path = Path(source) / "config.json"
    try:
        if not path.parent.is_dir():
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(source, "config.json", revision=revision))
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"Model {source!r} has no readable config.json ({reason(error)}): check the name, the "
            "revision and the network."
        ) from error


def _load_tokenizer(source: str, revision: str) -> Any:
    from transformers import WhisperProcessor

    return WhisperProcessor.from_pretrained(source, revision=revision).tokenizer
