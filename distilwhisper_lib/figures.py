"""The look of every figure, how it is saved, and what a run is called in it.

Colours are Okabe and Ito's, which people with any colour vision can tell apart; every figure also
uses marker, hatch or line style, so that it can be read in a grey print.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.figure import Figure

from distilwhisper_lib.config.changes import changed_settings, named
from distilwhisper_lib.config.settings import LABELS, ORIGIN, Record
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.io.files import write_atomic
from distilwhisper_lib.languages import find_language

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
        interactive = mpl.is_interactive()
    # A notebook's backend, which the first figure loads, sets it; without it no later plot of
    # one's own would be shown.
    mpl.interactive(interactive)


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


# A gate file, or run_about() of a record: language, and where known run_id, method, preset, seed,
# settings (those that are not the preset's) and origin (of what came with the kit).
About = Mapping[str, Any]


def language_name(code: str) -> str:
    try:
        return find_language(code).title
    except UserError:  # in a file of elsewhere
        return code


def method_name(method: str) -> str:
    return LABELS.get(method, method).removeprefix("+ ")


def run_about(records: Sequence[Record]) -> list[About]:
    """What `titles` reads of records."""
    names = ("language", "method", "preset", "seed")
    return [
        {"run_id": record["run_id"]}
        | {name: record["config"].get(name) for name in names}
        | {"settings": changed | {"train_size": record["config"].get("train_size")}}
        | {ORIGIN: record.get(ORIGIN, "")}
        for record, changed in zip(records, changed_settings(records), strict=True)
    ]


def titles(shown: Sequence[About], among: Sequence[About] = (), separator: str = ", ") -> list[str]:
    """ "Catalan, CLSR + JS", and after a ``separator`` the preset, seed and settings of each of
    ``shown``, where these differ and only those that do, and that it came with the kit; the run id
    where nothing else tells two runs apart.

    ``among``: everything that is shown beside each other, where that is more than ``shown``.
    """
    everything = [*among, *shown]
    differ = {name for name in ("preset", "seed") if len(_values(everything, name)) > 1}
    settings = [_settings(about) for about in everything]
    changed = [
        name
        for name in sorted({name for given in settings for name in given})
        if len(_values(settings, name)) > 1
    ]

    def told(about: About) -> list[str]:
        method = about.get("method") or str(about.get("run_id", "")).split("-")[0]
        label = f", {method_name(method)}" if method in LABELS else ""
        parts = [language_name(about["language"]) + label]
        parts += [str(about["preset"])] if "preset" in differ and about.get("preset") else []
        parts += [f"seed {about['seed']}"] if "seed" in differ and "seed" in about else []
        given = _settings(about)
        parts += named({name: given[name] for name in changed if name in given})
        return parts + [about[ORIGIN]] if about.get(ORIGIN) else parts

    found = []
    for about in shown:
        parts = told(about)
        alike = {str(other.get("run_id")) for other in everything if told(other) == parts}
        parts += [str(about["run_id"])] if len(alike) > 1 else []
        found.append(separator.join(parts))
    return found


def _settings(about: About) -> Mapping[str, Any]:
    return about.get("settings") or {}


def _values(abouts: Sequence[Mapping[str, Any]], name: str) -> set[str]:
    """What it is in each, as text; not to have it is a value too."""
    return {repr(about.get(name)) for about in abouts}
