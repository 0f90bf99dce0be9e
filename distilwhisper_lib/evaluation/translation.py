"""Speech translation into English: the cross-task check of the paper's public code.

An expert is trained to transcribe. Does translation survive it? Through the shared branch it does
by construction; with the expert in the encoder it may not, which is what this measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from transformers import PreTrainedModel, WhisperProcessor

from distilwhisper_lib.data.clips import SENTENCE
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.evaluation.decoding import transcribe
from distilwhisper_lib.io.files import write_atomic


def pair_with_english(source: pd.DataFrame, english: pd.DataFrame) -> pd.DataFrame:
    """The source table with each clip's English sentence as its text, by FLEURS sentence id.

    A sentence that several people read in English is one sentence; clips without an English
    counterpart are left out. Raises UserError when a table has no sentence ids or nothing pairs.
    """
    for name, table in (("source", source), ("English", english)):
        if SENTENCE not in table:
            raise UserError(
                f"the {name} table has no column {SENTENCE!r}, expected a corpus of parallel "
                "sentences: use FLEURS"
            )
    texts = english.drop_duplicates(SENTENCE).set_index(SENTENCE)["text"]
    paired = source[source[SENTENCE].isin(texts.index)].copy()
    if paired.empty:
        raise UserError(
            "no sentence id stands in both the source and the English table, expected the same "
            "split of both: read the same FLEURS split in both languages"
        )
    paired["text"] = paired[SENTENCE].map(texts)
    return paired.reset_index(drop=True)


def translate(
    model: PreTrainedModel,
    processor: WhisperProcessor,
    table: pd.DataFrame,
    path: Path | None = None,
    *,
    route: Literal["shared", "encoder"] = "shared",
    **options: Any,
) -> list[dict[str, Any]]:
    """Translate a table of pair_with_english(); rows as transcribe() gives them.

    route "shared": no expert speaks. "encoder": each row's expert may speak in the encoder, the
    decoder stays shared. ``options`` as transcribe() takes them. Which route it was is noted beside
    ``path``; results of the other one, or of a transcription, raise UserError.
    """
    if route not in ("shared", "encoder"):
        raise UserError(f"route {route!r} is unknown: expected 'shared' or 'encoder'")
    if path is not None:
        _claim(path, route)
    return transcribe(
        model, processor, table, path,
        task="translate", expert_encoder=route == "encoder", **options,
    )  # fmt: skip


def _claim(path: Path, route: str) -> None:
    """Note the route beside ``path``, before anything is decoded; UserError if it has another."""
    note = path.with_suffix(".route.txt")
    noted = note.is_file() and note.read_text(encoding="utf-8").strip()
    if noted == route:
        return
    if noted or path.exists():
        held = f"a translation by route {noted!r}" if noted else "no translation, or one of old"
        raise UserError(
            f"{path} is for {held}, expected one by route {route!r}: name another file, or move "
            f"it and {note.name} away"
        )
    write_atomic(note, f"{route}\n")


def score_translation(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Corpus BLEU and chrF by sacrebleu, with the signatures that make them comparable.

    Raises UserError without rows, and when sacrebleu is not installed.
    """
    try:
        import sacrebleu
    except ImportError:
        raise UserError(
            "sacrebleu is not installed, expected it for BLEU and chrF: pip install "
            "'distilwhisper-lib[translation]'"
        ) from None
    if not rows:
        raise UserError("there is no translation to score: expected at least one row")
    hypotheses = [row["hypothesis"] for row in rows]
    references = [[row["reference"] for row in rows]]
    scores: dict[str, Any] = {"utterances": len(rows)}
    for name, metric in (("bleu", sacrebleu.BLEU()), ("chrf", sacrebleu.CHRF())):
        scores[name] = round(metric.corpus_score(hypotheses, references).score, 2)
        scores[f"{name}_signature"] = str(metric.get_signature())
    return scores
