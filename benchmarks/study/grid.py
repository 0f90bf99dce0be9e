"""A grid of demo runs on a Dask cluster that loses a worker, against the same runs one by one.

    python -m benchmarks.study.grid [--small] [--slurm] [--methods ...] [--languages ...]
        [--folder DIR] [--out FILE]

Both happen in copies of this checkout. Half-way through the second, a worker that trains is
killed (SIGKILL). Afterwards every record must be equal to its serial counterpart in everything
but times and memory; the command ends with status 1 where one is not. ``--slurm`` submits the
second as a job of benchmarks/slurm.sh; ``--small`` is two runs of two steps. ``--folder`` keeps the
copies there, and compares with the serial runs that an earlier call left.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from distilwhisper_lib.batch import ledger
from distilwhisper_lib.batch.grid import read_grid
from distilwhisper_lib.batch.task import Task
from distilwhisper_lib.batch.tasks import configs_of, expand
from distilwhisper_lib.config.settings import METHODS, OWN_RESULTS, TRAINED
from distilwhisper_lib.io.files import sha256_file, write_atomic
from distilwhisper_lib.io.leaks import mask_values
from distilwhisper_lib.results.provenance import provenance

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "grid.json"
SMALL_RESULT = ROOT / "outputs" / "grid-small.json"
SMALL = {"max_steps": 2, "train_size": 64, "validation_size": 8, "test_size": 8, "forgetting": ""}
PARTS = ("distilwhisper_lib", "notebooks", "benchmarks", "pyproject.toml", "environment.yml")
# Of a record: what may differ between two runs of the same.
NOT_COMPARED = {"seconds", "rtf", "created", "peak_memory_bytes"}
WORKERS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    methods = given.methods or (["lora", "clsr"] if given.small else list(METHODS))
    languages = given.languages or (["ca"] if given.small else ["ca", "cs"])
    grid: dict[str, Any] = {"methods": methods, "languages": languages, "seeds": given.seeds}
    grid |= {"overrides": SMALL} if given.small else {}
    with _workplace(given.folder) as folder:
        serial, cluster = folder / "serial", _copy(folder / "cluster", grid)
        plan = _batch(cluster, "plan", "grid.yaml")[0]
        print(plan, flush=True)
        serial_seconds = _run_serially(serial, grid)
        stop, killed = threading.Event(), {}
        killer = threading.Thread(target=_kill_one, args=(cluster, given.small, stop, killed))
        killer.start()
        try:
            if given.slurm:
                told, cluster_seconds = _slurm(cluster)
            else:
                more = ("--cluster", "--jobs", str(WORKERS))
                told, cluster_seconds = _batch(cluster, "run", "grid.yaml", *more)
        finally:
            stop.set()
            killer.join()
        print(told, flush=True)
        found = {
            "grid": grid,
            "executor": "slurm" if given.slurm else "local",
            "workers": WORKERS,
            "serial_seconds": round(serial_seconds, 1),
            "cluster_seconds": round(cluster_seconds, 1),
            "killed": killed or None,
            **_compared(serial, cluster),
            "plan": plan.splitlines(),
            "table": told.splitlines(),
            "events": dict(Counter(event["event"] for event in ledger.read(cluster))),
            "ledger": _without_times(ledger.read(cluster)),
            "made": provenance(),
        }
    out = given.out or (SMALL_RESULT if given.small else RESULT)
    write_atomic(out, json.dumps(mask_values(found, out), indent=1) + "\n")
    shown = ("serial_seconds", "cluster_seconds", "killed", "events", "records", "equal", "differ")
    print(json.dumps({name: found[name] for name in shown}, indent=1))
    return int(bool(found["differ"]) or not found["records"] or not killed)


@contextmanager
def _workplace(kept: Path | None) -> Iterator[Path]:
    if kept:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="distilwhisper-grid-") as folder:
            yield Path(folder)


def _run_serially(root: Path, grid: dict[str, Any]) -> float:
    """The seconds that it takes, or took an earlier call with the same grid and code."""
    earlier = root.with_name("serial.json")
    about = {"grid": grid, "code": _code_sha256()}
    if earlier.is_file():
        found = json.loads(earlier.read_text(encoding="utf-8"))
        if {name: found.get(name) for name in about} != about:
            raise SystemExit(f"{earlier} is of another grid or code: remove it to run that anew")
        return found["seconds"]
    told, seconds = _batch(_copy(root, grid), "run", "grid.yaml")
    print(told, flush=True)
    earlier.write_text(json.dumps(about | {"seconds": seconds}), encoding="utf-8")
    return seconds


def _code_sha256() -> str:
    """Of everything that decides a record."""
    digest = hashlib.sha256()
    for path in sorted(p for part in PARTS[:2] for p in (ROOT / part).rglob("*") if p.is_file()):
        if "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(ROOT)} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


def _copy(root: Path, grid: dict[str, Any]) -> Path:
    """A checkout of its own, without results, so that nothing is found finished."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, root / name)
    (root / "grid.yaml").write_text(json.dumps(grid), encoding="utf-8")  # JSON is YAML, too
    return root


