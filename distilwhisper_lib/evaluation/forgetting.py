"""What a run did to languages and tasks that it was not trained on.

Experts leave them as they were, by construction: a language without an expert, and translation,
take the shared path of the very same weights. Full fine-tuning and LoRA change what every
language goes through. Here both are heard, on a few clips, before and after.
"""

from __future__ import annotations

import warnings
from typing import Any

from distilwhisper_lib.data.splits import open_part
from distilwhisper_lib.data.subsets import take_usable
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.evaluation.decoding import transcribe
from distilwhisper_lib.evaluation.run import Run
from distilwhisper_lib.languages import find_language
from distilwhisper_lib.model.loading import padding_all
from distilwhisper_lib.results.hypotheses import FIELD, publish
from distilwhisper_lib.scoring.rates import score

DOMAIN = "out_of_domain"  # FLEURS in the paper's presets: there in every language


def hear_untrained(run: Run) -> list[dict[str, Any]]:
    """Decode and publish what the run was not trained for: the record's "forgetting".

    Each language of its settings' ``forgetting`` but the run's own is transcribed, and its own is
    translated, `forgetting_clips` clips of the out-of-domain test set each. A language that the
    corpus lacks is left out with a warning. Nothing for the teacher, which nobody trains.
    """
    config = run.config
    wanted = [find_language(name).code for name in config.forgetting.split()]
    if not wanted or config.method == "teacher":
        return []
    others = [code for code in dict.fromkeys(wanted) if code != config.language]
    tasks = [("transcribe", code) for code in others] + [("translate", config.language)]
    heard = [_hear(run, task, language) for task, language in tasks]
    return [entry for entry in heard if entry is not None]


def _hear(run: Run, task: str, language: str) -> dict[str, Any] | None:
    config = run.config
    size = min(config.forgetting_clips, config.test_size or config.forgetting_clips)
    try:
        corpus = open_part(config, config.out_of_domain, "test", language)
        clips, _ = take_usable(corpus, size, config.max_seconds)
    except UserError as error:
        warnings.warn(f"forgetting: {language} is left out: {error}", stacklevel=2)
        return None
    if clips.empty:
        return None
    part = f"{task}-{language}"
    rows = transcribe(
        run.model,
        padding_all(run.processor),  # as the untrained model heard them
        clips,
        config.output_dir / f"{part}-untrained.jsonl",
        max_new_tokens=config.max_new_tokens,
        batch_size=config.eval_batch_size,
        precision=config.eval_precision,
        task=task,
    )
    return {
        "task": task,
        "language": language,
        "domain": DOMAIN,
        "corpus": config.out_of_domain,
        "clips": len(rows),
        "part": part,
        FIELD: publish(rows, config.results_dir, config.run_id, part),
        # The references are transcripts: they cannot score a translation.
        "scores": score(rows, language) if task == "transcribe" else None,
    }
