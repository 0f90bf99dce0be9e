"""The figure of what a system gives for its size, and for the share of positions routed to it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from distilwhisper_lib.config.settings import DOMAINS
from distilwhisper_lib.figures import BLACK, GREY, LIGHT, panels, style
from distilwhisper_lib.results.plots import nothing, system_style
from distilwhisper_lib.results.significance import FORCED, LEARNED

_MARKERS = "osD^vPXp*"
# Of gates as they were heard: how much of a mark is filled.
_FILLS = dict(zip((LEARNED, *FORCED), ("full", "none", "top", "left", "right"), strict=True))


def size_and_share_plot(table: pd.DataFrame) -> Figure:
    """Error rate against size and against the share of positions that are routed to it
    (`costs.size_and_share`), all systems, a row of two panels a training size.

    A small mark a seed where there are several, a large one their mean. Marks of one size, and
    those of 100 % (the grey band), stand beside each other. What adds nothing, and the teacher, are
    lines across; training sizes with one system are left out.
    """
    trained = table[table["MiB"] > 0]
    systems = trained.groupby("training", sort=False)["system"].nunique()
    titles = list(systems[systems > 1].index)
    if not titles:
        return nothing("fewer than two trained systems: nothing to compare")
    shown = table[table["training"].isin(titles)]
    looks = {
        system: {"color": system_style(system, place)[0], "marker": _MARKERS[place % 9]}
        for place, system in enumerate(shown.loc[shown["MiB"] > 0, "system"].unique())
    }
    with style():
        figure, axes = panels(len(titles), 2, 4.0, 3.0, sharey="row")
        for pair, title in zip(axes, titles, strict=True):
            block = shown[shown["training"] == title]
            _draw_size(pair[0], block, looks)
            _draw_share(pair[1], block, looks)
            rates = " or ".join(rate.upper() for rate in sorted(set(block["rate"])))
            where = DOMAINS[block["domain"].iloc[0]]
            pair[0].set(title=title, ylabel=f"{rates} {where} (%)")
        axes[-1][0].set_xlabel("MiB that a language adds (float32)")
        axes[-1][1].set_xlabel("positions routed to it (%), mean of encoder and decoder")
        _explain(figure, shown, looks)
    return figure


def _draw_size(axis: Axes, block: pd.DataFrame, looks: Mapping[str, Mapping[str, Any]]) -> None:
    sizes = block[block["MiB"] > 0].groupby("system", sort=False)["MiB"].mean()
    alike = sizes.round(2).groupby(sizes.round(2)).cumcount()
    many = sizes.round(2).map(sizes.round(2).value_counts())
    beside = sizes * 1.14 ** (alike - (many - 1) / 2)  # of one size: beside each other
    axis.set_xscale("log")
    _draw_systems(axis, block, looks, lambda system, _: beside[system])
    low, high = beside.min() / 1.6, beside.max() * 1.6
    ticks = [n * 10.0**power for power in range(-6, 7) for n in (1, 2, 5)]
    axis.xaxis.set_major_locator(FixedLocator([t for t in ticks if low <= t <= high]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlim(min(low, axis.get_xlim()[0]), max(high, axis.get_xlim()[1]))


def _draw_share(axis: Axes, block: pd.DataFrame, looks: Mapping[str, Mapping[str, Any]]) -> None:
    """Those of 100 % beside each other in a band that stands for it."""
    full = [s for s in looks if (block.loc[block["system"] == s, "share"] == 100).any()]
    beside = {system: 102 + 6 * number for number, system in enumerate(full)}
    end = 102 + 6 * len(full)
    axis.axvspan(97, end - 1, color=LIGHT, zorder=0)

    def place(system: str, runs: pd.DataFrame) -> Any:
        return runs["share"].where(runs["share"] < 100, beside.get(system))

    _draw_systems(axis, block, looks, place)
    nothing = block.loc[block["MiB"] == 0, ["share", "error"]]
    axis.plot(*nothing.to_numpy().T, "o", color=GREY, markersize=6, clip_on=False)
    ticks = [*range(0, 100, 20)]
    axis.set_xticks([*ticks, (96 + end) / 2], [*map(str, ticks), "100"])
    axis.set_xlim(-3, end)


def _draw_systems(
    axis: Axes,
    block: pd.DataFrame,
    looks: Mapping[str, Mapping[str, Any]],
    place: Callable[[str, pd.DataFrame], Any],
) -> None:
    for (system, gates), runs in block.groupby(["system", "gates"], sort=False):
        if system not in looks:
            axis.axhline(runs["error"].mean(), color=system_style(system, 0)[0], linewidth=1.2,
                         linestyle="--" if runs["MiB"].notna().all() else "-.")  # fmt: skip
            continue
        look = looks[system] | {"markeredgecolor": BLACK, "fillstyle": _FILLS[gates]}
        look |= {"markerfacecoloralt": "white", "linestyle": ""}
        where = np.broadcast_to(place(system, runs), len(runs))
        if len(runs) > 1:
            axis.plot(where, runs["error"], markersize=4, markeredgewidth=0.4, alpha=0.7, **look)
        axis.plot(np.mean(where), runs["error"].mean(), markersize=8.5, markeredgewidth=0.9,
                  zorder=3, **look)  # fmt: skip


def _explain(figure: Figure, shown: pd.DataFrame, looks: Mapping[str, Mapping[str, Any]]) -> None:
    """The legend: systems, lines, and what a mark's filling says where gates were forced."""
    large = {"linestyle": "", "markersize": 7, "markeredgecolor": BLACK}
    handles = [
        Line2D([], [], label=textwrap.fill(system, 34), **large, **look)
        for system, look in looks.items()
    ]
    for system, runs in shown[~shown["system"].isin(looks)].groupby("system", sort=False):
        line = "--" if runs["MiB"].notna().all() else "-."
        colour = system_style(system, 0)[0]
        handles.append(Line2D([], [], color=colour, linestyle=line, linewidth=1.2, label=system))
    ways = [way for way in _FILLS if way in set(shown["gates"])]
    handles += [
        Line2D([], [], marker="o", color=GREY, fillstyle=_FILLS[way], markerfacecoloralt="white",
               label=FORCED.get(way, "gates as learned"), **large)
        for way in ways * (len(ways) > 1)
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
