"""How memory grows with the number of clips: data preparation, teacher targets, training, testing.

    python -m benchmarks.robustness.growth [--clips 1000 30000] [--only STAGE ...]
        [--out FILE] [--keep FOLDER]

Makes corpora of so many clips of a second, in the layouts of Common Voice, FLEURS and own
recordings, and runs each stage over them in a process of its own, as the notebooks would. What may
grow is a row of text and numbers a clip (ROW bytes), and never its audio: a clip has AUDIO bytes
of it. Models are small, the depth of whisper-small kept, because rows tell gates layer by layer.

Memory is what a process and those that it starts hold for themselves (proportional set size of
anonymous and shared pages, looked at every 20 ms); the pages of mapped files are told apart,
because the system drops them when it needs room.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.races.memory import MB, RETURNED
from benchmarks.robustness import clips as made
from distilwhisper_lib.io.files import write_atomic

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "growth.json"
AUDIO = int(4 * made.RATE * made.SECONDS)  # bytes of a clip as float32
# Bytes a clip that a stage may hold: rows as Python objects, those of gates with counts of 24
# layers. A quarter of what a clip of one second sounds like; Common Voice's have five.
ROW = AUDIO // 4
WORDS = 10  # of a sentence: as Common Voice's
STEPS = 4  # of training: what a long one has more of is time
WORKERS = 2
SHARD = 4 * 2**20  # bytes, of teacher targets
_LAYERS = 12  # of whisper-small's encoder and decoder


def prepare(folder: Path, clips: int) -> None:
    """Corpora and models, in `folder`; not measured."""
    data = folder / "data"
    data.mkdir(parents=True)
    made.common_voice_archive(folder / "ca.tar.gz", clips, WORDS)
    made.fleurs_parquet(data / "fleurs" / "ca_es", clips, WORDS)
    made.own_recordings(data / "own", clips, WORDS)
    _model(folder / "student", width=32, layers=_LAYERS)
    _model(folder / "teacher", width=64, layers=1)


def _model(folder: Path, width: int, layers: int) -> None:
    """A Whisper with random weights, the demo's tokenizer and its window of three seconds."""
    import torch
    from transformers import GenerationConfig, WhisperProcessor

    from distilwhisper_lib.config.settings import locate
    from distilwhisper_lib.model.layers import DistilWhisperConfig
    from distilwhisper_lib.model.whisper import DistilWhisperForConditionalGeneration

    torch.manual_seed(0)
    demo = locate("embedded/student")
    fields = json.loads((Path(demo) / "config.json").read_text(encoding="utf-8"))
    fields |= {f"{side}_layers": layers for side in ("encoder", "decoder")}
    fields |= {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
    fields |= {f"{side}_ffn_dim": 64 for side in ("encoder", "decoder")}
    fields |= {"d_model": width, "num_hidden_layers": layers, "gate_dim": 8}
    model = DistilWhisperForConditionalGeneration(DistilWhisperConfig.from_dict(fields))
    model.generation_config = GenerationConfig.from_pretrained(demo)
    model.save_pretrained(folder)
    WhisperProcessor.from_pretrained(demo).save_pretrained(folder)


# Stages, each in the folder that prepare() made and earlier stages filled ----------------------


def _config(clips: int, student: str = "student") -> Any:
    from distilwhisper_lib.config.settings import resolve

    settings = {
        "student": student, "teacher": "teacher", "in_domain": "common_voice",
        "out_of_domain": "fleurs", "data_dir": "data", "train_size": clips,
        "validation_size": made.VALIDATION, "max_seconds": 3.0, "batch_size": 16,
        "micro_batch": 16, "max_steps": STEPS, "max_new_tokens": 8, "eval_batch_size": 50,
        "gate_dim": 8, "precision": "auto", "workers": WORKERS,
    }  # fmt: skip
    return resolve("js", "own", "ca", 77, settings)


def unpack_common_voice(clips: int) -> None:
    """Mozilla's archive to files."""
    from distilwhisper_lib.data.common_voice import unpack_common_voice as unpack

    unpack("ca.tar.gz", "data/common_voice")


def unpack_fleurs(clips: int) -> None:
    """Parquet files to recordings and a table."""
    from distilwhisper_lib.data.corpora import open_corpus

    assert len(open_corpus("fleurs", "ca", "test", "data").table) == clips


def data(clips: int) -> None:
    """Notebook 01's path: four tables, every clip decoded and hashed, the report written."""
    from distilwhisper_lib.data.checklist import preflight, write_data_report
    from distilwhisper_lib.data.splits import label_limit, load_data

    config = _config(clips)
    found = load_data(config)
    assert len(found.train) == len(found.in_domain) == len(found.out_of_domain) == clips
    write_data_report(config, found, preflight(found, label_limit(config)))


def own_folder(clips: int) -> None:
    """Own recordings: metadata read and checked, every clip decoded and hashed."""
    from distilwhisper_lib.data.corpora import corpus_hash, load_corpus

    corpus_hash(load_corpus("folder/own", "ca", "train", "data"))


def targets(clips: int) -> None:
    """Teacher targets of the training set, as a first distillation builds them.

    Into smaller shards, because a small teacher says less about a clip: 1,000 clips fill one.
    """
    from distilwhisper_lib.data.splits import load_data
    from distilwhisper_lib.losses import target_files
    from distilwhisper_lib.training.loop import build_targets

    target_files.SHARD_BYTES = SHARD
    config = _config(clips)
    build_targets(config, load_data(config))


def train(clips: int) -> None:
    """Start-up, a few steps, a checkpoint and a validation, with workers that read audio."""
    from distilwhisper_lib.data.splits import load_data
    from distilwhisper_lib.losses import target_files
    from distilwhisper_lib.training import loop as training

    target_files.SHARD_BYTES = SHARD
    config = _config(clips)
    training.train(config, load_data(config))


def test(clips: int) -> None:
    """A whole test set transcribed, written, scored, its gates summed up."""
    from distilwhisper_lib.data.splits import load_data
    from distilwhisper_lib.evaluation.decoding import scores_path, transcribe
    from distilwhisper_lib.gates.statistics import summarise
    from distilwhisper_lib.scoring.rates import score
    from distilwhisper_lib.training import loop as training

    config = _config(clips)
    found = load_data(config)
    trained = training.train(config, found)
    path = Path("test.jsonl")
    rows = transcribe(
        trained.model, trained.processor, found.in_domain, path,
        max_new_tokens=config.max_new_tokens, batch_size=config.eval_batch_size, progress=False,
    )  # fmt: skip
    score(rows, "ca")
    summarise(rows, json.loads(scores_path(path).read_text(encoding="utf-8")))


STAGES: dict[str, Callable[[int], None]] = {
    "unpack Common Voice": unpack_common_voice,
    "unpack FLEURS": unpack_fleurs,
    "data": data,
    "own folder": own_folder,
    "teacher targets": targets,
    "train": train,
    "test": test,
}
# What a stage makes: a stage that runs again, in a folder that was kept, makes it anew.
MAKES = {
    "unpack Common Voice": "data/common_voice",
    "unpack FLEURS": "data/fleurs/*/audio",
    "data": "data/common_voice/*/ca/.clip_checks.json",
    "own folder": "data/own/.clip_checks.json",
    "teacher targets": "outputs/teacher_targets",
    "train": "outputs/js-*",
    "test": "test.*",
}


# Measuring ----------------------------------------------------------------------------------


def measured(stage: str, folder: Path, clips: int) -> dict[str, float]:
    """Peak megabytes and seconds of one stage in a process of its own."""
    child = [sys.executable, "-m", __spec__.name, "--stage", stage, "--clips", str(clips)]
    environment = os.environ | RETURNED | {
        "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"), "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "0",
    }  # fmt: skip
    begin, highest, mapped = time.perf_counter(), 0, 0
    log = folder / "log.txt"
    with log.open("ab") as said:
        process = subprocess.Popen(child, env=environment, cwd=folder, stdout=said, stderr=said)
        while process.poll() is None:
            own, files = held(process.pid)
            highest, mapped = max(highest, own), max(mapped, files)
            time.sleep(0.02)
    if process.returncode:
        tail = log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{stage} with {clips} clips failed:\n{tail}")
    seconds = time.perf_counter() - begin
    return {
        "peak": round(highest / MB, 1),
        "mapped": round(mapped / MB, 1),
        "seconds": round(seconds, 1),
    }


