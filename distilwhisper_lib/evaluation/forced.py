"""What a run would say with its gates forced: soft, open, closed, or one layer's expert off.

A share of expert routing says who spoke, not who helped. Here the test clips are decoded again
with all gates soft (both branches weighed, as they were in training), with all open, with all
closed (the student without training), and with the expert of each layer off by itself, its gate
closed while the others decide as they learned to. What was said is counted clip by clip and kept
in ``<results>/gates/forced/<run_id>.json``, so that paired differences need that file alone.
Whatever was decoded is not decoded again.

Where it is asked for, random gates show what a learned choice is worth: each position goes to the
expert with the share that the learned gates give it in that layer ("random"), or in all layers of
that side ("even"), whatever the position says; three draws of each.

    python -m distilwhisper_lib gates outputs/<run_id> [--clips N] [--domain in_domain]
        [--cases soft open random]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from distilwhisper_lib.config.settings import DOMAINS, WITH_EXPERTS, Record, RunConfig, setting_of
from distilwhisper_lib.data.splits import open_part
from distilwhisper_lib.data.subsets import take_usable
from distilwhisper_lib.errors import UserError, command
from distilwhisper_lib.evaluation.decoding import read_hypotheses, transcribe
from distilwhisper_lib.evaluation.run import RECORD, Run, add_run_arguments, is_run, load_run
from distilwhisper_lib.gates.forced import (
    DRAWN,
    LEARNED,
    SCHEMA,
    WHOLE,
    ForcedGates,
    count_case,
    count_clips,
    differences,
    forced_path,
    missing_cases,
    read_forced,
    write_forced,
)
from distilwhisper_lib.hardware import best_device
from distilwhisper_lib.io.checked import one_of
from distilwhisper_lib.io.files import alone, sha256_file
from distilwhisper_lib.model.clsr import GateMode
from distilwhisper_lib.results.frame import own_evaluations
from distilwhisper_lib.results.hypotheses import Row, read_published
from distilwhisper_lib.results.records import load_records, read_record

COMMAND = "python -m distilwhisper_lib gates"


def gate_modes(model: Any) -> dict[str, GateMode]:
    """The cases that are decoded unless others are asked for, by their names in the file."""
    layers = {name: {name: "closed"} for name in model.layer_names}
    return {mode: mode for mode in WHOLE} | layers


def random_modes(shares: Mapping[str, Sequence[float]]) -> dict[str, GateMode]:
    """The random cases by their names in the file, of one test set.

    ``shares``: of the learned gates by side and layer, as the record's evaluation tells them:
    means over the positions that count. Padding goes at random too, as any position.
    """
    even = {side: [statistics.fmean(values)] * len(values) for side, values in shares.items()}
    return {
        name: {f"{side}.{n}": s for side, values in of.items() for n, s in enumerate(values, 1)}
        for way, of in (("random", shares), ("even", even))
        for name in DRAWN[way]
    }


def hear_forced(
    run: Run,
    *,
    domains: Sequence[str] = tuple(DOMAINS),
    clips: int | None = None,
    cases: Sequence[str] | None = None,
    progress: bool = True,
) -> Path:
    """Decode a run's test sets under every forced routing; returns the file written.

    ``clips``: so many of each test set, the first ones; None for all. ``cases``: these alone
    ("soft", "open", "closed", a layer's name or "layers" for all of them; "random.1" or "random"
    for all its draws, and so "even"); None for all that are not random. A random case is drawn
    with its number as the seed; it comes out the same on the same kind of device, with the same
    versions, precision, clips and batches. The file is written after every case, and what stands
    in it for the same weights and clips is kept. It never shrinks: begun with more clips than are
    asked for, it is completed with those. Raises UserError for an unknown case or domain, for a
    run without gates, and when its hypotheses are not those of its record.
    """
    config = run.config
    if config.method not in WITH_EXPERTS:
        raise UserError(
            f"run {run.record['run_id']} has no gates (method {config.method!r}): name a run of "
            f"{', '.join(WITH_EXPERTS)}"
        )
    if clips is not None and clips < 1:
        raise UserError(f"clips={clips} is no number of clips: expected 1 or more, or None for all")
    for domain in domains:
        one_of("domain", domain, tuple(DOMAINS))
    learned = {domain: _learned(run, domain) for domain in domains}
    path = forced_path(config.results_dir, run.record["run_id"])
    usual = gate_modes(run.model)
    wanted = _expanded(cases, run.model.layer_names) if cases else list(usual)
    run.model.to(best_device())
    with alone(run.folder / "forced", "decoding under forced gates"):
        found = _begun(path, run)
        for domain, rows in learned.items():
            kept = found["domains"].get(domain, {"ids": [], "cases": {}})
            asked = rows[: max(len(rows[:clips]), len(kept["ids"]))]
            begun = _begin_domain(run, domain, asked)
            if kept | {"cases": {LEARNED: kept["cases"].get(LEARNED)}} != begun:
                kept = found["domains"][domain] = begun
            missing = missing_cases(kept, wanted)
            modes = usual | random_modes(_evaluation(run.record, domain)["gates"])
            table = _table(run.config, domain, asked) if missing else None
            for name in missing:
                if progress:
                    what = f"{DOMAINS[domain]}, {len(asked)} clips: {name}"
                    print(f"{run.record['run_id']}, {what}", flush=True)
                with _drawn(name):
                    said = name == "closed" and _student(run, domain, asked)
                    kept["cases"][name] = said or _decode(run, table, modes[name], kept, progress)
                write_forced(path, found)
    return path


def _expanded(cases: Sequence[str], layers: Sequence[str]) -> list[str]:
    """The cases with groups named out; UserError for one that is none."""
    groups: dict[str, Sequence[str]] = {"layers": layers, **DRAWN}
    single = [*WHOLE, *layers, *DRAWN["random"], *DRAWN["even"]]
    for name in cases:
        one_of("case", name, (*groups, *single))
    return list(dict.fromkeys(each for name in cases for each in groups.get(name, [name])))


@contextmanager
def _drawn(case: str) -> Iterator[None]:
    """Random numbers of a random case's own; a caller's go on afterwards as if none were drawn."""
    way, _, draw = case.partition(".")
    with torch.random.fork_rng(range(torch.cuda.device_count()), enabled=way in DRAWN):
        if way in DRAWN:
            torch.manual_seed(int(draw))
        yield


def ensure_forced(
    config: RunConfig, *, domains: Sequence[str] = tuple(DOMAINS), clips: int | None = None
) -> str:
    """A run's file made or completed where its model is here; a sentence about what there is.

    For notebooks, which show what stands in the results folder: what goes wrong is a sentence too.
    Nothing is decoded where the file is complete for the weights in outputs/, whatever its number
    of clips.
    """
    path, folder = forced_path(config.results_dir, config.run_id), config.output_dir
    if not is_run(folder):
        if path.exists():
            return f"{path} is shown: the model that it tells of is not in outputs/"
        return (
            f"no {path}: run the notebook of {config.run_id}, then `{COMMAND} {folder}`, or this "
            "cell again"
        )
    try:
        record = read_record(folder / RECORD)
        if path.exists() and _is_complete(read_forced(path), record, domains):
            return f"{path} is complete"
        run = load_run(folder, config.student, config.data_dir)
        hear_forced(run, domains=domains, clips=clips, progress=False)
    except UserError as error:  # the other figures need none of it
        return f"no forced gates of {config.run_id}: {error}"
    return f"{path} is written; with all clips: `{COMMAND} {folder}`"


def _is_complete(found: ForcedGates, record: Record, domains: Sequence[str]) -> bool:
    layers = record["evaluations"][0]["gates"] or {}
    wanted = [*WHOLE]
    wanted += [f"{side}.{n + 1}" for side, shares in layers.items() for n in range(len(shares))]
    kept = found["domains"]
    return found["weights_sha256"] == record["training"]["weights_sha256"] and all(
        domain in kept and not missing_cases(kept[domain], wanted) for domain in domains
    )


# What stands already --------------------------------------------------------------------------


def _evaluation(record: Record, domain: str) -> Mapping[str, Any]:
    for evaluation in own_evaluations(record):
        if evaluation["domain"] == domain:
            return evaluation
    raise UserError(
        f"record {record['run_id']} has no evaluation {DOMAINS[domain]}: run its notebook again"
    )


def _learned(run: Run, domain: str) -> list[Row]:
    """What the run said by itself: read back, never decoded again."""
    path = run.folder / f"{domain}-test.jsonl"
    expected = _evaluation(run.record, domain)["hypotheses_sha256"]
    if not path.is_file() or sha256_file(path) != expected:
        raise UserError(
            f"{path} is not the file of hypotheses that its {RECORD} names: run the notebook again"
        )
    return read_hypotheses(path)


def _begun(path: Path, run: Run) -> ForcedGates:
    """The file as it stands, where it tells of the same weights; else an empty one."""
    weights = run.record["training"]["weights_sha256"]
    if path.exists():
        found = read_forced(path)
        if found["weights_sha256"] == weights:
            return found
    about = {name: run.config.to_dict()[name] for name in ("method", "language", "seed")}
    begun = {"schema": SCHEMA, "run_id": run.record["run_id"], **about}
    return begun | {"weights_sha256": weights, "domains": {}}


def _begin_domain(run: Run, domain: str, rows: Sequence[Row]) -> dict[str, Any]:
    """A test set's part of the file as long as nothing is decoded."""
    language, evaluation = run.config.language, _evaluation(run.record, domain)
    return {
        "corpus": evaluation["corpus"],
        "precision": evaluation.get("precision", run.config.eval_precision),
        **count_clips(rows, language),
        "cases": {LEARNED: count_case(rows, language, source=run.record["run_id"])},
    }


