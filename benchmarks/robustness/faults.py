"""Kill a small run wherever it writes, and at random times; run it again; compare.

    python -m benchmarks.robustness.faults [--each N] [--random N] [--seed N] [--method js]
        [--out FILE]

A run of a few clips (FLEURS unpacked from parquet, a data report, teacher targets in several
shards, two epochs of training, both test sets, the record) is done once undisturbed. Then one
trial for each point at which it writes, renames or deletes (or ``--each`` N of a kind and stage,
drawn by the seed), and ``--random`` trials that are killed at a random time again and again. A
trial survives when the run, started again, ends with the same record (but for times), weights,
hypotheses and other files, leaves nothing torn, and trained no more than one checkpoint interval
twice. Prints the matrix, stage by kind, survived / tried, and writes it with commit, seed and
hardware to benchmarks/faults.json. Needs a POSIX system with /proc. Status 1 if a trial failed.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import soundfile
from safetensors.torch import load_file

from benchmarks.robustness.fault_child import KINDS, LOG, STAGES, attempt
from benchmarks.study.grid import NOT_COMPARED
from distilwhisper_lib.config.settings import RunConfig, resolve
from distilwhisper_lib.data.corpora import open_corpus
from distilwhisper_lib.io.files import sha256_file, write_atomic
from distilwhisper_lib.io.leaks import mask_values
from distilwhisper_lib.model.tensors import weights_hash
from distilwhisper_lib.results.provenance import provenance
from distilwhisper_lib.speech.audio import SAMPLE_RATE, read_audio

RESULTS = Path(__file__).resolve().parents[1] / "faults.json"
RANDOM = "random time"
CLIPS = {"train": 6, "validation": 2, "test": 3}
STEPS_PER_EPOCH = 3
OVERRIDES = {
    "data_dir": "data", "out_of_domain": "fleurs", "batch_size": 2, "micro_batch": 2,
    "eval_batch_size": 2, "epochs": 2, "max_new_tokens": 12, "forgetting": "",
}  # fmt: skip
_TIMES = NOT_COMPARED | {"built"}  # who of several attempts built what both need
_RETRIES = 8

Point = dict[str, Any]
Trial = dict[str, Any]


class Study:
    """A folder to copy for each trial, and what an undisturbed run makes of it."""

    def __init__(self, folder: Path, method: str = "js", **overrides: Any) -> None:
        self.folder, self.method, self.overrides = folder, method, OVERRIDES | overrides
        self.config = resolve(method, "demo", "ca", 7, self.overrides)
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(["benchmarks.robustness.fault_child"])
        _write_data(folder / "clean" / "data")
        whole = self.measure()
        self.points: list[Point] = [line for line in _log(whole) if "point" in line]
        self.found = findings(self.config, whole)

    def measure(self) -> Path:
        """The folder of an undisturbed run, which takes ``seconds``: the first one waits for the
        fork server to import, a second one tells the time."""
        whole, begin = self._new("whole"), time.monotonic()
        self._finish(self.start(whole), whole)
        self.seconds = time.monotonic() - begin
        return whole

    def start(self, folder: Path, kill: Point | None = None) -> Any:
        arguments = (str(folder), self.method, self.overrides, kill)
        process = self.processes.Process(target=attempt, args=arguments)
        process.start()
        return process

    def killed_at(self, *points: Point) -> Trial:
        """One trial: one attempt after another killed at a point, then one left alone."""
        folder = self._new("trial")
        for point in points:
            process = self.start(folder, point)
            process.join()
            if process.exitcode != -signal.SIGKILL:
                break
        return self._outcome(folder, process.exitcode, kills=len(points)) | points[-1]

    def killed_at_random(self, draw: random.Random) -> list[Trial]:
        """One trial, a line a kill: at random times until an attempt ends before its time."""
        folder, stages = self._new("trial"), []
        for _ in range(_RETRIES):
            process = self.start(folder)
            process.join(draw.uniform(0, 1.2 * self.seconds))
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            begun = [line["stage"] for line in _log(folder) if "stage" in line]
            stages.append(begun[-1] if begun else STAGES[0])
        if not stages:
            return []
        outcome = self._outcome(folder, -signal.SIGKILL, len(stages)) | {"kind": RANDOM}
        whats = [f"kill {n} of {len(stages)}" for n in range(1, len(stages) + 1)]
        return [outcome | {"stage": s, "what": w} for s, w in zip(stages, whats, strict=True)]

    def _outcome(self, folder: Path, exitcode: int, kills: int) -> Trial:
        if exitcode != -signal.SIGKILL:
            return {"survived": False, "why": f"exit status {exitcode} instead of a kill"}
        try:
            self._finish(self.start(folder), folder)
        except RuntimeError as error:
            return {"survived": False, "why": str(error)}
        why = differences(self.found, findings(self.config, folder))
        steps = [line["step"] for line in _log(folder) if "step" in line]
        again = len(steps) - STEPS_PER_EPOCH * self.config.epochs
        if again > STEPS_PER_EPOCH * kills:
            why.append(f"{again} steps trained twice")
        return {"survived": not why, "why": "; ".join(why), "steps_again": again}

    def _finish(self, process: Any, folder: Path) -> None:
        process.join()
        if process.exitcode != 0:
            lines = (folder / "output.txt").read_text(errors="replace").strip().splitlines()
            raise RuntimeError(f"exit status {process.exitcode}: {lines[-1] if lines else ''}")

    def _new(self, name: str) -> Path:
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return Path(shutil.copytree(self.folder / "clean", self.folder / name))


def findings(config: RunConfig, folder: Path) -> dict[str, Any]:
    """What a run left that must not depend on how often it was killed: name -> value or hash."""
    outputs, results = folder / config.output_dir, folder / config.results_dir
    record = json.loads((outputs / "record.json").read_text())
    published = json.loads((folder / config.record_path).read_text())
    found = {"record": timeless(record), "published record": timeless(published)}
    files = [p for p in results.rglob("*") if p.parent.name != "runs"]
    files += [*outputs.rglob("*.jsonl"), *outputs.glob("*.scores.json")]
    files += (folder / "outputs" / "teacher_targets").rglob("*.safetensors")
    files += (folder / "data").rglob("*")
    hashes = {str(p.relative_to(folder)): sha256_file(p) for p in files if p.is_file()}
    torn = [p for p in outputs.rglob(".*.tmp")] + [p for p in outputs.glob("checkpoints")]
    torn += [p for p in results.rglob(f".*{config.run_id}*.tmp")]
    # Tensors rather than bytes: safetensors writes the header's metadata in any order.
    found |= {p.name: weights_hash(load_file(p)) for p in outputs.rglob("*.safetensors")}
    found["left over"] = sorted(str(p.relative_to(folder)) for p in torn)
    # Locks, and temporary files of the report, which several runs share, are nobody's findings.
    kept = {k: v for k, v in hashes.items() if not k.endswith((".tmp", ".lock", "_INDEX"))}
    return found | kept


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The names under which two runs' findings differ."""
    return [f"{name} differs" for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]


