"""Figures made from records and gate files only, and the style of all figures.

Colours are Okabe and Ito's, which people with any colour vision can tell apart; every figure also
uses marker, hatch or line style, so that it can be read in a grey print.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from .errors import UserError
from .files import write_atomic
from .records import DOMAINS
from .titles import language_name, method_name, titles

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY, LIGHT = "#6E6E6E", "#E4E4E4"

_DOMAIN_STYLES = {
    "in_domain": {"color": BLUE, "linestyle": "-", "marker": "o"},
    "out_of_domain": {"color": VERMILION, "linestyle": "--", "marker": "s"},
}
_LOSSES = {
    "loss": ("total", BLACK, "-"),
    "loss_ce": ("cross entropy", BLUE, "--"),
    "loss_distil": ("distillation", VERMILION, "-."),
    "loss_gate": ("gate budget", GREEN, ":"),
}
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


def training_curves(record: Mapping[str, Any]) -> Figure:
    """Loss parts, mean gate, learning rate and validation error of one run over its steps.

    Panels without data are left out. UserError when the record holds no training.
    """
    training = record["training"]
    if not training or not training["log"]:
        raise UserError(
            f"run {record['run_id']} has no training log: expected the record of a trained method "
            "(full, lora, clsr, kl or js)"
        )
    log = pd.DataFrame(training["log"]).set_index("step").sort_index()
    validation = pd.DataFrame(training["validation"])
    draw = [lambda axis: _draw_losses(axis, log)]
    if _has(log, "gate_mean"):
        budget = record["config"].get("budget")
        draw.append(lambda axis: _draw_gate(axis, log, validation, budget))
    if _has(log, "learning_rate"):
        draw.append(lambda axis: _draw_rate(axis, log))
    if len(validation):
        draw.append(lambda axis: _draw_validation(axis, validation, training["best_step"]))
    with style():
        figure, axes = panels(1, len(draw), 3.1, 2.8)
        for axis, panel in zip(axes[0], draw, strict=True):
            panel(axis)
            axis.set_xlabel("optimiser step")
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        figure.suptitle(_run_title(record["config"]), x=0.01, ha="left")
    return figure


def _has(log: pd.DataFrame, name: str) -> bool:
    return name in log and log[name].notna().any()


def _run_title(config: Mapping[str, Any]) -> str:
    method = method_name(config["method"])
    return f"{language_name(config['language'])}, {method}, seed {config['seed']}"


def _draw_losses(axis: Axes, log: pd.DataFrame) -> None:
    lowest = math.inf
    for name, (label, colour, line) in _LOSSES.items():
        if _has(log, name) and log[name].any():  # a part that is off is 0 throughout
            values = log[name].dropna()
            lowest = min(lowest, values.min())
            axis.plot(values.index, values, color=colour, linestyle=line, label=label)
    axis.set(title="Training loss", ylabel="loss (nats)")
    axis.set_ylim(bottom=min(0.0, lowest))
    if axis.lines:
        axis.legend()


def _draw_gate(
    axis: Axes, log: pd.DataFrame, validation: pd.DataFrame, budget: float | None
) -> None:
    """Soft as the gate loss has it, hard as it is used: gate_plots.soft_and_hard() tells more."""
    values = log["gate_mean"].dropna()
    axis.plot(values.index, values, color=GREEN, label="soft, training")
    if _has(validation, "gate_hard"):
        hard = {"color": VERMILION, "linestyle": "-.", "marker": "s"}
        axis.plot(validation["step"], validation["gate_hard"], label="hard, validation", **hard)
    if budget is not None:
        axis.axhline(budget, color=GREY, linestyle=":", label=f"budget {budget:g}")
    axis.set(title="Mean gate", ylabel="0 = shared, 1 = expert", ylim=(-0.03, 1.03))
    axis.legend()


def _draw_rate(axis: Axes, log: pd.DataFrame) -> None:
    values = log["learning_rate"].dropna()
    power = math.floor(math.log10(values.max())) if values.max() > 0 else 0
    axis.plot(values.index, values / 10.0**power, color=PURPLE)
    axis.set(title="Learning rate", ylabel=f"learning rate ($\\times 10^{{{power}}}$)")
    axis.set_ylim(bottom=0)


def _draw_validation(axis: Axes, validation: pd.DataFrame, best: int | None) -> None:
    for name, colour, line in (("wer", BLUE, "o-"), ("cer", ORANGE, "s--")):
        if _has(validation, name):
            axis.plot(
                validation["step"], 100 * validation[name], line, color=colour, label=name.upper()
            )
    if best is not None:
        axis.axvline(best, color=GREY, linestyle=":", label=f"kept: step {best}")
    axis.set(title="Validation error", ylabel="error rate (%)")
    axis.set_ylim(bottom=0)
    axis.legend()


# --------------------------------------------------------------------------------------- gates


def gate_shares(gate_files: Sequence[Mapping[str, Any]]) -> Figure:
    """Share of positions that took the expert, per layer: encoder above, decoder below.

    One column per gate file, both domains in each panel, bands are the intervals of the file.
    """
    if not gate_files:
        raise UserError("no gate file was given: run a notebook of 04 to 06 first")
    columns = min(4, len(gate_files))
    blocks = math.ceil(len(gate_files) / columns)
    with style():
        figure, axes = panels(2 * blocks, columns, 3.2 if columns < 3 else 2.5, 2.2, sharey=True)
        for axis in axes.flat:
            axis.set_visible(False)
        for index, (gates, title) in enumerate(
            zip(gate_files, titles(gate_files, separator="\n"), strict=True)
        ):
            block, column = divmod(index, columns)
            _draw_gate_panels(axes[2 * block : 2 * block + 2, column], gates, title)
        for row, axis in enumerate(axes[:, 0]):
            positions = ("audio frames", "decoder tokens")[row % 2]
            axis.set_ylabel(f"{positions}\nthrough the expert (%)")
        handles, labels = first_legend(axes)
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _draw_gate_panels(axes: Sequence[Axes], gates: Mapping[str, Any], title: str) -> None:
    for axis, part in zip(axes, ("encoder", "decoder"), strict=True):
        for domain, look in _DOMAIN_STYLES.items():
            if gates["domains"].get(domain):
                _draw_shares(axis, gates["domains"][domain], part, DOMAINS[domain], look)
        axis.set(ylim=(-3, 103), xlabel=f"{part} layer", visible=True)
    axes[0].set_title(title)


def _draw_shares(
    axis: Axes, domain: Mapping[str, Any], part: str, label: str, look: Mapping[str, str]
) -> None:
    shares = 100 * np.ravel(np.asarray(domain[part], dtype=float))  # (layers,)
    layers = np.arange(1, len(shares) + 1)
    axis.plot(layers, shares, label=label, **look)
    interval = domain.get(f"{part}_interval")
    if interval is not None:
        low, high = 100 * np.asarray(interval, dtype=float).T
        axis.fill_between(layers, low, high, color=look["color"], alpha=0.18, linewidth=0)
    axis.set_xticks(layers if len(layers) <= 6 else layers[1::2])
    axis.set_xlim(0.6, len(layers) + 0.4)


def first_legend(axes: np.ndarray) -> tuple[list, list]:
    found: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)


def token_heatmap(gate_file: Mapping[str, Any], among: Sequence[Mapping[str, Any]] = ()) -> Figure:
    """Which route every frame (encoder) and token (decoder) of one utterance took, per layer.

    ``among``: the gate files of the figures beside it, from which its title tells it apart.
    """
    example = gate_file.get("example")
    if not example:
        raise UserError(
            f"gate file of {gate_file.get('run_id')} has no example: expected one utterance in it: "
            "run notebook 04, 05 or 06 again"
        )
    frames = np.asarray(example["frame_gates"], dtype=float)  # (encoder layers, frames)
    tokens = np.asarray(example["token_gates"], dtype=float)  # (decoder layers, tokens)
    width = min(14.0, max(6.4, 0.26 * tokens.shape[1] + 1.2))
    heights = [0.16 * len(frames) + 1.0, 0.16 * len(tokens) + 1.6]
    with style():
        figure, axes = plt.subplots(
            2, 1, figsize=(width, sum(heights) + 0.7), height_ratios=heights
        )
        plt.close(figure)
        draw_routes(axes[0], frames, (0.0, float(example["seconds"])), "encoder layer")
        axes[0].set(xlabel="time (s)", title="Encoder: audio frames")
        draw_routes(axes[1], tokens, (0.5, tokens.shape[1] + 0.5), "decoder layer")
        axes[1].set(xlabel="token", title="Decoder: tokens")
        _draw_token_names(axes[1], example["tokens"])
        handles = [
            Patch(facecolor=BLUE, label=f"{language_name(gate_file['language'])} expert"),
            Patch(facecolor=LIGHT, edgecolor=GREY, linewidth=0.5, label="shared"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
        (title,) = titles([gate_file], among)
        figure.suptitle(_heatmap_title(title, example, width), x=0.01, ha="left")
    return figure


def draw_routes(axis: Axes, gates: np.ndarray, span: tuple[float, float], ylabel: str) -> None:
    """gates (layers, positions) of 0 and 1, the first layer at the bottom as signals flow."""
    layers = len(gates)
    axis.imshow(
        gates, cmap=ListedColormap([LIGHT, BLUE]), vmin=0, vmax=1, aspect="auto", origin="lower",
        interpolation="nearest", extent=(*span, 0.5, layers + 0.5),
    )  # fmt: skip
    axis.set_yticks(range(1, layers + 1) if layers <= 6 else range(2, layers + 1, 2))
    for edge in np.arange(1.5, layers):
        axis.axhline(edge, color="white", linewidth=1.2)
    axis.set_ylabel(ylabel)
    axis.grid(visible=False)


def _draw_token_names(axis: Axes, tokens: Sequence[str]) -> None:
    every = math.ceil(len(tokens) / 60)  # labels that would overlap are left out
    places = range(1, len(tokens) + 1, every)
    for edge in np.arange(1.5, len(tokens)):
        axis.axvline(edge, color="white", linewidth=0.6)
    axis.set_xticks(places, [readable(tokens[p - 1], p) for p in places], rotation=60, ha="right",
                    rotation_mode="anchor")  # fmt: skip
    axis.tick_params(axis="x", length=0, pad=2)


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


def _heatmap_title(title: str, example: Mapping[str, Any], width: float) -> str:
    text, room = str(example["text"]).replace("$", r"\$"), int(12 * width)
    if not all(can_draw(character) for character in text):
        return f"{title}: utterance {example['id']}"
    text = text if len(text) <= room else text[: room - 1] + "…"
    return f"{title}: “{text}”"