def _batch(root: Path, *arguments: str) -> tuple[str, float]:
    """What a batch command says, and how long it took."""
    return _timed([sys.executable, "-m", "distilwhisper_lib.batch", *arguments], root)


def _slurm(root: Path) -> tuple[str, float]:
    (root / "outputs").mkdir(exist_ok=True)
    log = root / "outputs" / "job.log"
    line = ["sbatch", "--wait", f"--ntasks={WORKERS}", f"--output={log}", "benchmarks/slurm.sh"]
    settings = {"BIN": str(Path(sys.executable).parent), "RESOURCES": "GPU=1"}
    _, seconds = _timed([*line, "grid.yaml"], root, **settings)
    return log.read_text(encoding="utf-8", errors="replace"), seconds


def _timed(line: list[str], root: Path, **settings: str) -> tuple[str, float]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)} | settings
    began = time.monotonic()
    done = subprocess.run(line, cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode:
        said = f"{done.stdout}\n{done.stderr}".strip()
        raise SystemExit(f"{' '.join(line)}: status {done.returncode}\n{said}")
    return done.stdout.strip(), time.monotonic() - began


def _kill_one(root: Path, small: bool, stop: threading.Event, killed: dict[str, Any]) -> None:
    """Half-way through, kill the worker of a run that has left a checkpoint.

    Two steps leave none: then of one that has been at it for some seconds.
    """
    total = len(expand(read_grid(root / "grid.yaml"), root)) - 2  # without the tables
    since: dict[int, float] = {}
    while not stop.wait(0.5):
        ended = {e["task"] for e in ledger.read(root) if e["event"] in ("done", "failed")}
        for process in _notebooks(root):
            since.setdefault(process.pid, time.monotonic())
            run = _run_of(process)
            if run is None or len(ended) < total // 2 - 1:
                continue
            kept = [p.name for p in (root / "outputs" / run).glob("checkpoints/checkpoint-*")]
            if not kept and not (small and time.monotonic() - since[process.pid] > 4):
                continue
            process.parent().send_signal(signal.SIGKILL)
            killed |= {"run": run, "tasks ended before": len(ended), "checkpoints": sorted(kept)}
            return


def _notebooks(root: Path) -> list[psutil.Process]:
    """The processes that execute this checkout's notebooks, whatever started their worker."""
    found = []
    for process in psutil.process_iter():
        try:
            # Its folder is the checkout, or the notebooks' within it.
            here = Path(process.cwd()).is_relative_to(root.resolve())
            if here and "distilwhisper_lib.batch.processes" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def _run_of(process: psutil.Process) -> str | None:
    """The run that a process trains, if it trains one."""
    try:
        task = Task.from_json(Path(process.cmdline()[3]).read_text(encoding="utf-8"))
    except (psutil.Error, OSError, ValueError, IndexError):  # it is ending
        return None
    trained = [c.run_id for c in configs_of(task) if c.method in TRAINED] if task.notebook else []
    return trained[0] if task.records and trained else None


def _compared(serial: Path, cluster: Path) -> dict[str, Any]:
    """Which records are equal, and where the others differ."""
    theirs, mine = (_records(root) for root in (serial, cluster))
    differ = {name: ["missing"] for name in theirs.keys() ^ mine.keys()}
    for name in theirs.keys() & mine.keys():
        if places := differences(theirs[name], mine[name]):
            differ[name] = places
    return {"records": len(mine), "equal": len(theirs | mine) - len(differ), "differ": differ}


def _records(root: Path) -> dict[str, Any]:
    paths = (root / OWN_RESULTS / "demo" / "runs").glob("*.json")
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(paths)}


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """The places, as "training.log.3.loss", in which two records differ but for times."""
    if isinstance(a, dict) and isinstance(b, dict):
        names = sorted((a.keys() | b.keys()) - NOT_COMPARED)
        pairs = [(name, a.get(name), b.get(name)) for name in names]
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = [(str(i), x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    else:
        return [] if a == b else [where]
    return [found for n, x, y in pairs for found in differences(x, y, f"{where}.{n}".strip("."))]


def _without_times(events: list[dict[str, Any]]) -> list[str]:
    return [" ".join(filter(None, (e["event"], e["task"], e.get("worker")))) for e in events]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study.grid",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--small", action="store_true", help="two runs of two steps")
    parser.add_argument("--slurm", action="store_true", help="the second as a Slurm job")
    parser.add_argument("--methods", nargs="+", choices=METHODS)
    parser.add_argument("--languages", nargs="+", metavar="CODE")
    parser.add_argument("--seeds", nargs="+", type=int, default=[77], metavar="SEED")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="keep the copies, and reuse them"
    )
    parser.add_argument("--out", type=Path, metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