# Decoding -------------------------------------------------------------------------------------


def _table(config: RunConfig, domain: str, rows: Sequence[Row]) -> pd.DataFrame:
    """The corpus table of the clips that the run heard; UserError when it is another one now."""
    corpus = open_part(config, getattr(config, domain), "test")
    heard = [(row["id"], row["reference"]) for row in rows]
    table, _ = take_usable(corpus, None, config.max_seconds, ids=[id_ for id_, _ in heard])
    if list(zip(table["id"], table["text"], strict=True)) != heard:
        raise UserError(
            f"corpus {getattr(config, domain)!r} no longer holds the clips that the run heard "
            f"{DOMAINS[domain]}: name its folder, or run the notebook again"
        )
    return table


def _decode(
    run: Run,
    table: pd.DataFrame,
    mode: GateMode,
    about: Mapping[str, Any],
    progress: bool,
) -> dict[str, Any]:
    precision = about["precision"]  # of the learned gates' hypotheses: pairs differ in gates only
    said = transcribe(
        run.model,
        run.processor,
        table,
        max_new_tokens=run.config.max_new_tokens,
        batch_size=run.config.eval_batch_size,
        precision="auto" if "," in precision else precision,
        gate_mode=mode,
        progress=progress,
    )
    return count_case(said, run.config.language)


