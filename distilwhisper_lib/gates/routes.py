"""The two basic figures of gates: shares by layer, and every token of one utterance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from distilwhisper_lib.config.settings import DOMAINS
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.figures import (
    BLUE,
    GREY,
    LIGHT,
    can_draw,
    first_legend,
    language_name,
    panels,
    readable,
    style,
    titles,
)
from distilwhisper_lib.results.plots import _DOMAIN_STYLES


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


def _heatmap_title(title: str, example: Mapping[str, Any], width: float) -> str:
    text, room = str(example["text"]).replace("$", r"\$"), int(12 * width)
    if not all(can_draw(character) for character in text):
        return f"{title}: utterance {example['id']}"
    text = text if len(text) <= room else text[: room - 1] + "…"
    return f"{title}: “{text}”"
