"""Figures of gate statistics, from gate files and records only; figures.py has the basic two.

Titles name preset, seed and settings where these differ among what a figure shows. ``among`` says
what else is shown beside a figure of one file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from distilwhisper_lib.config.settings import DOMAINS
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.figures import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    first_legend,
    language_name,
    panels,
    run_about,
    style,
    titles,
)
from distilwhisper_lib.gates.counts import BINS, SCORE_EDGES, SIDES
from distilwhisper_lib.gates.statistics import agreement
from distilwhisper_lib.languages import find_language

GateFile = Mapping[str, Any]

_FRAMES = {
    "audio": {"label": "audio frames", "color": BLUE, "linestyle": "-", "marker": "o"},
    "padding": {"label": "padding frames", "color": GREY, "linestyle": "--", "marker": "s"},
}
_TOKENS = {
    "prompt": {"label": "prompt", "color": BLACK, "linestyle": ":", "marker": "D"},
    "word_initial": {"label": "first of a word", "color": BLUE, "linestyle": "-", "marker": "o"},
    "inside": {"label": "inside a word", "color": ORANGE, "linestyle": "--", "marker": "s"},
    "punctuation": {"label": "punctuation", "color": GREEN, "linestyle": "-.", "marker": "^"},
}
_ENTROPIES = {
    "all": {"label": "of the layer", "color": BLUE, "linestyle": "-", "marker": "o"},
    "within_utterance": {
        **{"label": "left when the utterance is known", "color": ORANGE},
        **{"linestyle": "--", "marker": "s"},
    },
    "within_class": {
        **{"label": "left when the token's class is known", "color": GREEN},
        **{"linestyle": "-.", "marker": "^"},
    },
}
# One a language, told apart by colour and by marker.
_POINTS = tuple(
    zip(
        (BLUE, ORANGE, GREEN, VERMILION, PURPLE, BLACK, SKY, GREY),
        ("o", "s", "^", "D", "v", "P", "X", "*"),
        strict=True,
    )
)
_MEANS = {
    "gate_mean": {
        **{"label": "training: soft, with noise", "color": GREEN, "linestyle": "-"},
    },
    "gate_soft": {
        **{"label": "validation: soft, no noise", "color": BLUE, "linestyle": "--", "marker": "o"},
    },
    "gate_hard": {
        **{"label": "validation: hard (as used)", "color": VERMILION},
        **{"linestyle": "-.", "marker": "s"},
    },
}
_DENSITY = LinearSegmentedColormap.from_list("density", ["#FFFFFF", SKY, BLUE, "#00263F"])


# Layer by layer -----------------------------------------------------------------------------

Series = tuple[list[float], list[list[float]] | None, Mapping[str, str]]


def frame_shares(gate_files: Sequence[GateFile], domain: str = "in_domain") -> Figure:
    """Share of audio frames and of padding frames that took the expert, per encoder layer."""

    def series(summary: Mapping[str, Any]) -> Iterator[Series]:
        yield summary["encoder"], summary["encoder_interval"], _FRAMES["audio"]
        if "padding" in summary["classes"]:
            found = summary["classes"]["padding"]
            yield found["share"], found["interval"], _FRAMES["padding"]

    return _layer_figure(gate_files, domain, series, "encoder", "through the expert (%)")


def token_class_shares(gate_files: Sequence[GateFile], domain: str = "in_domain") -> Figure:
    """Share of each class of decoder inputs that took the expert, per decoder layer.

    In languages written without spaces the first token of a word is that of a phrase, see
    token_classes.TOKEN_CLASSES; their panels say so.
    """

    def series(summary: Mapping[str, Any]) -> Iterator[Series]:
        for name, look in _TOKENS.items():
            if name in summary["classes"]:
                found = summary["classes"][name]
                yield found["share"], found["interval"], look

    def remark(gates: GateFile) -> str:
        spaced = find_language(gates["language"]).spaced
        return "" if spaced else "\n(no spaces: first of a phrase)"

    return _layer_figure(gate_files, domain, series, "decoder", "through the expert (%)", remark)


def entropy_lines(
    gate_files: Sequence[GateFile], side: str = "decoder", domain: str = "in_domain"
) -> Figure:
    """How undecided each layer's gates are, in bits, and what utterance and class explain of it."""

    def series(summary: Mapping[str, Any]) -> Iterator[Series]:
        found = summary["entropy"][side]
        for name, look in _ENTROPIES.items():
            if name in found:
                yield found[name], found["interval"] if name == "all" else None, look

    figure = _layer_figure(gate_files, domain, series, side, "entropy of routing (%)")
    for axis in figure.axes:
        if axis.get_ylabel():
            axis.set_ylabel("entropy (% of 1 bit)")
    return figure


