"""Figures made from records and gate files only, and the style of all figures.

Colours are Okabe and Ito's, which people with any colour vision can tell apart; every figure also
uses marker, hatch or line style, so that it can be read in a grey print.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.figure import Figure

from distilwhisper_lib.io.files import write_atomic

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY, LIGHT = "#6E6E6E", "#E4E4E4"

# Tried in this order for every character, so that labels in any script can be read.
_FONTS = (
    "DejaVu Sans",
    *("Noto Sans", "Noto Sans Thai", "Noto Sans Tamil", "Noto Sans Devanagari"),
    *("Noto Sans Arabic", "Noto Sans CJK JP", "Lohit Tamil", "Tahoma", "Arial Unicode MS"),
)
_STYLE = {
    "axes.edgecolor": "#444444",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "figure.titlesize": 11,
    "font.size": 9,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "savefig.dpi": 200,
    "svg.fonttype": "path",  # looks the same where the fonts are missing
    "svg.hashsalt": "distilwhisper",  # the same figure gives the same file
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw, and write, in the style of all figures."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    fonts = [name for name in _FONTS if name in installed] or ["sans-serif"]
    with mpl.rc_context(_STYLE | {"font.family": fonts}):
        yield


def panels(rows: int, columns: int, width: float, height: float, **options: Any):
    """(figure, axes[rows][columns]); closed for pyplot, so that a notebook shows it only once."""
    figure, axes = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), squeeze=False, **options
    )
    plt.close(figure)
    return figure, axes


def save(figure: Figure, path: str | Path, numbers: pd.DataFrame | None = None) -> tuple[Path, ...]:
    """Write ``path``.png (200 dpi) and ``path``.svg, and ``numbers``, what the figure shows, as
    ``path``.csv; returns what was written. Same figure, same bytes."""
    path, written = Path(path), []
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        buffer = io.BytesIO()
        with style():
            figure.savefig(buffer, format=kind, metadata=metadata)
        written.append(write_atomic(path.with_name(f"{path.name}.{kind}"), buffer.getvalue()))
    if numbers is not None:
        text = numbers.to_csv(index=False, lineterminator="\n")
        written.append(write_atomic(path.with_name(f"{path.name}.csv"), text))
    return tuple(written)


# ------------------------------------------------------------------------------------ training


# --------------------------------------------------------------------------------------- gates


def first_legend(axes: np.ndarray) -> tuple[list, list]:
    found: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)


def readable(token: str, place: int) -> str:
    """The token with its spaces made visible; its number where no font can draw it."""
    text = token.replace("<|", "<").replace("|>", ">").replace("Ġ", " ").replace("\n", "⏎")
    text = text.replace(" ", "␣").replace("$", r"\$")
    return text if text and all(can_draw(character) for character in text) else f"#{place}"


def can_draw(character: str) -> bool:
    return any(ord(character) in charmap for charmap in _charmaps())


def _charmaps() -> list[Mapping[int, int]]:
    found = []
    for font in font_manager.fontManager.ttflist:
        if font.name in _FONTS and font.style == "normal" and font.weight == 400:
            found.append(font_manager.get_font(font.fname).get_charmap())
    return found
