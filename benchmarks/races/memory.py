"""Peak memory of one call: on a CPU in a process of its own, on a GPU as its allocator tells it.

"Anonymous" memory is what a process itself holds; resident memory adds the pages of mapped files,
which the system can drop whenever it needs room. Peaks are over what the process held before the
side was built, so that models and optimiser states count.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.races.harness import Row, row
from benchmarks.races.setting import Setting

MB = 10**6
Sides = dict[str, Callable[[], Callable[[], Any]]]  # name -> what builds the call to watch
# Freed blocks of a megabyte and more go back to the system at once, so that they do not count.
RETURNED = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**20)}


def peaks(setting: Setting, job: str) -> dict[str, dict[str, float]]:
    """For each side of a job: megabytes at the peak, the part of them that was not held before the
    call ("of which the call"), and the number that it returned."""
    if setting.device == "cuda" or setting.small:
        return measured(setting, jobs(setting)[job])
    child = [sys.executable, "-m", __spec__.name, job, str(setting.folder)]
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | RETURNED | {"PYTHONPATH": root, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(child, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def jobs(setting: Setting) -> dict[str, Sides]:
    from benchmarks.races import files, loss, steps

    modules = {"step": steps, "loss": loss, "load": files}
    return {name: module.sides_of_memory(setting) for name, module in modules.items()}


def measured(setting: Setting, sides: Sides) -> dict[str, dict[str, float]]:
    found = {}
    for name, build in sides.items():
        setting.drop("teacher")
        _let_go()
        empty = _held(setting)
        call = build()
        _let_go()
        before = _held(setting)
        results: list[Any] = []
        peak = _peak(setting, lambda call=call, results=results: results.append(call()))
        found[name] = {
            "peak": round((peak - empty) / MB, 1),
            "of which the call": round((peak - before) / MB, 1),
            "result": None if results[0] is None else float(results[0]),
        }
        del call
    return found


def _let_go() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def _held(setting: Setting) -> int:
    return torch.cuda.memory_allocated() if setting.device == "cuda" else anonymous_bytes()


def _peak(setting: Setting, call: Callable[[], Any]) -> int:
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    return watched(call)


def watched(call: Callable[[], Any]) -> int:
    """The most anonymous bytes that this process held in the call, what it returns included."""
    highest, done = [anonymous_bytes()], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            highest.append(max(highest.pop(), anonymous_bytes()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        result = call()
        held = anonymous_bytes()  # a busy machine may not have let the thread look at the end
        del result
    finally:
        done.set()
        thread.join()
    return max(held, highest[0])


def anonymous_bytes() -> int:
    """What this process itself holds (Linux), also where the system has put it aside meanwhile."""
    status = Path("/proc/self/status").read_text()
    held = re.findall(r"^(?:RssAnon|VmSwap):\s+(\d+) kB$", status, re.MULTILINE)
    return sum(map(int, held)) * 1024


def rows(
    found: dict[str, dict[str, float]],
    title: str,
    pairs: list[tuple[str, str]],
    which: str = "peak",
    **about: Any,
) -> list[Row]:
    """A row a pair of sides of what peaks() found: the ratio of their peaks."""
    return [
        row(
            f"{title}, {a} / {b}",
            {side: [found[side][which]] for side in (a, b)},
            unit="MB",
            peaks={side: found[side] for side in (a, b)},
            **about,
        )
        for a, b in pairs
    ]


def main(job: str, folder: str) -> None:
    torch.set_num_threads(1)
    os.chdir(folder)
    setting = Setting("cpu", False, Path(folder))
    print(json.dumps(measured(setting, jobs(setting)[job])))


if __name__ == "__main__":
    main(*sys.argv[1:])
