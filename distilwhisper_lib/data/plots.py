"""A corpus and its preflight report as figures: how long clips and labels are, what is left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from distilwhisper_lib.config.settings import DOMAINS
from distilwhisper_lib.data.clips import REASONS
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.figures import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LIGHT,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    YELLOW,
    panels,
    style,
)

_LINES = {
    "train": (BLUE, "-"),
    "validation": (GREEN, "-."),
    "in_domain": (VERMILION, "--"),
    "out_of_domain": (BLACK, ":"),
}
_FILLS = (BLUE, ORANGE, SKY, VERMILION, GREEN, YELLOW, PURPLE, GREY, LIGHT)
_HATCHES = ("", "//", "", "\\\\", "", "..", "", "xx", "--")
_AGAIN = "oo"  # of colours that come round again


def preflight_overview(report: dict[str, Any]) -> Figure:
    """Left, label lengths of each part beside the model's limit; right, clips left out by reason.

    `report` is preflight.preflight's. Both panels say in words when there is nothing to draw.
    """
    parts = report.get("parts") or {}
    if not parts or any("tokens" not in part for part in parts.values()):
        raise UserError("The report has no label lengths: make it with preflight.preflight.")
    with style():
        figure, axes = panels(1, 2, 4.2, 2.8)
        _draw_lengths(axes[0][0], parts)
        _draw_dropped(axes[0][1], parts)
    return figure


def _draw_lengths(axis: Axes, parts: dict[str, Any]) -> None:
    for name, part in parts.items():
        bars, width = part["tokens"]["histogram"]["clips"], part["tokens"]["histogram"]["width"]
        colour, line = _LINES.get(name, (GREY, "-"))
        edges = np.arange(len(bars) + 1) * width
        share = 100 * np.array(bars) / sum(bars)
        axis.stairs(share, edges, color=colour, linestyle=line, label=_shown(name), linewidth=1.4)
    limit = max(part["tokens"]["limit"] for part in parts.values())
    axis.axvline(limit, color=GREY, linestyle="--", linewidth=1)
    axis.annotate(
        f"limit {limit}", (limit, 1), (-3, -2), xycoords=("data", "axes fraction"),
        textcoords="offset points", ha="right", va="top", color=GREY, fontsize=8,
    )  # fmt: skip
    axis.set(xlabel="label length (tokens)", ylabel="clips (%)", title="Label lengths")
    axis.legend(loc="center right")


def _draw_dropped(axis: Axes, parts: dict[str, Any]) -> None:
    names = list(parts)
    counts = {n: Counter(clip["reason"] for clip in parts[n]["dropped"]) for n in names}
    left = np.zeros(len(names))
    looks = [*zip(_FILLS, _HATCHES, strict=True), *((fill, _AGAIN) for fill in _FILLS)]
    for reason, (fill, hatch) in zip(REASONS, looks, strict=False):
        widths = np.array([counts[name][reason] for name in names], dtype=float)
        if widths.any():
            axis.barh(
                range(len(names)), widths, left=left, color=fill, hatch=hatch, height=0.6,
                edgecolor="#444444", linewidth=0.5, label=reason,
            )  # fmt: skip
            left += widths
    axis.set_yticks(range(len(names)), [_shown(name) for name in names])
    axis.set(xlabel="clips", title="Left out", ylim=(len(names) - 0.5, -0.5))
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    if left.any():
        axis.legend(loc="best")
    else:
        axis.set_xlim(0, 1)
        axis.text(0.5, 0.5, "none", transform=axis.transAxes, ha="center", va="center")


def _shown(part: str) -> str:
    return DOMAINS.get(part, part)


def corpus_overview(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Histogram of clip lengths, one panel per split; ``tables`` maps a split's name to its table.

    Titles hold the number of clips and the hours. The vertical scales differ, as the splits do.
    """
    if not tables or any("seconds" not in table for table in tables.values()):
        raise UserError(
            f"tables {list(tables)}: expected at least one corpus table with a column 'seconds'"
        )
    seconds = {n: pd.to_numeric(t["seconds"]).dropna().to_numpy() for n, t in tables.items()}
    longest = max((values.max() for values in seconds.values() if len(values)), default=1.0)
    edges = np.linspace(0, longest, 31)
    columns = min(4, len(tables))
    rows = math.ceil(len(tables) / columns)
    with style():
        figure, axes = panels(rows, columns, max(2.5, 6.4 / columns), 2.4, sharex=True)
        for axis, (name, values) in zip(axes.flat, seconds.items(), strict=False):
            axis.hist(values, edges, color=SKY, edgecolor="white", linewidth=0.4)
            if len(values):
                _draw_median(axis, float(np.median(values)))
            hours = values.sum() / 3600
            name = DOMAINS.get(name, name.replace("_", " "))
            axis.set_title(f"{name[:1].upper()}{name[1:]}\n{len(values):,} clips, {hours:.2f} h")
            axis.set_xlabel("clip length (s)")
            axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        for axis in axes.flat[len(tables) :]:
            axis.set_visible(False)
        for row in axes:
            row[0].set_ylabel("clips")
    return figure


def _draw_median(axis: Axes, median: float) -> None:
    axis.margins(y=0.22)  # room for the words above the bars
    axis.axvline(median, color=VERMILION, linestyle="--", linewidth=1.2)
    right = median < sum(axis.get_xlim()) / 2
    axis.annotate(
        f"median {median:.1f} s", (median, 1), (4 if right else -4, -2), va="top",
        ha="left" if right else "right", xycoords=("data", "axes fraction"),
        textcoords="offset points", color=VERMILION, fontsize=8,
    )  # fmt: skip
