"""From table rows to batches: log-mel features, and labels under the right prompt."""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from transformers import WhisperProcessor

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.speech.audio import POSITIONS_PER_SECOND, SAMPLE_RATE, read_audio
from distilwhisper_lib.speech.log_mel import log_mel

IGNORE = -100
TIMESTAMP_STEP = 0.02  # seconds
FRAMES_PER_POSITION = 2  # of 10 ms
# Seconds of silence, at least, that a fitted window keeps after a clip. Untrained, Whisper makes
# more mistakes with less of it (benchmarks/windows.json); training closes that (tuning.json).
TAIL = 1.0

SAMPLES_PER_POSITION = SAMPLE_RATE // POSITIONS_PER_SECOND
# Columns that a dataset reads, and those that it reads where they are.
_READ = ("id", "audio", "start", "end", "seconds", "text", "language")
_PACKED = ("pieces", "spans")
_PROMPT = 4  # tokens: start, language, task, no timestamps


class SpeechDataset(Dataset):
    """A corpus table as the rows that a Collator takes; audio is read when asked for.

    Of a window of several clips (columns of data/packing.py) the audio is theirs with the pauses
    between them. ``targets``: what the teacher said about a clip, by its id, where that is known
    already.
    """

    def __init__(
        self, table: pd.DataFrame, targets: Callable[[str], dict[str, Tensor]] | None = None
    ) -> None:
        # Columns, because a dict a row takes three times the room, once more in each worker.
        names = [*_READ, *(name for name in _PACKED if name in table)]
        self.columns = {name: table[name].tolist() for name in names}
        self.targets = targets

    def __len__(self) -> int:
        return len(self.columns["id"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = {name: column[index] for name, column in self.columns.items()}
        item = {
            "id": row["id"],
            "audio": _audio(row),
            "text": row["text"],
            "language": row["language"],
            "spans": row.get("spans"),
        }
        return item if self.targets is None else item | {"teacher": self.targets(row["id"])}


def _audio(row: dict[str, Any]) -> np.ndarray:
    """Samples of a row, (samples,) float32: of its recording, or of the pieces of a window."""
    pieces = row.get("pieces")
    if pieces is None:
        return read_audio(row["audio"], row["start"], row["end"])
    heard = [read_audio(piece.audio, piece.start, piece.end) for piece in pieces]
    firsts = [round(piece.at * SAMPLE_RATE) for piece in pieces]
    whole = np.zeros(firsts[-1] + len(heard[-1]), np.float32)
    for first, samples in zip(firsts, heard, strict=True):
        whole[first : first + len(samples)] = samples[: len(whole) - first]
    return whole


class Room(NamedTuple):
    """What a window has room for, or what a clip takes of it."""

    seconds: float
    tokens: int


class Collator:
    """Rows -> one batch of tensors for training.

    - ``input_features`` (B, mels, frames) float32
    - ``audio_positions`` (B,): encoder positions that hold audio rather than padding
    - ``decoder_input_ids`` and ``labels`` (B, T); -100 where there is no label
    - ``language_ids`` (B,): language token of each row
    - ``teacher_features`` (B, mels, frames) float32, where there is a ``teacher_extractor``: what a
      teacher of other mel bins hears
    - ``teacher_<name>`` (B, T, ...): the rows' stored teacher targets, where there are any, at the
      labelled positions; zeros elsewhere

    conventions "corrected": decoder input start, language, task, no-timestamps, text; the prompt
    carries no label. "authors": the start token stands twice, the language is missing, and the
    prompt is learned too. ``speaks_as``: languages without a token, and whose they borrow.
    """

    def __init__(
        self,
        processor: WhisperProcessor,
        conventions: str = "corrected",
        max_length: int = 448,
        speaks_as: Mapping[str, str] | None = None,
        teacher_extractor: Any = None,
    ) -> None:
        self.teacher_extractor = teacher_extractor
        self.extractor = processor.feature_extractor
        self.tokenizer = processor.tokenizer
        self.conventions = conventions
        self.max_length = max_length
        self.speaks_as = speaks_as or {}
        added = self.tokenizer.get_added_vocab()
        self._special, self._zero = frozenset(added.values()), added.get("<|0.00|>")

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        inputs, labels = zip(*(self.label_tokens(row) for row in rows), strict=True)
        audio = [row["audio"] for row in rows]
        batch = {
            "input_features": extract_features(self.extractor, audio),
            "audio_positions": audio_positions(self.extractor, audio),
            "decoder_input_ids": _pad(inputs, self.tokenizer.eos_token_id),
            "labels": _pad(labels, IGNORE),
            "language_ids": torch.tensor([self._language(row) for row in rows]),
        }
        if self.teacher_extractor is not None:
            batch["teacher_features"] = extract_features(self.teacher_extractor, audio)
        for name in rows[0].get("teacher", ()):
            known = [row["teacher"][name] for row in rows]
            batch[f"teacher_{name}"] = _at_labels(batch["labels"], known)
        return batch

    def label_tokens(self, row: dict[str, Any]) -> tuple[list[int], list[int]]:
        """(decoder input, labels) of one row, equally long.

        With "spans" (data/packing.py), each text stands between the timestamps of its sound.
        """
        spans = row.get("spans")
        text = self._text(row, row["text"]) if spans is None else self._timed(row, spans)
        start, task, plain = map(
            self._token, ("<|startoftranscript|>", "<|transcribe|>", "<|notimestamps|>")
        )
        if self.conventions == "authors":
            target = [start, task, plain, *text, self.tokenizer.eos_token_id]
            inputs, labels = [start, *target[:-1]], target
        else:
            prompt = [start, self._language(row), task] + [plain] * (spans is None)
            inputs = [*prompt, *text]
            labels = [IGNORE] * (len(prompt) - 1) + [*text, self.tokenizer.eos_token_id]
        if len(inputs) > self.max_length:
            raise UserError(
                f"clip {row['id']!r} has {len(inputs)} tokens, more than the model's "
                f"{self.max_length}: shorten its text or leave it out"
            )
        return inputs, labels

    def room(self) -> Room:
        """Of a row, for sound and, beside its prompt, for text."""
        return Room(self.extractor.n_samples / SAMPLE_RATE, self.max_length - _PROMPT)

    def takes(self, row: dict[str, Any]) -> Room:
        """What a clip takes of that: its seconds, and its tokens without timestamps."""
        return Room(row["seconds"], len(self._text(row, row["text"])))

    def _text(self, row: dict[str, Any], text: str) -> list[int]:
        tokens = self.tokenizer(text, add_special_tokens=False).input_ids
        if special := self._special.intersection(tokens):
            token = self.tokenizer.convert_ids_to_tokens(min(special))
            raise UserError(
                f"clip {row['id']!r} has the special token {token!r} in its text: take it out, or "
                "read the corpus with data.open_corpus, which does"
            )
        return tokens

    def _timed(self, row: dict[str, Any], spans: Sequence[Any]) -> list[int]:
        """Texts between their timestamps: spaces join what is read without these."""
        if self._zero is None:
            raise UserError(
                "this model has no timestamps in its vocabulary: leave the setting timestamps out"
            )
        tokens: list[int] = []
        for span in spans:
            text = self._text(row, f" {span.text}" if tokens else span.text)
            first, last = (self._zero + round(at / TIMESTAMP_STEP) for at in (span.begin, span.end))
            tokens += [first, *text, last]
        return tokens

    def _language(self, row: dict[str, Any]) -> int:
        code = self.speaks_as.get(row["language"], row["language"])
        token = self._token(f"<|{code}|>")
        if token == self.tokenizer.unk_token_id:
            raise UserError(
                f"clip {row['id']!r} is in {code!r}, for which this model has no token: take a "
                "Whisper that knows the language, or lend it one with the setting speaks_as"
            )
        return token

    def _token(self, token: str) -> int:
        return self.tokenizer.convert_tokens_to_ids(token)


@contextmanager
def shared_with_workers(workers: int) -> Iterator[None]:
    """Where processes that read audio are started: they share what is held now, and go on to.

    Looking for garbage writes to every object, and what is written is no longer shared: a copy of
    all that this process holds. So what is there by now is left out of it.
    """
    if workers:
        gc.collect()
        gc.freeze()
    try:
        yield
    finally:
        if workers:
            gc.unfreeze()


def extract_features(extractor: Any, audio: Sequence[Any]) -> Tensor:
    """Waveforms (float32, 16 kHz) -> log-mel (B, mels, frames), padded to the window.

    To window_of() the longest of them, where the extractor fits its window.
    """
    features = log_mel(extractor, audio)
    seconds = window_of(extractor, max(map(len, audio)) / SAMPLE_RATE)
    return features[..., : seconds * SAMPLE_RATE // extractor.hop_length].contiguous()


def padded(features: Tensor, positions: int) -> Tensor:
    """Features (B, mels, frames) that end in silence, with as much more as fills so many positions:
    what the extractor makes of the same clips where it fits no window."""
    missing = positions * FRAMES_PER_POSITION - features.shape[-1]
    return F.pad(features, (0, missing), mode="replicate") if missing > 0 else features


def fits_window(extractor: Any) -> bool:
    """Whether its features are as short as the clips are."""
    return getattr(extractor, "fit_window", False)


def window_of(extractor: Any, seconds: float) -> int:
    """Whole seconds in which a clip of so many is heard.

    All of the model's window, or, where it fits, the clip's own length rounded up: whole seconds,
    so that clips of one window can share a batch and each is heard as it would be alone.
    """
    whole = extractor.n_samples // SAMPLE_RATE
    return min(whole, max(1, math.ceil(seconds + TAIL))) if fits_window(extractor) else whole


def batches_alike(extractor: Any, seconds: Sequence[float], size: int) -> list[list[int]]:
    """Places of clips in batches of up to ``size``, each of one window_of(), the shortest first."""
    windows = [window_of(extractor, length) for length in seconds]
    order = sorted(range(len(windows)), key=windows.__getitem__)
    alike = [list(places) for _, places in itertools.groupby(order, windows.__getitem__)]
    return [places[i : i + size] for places in alike for i in range(0, len(places), size)]


def audio_positions(extractor: Any, audio: Sequence[Any]) -> Tensor:
    """How many encoder positions of 20 ms hold audio rather than padding: (B,)."""
    heard = (min(len(samples), extractor.n_samples) for samples in audio)
    return torch.tensor([-(-samples // SAMPLES_PER_POSITION) for samples in heard])


def _at_labels(labels: Tensor, rows: Sequence[Tensor]) -> Tensor:
    """One (N, ...) a row, N its labelled positions -> (B, T, ...), zeros where no label is."""
    spread = rows[0].new_zeros((*labels.shape, *rows[0].shape[1:]))
    spread[labels != IGNORE] = torch.cat(list(rows))
    return spread


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    length = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])
