"""The teacher: a frozen Whisper that says what it would have predicted, token by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PretrainedConfig, WhisperForConditionalGeneration, WhisperProcessor

from distilwhisper_lib.losses.chunked import States
from distilwhisper_lib.losses.divergences import divergence
from distilwhisper_lib.model.whisper import DistilWhisperForConditionalGeneration
from distilwhisper_lib.speech.features import IGNORE, Collator, SpeechDataset, padded


class Teacher:
    """Runs beside the student, on the same features and the same decoder input."""

    def __init__(self, model: DistilWhisperForConditionalGeneration) -> None:
        self.model = model.eval().requires_grad_(False)

    def to(self, device: torch.device | str) -> Teacher:
        self.model.to(device)
        return self

    @property
    def head(self) -> Tensor:
        """(V, D), tied to the token embedding."""
        return self.model.get_output_embeddings().weight

    @torch.no_grad()
    def targets(self, batch: dict[str, Tensor]) -> States:
        """What it would say at every position of a Collator's batch: (B, T, D) and the head.

        Where the student's window fits its clips, the teacher hears the silence that it knows.
        """
        out = self.model(
            input_features=padded(batch["input_features"], self.model.config.max_source_positions),
            decoder_input_ids=batch["decoder_input_ids"],
            use_cache=False,
            with_logits=False,
        )
        return States(out.last_hidden_state, self.head)


class TeacherSource(NamedTuple):
    """A teacher that need not be loaded: what is known of it, and how to get it."""

    about: dict[str, str]  # the record's: name and hash of its weights
    config: PretrainedConfig
    load: Callable[[], Teacher]


@torch.no_grad()
def compare_on(
    table: Any,
    teacher: WhisperForConditionalGeneration,
    student: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
) -> list[dict[str, Any]]:
    """Token by token on a corpus table's first row: what both give to the right next token.

    Columns: token, teacher and student (probabilities), KL and JS (nats).
    """
    collator = Collator(processor, speaks_as=getattr(student.config, "speaks_as", None))
    batch = collator([SpeechDataset(table.head(1))[0]])
    inputs = batch["input_features"], batch["decoder_input_ids"]
    kept = batch["labels"][0] != IGNORE
    labels = batch["labels"][0, kept]
    q, p = (
        model.eval()(input_features=inputs[0], decoder_input_ids=inputs[1]).logits[0, kept]
        for model in (teacher, student)
    )  # (T, V) each
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