def _student(run: Run, domain: str, rows: Sequence[Row]) -> dict[str, Any] | None:
    """The student before training, which is what closed gates are, where it heard these clips."""
    results = run.config.results_dir
    for record in load_records(results):
        if not _is_student_of(record, run.record):
            continue
        evaluation = _evaluation(record, domain)
        if evaluation.get("precision") != _evaluation(run.record, domain).get("precision"):
            continue
        published = read_published(results, record, evaluation) or []
        by_id = {row["id"]: row for row in published}
        said = [by_id.get(row["id"]) for row in rows]
        if all(b and a["reference"] == b["reference"] for a, b in zip(rows, said, strict=True)):
            return count_case(said, run.config.language, source=record["run_id"])
    return None


def _is_student_of(record: Record, run: Record) -> bool:
    """Whether a record is of the untrained model of ``run``, decoded in the same way."""
    names = ("language", "max_new_tokens", "window_seconds", "window")
    heard = [[setting_of(r, name) for name in names] for r in (record, run)]
    mine, theirs = (r["models"]["student"]["sha256"] for r in (record, run))
    return (
        record["config"]["method"] == "zero_shot"
        and mine is not None
        and mine == theirs
        and heard[0] == heard[1]
    )


# The command ----------------------------------------------------------------------------------


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.split("\n\n")[0])
    add_run_arguments(parser)
    parser.add_argument("--clips", type=int, metavar="N", help="of each test set; all by default")
    parser.add_argument(
        "--domain", action="append", choices=tuple(DOMAINS), help="one test set instead of both"
    )
    parser.add_argument(
        "--cases", nargs="+", metavar="CASE",
        help="soft, open, closed, layers (or encoder.1), random, even (or random.1): these alone; "
        "by default all but the random ones",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    domains = given.domain or tuple(DOMAINS)
    run = load_run(given.run, given.base, given.data_dir)
    path = hear_forced(run, domains=domains, clips=given.clips, cases=given.cases)
    found = read_forced(path)
    for domain in domains:
        table = differences(found, domain)
        title = f"{table.attrs['metric'].upper()} in per cent, {DOMAINS[domain]}"
        print(f"\n{title}\n{table.round(2).to_string()}")
    print(f"\n{path}")
    return 0
