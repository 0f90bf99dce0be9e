"""What decoding in a child costs, clip by clip, against decoding in this process, and what it costs
there to go through the container as well, against libsndfile alone, which believes its header.

    python -m benchmarks.races.decoding [--clips 60] [--seconds 5]

Clips of a tone in noise at 48 kHz, as Common Voice ships them; the two take turns. Wall time,
because the child's work is another process's: on a machine that is busy, waiting for a turn counts.
CPU time of both processes stands beside it.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile

from distilwhisper_lib.speech import audio
from distilwhisper_lib.speech import guarded as decoding

RATE = 48_000
FORMATS = {"wav": (None, None), "flac": (None, None), "mp3": (None, None), "opus": ("OGG", "OPUS")}


def write_clips(folder: Path, form: str, count: int, seconds: float) -> list[Path]:
    """Clips that differ, of a format."""
    random, times = np.random.default_rng(0), np.arange(int(RATE * seconds)) / RATE
    container, coding = FORMATS[form]
    paths = []
    for number in range(count):
        tone = 0.2 * np.sin(2 * np.pi * (200 + 10 * number) * times)
        path = folder / f"{number}.{form}"
        samples = tone + random.normal(0, 0.02, len(times))
        soundfile.write(path, samples, RATE, format=container, subtype=coding)
        paths.append(path)
    return paths


def race(paths: Sequence[Path]) -> dict[str, float]:
    """Medians in milliseconds: "here", "child"; "cpu": of both processes in the second."""
    taken: dict[str, list[float]] = {"here": [], "child": []}
    sides: dict[str, Callable[[Path], float]] = {
        "here": audio.decoded_seconds,
        "child": decoding.decoded_seconds,
    }
    for path in paths:
        found = set()
        for name, call in sides.items():
            begin = time.perf_counter()
            found.add(call(path))
            taken[name].append(1000 * (time.perf_counter() - begin))
        assert len(found) == 1, f"{path}: {found}"
    return {name: statistics.median(values) for name, values in taken.items()}


def counting(paths: Sequence[Path]) -> float:
    """CPU time of decoding here / by libsndfile alone, which take turns: the median."""

    def taken(call: Callable[[Path], float], path: Path) -> float:
        begin = time.process_time()
        call(path)
        return time.process_time() - begin

    return statistics.median(
        taken(audio.decoded_seconds, path) / taken(believed_seconds, path) for path in paths
    )


def believed_seconds(path: Path) -> float:
    """What libsndfile decodes, mixed down and looked at as audio.py does."""
    with soundfile.SoundFile(str(path)) as file:
        frames = 0
        while len(block := file.read(audio.BLOCK_FRAMES, dtype="float32", always_2d=True)):
            assert np.isfinite(mono := block.mean(axis=1)).all()
            frames += len(mono)
        return frames / file.samplerate


def cpu_ms(paths: Sequence[Path]) -> tuple[float, float]:
    """CPU milliseconds a clip: here, and in a child with this process's share, less its start."""
    begin = time.process_time()
    for path in paths:
        audio.decoded_seconds(path)
    here = time.process_time() - begin
    start = _cpu_of_a_child(lambda: decoding.header_seconds(paths[0]))
    child = _cpu_of_a_child(lambda: [decoding.decoded_seconds(path) for path in paths])
    return 1000 * here / len(paths), 1000 * (child - start) / len(paths)


def _cpu_of_a_child(call: Callable[[], object]) -> float:
    """CPU seconds of a call, and of the child that it starts, which counts once it has ended."""
    decoding.close()
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.process_time()
    call()
    asking = time.process_time() - begin
    decoding.close()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return asking + after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.races.decoding", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--clips", type=int, default=60, help="of each format")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each clip")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        first = write_clips(Path(folder), "wav", 1, 0.1)[0]
        begin = time.perf_counter()
        decoding.decoded_seconds(first)
        print(f"start of a child: {1000 * (time.perf_counter() - begin):.0f} ms, once")
        for form in FORMATS:
            paths = write_clips(Path(folder), form, given.clips, given.seconds)
            found, (cpu_here, cpu_child) = race(paths), cpu_ms(paths)
            print(
                f"{form:<5} here {found['here']:.2f} ms, child {found['child']:.2f} ms a clip, "
                f"child / here {found['child'] / found['here']:.2f}; CPU {cpu_here:.2f} and "
                f"{cpu_child:.2f} ms, here / libsndfile alone {counting(paths):.2f}, "
                f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
