"""One way to transcribe for every method, decoded once and scored as often as one likes."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, WhisperProcessor

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.gates.counts import (
    SCORE_EDGES,
    Histograms,
    add_histograms,
    count_gates,
    token_classes,
)
from distilwhisper_lib.gates.recorder import PROMPT_TOKENS, GateRecorder, has_gates
from distilwhisper_lib.hardware import DTYPES, multiplies_bf16
from distilwhisper_lib.io.files import write_atomic
from distilwhisper_lib.model.clsr import Gate, GateMode
from distilwhisper_lib.speech.features import (
    SpeechDataset,
    audio_positions,
    extract_features,
    window_of,
)


def transcribe(
    model: PreTrainedModel,
    processor: WhisperProcessor,
    table: pd.DataFrame,
    path: Path | None = None,
    *,
    max_new_tokens: int = 225,
    batch_size: int = 16,
    precision: str = "auto",
    task: str = "transcribe",
    expert_encoder: bool = False,
    gate_mode: GateMode | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Transcribe a corpus table greedily, each row in its own language.

    Returns one dict a row, in the table's order: id, reference, hypothesis, language, speaker,
    seconds, tokens (of the hypothesis), capped (the token limit cut it), and gates (what
    count_gates() says of them, or None without experts). With ``path`` they are written there as
    JSON lines, how they were made to timing_path(), and the gates' scores to scores_path(); an
    interrupted call goes on where it stopped, a finished one is read back.

    ``batch_size`` is halved when memory runs out, and stays so; the longest clips come first, so
    that this happens at the beginning. Which clips share a batch can move a score's last digits
    and, rarely, a token; nothing else depends on it. A clip that does not fit by itself raises
    UserError; what is finished is kept.

    ``precision``: "fp32", "bf16", "fp16", or "auto": half on a GPU, else as the model is. The
    model itself stays as it is.

    ``task`` "translate" goes through the shared branch; ``expert_encoder`` lets each row's expert
    speak in the encoder all the same. ``gate_mode``: of a model with experts, see its forward();
    None: those it is to be heard with.
    """
    partial = path and path.with_suffix(".batches.jsonl")
    if path is not None and path.exists():
        partial.unlink(missing_ok=True)
        return read_hypotheses(path)
    batches = _read_finished_batches(partial)
    scores = _take_scores(batches)
    finished = {row["id"] for batch in batches for row in batch["rows"]}
    missing = table[~table["id"].isin(finished)].sort_values(["seconds", "id"], ascending=False)
    if batches:
        batch_size = min(batch_size, batches[-1]["batch_size"])
    options = {"task": task, "max_new_tokens": max_new_tokens}
    if gate_mode is not None:  # stock Whisper knows no such word
        options["gate_mode"] = gate_mode
    with (
        _open_for_appending(partial) as file,
        tqdm(total=len(missing), unit="clip", desc="transcribe", disable=not progress) as bar,
        evaluating(model, precision) as ready,
    ):
        while len(missing):
            batch, begin = _alike(missing.iloc[:batch_size], processor), time.perf_counter()
            found = _if_it_fits(
                transcribe_batch, ready, processor, batch, expert_encoder, **options
            )
            if found is None:
                batch_size = _halved(batch, ready, kept=partial and len(table) - len(missing))
                continue
            about = {"batch_size": batch_size, "precision": precision_of(ready)}
            seconds = time.perf_counter() - begin
            batches.append({**found._asdict(), "seconds": seconds, **about})
            if file is not None:
                file.write(json.dumps(batches[-1], ensure_ascii=False, sort_keys=True) + "\n")
                file.flush()
            scores = _take_scores(batches[-1:], scores)
            missing = missing.iloc[len(batch) :]
            bar.update(len(batch))
    done = {row["id"]: row for batch in batches for row in batch["rows"]}
    rows = [done[clip] for clip in table["id"]]
    if path is not None:
        if batches:
            write_atomic(timing_path(path), json.dumps(_how(batches)))
        if scores is not None:
            write_atomic(scores_path(path), json.dumps({"edges": SCORE_EDGES, **scores}))
        lines = (json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
        write_atomic(path, "".join(lines))
        partial.unlink(missing_ok=True)
    return rows


def timing_path(path: Path) -> Path:
    """Where transcribe() notes how the hypotheses of ``path`` were made.

    seconds and audio_seconds over all clips, however often the call was interrupted; precision;
    batch_size, the last one.
    """
    return path.with_suffix(".timing.json")


def scores_path(path: Path) -> Path:
    """Where transcribe() notes how often the gates gave which score: edges, encoder, decoder."""
    return path.with_suffix(".scores.json")


def read_hypotheses(path: Path) -> list[dict[str, Any]]:
    """The rows that transcribe() wrote."""
    with path.open("rb") as file:
        return [json.loads(line) for line in file]


# Precision -----------------------------------------------------------------------------------


@contextlib.contextmanager
def evaluating(model: nn.Module, precision: str = "auto") -> Iterator[nn.Module]:
    """The model in evaluation mode and in the dtype that ``precision`` asks for, for a while.

    Another dtype is a copy that lives as long as the block: autocast would cast the frozen weights
    anew in every operation of every decoding step (it remembers only casts of weights that
    train). A model in training comes out as it went in.
    """
    # Mixed-precision training wraps forward() in autocast: a model must decode in the same way
    # right after training and when it is loaded again.
    wrapped, training = vars(model).pop("forward", None), model.training
    dtype = _dtype(model, precision)
    try:
        yield (model if dtype == model.dtype else _copy(model, dtype)).eval()
    finally:
        model.train(training)
        if wrapped is not None:
            model.forward = wrapped


def precision_of(model: nn.Module) -> str:
    """A model's dtype as the setting ``eval_precision`` names it."""
    return {dtype: name for name, dtype in DTYPES.items()}[model.dtype]


def _dtype(model: nn.Module, precision: str) -> torch.dtype:
    if precision != "auto":
        return DTYPES[precision]
    if model.device.type != "cuda" or model.dtype != torch.float32:
        return model.dtype
    return torch.bfloat16 if multiplies_bf16() else torch.float16


def _copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model with its weights cast, without a second copy in the old dtype on the way.

    Gates keep theirs: they score in float32, and rounded weights would flip tokens.
    """
    gates = {id(p) for m in model.modules() if isinstance(m, Gate) for p in m.parameters()}
    cast: dict[int, Any] = {}  # what deepcopy() takes instead of copying; tied weights stay tied
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            new = tensor.detach().to(torch.float32 if id(tensor) in gates else dtype)
            is_parameter = isinstance(tensor, nn.Parameter)
            cast[id(tensor)] = nn.Parameter(new, requires_grad=False) if is_parameter else new
    return copy.deepcopy(model, cast)


# Batches -------------------------------------------------------------------------------------


def _alike(batch: pd.DataFrame, processor: WhisperProcessor) -> pd.DataFrame:
    """Its first clips, as far as they are heard in the same window."""
    windows = [window_of(processor.feature_extractor, seconds) for seconds in batch["seconds"]]
    return batch.iloc[: windows.count(windows[0])]


_MEMORY_MESSAGES = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")


def _if_it_fits(work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What ``work`` returns, or None when memory ran out.

    None rather than a retry in the handler: an exception holds the failed pass's tensors.
    """
    try:
        return work(*args, **kwargs)
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        about_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not about_memory and not any(m in str(error) for m in _MEMORY_MESSAGES):
            raise
    return None


def _halved(batch: pd.DataFrame, model: nn.Module, kept: int | None) -> int:
    """Half the size of a batch that did not fit; UserError when it was a single clip."""
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    if len(batch) > 1:
        return len(batch) // 2
    clip = batch.iloc[0]
    raise UserError(
        f"clip {clip['id']!r} ({clip['seconds']:.1f} s) does not fit into memory by itself, in "
        f"{precision_of(model)}: use a device with more memory, a smaller model or lower "
        "max_new_tokens" + (f"; the {kept} clips that are finished are kept" if kept else "")
    )


class _Batch(NamedTuple):
    rows: list[dict[str, Any]]
    scores: Histograms | None  # of the gates; None without experts


def transcribe_batch(
    model: PreTrainedModel,
    processor: WhisperProcessor,
    batch: pd.DataFrame,
    expert_encoder: bool,
    **options: Any,
) -> _Batch:
    clips = list(SpeechDataset(batch))
    audio = [clip["audio"] for clip in clips]
    features = extract_features(processor.feature_extractor, audio).to(model.device, model.dtype)
    recorder = GateRecorder(model) if has_gates(model) else None
    languages = list(batch["language"])
    with recorder or contextlib.nullcontext(), torch.no_grad():
        given: dict[str, Any] = {"input_features": features}
        if expert_encoder:
            given = {"encoder_outputs": model.encode(features, languages)}
        ids = model.generate(**given, language=languages, num_beams=1, do_sample=False, **options)
    tokenizer = processor.tokenizer
    end = tokenizer.eos_token_id
    texts = [[t for t in row if t != end] for row in ids.tolist()]
    gates: list[Any] = [None] * len(clips)
    scores = None
    if recorder is not None:
        heard, filled = recorder.take(), audio_positions(processor.feature_extractor, audio)
        prompt = ["prompt"] * PROMPT_TOKENS
        classes = [prompt + token_classes(tokenizer, text) for text in texts]
        gates, scores = count_gates(heard, filled, classes)
    rows = [
        {
            "id": row["id"],
            "reference": row["text"],
            "hypothesis": tokenizer.decode(text, skip_special_tokens=True).strip(),
            "language": row["language"],
            "speaker": row["speaker"],
            "seconds": round(float(row["seconds"]), 3),
            "tokens": len(text),
            "capped": len(text) >= options["max_new_tokens"],
            "gates": counted,
        }
        for row, text, counted in zip(batch.to_dict("records"), texts, gates, strict=True)
    ]
    return _Batch(rows, scores)


def _take_scores(
    batches: list[dict[str, Any]], earlier: Histograms | None = None
) -> Histograms | None:
    """The sum of the batches' histograms and an earlier one, which they need not keep then."""
    found = [scores for batch in batches if (scores := batch.pop("scores", None))]
    return add_histograms([earlier, *found] if earlier else found) if found else earlier


def _how(batches: list[dict[str, Any]]) -> dict[str, Any]:
    heard = sum(row["seconds"] for batch in batches for row in batch["rows"])
    return {
        "seconds": round(sum(batch["seconds"] for batch in batches), 2),
        "audio_seconds": round(heard, 2),
        "precision": ", ".join(sorted({batch["precision"] for batch in batches})),
        "batch_size": batches[-1]["batch_size"],
    }


@contextlib.contextmanager
def _open_for_appending(path: Path | None) -> Iterator[Any]:
    if path is None:
        yield None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        yield file


def _read_finished_batches(path: Path | None) -> list[dict[str, Any]]:
    """Whole lines of an interrupted call; the last one may be torn and is cut off."""
    if path is None or not path.exists():
        return []
    whole = path.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.splitlines()]
