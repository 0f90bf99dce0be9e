"""One way to transcribe for every method, decoded once and scored as often as one likes."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, WhisperProcessor

from . import gates as gate_statistics
from .features import SpeechDataset, audio_positions, extract_features
from .files import write_atomic


def transcribe(
    model: PreTrainedModel,
    processor: WhisperProcessor,
    table: pd.DataFrame,
    path: Path | None = None,
    *,
    max_new_tokens: int = 225,
    batch_size: int = 16,
    task: str = "transcribe",
    expert_encoder: bool = False,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Transcribe a corpus table greedily, each row in its own language.

    Returns one dict a row, in the table's order: id, reference, hypothesis, language, speaker,
    seconds, tokens (of the hypothesis), capped (the token limit cut it), and gates (share of
    expert routing per layer, or None without experts). With ``path`` they are written there as
    JSON lines; an interrupted call goes on where it stopped, a finished one is read back.

    ``task`` "translate" goes through the shared branch; ``expert_encoder`` lets each row's expert
    speak in the encoder all the same.
    """
    if path is not None and path.exists():
        return read_hypotheses(path)
    partial = path and path.with_suffix(".partial.jsonl")
    done = {row["id"]: row for row in _read_finished_lines(partial)}
    missing = table[~table["id"].isin(done)].sort_values(["seconds", "id"], ascending=False)
    begin = time.perf_counter()
    with (
        _open_for_appending(partial) as file,
        tqdm(total=len(missing), unit="clip", desc="transcribe", disable=not progress) as bar,
        _evaluating(model),
    ):
        for start in range(0, len(missing), batch_size):
            batch = missing.iloc[start : start + batch_size]
            options = {"task": task, "max_new_tokens": max_new_tokens}
            for row in _transcribe_batch(model, processor, batch, expert_encoder, **options):
                done[row["id"]] = row
                if file is not None:
                    file.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")
            if file is not None:
                file.flush()
            bar.update(len(batch))
    rows = [done[clip] for clip in table["id"]]
    if path is not None:
        _write_lines(rows, partial)
        if len(missing):
            seconds = round(time.perf_counter() - begin, 2)
            heard = round(float(missing["seconds"].sum()), 2)
            write_atomic(
                timing_path(path), json.dumps({"seconds": seconds, "audio_seconds": heard})
            )
        os.replace(partial, path)
    return rows


def timing_path(path: Path) -> Path:
    """Where transcribe() notes how long it took, for the clips of the call that finished."""
    return path.with_suffix(".timing.json")


def read_hypotheses(path: Path) -> list[dict[str, Any]]:
    """The rows that transcribe() wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _transcribe_batch(
    model: PreTrainedModel,
    processor: WhisperProcessor,
    batch: pd.DataFrame,
    expert_encoder: bool,
    **options: Any,
) -> list[dict[str, Any]]:
    clips = list(SpeechDataset(batch))
    audio = [clip["audio"] for clip in clips]
    features = extract_features(processor.feature_extractor, audio).to(model.device, model.dtype)
    routed = bool(getattr(model, "languages", []))
    recorder = gate_statistics.GateRecorder(model) if routed else contextlib.nullcontext()
    languages = list(batch["language"])
    with recorder, torch.no_grad():
        heard: dict[str, Any] = {"input_features": features}
        if expert_encoder:
            heard = {"encoder_outputs": model.encode(features, languages)}
        ids = model.generate(**heard, language=languages, num_beams=1, do_sample=False, **options)
    tokenizer = processor.tokenizer
    end = tokenizer.eos_token_id
    texts = [[t for t in row if t != end] for row in ids.tolist()]
    shares: list[Any] = [None] * len(clips)
    if routed:
        positions = audio_positions(processor.feature_extractor, audio)
        shares = gate_statistics.utterance_shares(
            recorder.take(), positions, [len(text) for text in texts]
        )
    return [
        {
            "id": row["id"],
            "reference": row["text"],
            "hypothesis": tokenizer.decode(text, skip_special_tokens=True).strip(),
            "language": row["language"],
            "speaker": row["speaker"],
            "seconds": round(float(row["seconds"]), 3),
            "tokens": len(text),
            "capped": len(text) >= options["max_new_tokens"],
            "gates": share,
        }
        for row, text, share in zip(batch.to_dict("records"), texts, shares, strict=True)
    ]


@contextlib.contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode for a while: training goes on after a validation."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextlib.contextmanager
def _open_for_appending(path: Path | None) -> Iterator[Any]:
    if path is None:
        yield None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        yield file


def _read_finished_lines(path: Path | None) -> list[dict[str, Any]]:
    """Whole lines of an interrupted call; the last one may be torn and is cut off."""
    if path is None or not path.exists():
        return []
    whole, _, torn = path.read_text(encoding="utf-8").rpartition("\n")
    if torn:
        path.write_text(whole + "\n" if whole else "", encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def _write_lines(rows: list[dict[str, Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
