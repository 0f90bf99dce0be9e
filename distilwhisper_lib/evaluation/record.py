"""One run from its trained model to its record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from distilwhisper_lib.config.settings import (
    DOMAINS,
    NOTEBOOK_OF,
    PROGRESS,
    WITH_EXPERTS,
    RunConfig,
    decisive,
)
from distilwhisper_lib.data.splits import TESTS, RunData, data_of
from distilwhisper_lib.evaluation.decoding import (
    read_hypotheses,
    scores_path,
    timing_path,
    transcribe,
)
from distilwhisper_lib.evaluation.forgetting import hear_untrained
from distilwhisper_lib.evaluation.run import RECORD, Run, at_work, check_claim
from distilwhisper_lib.gates.counts import SCORE_EDGES
from distilwhisper_lib.gates.files import SCHEMA as GATE_SCHEMA
from distilwhisper_lib.gates.files import gate_path
from distilwhisper_lib.gates.recorder import inspect_clip
from distilwhisper_lib.gates.statistics import layer_shares, summarise
from distilwhisper_lib.io.files import sha256_file, write_atomic
from distilwhisper_lib.io.leaks import mask_values
from distilwhisper_lib.results.hypotheses import FIELD, hypotheses_path, publish
from distilwhisper_lib.results.provenance import provenance
from distilwhisper_lib.results.records import SCHEMA_VERSION, read_record, write_record
from distilwhisper_lib.scoring.rates import score


def evaluate(run: Run, data: RunData) -> list[dict[str, Any]]:
    """Transcribe and score both test sets: the record's "evaluations".

    Hypotheses go to ``<output_dir>/<domain>-test.jsonl``. What is finished is not decoded again,
    and keeps the timing, precision and batch size that decoded it.
    """
    found, note = [], run.config.output_dir / PROGRESS
    with at_work(run.config, "transcribing"):
        for domain in TESTS:
            write_atomic(
                note, f"test {DOMAINS[domain]}: {len(getattr(data, domain))} clips to hear"
            )
            found.append(_evaluate_domain(run, data, domain))
        note.unlink(missing_ok=True)
    return found


def record_run(run: Run, data: RunData, evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    """Write the run's hypotheses, its record and its gate file, and return the record.

    All go to its results folder. A record that stands already for the same weights, data and
    hypotheses is kept as it is, and written again where that was lost.
    """
    with at_work(run.config, "writing its record"):
        return _record(run, data, evaluations)


def _record(run: Run, data: RunData, evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    config = run.config
    evaluations = [e | {FIELD: _publish(config, e["domain"])} for e in evaluations]
    record = {
        "schema": SCHEMA_VERSION,
        "run_id": config.run_id,
        "preset": config.preset,
        "demo": config.demo,
        "config": config.published(),
        "provenance": provenance(command=command(config, _processes(run))),
        "models": run.models,
        "data": data_of(config, data),
        "training": run.training,
        "evaluations": evaluations,
        "forgetting": hear_untrained(run),
    }
    finished, earlier = config.output_dir / RECORD, None
    if finished.exists():
        earlier = read_record(finished)
        if _findings(earlier) == _findings(record):
            record = earlier
    if config.method in WITH_EXPERTS and not (record is earlier and gate_path(config).exists()):
        gates = mask_values(_gate_file(run, data), gate_path(config))
        write_atomic(gate_path(config), json.dumps(gates, ensure_ascii=False))
    path = write_record(record, config.results_dir)
    check_claim(config)
    if record is not earlier:
        write_atomic(finished, path.read_bytes())  # last: it says that all of the run is there
    return record


def scores_table(evaluations: list[dict[str, Any]]) -> pd.DataFrame:
    """Error rates in per cent, one row an evaluation, one column a metric and normaliser."""
    rows = []
    for evaluation in evaluations:
        shown = ("method", "domain", "language", "clips", "capped")
        row = {name: evaluation[name] for name in shown if name in evaluation}
        for normalizer, scores in evaluation["scores"].items():
            for metric in ("wer", "cer"):
                name = f"{metric.upper()} ({normalizer})"
                row[name] = round(100 * scores[metric][metric], 1)
        rows.append(row)
    return pd.DataFrame(rows)


def written(config: RunConfig) -> pd.DataFrame:
    """What a run left, and how large it is."""
    published = [config.record_path, gate_path(config)]
    said = hypotheses_path(config.results_dir, config.run_id, "*")
    published += sorted(said.parent.glob(said.name))
    figures = sorted((config.results_dir / "figures").glob(f"*{config.run_id}.*"))
    files = sorted(p for p in config.output_dir.rglob("*") if p.is_file())
    found = [path for path in [*published, *figures, *files] if path.exists()]
    rows = [{"file": str(path), "KiB": round(path.stat().st_size / 1024, 1)} for path in found]
    return pd.DataFrame(rows)


def command(config: RunConfig, processes: int = 1) -> str:
    """The command that repeats the run, by so many processes."""
    overrides = f" --overrides '{json.dumps(config.overrides())}'" if config.overrides() else ""
    # Sums in another order are other weights: the thread count belongs to the command.
    threads = "" if torch.cuda.is_available() else f"OMP_NUM_THREADS={torch.get_num_threads()} "
    if processes > 1:
        started = (
            f"torchrun --nproc-per-node {processes} -m distilwhisper_lib train {config.method} "
            f"--preset {config.preset} --language {config.language} --seed {config.seed}"
        )
    else:
        started = (
            f"python -m distilwhisper_lib.batch run {NOTEBOOK_OF[config.method]} --preset "
            f"{config.preset} --languages {config.language} --seeds {config.seed}"
        )
    return threads + started + overrides


def _processes(run: Run) -> int:
    return (run.training or {}).get("processes", 1)  # none noted: an earlier version trained it


def _evaluate_domain(run: Run, data: RunData, domain: str) -> dict[str, Any]:
    config = run.config
    table = getattr(data, domain)
    path = config.output_dir / f"{domain}-test.jsonl"
    rows = transcribe(
        run.model,
        run.processor,
        table,
        path,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.eval_batch_size,
        precision=config.eval_precision,
    )
    how = _how_decoded(path)
    return {
        "domain": domain,
        "corpus": data.corpora[domain],
        "language": config.language,
        "clips": len(rows),
        "audio_seconds": round(sum(row["seconds"] for row in rows), 2),
        "seconds": how.get("seconds"),
        "rtf": round(how["seconds"] / how["audio_seconds"], 4) if how else None,
        **{name: how[name] for name in ("precision", "batch_size") if name in how},
        "capped": sum(row["capped"] for row in rows),
        "hypotheses_sha256": sha256_file(path),
        "scores": score(rows, config.language),
        "gates": _gate_means(rows),
    }


def _how_decoded(path: Path) -> dict[str, Any]:
    """What transcribe() noted; nothing beside hypotheses that an earlier version left."""
    note = timing_path(path)
    return json.loads(note.read_text()) if note.exists() else {}


def _gate_means(rows: list[dict[str, Any]]) -> dict[str, list[float]] | None:
    if rows[0]["gates"] is None:
        return None
    return layer_shares(rows)


def _gate_file(run: Run, data: RunData) -> dict[str, Any]:
    config = run.config
    paths = {domain: config.output_dir / f"{domain}-test.jsonl" for domain in TESTS}
    return {
        "schema": GATE_SCHEMA,
        "run_id": config.run_id,
        "method": config.method,
        "preset": config.preset,
        "language": config.language,
        "seed": config.seed,
        "settings": _decisive_overrides(config),
        "gate_noise": config.gate_noise,
        "score_edges": SCORE_EDGES,
        "domains": {
            domain: summarise(read_hypotheses(path), _scores_of(path))
            for domain, path in paths.items()
        },
        "example": inspect_clip(
            run.model,
            run.processor,
            data.in_domain.iloc[0].to_dict(),
            config.max_new_tokens,
        ),
    }


def _scores_of(path: Path) -> dict[str, Any] | None:
    scores = scores_path(path)
    return json.loads(scores.read_text()) if scores.exists() else None


def _decisive_overrides(config: RunConfig) -> dict[str, Any]:
    """What was changed of the preset, but for paths and hardware."""
    published, hashed = config.published(), decisive(config.method)
    return {name: published[name] for name in config.overrides() if name in hashed}


def _publish(config: RunConfig, domain: str) -> str:
    rows = read_hypotheses(config.output_dir / f"{domain}-test.jsonl")
    return publish(rows, config.results_dir, config.run_id, domain)


def _findings(record: dict[str, Any]) -> dict[str, Any]:
    """What of a record must be equal for two records to tell of the same run."""
    keys = ("run_id", "models", "data", "training", "evaluations", "forgetting")
    return {key: record.get(key) for key in keys}
