"""What CLSR is, in one figure: the routing of one layer, and what its gates did to one utterance.

Left, what model/clsr.py computes; right, real gates from a committed gate file, the tokens
of its example, one decoder layer. README and notebooks/GUIDE.md show it; this draws it again:

    python .ci/clsr_figure.py [--run RUN_ID] [--layer N] [--to notebooks/clsr.png]
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from distilwhisper_lib import PACKAGE
from distilwhisper_lib.config.settings import Record
from distilwhisper_lib.errors import UserError, command
from distilwhisper_lib.figures import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LIGHT,
    VERMILION,
    panels,
    readable,
    run_about,
    style,
    titles,
)
from distilwhisper_lib.io.files import write_atomic
from distilwhisper_lib.results.records import load_records

RESULTS = PACKAGE.parent / "results" / "demo"
FIGURE = PACKAGE.parent / "notebooks" / "clsr.png"

_DRAWN = "Description"  # the PNG's text field that says what is drawn
_ROW = 46  # characters of token text in one row
_ROWS = 5  # as many as can be read


@dataclass(frozen=True)
class Routed:
    """One utterance in one decoder layer: what the right half of the figure shows."""

    run_id: str
    title: str
    clip: str
    layer: int  # from 1
    tokens: list[str]  # the decoder's inputs, prompt included
    gates: list[int]  # hard: 1 the expert, 0 the shared network


def routed(
    gate_files: Sequence[Mapping[str, Any]],
    run_id: str | None = None,
    layer: int | None = None,
    records: Sequence[Record] = (),
) -> Routed:
    """The example to draw: of ``run_id`` and ``layer``, or of those whose routes differ most.

    Of several candidates the one nearest to as many tokens for the expert as for the shared
    network; examples with a character cut over tokens, which no font can draw, come last.
    UserError where nothing fits. ``records`` tell what sets runs apart that are called alike.
    """
    about = {told["run_id"]: told for told in run_about(records)}
    named = [g for g in gate_files if run_id in (None, g["run_id"])]
    found = [
        Routed(g["run_id"], title, g["example"]["id"], place, g["example"]["tokens"], gates)
        for g, title in zip(named, titles([about.get(g["run_id"], g) for g in named]), strict=True)
        if g.get("example")
        for place, gates in enumerate(g["example"]["token_gates"], start=1)
        if layer in (None, place)
    ]
    if not found:
        runs = ", ".join(g["run_id"] for g in gate_files)
        raise UserError(
            f"no example for run {run_id or 'any'} and decoder layer {layer or 'any'}: expected "
            f"one of {runs} and a layer of its decoder, counted from 1"
        )
    return min(found, key=_priority)


def _priority(example: Routed) -> tuple[bool, float]:
    cut = any("\ufffd" in token for token in example.tokens)
    return cut, abs(sum(example.gates) / len(example.gates) - 0.5)


def clsr_figure(example: Routed) -> Figure:
    """The layer's two branches and gate beside the tokens of ``example``."""
    with style():
        figure, axes = panels(1, 2, 4.6, 3.2, width_ratios=(0.82, 1))
        _draw_layer(axes[0, 0])
        _draw_tokens(axes[0, 1], example)
        for axis in axes[0]:
            axis.set_axis_off()
    return figure


def write_figure(example: Routed, path: str | Path = FIGURE) -> Path:
    """Write the figure as PNG, with what it shows as JSON in its text; see what_is_drawn()."""
    buffer = io.BytesIO()
    metadata = {"Software": None, _DRAWN: json.dumps(asdict(example))}
    with style():
        clsr_figure(example).savefig(buffer, format="png", dpi=120, metadata=metadata)
    return write_atomic(path, buffer.getvalue())


def what_is_drawn(path: str | Path = FIGURE) -> Routed:
    """The example that a figure of write_figure() shows."""
    from PIL import Image

    with Image.open(path) as image:
        return Routed(**json.loads(image.text[_DRAWN]))


# The layer ------------------------------------------------------------------------------------