def _layer_figure(
    gate_files: Sequence[GateFile],
    domain: str,
    series: Callable[[Mapping[str, Any]], Iterator[Series]],
    side: str,
    ylabel: str,
    remark: Callable[[GateFile], str] = lambda _: "",
) -> Figure:
    """One panel a gate file: values of 0 to 1 by layer, as per cent."""
    found = _with_classes(gate_files, domain)
    columns = min(4, len(found))
    rows = math.ceil(len(found) / columns)
    with style():
        figure, axes = panels(rows, columns, 3.2 if columns < 3 else 2.5, 2.5, sharey=True)
        names = titles(found, separator="\n")
        for axis, gates, name in zip(axes.flat, found, names, strict=False):
            lines = list(series(gates["domains"][domain]))
            for place, line in enumerate(lines):
                _draw_layers(axis, *line, shift=_shift(place, len(lines)))
            axis.set(ylim=(-4, 104), xlabel=f"{side} layer", title=name + remark(gates))
        for axis in axes.flat[len(found) :]:
            axis.set_visible(False)
        for axis in axes[:, 0]:
            axis.set_ylabel(ylabel)
        handles, labels = first_legend(axes)
        fitting = columns if columns < 3 else len(labels)
        figure.legend(handles, labels, loc="outside lower center", ncols=fitting)
        figure.suptitle(f"{side.capitalize()}, {DOMAINS[domain]}", x=0.01, ha="left")
    return figure


def _draw_layers(
    axis: Axes,
    values: Sequence[float],
    interval: Sequence[Sequence[float]] | None,
    look: Mapping[str, Any],
    shift: float = 0.0,  # aside, so that equal values can all be seen
) -> None:
    layers = np.arange(1, len(values) + 1)
    heights = 100 * np.asarray(values, float)
    axis.plot(layers + shift, heights, **look, linewidth=1.2)
    if interval is not None:
        low, high = 100 * np.asarray(interval, float).T
        axis.vlines(layers + shift, low, high, color=look["color"], linewidth=1.0)
    axis.set_xticks(layers if len(layers) <= 6 else layers[1::2])
    axis.set_xlim(0.5, len(layers) + 0.5)


def _shift(place: int, count: int) -> float:
    return (place - (count - 1) / 2) * min(0.09, 0.7 / count)


def _with_classes(gate_files: Sequence[GateFile], domain: str) -> list[GateFile]:
    """The gate files that hold more than shares by layer. UserError when none does."""
    found = [g for g in gate_files if "classes" in (g["domains"].get(domain) or {})]
    if not found:
        old = ", ".join(str(g.get("run_id")) for g in gate_files) or "none given"
        raise UserError(
            f"no gate file with statistics by class for {domain!r} ({old}): files of earlier "
            "versions have none, run notebook 04, 05 or 06 again"
        )
    return found


# Scores -------------------------------------------------------------------------------------


