"""Word and character error rates of stored hypotheses, under every text normaliser.

Pure and repeatable: what was decoded once can be scored again without a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import jiwer
import numpy as np

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.languages import find_language
from distilwhisper_lib.scoring.alignment import PROCESS
from distilwhisper_lib.scoring.text import NORMALIZERS

if TYPE_CHECKING:
    from distilwhisper_lib.scoring.metric import AsrErrors

METRICS = tuple(PROCESS)
COUNTS = ("substitutions", "deletions", "insertions", "hits")
_KINDS = {"substitute": 0, "delete": 1, "insert": 2, "equal": 3}


def score(rows: Iterable[Mapping[str, Any]], language: str) -> dict[str, dict[str, Any]]:
    """Corpus-level errors of `rows`, dicts with "reference" and "hypothesis", in one language.

    Returns, for each name in `NORMALIZERS`::

        {"wer": {"wer": fraction, "substitutions", "deletions", "insertions", "hits"},
         "cer": {"cer": fraction, ...},
         "utterances": those scored, "empty_references": those left out}

    A reference of which the normaliser leaves nothing has no rate, so its row is left out and
    counted. Raises `UserError` for an unknown language, a row without the two texts or (if it
    names one) in another language, and when no reference is left.
    """
    code = find_language(language).code
    pairs = [_pair(number, row, code) for number, row in enumerate(rows, start=1)]
    return {name: _score_normalized(name, pairs, code) for name in NORMALIZERS}


@dataclass(frozen=True)
class UtteranceErrors:
    """Errors per utterance, in the order of the rows that were scored.

    ``counts`` (N, 4) int64 has the columns COUNTS. A row whose reference the normaliser leaves
    empty has no units: its counts are 0 and ``scored`` (N,) is False.
    """

    counts: np.ndarray
    scored: np.ndarray

    @property
    def errors(self) -> np.ndarray:
        """Substitutions, deletions and insertions of each utterance: (N,) int64."""
        return self.counts[:, :3].sum(1)

    @property
    def units(self) -> np.ndarray:
        """Words (or characters) of each reference: (N,) int64."""
        return self.counts[:, [0, 1, 3]].sum(1)


def utterance_errors(
    rows: Sequence[Mapping[str, Any]], language: str, normalizer: str, metric: str
) -> UtteranceErrors:
    """What `score` counts over a corpus, utterance by utterance; raises as `score` does.

    The corpus rate is ``errors.sum() / units.sum()``.
    """
    code = find_language(language).code
    normalize, process = NORMALIZERS[normalizer], PROCESS[metric]
    pairs = [_pair(number, row, code) for number, row in enumerate(rows, start=1)]
    texts = [(normalize(reference), normalize(hypothesis)) for reference, hypothesis in pairs]
    scored = np.array([bool(reference) for reference, _ in texts], dtype=bool)
    counts = np.zeros((len(texts), len(COUNTS)), dtype=np.int64)
    if scored.any():
        references, hypotheses = zip(*[pair for pair in texts if pair[0]], strict=True)
        aligned = process(list(references), list(hypotheses)).alignments
        counts[scored] = [_count(chunks) for chunks in aligned]
    return UtteranceErrors(counts, scored)


def _count(chunks: Sequence[jiwer.AlignmentChunk]) -> list[int]:
    found = [0] * len(COUNTS)
    for chunk in chunks:
        length = max(
            chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx
        )
        found[_KINDS[chunk.type]] += length
    return found


def _pair(number: int, row: Mapping[str, Any], code: str) -> tuple[str, str]:
    where = f"Row {number} (id {row.get('id', 'not given')!r})"
    for key in ("reference", "hypothesis"):
        if not isinstance(row.get(key), str):
            raise UserError(f"{where} has {row.get(key)!r} as {key}, expected text: decode again.")
    if (other := row.get("language")) and find_language(other).code != code:
        raise UserError(
            f"{where} is in language {other!r}, expected {code!r}: score each language apart."
        )
    return row["reference"], row["hypothesis"]


def _score_normalized(name: str, pairs: list[tuple[str, str]], code: str) -> dict[str, Any]:
    normalizer = NORMALIZERS[name]
    normalized = [
        (normalizer(reference), normalizer(hypothesis)) for reference, hypothesis in pairs
    ]
    scored = [pair for pair in normalized if pair[0]]
    if not scored:
        raise UserError(
            f"None of the {len(pairs)} references in language {code!r} has text left under the "
            f"normaliser {name!r}: give rows with a reference."
        )
    references, hypotheses = map(list, zip(*scored, strict=True))
    errors = {
        metric: _metric(metric).compute(predictions=hypotheses, references=references)
        for metric in METRICS
    }
    counts = {"utterances": len(scored), "empty_references": len(normalized) - len(scored)}
    return errors | counts


@cache
def _metric(name: str) -> AsrErrors:
    from distilwhisper_lib.scoring.metric import AsrErrors  # late: evaluate takes seconds

    return AsrErrors(name)
