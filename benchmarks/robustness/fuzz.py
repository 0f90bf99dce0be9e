"""Every reader of files from outside against files that are wrong: no crash, no hang, no escape.

    python -m benchmarks.robustness.fuzz [--seconds 60] [--seed 0] [--only TARGET ...] [--out FILE]

A target of `fuzz_targets.TARGETS` gets its share of the time, in a process of its own. Each input
is a sound one with a few changes (mutations.py). It is well when the reader takes it, or refuses it
with a `UserError` of one line. Everything else is a finding, kept under outputs/fuzz/ with its
files and what was raised: another exception, a process that died, a reader that took longer than
`HANG`, and a file opened for writing, or a clip named, outside the working folder. Exit status 1
with any.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from benchmarks.robustness.mutations import OUTSIDE, mutate
from benchmarks.robustness.target import Escape, Files, Target
from distilwhisper_lib.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
FOUND = ROOT / "outputs" / "fuzz"
HANG = 30.0  # seconds for one input
DECODER = 3.0  # seconds that a codec may take, before its process is ended: see decoding.py
LONGEST = 3000  # characters of a message
MEMORY = 12 * 2**30  # addresses; torch alone takes some
WELL = ("accepted", "refused", "codec ended")


class Result(NamedTuple):
    """What became of one input: one of `WELL`, or "crash", "hang", "escape", "unclear"."""

    kind: str
    seconds: float
    detail: str = ""


class Hang(BaseException):
    """The time for one input is over."""


# One input -----------------------------------------------------------------------------------


def changed(random: Random, files: Files) -> Files:
    """The sound files with one of them made unsound."""
    name = random.choice(sorted(files))
    return files | {name: mutate(random, name, files[name])}


def attempt(target: Target, files: Files, place: Path, watched: bool = False) -> Result:
    """Write the files into the folder ``place`` and read them there.

    ``watched``: note what is opened elsewhere, from then on in this process.
    """
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    begin = time.perf_counter()
    with _working_in(place, watched), _time_limit(HANG):
        kind, detail = _read(target, place)
    if watched and _WATCH.escaped:
        kind, detail = "escape", f"opened {_WATCH.escaped[0]}"
    return Result(kind, time.perf_counter() - begin, detail)


def _read(target: Target, place: Path) -> tuple[str, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(place)
    except UserError as error:
        said = str(error)
        if not said.strip() or len(said) > LONGEST or len(said.splitlines()) != 1:
            return "unclear", f"UserError of {len(said)} characters: {said[:300]!r}"
        return ("codec ended" if "(its decoder" in said else "refused"), said
    except Escape as error:
        return "escape", str(error)
    except Hang:
        return "hang", traceback.format_exc()
    except BaseException:
        return "crash", traceback.format_exc()
    return "accepted", ""


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _Watch:
    """Hears of every file that Python opens or changes, and notes those outside the folder."""

    EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link",
              "os.truncate", "os.chmod", "shutil.rmtree")  # fmt: skip

    def __init__(self) -> None:
        self.place: Path | None = None
        self.escaped: list[str] = []
        self._hooked = False

    def begin(self, place: Path) -> None:
        if not self._hooked:  # for good: Python has no way to take one off
            sys.addaudithook(self._hear)
            self._hooked = True
        self.escaped, self.place = [], place

    def end(self) -> None:
        self.place = None

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.place is None or event not in self.EVENTS:
            return
        for path in arguments[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]:
            if isinstance(path, str | bytes | os.PathLike) and self._is_outside(path):
                named = os.fsdecode(path)
                if event != "open" or self._writes(arguments) or named.endswith(OUTSIDE):
                    self.escaped.append(f"{named!r} ({event})")

    def _is_outside(self, path: Any) -> bool:
        place, given = str(self.place), os.path.abspath(os.fsdecode(path))
        if given == os.devnull or given.startswith((place + os.sep, "/dev/shm", "/proc/")):
            return False
        # A library's own temporary file, and what Python compiles, are no work of the input.
        return given != place and "__pycache__" not in given and ".cache" not in given

    @staticmethod
    def _writes(arguments: tuple[Any, ...]) -> bool:
        flags = arguments[2] if len(arguments) > 2 and isinstance(arguments[2], int) else 0
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))


_WATCH = _Watch()


@contextlib.contextmanager
def _working_in(place: Path, watched: bool) -> Iterator[None]:
    """In a folder, with a temporary folder in it and a file beside it that nobody may touch."""
    home, temporary = Path.cwd(), tempfile.tempdir
    secret = place.parent / OUTSIDE
    secret.parent.mkdir(exist_ok=True)
    secret.write_bytes(b"secret")
    (place / "tmp").mkdir(exist_ok=True)
    os.chdir(place)
    tempfile.tempdir = str(place / "tmp")
    if watched:
        _WATCH.begin(place)
    try:
        yield
    finally:
        _WATCH.end()
        os.chdir(home)
        tempfile.tempdir = temporary


# One target, in a process of its own -----------------------------------------------------------


def work(name: str, seconds: float, seed: int, folder: Path) -> None:
    """Try inputs until the time is over; counts and findings go to ``folder``, input by input."""
    import matplotlib

    matplotlib.use("agg")
    from benchmarks.robustness.fuzz_targets import TARGETS
    from distilwhisper_lib.speech import guarded as decoding

    decoding.SECONDS = DECODER
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    target, random = TARGETS[name], Random(f"{seed} {name}")
    files, end = target.files(), time.monotonic() + seconds
    counts: Counter[str] = Counter()
    slowest = 0.0
    plain = attempt(target, files, _fresh(folder), watched=True)
    if plain.kind != "accepted":
        raise SystemExit(f"{name}: its own sound files are {plain.kind}: {plain.detail}")
    while not counts or time.monotonic() < end:
        tried = changed(random, files)
        _keep(folder / "last", tried)  # should this process die of it
        result = attempt(target, tried, _fresh(folder), watched=True)
        counts[result.kind] += 1
        slowest = max(slowest, result.seconds)
        if result.kind not in WELL:
            _keep(FOUND / name / _digest(tried), tried, result)
        about = {"counts": counts, "slowest": round(slowest, 3)}
        (folder / "about.json").write_text(json.dumps(about))
        if "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].close("all")


def _fresh(folder: Path) -> Path:
    place = folder / "work"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    return place


def _keep(folder: Path, files: Files, result: Result | None = None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    if result is not None:
        (folder / "why.txt").write_text(f"{result.kind}\n{result.detail}\n", errors="replace")


def _digest(files: Files) -> str:
    return hashlib.sha256(b"".join(files[name] for name in sorted(files))).hexdigest()[:12]


# All targets -----------------------------------------------------------------------------------


def fuzz(names: Sequence[str], seconds: float, seed: int) -> dict[str, dict[str, Any]]:
    """A line for each target: inputs tried, what became of them, the slowest, findings."""
    rows = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = _one(name, seconds / len(names), seed, Path(folder).resolve())
        print(_line(name, rows[name]), flush=True)
    return rows


def _one(name: str, seconds: float, seed: int, folder: Path) -> dict[str, Any]:
    """Start a process again as often as one dies, which is a finding each time."""
    counts: Counter[str] = Counter()
    slowest, begin = 0.0, time.monotonic()
    while (left := seconds - (time.monotonic() - begin)) > 0 or not counts:
        (folder / "about.json").unlink(missing_ok=True)
        command = [
            sys.executable,
            "-m",
            "benchmarks.robustness.fuzz",
            "--worker",
            name,
            str(folder),
        ]
        command += ["--seconds", str(max(left, 1.0)), "--seed", str(seed + counts["died"])]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / ".cache")}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if (folder / "about.json").exists():
            about = json.loads((folder / "about.json").read_text())
            counts.update(about["counts"])
            slowest = max(slowest, about["slowest"])
        elif done.returncode:
            raise SystemExit(done.stderr[-3000:])
        if done.returncode:
            counts["died"] += 1
            place = FOUND / name / f"died-{seed}-{counts['died']}"
            shutil.copytree(folder / "last", place, dirs_exist_ok=True)
            (place / "why.txt").write_text(f"exit status {done.returncode}\n{done.stderr[-3000:]}")
    tried = sum(counts.values())
    found = sum(n for kind, n in counts.items() if kind not in WELL)
    return {"inputs": tried, "findings": found, **counts, "slowest_seconds": slowest}


def _line(name: str, row: dict[str, Any]) -> str:
    told = ", ".join(f"{kind} {row[kind]}" for kind in row if kind not in ("inputs", "findings"))
    return f"{name:<20} {row['inputs']:>7} inputs, {row['findings']} findings  ({told})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.robustness.fuzz", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="TARGET")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the lines as JSON")
    parser.add_argument("--worker", nargs=2, metavar=("TARGET", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.worker:
        work(given.worker[0], given.seconds, given.seed, Path(given.worker[1]))
        return 0
    from benchmarks.robustness.fuzz_targets import TARGETS

    if unknown := [name for name in given.only or () if name not in TARGETS]:
        print(f"error: no target {unknown[0]!r}: they are {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    rows = fuzz(given.only or list(TARGETS), given.seconds, given.seed)
    inputs, findings = (sum(row[key] for row in rows.values()) for key in ("inputs", "findings"))
    print(f"{len(rows)} targets, {inputs} inputs, {findings} findings")
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1) + "\n")
    if findings:
        print(f"what was found is in {FOUND.relative_to(ROOT)}")
    return int(findings > 0)


if __name__ == "__main__":
    sys.exit(main())