def score_histograms(
    gate_file: GateFile, domain: str = "in_domain", among: Sequence[GateFile] = ()
) -> Figure:
    """How often each layer's gates gave which score; right of 0 the expert speaks.

    Colour is the share of a layer's positions in a bin. The axis is logarithmic to both sides,
    because scores differ by tenfolds; dotted lines are the noise of the end of training, within
    which a decision was often turned round while training.
    """
    (gates,) = _with_classes([gate_file], domain)
    summary = gates["domains"][domain]
    if summary["scores"] is None:
        raise UserError(
            f"gate file of {gates['run_id']} has no scores for {domain!r}: run its notebook again"
        )
    layers = max(len(summary["scores"][side]) for side in SIDES)
    with style():
        figure, axes = panels(1, 2, 4.9, 1.5 + 0.24 * layers)
        for axis, side in zip(axes[0], SIDES, strict=True):
            image = _draw_scores(axis, summary, side, gates.get("gate_noise"))
        figure.colorbar(image, ax=axes, label="share of positions (%)", pad=0.02, fraction=0.03,
                        extend="max")  # fmt: skip
        (name,) = titles([gates], among)
        figure.suptitle(f"{name}: scores of the gates, {DOMAINS[domain]}", x=0.01, ha="left")
    return figure


def _draw_scores(axis: Axes, summary: Mapping[str, Any], side: str, noise: float | None) -> Any:
    counts = np.asarray(summary["scores"][side], float)  # (layers, BINS)
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axis.imshow(
        shares, cmap=_DENSITY, vmin=0, vmax=60, aspect="auto", origin="lower",
        interpolation="nearest", extent=(0, BINS, 0.5, len(shares) + 0.5),
    )  # fmt: skip
    middle = BINS // 2
    axis.axvline(middle, color=VERMILION, linewidth=1.2)
    if noise:
        for place in np.interp([-noise, noise], SCORE_EDGES, np.arange(1, BINS)):
            axis.axvline(place, color=BLACK, linestyle=":", linewidth=1.0)
    for layer, hard in enumerate(summary[side], start=1):
        soft = summary["soft"][side]
        text = f"{100 * hard:.0f} %" + (f" ({100 * soft[layer - 1]:.0f})" if soft else "")
        axis.annotate(
            text, (1.01, layer), xycoords=("axes fraction", "data"), va="center", fontsize=7.5
        )
    axis.annotate(
        "hard (soft)", (1.01, 1.0), xycoords="axes fraction", va="bottom", fontsize=7.5,
        color=GREY, xytext=(0, 2), textcoords="offset points",
    )  # fmt: skip
    shown = (-100.0, -10.0, -1.0, -0.1, 0.0, 0.1, 1.0, 10.0, 100.0)
    axis.set_xticks([SCORE_EDGES.index(edge) + 1 for edge in shown], [f"{e:g}" for e in shown])
    axis.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    axis.grid(visible=False)
    axis.set(xlabel="shared  ←  score  →  expert", ylabel=f"{side} layer")
    return image


# Training -----------------------------------------------------------------------------------


def soft_and_hard(record: Mapping[str, Any], among: Sequence[Mapping[str, Any]] = ()) -> Figure:
    """Mean gates of one run over its steps: soft in training, soft and hard at each validation.

    The gate loss holds the soft mean of training near the budget. What is used is whether a
    score is above 0, which a soft mean of 0.5 leaves open. Training looks at reference
    transcripts, validation at what the model itself says. UserError without gates.
    """
    training = record["training"] or {"log": [], "validation": []}
    if not any("gate_mean" in entry for entry in training["log"]):
        raise UserError(
            f"run {record['run_id']} has no gates in its training log: expected the record of "
            "clsr, kl or js"
        )
    noisy = any("gate_noise" in entry for entry in training["log"])
    with style():
        figure, axes = panels(1, 3 + noisy, 2.9, 2.7)
        for axis, side in zip(axes[0], ("", *SIDES), strict=False):
            _draw_means(axis, training, f"_{side}" if side else "")
            axis.set_title(side.capitalize() if side else "Both, by positions")
        axes[0, 0].set_ylabel("mean gate (1 = expert)")
        budget = record["config"].get("budget")
        if budget is not None:
            axes[0, 0].axhline(budget, color=GREY, linestyle=":", label=f"budget {budget:g}")
        if noisy:
            _draw_noise(axes[0, 3], training["log"])
        for axis in axes[0]:
            axis.set_xlabel("optimiser step")
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        handles, labels = first_legend(axes)
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        about, *others = run_about([record, *among])
        (name,) = titles([about], others)
        figure.suptitle(name, x=0.01, ha="left")
    return figure


