"""The teacher: a frozen Whisper that says what it would have predicted, token by token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from .errors import UserError
from .features import Collator, SpeechDataset
from .losses import IGNORE, divergence


class Teacher:
    """Runs beside the student, on the same features and the same decoder input."""

    def __init__(self, model: WhisperForConditionalGeneration) -> None:
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def logits(self, input_features: Tensor, decoder_input_ids: Tensor) -> Tensor:
        """(B, mels, frames), (B, T) -> next-token logits (B, T, V)."""
        return self.model(
            input_features=input_features, decoder_input_ids=decoder_input_ids, use_cache=False
        ).logits

    def check_student(self, student: WhisperForConditionalGeneration) -> None:
        """Raise UserError unless both speak the same vocabulary and hear the same mel bins."""
        for name in ("vocab_size", "num_mel_bins", "max_source_positions"):
            mine, theirs = getattr(self.model.config, name), getattr(student.config, name)
            if mine != theirs:
                raise UserError(
                    f"the teacher has {name} {mine}, the student {theirs}: distil between Whispers "
                    "that share tokenizer and features (large-v2, not large-v3, for whisper-small)"
                )


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
    batch = Collator(processor)([SpeechDataset(table.head(1))[0]])
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
