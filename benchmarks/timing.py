"""How the races are timed: both sides in turn, in one process, medians of CPU time."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any


def interleaved(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median CPU milliseconds of each side, after one call of each that does not count.

    The sides take turns, so that a machine that slows down slows all of them down.
    """
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for call in sides.values():
        call()
    gc.collect()
    for turn in range(rounds):
        order = list(sides) if turn % 2 else list(reversed(sides))
        for name in order:
            begin = time.process_time()
            sides[name]()
            taken[name].append(1000 * (time.process_time() - begin))
    return {name: statistics.median(times) for name, times in taken.items()}
