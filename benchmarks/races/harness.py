"""How a race is run: equality before time, sides in turn, one row of figures for each ratio.

CPU time (``process_time``) on a CPU, so that other processes do not count; device events on a GPU.
The sides take turns in one process, so that a machine that slows down slows all of them down.
"""

from __future__ import annotations

import gc
import operator
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Row = dict[str, Any]
Samples = dict[str, list[float]]  # side -> one figure a round

_SIGNS = {"<=": operator.le, ">=": operator.ge}


class Unequal(AssertionError):
    """Both sides of a race do not compute the same: there is nothing to time."""


def check(what: str, value: float, limit: float) -> dict[str, Any]:
    """What was compared, how far apart it was, and how far it may be; raises Unequal."""
    value = float(value)
    if not value <= limit:  # NaN as well
        raise Unequal(f"{what}: {value:.3g}, expected at most {limit:g}")
    return {"what": what, "value": value, "limit": limit}


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """max |a - b|; NaN where either is."""
    return (a.float() - b.float()).abs().max().item()


def interleaved(
    sides: dict[str, Callable[[], Any]], rounds: int, device: str = "cpu", warm: int = 1
) -> Samples:
    """Milliseconds of each call: ``warm`` rounds that do not count, then ``rounds`` that do."""
    taken: Samples = {name: [] for name in sides}
    gc.collect()
    for turn in range(-warm, rounds):
        order = list(sides) if turn % 2 else list(reversed(sides))
        for name in order:
            ms = milliseconds(sides[name], device)
            if turn >= 0:
                taken[name].append(round(ms, 3))
    return taken


def milliseconds(call: Callable[[], Any], device: str = "cpu") -> float:
    """CPU milliseconds of one call, or the GPU's from its first kernel to its last."""
    if device == "cpu":
        begin = time.process_time()
        call()
        return 1000 * (time.process_time() - begin)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    call()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last)


def row(
    race: str,
    samples: Samples,
    *,
    checks: list[dict[str, Any]],
    goal: str | None = None,
    ratio: float | None = None,
    unit: str = "ms",
    **about: Any,
) -> Row:
    """One line of the table. ``ratio``: of the first side's median to the second's, unless given.

    ``goal`` is such as "<= 1.03", or None where there is none to hold.
    """
    medians = {name: statistics.median(values) for name, values in samples.items()}
    if ratio is None:
        first, second, *_ = medians.values()
        ratio = first / second
    return {
        "race": race,
        "ratio": round(ratio, 4),
        "goal": goal,
        "holds": holds(ratio, goal),
        "unit": unit,
        "medians": {name: round(value, 3) for name, value in medians.items()},
        "samples": samples,
        "checks": checks,
        **about,
    }


def failed(race: str, error: Exception) -> Row:
    """The line of a race that came to no figure."""
    told = f"{type(error).__name__}: {error}"
    return {"race": race, "ratio": None, "goal": None, "holds": False, "error": told}


def holds(ratio: float, goal: str | None) -> bool | None:
    """Whether a ratio meets a goal such as "<= 1.03"; None without a goal."""
    if goal is None:
        return None
    sign, limit = goal.split()
    return _SIGNS[sign](ratio, float(limit))