def _draw_means(axis: Axes, training: Mapping[str, Any], suffix: str) -> None:
    for name, look in _MEANS.items():
        part = training["log" if name == "gate_mean" else "validation"]
        points = [(e["step"], e[name + suffix]) for e in part if e.get(name + suffix) is not None]
        if points:
            axis.plot(*zip(*points, strict=True), **look)
    axis.set_ylim(-0.03, 1.03)


def _draw_noise(axis: Axes, log: Sequence[Mapping[str, Any]]) -> None:
    points = [(e["step"], e["gate_noise"]) for e in log if "gate_noise" in e]
    axis.plot(*zip(*points, strict=True), color=PURPLE)
    axis.set(title="Noise of the gates", ylabel="standard deviation")
    axis.set_ylim(bottom=0)


# Languages ----------------------------------------------------------------------------------


def language_agreement(
    gate_files: Sequence[GateFile], domain: str = "in_domain", among: Sequence[GateFile] = ()
) -> Figure:
    """Shares by layer of several languages; from three languages on, also a matrix.

    The matrix holds the mean difference over layers of each pair, see agreement(). ``gate_files``
    is a group of groups_of_languages(). UserError for files that differ in more, or are too few.
    """
    chosen = [gates for gates in gate_files if gates["domains"].get(domain)]
    languages = [gates["language"] for gates in chosen]
    table = agreement(chosen, domain)
    if table.empty or len(table) != len(languages) * (len(languages) - 1):
        raise UserError(
            f"gate files of {', '.join(languages) or 'no language'} cannot be compared: expected "
            "two languages or more, of the same method, settings and seed"
        )
    matrix = len(chosen) > 2
    with style():
        figure, axes = panels(1 + matrix, 2, 4.4, 2.7 if not matrix else 3.0)
        for column, side in enumerate(SIDES):
            for place, gates in enumerate(chosen):
                summary, (colour, marker) = gates["domains"][domain], _POINTS[place % len(_POINTS)]
                look = {"color": colour, "marker": marker, "linestyle": ":"}
                look["label"] = language_name(gates["language"])
                interval = summary.get(f"{side}_interval")
                shift = _shift(place, len(chosen))
                _draw_layers(axes[0, column], summary[side], interval, look, shift)
            axes[0, column].set(ylim=(-4, 104), xlabel=f"{side} layer", title=side.capitalize())
            if matrix:
                _draw_matrix(axes[1, column], table[table["side"] == side], languages)
        axes[0, 0].set_ylabel("through the expert (%)")
        handles, labels = first_legend(axes[:1])
        figure.legend(handles, labels, loc="outside lower center", ncols=min(8, len(labels)))
        # Of one method, preset, seed and settings: the first file's are all files'.
        (name,) = titles(chosen[:1], among)
        name = name.removeprefix(f"{language_name(languages[0])}, ")
        figure.suptitle(f"{name}, {DOMAINS[domain]}", x=0.01, ha="left")
    return figure


def _draw_matrix(axis: Axes, table: Any, languages: Sequence[str]) -> None:
    values = np.full((len(languages), len(languages)), np.nan)
    for row in table.to_dict("records"):
        pair = [languages.index(row[name].split(" ")[0]) for name in ("first", "second")]
        values[tuple(pair)] = values[tuple(reversed(pair))] = row["mean difference"]
    axis.imshow(values, cmap=_DENSITY, vmin=0, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            ink = "white" if value > 50 else BLACK
            axis.annotate(f"{value:.0f}", (column, row), ha="center", va="center", color=ink,
                          fontsize=8)  # fmt: skip
    axis.set_xticks(range(len(languages)), languages)
    axis.set_yticks(range(len(languages)), languages)
    axis.grid(visible=False)
    axis.set_title("mean difference over layers (points)", fontsize=9)