def matrix(trials: Sequence[Trial]) -> pd.DataFrame:
    """ "survived / tried", a row a stage and a column a kind of point."""
    cells: dict[str, dict[str, str]] = {}
    for stage in (*STAGES, "all"):
        of_stage = [t for t in trials if stage in (t["stage"], "all")]
        for kind in (*KINDS, RANDOM, "all"):
            tried = [t for t in of_stage if kind in (t["kind"], "all")]
            survived = sum(t["survived"] for t in tried)
            cells.setdefault(kind, {})[stage] = f"{survived} / {len(tried)}" if tried else "-"
    return pd.DataFrame(cells)


def chosen(points: Iterable[Point], each: int | None, draw: random.Random) -> list[Point]:
    """All points, or ``each`` of every stage and kind."""
    points = list(points)
    if each is None:
        return points
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point["stage"], point["kind"]), []).append(point)
    return [p for group in groups.values() for p in draw.sample(group, min(each, len(group)))]


def timeless(value: Any) -> Any:
    """A record, or part of one, without what two runs of the same kind need not share."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in _TIMES}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def _log(folder: Path) -> list[dict[str, Any]]:
    path = folder / LOG
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _write_data(folder: Path) -> None:
    """A few embedded clips: a folder of recordings, and a test set as FLEURS publishes its own."""
    speech = folder / "speech"
    speech.mkdir(parents=True)
    rows = []
    for split, count in CLIPS.items():
        table = open_corpus("folder/speech", "ca", split, "embedded").table.head(count)
        for clip in table.to_dict("records"):
            soundfile.write(speech / f"{clip['id']}.wav", _samples(clip), SAMPLE_RATE)
            rows.append((f"{clip['id']}.wav", clip["text"], "ca", split, clip["speaker"]))
    columns = ["file_name", "text", "language", "split", "speaker"]
    pd.DataFrame(rows, columns=columns).to_csv(speech / "metadata.csv", index=False)
    table = open_corpus("folder/speech_ood", "ca", "test", "embedded").table.head(CLIPS["test"])
    rows = [_fleurs_row(number, clip) for number, clip in enumerate(table.to_dict("records"))]
    place = folder / "fleurs" / "ca_es" / "test-00000-of-00001.parquet"
    place.parent.mkdir(parents=True)
    pa.parquet.write_table(pa.Table.from_pylist(rows), place)


def _samples(clip: dict[str, Any]) -> Any:
    return read_audio(clip["audio"], clip["start"], clip["end"])


def _fleurs_row(number: int, clip: dict[str, Any]) -> dict[str, Any]:
    samples, buffer = _samples(clip), io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="WAV")
    return {
        "id": number,
        "num_samples": len(samples),
        "path": f"{number}.wav",
        "audio": {"bytes": buffer.getvalue(), "path": f"{number}.wav"},
        "transcription": clip["text"],
        "raw_transcription": clip["text"],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.robustness.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--each", type=int, metavar="N", help="points of a kind; default all")
    parser.add_argument("--random", type=int, default=20, metavar="N")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--method", default="js")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    given = parser.parse_args(arguments)
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    draw, trials = random.Random(given.seed), []
    with tempfile.TemporaryDirectory() as folder:
        study = Study(Path(folder), given.method)
        study.measure()
        print(f"undisturbed: {study.seconds:.1f} s, {len(study.points)} points", flush=True)
        for point in chosen(study.points, given.each, draw):
            trials.append(_told(study.killed_at({"point": point["point"]}) | point))
        for _ in range(given.random):
            trials += map(_told, study.killed_at_random(draw))
    made = provenance(device="cpu")
    about = {name: made[name] for name in ("commit", "dirty", "created", "hardware", "versions")}
    about |= {"seed": given.seed, "method": given.method, "steps_per_checkpoint": STEPS_PER_EPOCH}
    table = matrix(trials)
    cells = {stage: dict(row) for stage, row in table.iterrows()}
    content = mask_values(about | {"survived / tried": cells, "trials": trials}, given.out)
    write_atomic(given.out, json.dumps(content, indent=1) + "\n")
    print(f"\n{table.to_string()}\n\ncommit {made['commit']}, seed {given.seed}")
    print(", ".join(f"{name} {value}" for name, value in made["hardware"].items()))
    return int(not all(trial["survived"] for trial in trials))


def _told(trial: Trial) -> Trial:
    said = "survived" if trial["survived"] else f"FAILED ({trial['why']})"
    print(f"{trial['stage']:<11} {trial['kind']:<14} {trial['what']:<42} {said}", flush=True)
    return trial


if __name__ == "__main__":
    sys.exit(main())