def held(pid: int) -> tuple[int, int]:
    """Bytes that a process and its descendants hold for themselves, and of mapped files (Linux).

    Pages that several share count once. What ends while it is looked at counts as nothing.
    """
    own = files = 0
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        sizes = {k: int(v) * 1024 for k, v in re.findall(r"^(\w+):\s+(\d+) kB$", rollup, re.M)}
        own = sizes.get("Pss_Anon", 0) + sizes.get("Pss_Shmem", 0)
        files = sizes.get("Pss_File", 0)
        children = Path(f"/proc/{pid}/task").glob("*/children")
        for child in " ".join(path.read_text() for path in children).split():
            more = held(int(child))
            own, files = own + more[0], files + more[1]
    except (OSError, ValueError):
        pass
    return own, files


def growth(stages: dict[int, dict[str, float]]) -> dict[str, Any]:
    """What a stage's peaks at several numbers of clips say: bytes for each clip more."""
    few, many = min(stages), max(stages)
    more = (stages[many]["peak"] - stages[few]["peak"]) * MB / max(1, many - few)
    return {"bytes_per_clip": round(more), "flat": more <= ROW}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row a stage."""
    numbers = sorted({int(n) for row in rows for n in row["clips"]})
    heads = [f"{n:,} clips, MB" for n in numbers]
    lines = ["| Stage | " + " | ".join([*heads, "bytes per clip more"]) + " | flat | seconds |"]
    lines.append("| :-- |" + " --: |" * (len(numbers) + 1) + " :-- | --: |")
    for row in rows:
        found = {int(n): figures for n, figures in row["clips"].items()}
        cells = [f"{found[n]['peak']:,.0f}" if n in found else "" for n in numbers]
        cells.append(f"{row['bytes_per_clip']:,}")
        verdict, seconds = "yes" if row["flat"] else "no", found[max(found)]["seconds"]
        lines.append(f"| {row['stage']} | {' | '.join(cells)} | {verdict} | {seconds:,.0f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.robustness.growth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--clips", type=int, nargs="+", default=[1000, 30_000])
    parser.add_argument("--only", nargs="+", choices=STAGES, metavar="STAGE")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="corpora stay there")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.stage:
        STAGES[given.stage](given.clips[0])
        return 0
    rows = run(given.clips, given.only or list(STAGES), given.keep)
    ran = {row["stage"] for row in rows}
    before = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else []
    rows = [row for row in before if row["stage"] not in ran] + rows
    rows.sort(key=lambda row: list(STAGES).index(row["stage"]))
    write_atomic(given.out, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    print(f"\n{table(rows)}\n\nWritten to {given.out.name}")
    return int(not all(row["flat"] for row in rows))


def run(numbers: Sequence[int], chosen: Sequence[str], keep: Path | None) -> list[dict[str, Any]]:
    """A row a stage, of all numbers of clips."""
    found: dict[str, dict[int, dict[str, float]]] = {stage: {} for stage in chosen}
    for clips in numbers:
        folder = Path(tempfile.mkdtemp() if keep is None else keep.resolve() / str(clips))
        try:
            if not (folder / "teacher").exists():
                prepare(folder, clips)
            for stage in chosen:
                for left in folder.glob(MAKES.get(stage, "nothing")):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
                found[stage][clips] = measured(stage, folder, clips)
                print(f"{clips:,} clips, {stage}: {found[stage][clips]}", flush=True)
        finally:
            if keep is None:
                shutil.rmtree(folder, ignore_errors=True)
    about = _about()
    return [{"stage": n, "clips": peaks, **growth(peaks), **about} for n, peaks in found.items()]


def _about() -> dict[str, Any]:
    from distilwhisper_lib.results.provenance import provenance

    return {"row": ROW, "audio": AUDIO, "steps": STEPS, "workers": WORKERS} | provenance(
        "python -m benchmarks.robustness.growth", "cpu"
    )


if __name__ == "__main__":
    sys.exit(main())
