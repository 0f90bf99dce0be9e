"""The teacher: a frozen Whisper that says what it would have predicted, token by token.

It answers in the student's tokens. Where it has others (large-v3 and turbo have one more language,
and all that stands behind it one further), it is asked by their names, and of its head the rows of
the student's tokens are read, in the student's order: its distribution over these, renormalised.
Where it hears other mel bins, it hears the same clips through its own extractor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    PretrainedConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

from distilwhisper_lib.config.settings import RunConfig
from distilwhisper_lib.losses.chunked import States
from distilwhisper_lib.losses.divergences import divergence
from distilwhisper_lib.model.checkpoint import teacher_tokens
from distilwhisper_lib.model.loading import load_model
from distilwhisper_lib.model.whisper import DistilWhisperForConditionalGeneration
from distilwhisper_lib.speech.features import IGNORE, Collator, SpeechDataset, padded


class Teacher:
    """Runs beside the student, on the same clips and the same decoder input.

    ``tokens``: its own token for each of the student's; None where they are the same.
    ``extractor``: its own; None where the student's features are what it hears.
    """

    def __init__(
        self,
        model: DistilWhisperForConditionalGeneration,
        tokens: Sequence[int] | None = None,
        extractor: WhisperFeatureExtractor | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokens = None if tokens is None else torch.tensor(tokens)
        self.extractor = extractor
        self.head = self._head()

    def to(self, device: torch.device | str) -> Teacher:
        self.model.to(device)
        self.tokens = None if self.tokens is None else self.tokens.to(device)
        self.head = self._head()
        return self

    def _head(self) -> Tensor:
        """(V, D), V the student's: of the head that is tied to the token embedding."""
        weight = self.model.get_output_embeddings().weight
        return weight if self.tokens is None else weight[self.tokens]

    @torch.no_grad()
    def targets(self, batch: dict[str, Tensor]) -> States:
        """What it would say at every position of a Collator's batch: (B, T, D) and the head.

        Where the student's window fits its clips, the teacher hears the silence that it knows.
        """
        features = batch.get("teacher_features", batch["input_features"])
        said = batch["decoder_input_ids"]
        out = self.model(
            input_features=padded(features, self.model.config.max_source_positions),
            decoder_input_ids=said if self.tokens is None else self.tokens[said],
            use_cache=False,
            with_logits=False,
        )
        return States(out.last_hidden_state, self.head)


def load_teacher(config: RunConfig, processor: WhisperProcessor) -> Teacher:
    """The model that a run learns from, asked in the tokens of its student's processor."""
    model, its = load_model(
        config.teacher, config.teacher_revision, config.window_seconds, False, config.spoken
    )
    tokens = teacher_tokens(its.tokenizer, processor.tokenizer)
    return Teacher(model, tokens, own_features(its, processor))


def own_features(
    teacher: WhisperProcessor, student: WhisperProcessor
) -> WhisperFeatureExtractor | None:
    """The teacher's extractor, where it makes other mel bins than the student's."""
    theirs, mine = teacher.feature_extractor, student.feature_extractor
    return None if theirs.feature_size == mine.feature_size else theirs


class TeacherSource(NamedTuple):
    """A teacher that need not be loaded: what is known of it, and how to get it."""

    about: dict[str, str]  # the record's: name and hash of its weights
    config: PretrainedConfig
    load: Callable[[], Teacher]
    tokens: list[int] | None = None  # see Teacher
    extractor: WhisperFeatureExtractor | None = None


@torch.no_grad()
def compare_on(
    table: Any,
    teacher: Teacher,
    student: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
) -> list[dict[str, Any]]:
    """Token by token on a corpus table's first row: what both give to the right next token.

    Columns: token, teacher and student (probabilities), KL and JS (nats).
    """
    collator = Collator(
        processor,
        speaks_as=getattr(student.config, "speaks_as", None),
        teacher_extractor=teacher.extractor,
    )
    batch = collator([SpeechDataset(table.head(1))[0]])
    kept = batch["labels"][0] != IGNORE
    labels = batch["labels"][0, kept]
    said = teacher.targets(batch)
    q = F.linear(said.states[0, kept], said.head)  # (T, V)
    heard = {name: batch[name] for name in ("input_features", "decoder_input_ids")}
    p = student.eval()(**heard).logits[0, kept]
    return [
        {
            "token": processor.tokenizer.decode([label]),
            "teacher": q[i].softmax(-1)[label].item(),
            "student": p[i].softmax(-1)[label].item(),
            "KL": divergence(p[i : i + 1], q[i : i + 1], "kl").item(),
            "JS": divergence(p[i : i + 1], q[i : i + 1], "js").item(),
        }
        for i, label in enumerate(labels.tolist())
    ]
