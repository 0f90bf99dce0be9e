"""Synthetic run records for tests of what is made from records."""

from __future__ import annotations

import random

from distilwhisper_lib.config.settings import resolve
from distilwhisper_lib.results.hypotheses import FIELD, publish
from distilwhisper_lib.results.records import write_record
from distilwhisper_lib.scoring import rates as scoring

LATIN = ["el", "gat", "menja", "peix", "la", "casa", "gran", "però", "núria", "veu", "taula"]
WORDS = {"th": ["แมว", "กิน", "ปลา", "บ้าน"]}


def score(wer: float) -> dict:
    errors = {"substitutions": 3, "deletions": 1, "insertions": 0, "hits": 40}
    return {
        "wer": {"wer": wer, **errors},
        "cer": {"cer": wer / 2, **errors},
        "utterances": 200,
        "empty_references": 0,
    }


def evaluation(domain: str, language: str, wer: float) -> dict:
    return {
        "domain": domain,
        "corpus": "folder/speech",
        "language": language,
        "clips": 200,
        "audio_seconds": 400.0,
        "seconds": 20.0,
        "rtf": 0.05,
        "capped": 0,
        "hypotheses_sha256": "0" * 64,
        "scores": {"marks": score(wer), "whisper": score(wer - 0.05)},
        "gates": None,
    }


def make_record(method="js", language="ca", seed=77, wer=0.25, ood=0.5, preset="demo", **overrides):
    config = resolve(method, "demo", language, seed, overrides)
    data = {"corpus": "folder/speech", "clips": 800, "hours": 0.4, "sha256": "1" * 64}
    return {
        "schema": 1,
        "run_id": config.run_id if preset == "demo" else f"{preset}-{config.run_id}",
        "preset": preset,
        "demo": preset == "demo",
        "config": config.to_dict() | {"preset": preset},
        "provenance": {
            "commit": "abcdef0123456789",
            "dirty": False,
            "created": "2025-01-01T00:00:00+00:00",
            "versions": {"python": "3.11.9", "torch": "2.13.0"},
            "hardware": {"device": "cpu", "cpu": "A CPU", "cores": 2, "memory_gib": 8.0},
            "command": "papermill notebooks/05_js_distillation.ipynb -p language ca",
        },
        "models": {
            "student": {"name": "embedded/student", "sha256": "2" * 64},
            "teacher": {"name": "embedded/teacher", "sha256": "3" * 64},
        },
        "data": {"train": data, "validation": data, "in_domain": data, "out_of_domain": None},
        "training": {
            "steps": 250,
            "epochs": 10,
            "seconds": 30.0,
            "trainable_parameters": 1234,
            "artifact_bytes": 5000,
            "peak_memory_bytes": None,
            "best_step": 250,
            "weights_sha256": "4" * 64,
            "log": [{"step": 1, "loss": 2.5, "loss_ce": 2.0}],
            "validation": [{"step": 250, "wer": 0.3, "cer": 0.1}],
        },
        "evaluations": [
            evaluation("in_domain", language, wer),
            evaluation("out_of_domain", language, ood),
        ],
    }


def make_rows(language="ca", clips=120, speakers=24, errors=0.3, noise=0) -> list[dict]:
    """Rows as transcribe() writes them: the same clips always, ``errors`` of their words wrong."""
    words = WORDS.get(language, LATIN)
    said, wrong = random.Random(1), random.Random(f"{errors} {noise}")
    rows = []
    for number in range(clips):
        reference = said.choices(words, k=said.randint(3, 9))
        hypothesis = [
            w
            for word in reference
            if (w := word if wrong.random() > errors else wrong.choice(["xx", ""]))
        ]
        gap = "" if language == "th" else " "
        rows.append(
            {
                "id": f"clip{number}",
                "reference": gap.join(reference),
                "hypothesis": gap.join(hypothesis),
                "language": language,
                "speaker": f"speaker{number % speakers}" if speakers else "",
                "seconds": round(0.4 * len(reference), 3),
                "tokens": 2 * len(hypothesis),
                "capped": False,
            }
        )
    return rows


def make_run(folder, method="js", language="ca", seed=77, **rows) -> dict:
    """A record whose hypotheses are published in ``folder`` and give its scores."""
    record = make_record(method, language, seed)
    for number, evaluation in enumerate(record["evaluations"]):
        said = make_rows(language, **{"noise": number} | rows)
        evaluation["scores"] = scoring.score(said, language)
        evaluation["clips"] = len(said)
        evaluation[FIELD] = publish(said, folder, record["run_id"], evaluation["domain"])
    write_record(record, folder)
    return record


def make_pairs(folder) -> list[dict]:
    """Student and experts in two languages, on the same clips of 24 speakers."""
    return [
        make_run(folder, method, language, errors=errors)
        for language in ("ca", "cs")
        for method, errors in (("zero_shot", 0.5), ("js", 0.3))
    ]
