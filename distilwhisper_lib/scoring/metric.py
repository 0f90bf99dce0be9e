"""Word and character error rates with their counts, as a metric of `evaluate`.

A module of its own, to be imported late: evaluate takes seconds.
"""

from __future__ import annotations

import tempfile

import datasets
import evaluate

from distilwhisper_lib.scoring.alignment import PROCESS

_DESCRIPTION = """\
Error rate of speech recognition over a whole corpus: substitutions, deletions and insertions of
all utterances, divided by the words ("wer") or characters ("cer") of all references."""

_INPUTS = """
Args:
    predictions: list of str, the hypotheses, normalised.
    references: list of str, normalised, none of them empty.
Returns:
    the rate under "wer" or "cer", as a fraction (above 1 with many insertions), and the counts
    "substitutions", "deletions", "insertions", "hits".
"""


class AsrErrors(evaluate.Metric):
    """Configurations "wer" (units are words) and "cer" (characters, single spaces among them).

    Needs no network and no home: predictions stay in memory, because evaluate's default, a file of
    one name in the cache folder, makes runs side by side trip over each other.
    """

    def __init__(self, config_name: str) -> None:
        # evaluate makes a cache folder even for what stays in memory.
        with tempfile.TemporaryDirectory(prefix="distilwhisper-") as unused:
            super().__init__(config_name, keep_in_memory=True, cache_dir=unused)

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in PROCESS:
            raise ValueError(f"Unknown config {self.config_name!r}: choose wer or cer.")
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": text, "references": text}),
            reference_urls=["https://github.com/jitsi/jiwer"],
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float | int]:
        # jiwer counts an empty reference as insertions out of nothing; the caller must decide.
        if empty := sum(not reference.strip() for reference in references):
            raise ValueError(f"{empty} references are empty: leave them out and report how many.")
        counts = PROCESS[self.config_name](references, predictions)
        return {
            self.config_name: getattr(counts, self.config_name),
            "substitutions": counts.substitutions,
            "deletions": counts.deletions,
            "insertions": counts.insertions,
            "hits": counts.hits,
        }