def _draw_layer(axis: Axes) -> None:
    """Input at the bottom, as signals flow."""
    axis.set(xlim=(0, 10), ylim=(0, 10))
    axis.set_title("One layer of Whisper with CLSR")
    _box(axis, (2.0, 5.0), "shared FFN\nfrozen", LIGHT, BLACK)
    _box(axis, (8.0, 5.0), "expert FFN\none language, trained", BLUE, "white")
    _box(axis, (5.0, 5.0), "gate\ntrained", "white", BLACK, edge=VERMILION)
    _box(axis, (5.0, 8.2), "g · expert + (1 − g) · shared", "white", BLACK, edge=GREEN)
    axis.text(5, 2.2, "x: one token or audio frame", ha="center", va="center")
    for place in (2.0, 5.0, 8.0):
        _arrow(axis, (5, 2.6), (place, 4.2))
        _arrow(axis, (place, 5.8), (5 + (place - 5) * 0.45, 7.6))
    axis.text(5.15, 6.6, "g", color=VERMILION, style="italic")
    _arrow(axis, (5, 8.8), (5, 9.8))
    axis.text(
        0, 0.1, "In training g is soft:  σ(score + noise).\nIn use g is hard:  1 if score ≥ 0, "
        "else 0; only the\nbranch that it picks is computed.", fontsize=8.5, va="bottom",
    )  # fmt: skip


def _box(
    axis: Axes, middle: tuple[float, float], text: str, face: str, ink: str, edge: str = BLACK
) -> None:
    look = {"boxstyle": "round,pad=0.45", "facecolor": face, "edgecolor": edge, "linewidth": 1.2}
    axis.text(*middle, text, ha="center", va="center", color=ink, fontsize=8.5, bbox=look)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": GREY, "lw": 1.1})


# The tokens -----------------------------------------------------------------------------------


def _draw_tokens(axis: Axes, example: Routed) -> None:
    """One box a token: filled where the expert spoke; the gate, 1 or 0, below each."""
    axis.set_title(f"{example.title}: decoder layer {example.layer}, clip {example.clip}")
    axis.set(xlim=(0, _ROW), ylim=(0, 10))
    names = [readable(token, place) for place, token in enumerate(example.tokens, start=1)]
    places = _wrapped([len(name.replace("\\", "")) + 1.6 for name in names])
    places = [place for place in places if place[1] < _ROWS]
    step = min(2.2, 7.25 / (1 + places[-1][1]))
    for name, gate, (left, row, width) in zip(names, example.gates, places, strict=False):
        top = 9.2 - step * row
        face, ink = (BLUE, "white") if gate else (LIGHT, BLACK)
        axis.add_patch(
            FancyBboxPatch((left + 0.3, top - 0.95), width - 0.6, 0.95, facecolor=face,
                           edgecolor=BLACK, linewidth=0.6, boxstyle="round,pad=0,rounding_size=0.3")
        )  # fmt: skip
        middle = left + width / 2
        axis.text(middle, top - 0.5, name, ha="center", va="center", color=ink, fontsize=8.5)
        axis.text(middle, top - 1.35, str(gate), ha="center", va="center", fontsize=7.5, color=GREY)
    shown = "" if len(places) == len(names) else f"; the first {len(places)} are shown"
    axis.text(
        0,
        0.1,
        f"Blue, 1: the expert spoke ({sum(example.gates)} of {len(names)} tokens{shown}). Grey, 0:"
        " the\nshared network. ␣ is a space; tokens in < > are the prompt.\n"
        f"Run {example.run_id}, hard gates.",
        fontsize=8.5,
        va="bottom",
    )


def _wrapped(widths: Sequence[float]) -> list[tuple[float, int, float]]:
    """(left edge, row, width) of boxes set in rows as words are."""
    found, left, row = [], 0.0, 0
    for width in widths:
        width = min(width, _ROW)
        if left + width > _ROW:
            left, row = 0.0, row + 1
        found.append((left, row, width))
        left += width
    return found


@command
def main(arguments: Sequence[str] | None = None) -> int:
    from distilwhisper_lib.gates.files import load_gates  # brings transformers

    parser = argparse.ArgumentParser(
        prog="python .ci/clsr_figure.py", description="Draw what CLSR is."
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with gates/")
    parser.add_argument("--run", help="run id of a gate file; left out, the most telling example")
    parser.add_argument("--layer", type=int, help="decoder layer, from 1; left out likewise")
    parser.add_argument("--to", type=Path, default=FIGURE, help="the PNG to write")
    given = parser.parse_args(arguments)
    gates, records = load_gates(given.results), load_records(given.results)
    print(write_figure(routed(gates, given.run, given.layer, records), given.to))
    return 0


if __name__ == "__main__":
    sys.exit(main())
