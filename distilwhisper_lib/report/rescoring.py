"""Do the published hypotheses give the recorded scores again?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distilwhisper_lib.config.settings import NORMALIZERS, Record
from distilwhisper_lib.results.frame import RATES
from distilwhisper_lib.results.hypotheses import Hypotheses, part_of
from distilwhisper_lib.scoring.rates import COUNTS, UtteranceErrors


@dataclass
class Rescored:
    """What was scored again, and a sentence for each score that came out otherwise."""

    findings: list[str] = field(default_factory=list)
    evaluations: int = 0  # test sets in the run's own language, with published hypotheses
    unpublished: int = 0  # those without
    forgetting: int = 0  # transcriptions of languages that the run was not trained on
    translations: int = 0  # published, but nothing scores them

    def __str__(self) -> str:
        """One paragraph for people: what was compared, with which outcome, and what was not."""
        text = (
            f"{self.evaluations} of {self.evaluations + self.unpublished} evaluations and "
            f"{self.forgetting} transcriptions of untrained languages scored again from published "
            "hypotheses: error rates, substitutions, deletions, insertions, hits and clips, under "
            f"{' and '.join(map(repr, NORMALIZERS))}. {len(self.findings) or 'No'} "
            f"value{'s' * (len(self.findings) != 1)} came out otherwise."
        )
        if self.translations:
            text += f" {self.translations} translations have no score to check."
        return f"{text} Times, memory, training logs and gates cannot be made again from texts."


def rescore(records: Sequence[Record], folder: str | Path | Hypotheses) -> Rescored:
    """Score every published hypothesis of the records again, and compare with what they say.

    Raises UserError for a damaged file of hypotheses.
    """
    done, published = Rescored(), Hypotheses.of(folder)
    for record in records:
        for evaluation in record["evaluations"]:
            if published.rows(record, evaluation) is None:
                done.unpublished += 1
                continue
            done.evaluations += 1
            done.findings += _findings(published, record, evaluation)
        for entry in record.get("forgetting") or ():
            done.forgetting += entry["scores"] is not None
            done.translations += entry["scores"] is None
            done.findings += _findings(published, record, entry)
    return done


def _findings(
    published: Hypotheses, record: Record, evaluation: Mapping[str, Any]
) -> Iterator[str]:
    where = f"run {record['run_id']}, {part_of(evaluation)} {evaluation['language']}"
    clips = len(published.rows(record, evaluation))
    if clips != evaluation["clips"]:
        yield f"{where}: {clips} clips published, {evaluation['clips']} said"
    for normalizer in NORMALIZERS if evaluation["scores"] is not None else ():
        said = evaluation["scores"][normalizer]
        again = {m: published.errors(record, evaluation, normalizer, m) for m in RATES}
        found = [("", said, _clips(again[RATES[0]]))]
        found += [(f" ({m})", said[m], _counts(again[m], m)) for m in RATES]
        for which, told, values in found:
            for name, value in values.items():
                if not math.isclose(value, told[name], rel_tol=0, abs_tol=1e-9):
                    yield (
                        f"{where}: {name}{which * (name not in RATES)} under {normalizer!r} is "
                        f"recorded as {told[name]:.6g}, but its hypotheses give {value:.6g}: the "
                        "normaliser or the record has changed; run the notebook again"
                    )


def _clips(scored: UtteranceErrors) -> dict[str, int]:
    kept = int(scored.scored.sum())
    return {"utterances": kept, "empty_references": len(scored.scored) - kept}


def _counts(scored: UtteranceErrors, metric: str) -> dict[str, float]:
    counts = dict(zip(COUNTS, scored.counts.sum(0).tolist(), strict=True))
    return {metric: scored.errors.sum() / scored.units.sum()} | counts
