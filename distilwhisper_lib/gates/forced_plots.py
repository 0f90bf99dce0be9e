"""The figure of forced gates: which layers carry the gain. From the file of forced_gates only."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
    panels,
    style,
    titles,
)
from distilwhisper_lib.gates.forced import LEARNED, ForcedGates, differences, rows_of

_LOOKS = {
    "soft": {"color": GREEN, "marker": "v"},
    "open": {"color": ORANGE, "marker": "^"},
    "closed": {"color": GREY, "marker": "s"},
    "random": {"color": PURPLE, "marker": "X"},
    "even": {"color": SKY, "marker": "P"},
    "encoder": {"color": BLUE, "marker": "o"},
    "decoder": {"color": VERMILION, "marker": "D"},
}
_NAMES = {
    "soft": "all soft (both, weighed)",
    "open": "all open (expert only)",
    "closed": "all closed (no expert)",
    "random": "random, share of each layer",
    "even": "random, share of each side",
}


def forced_changes(forced: ForcedGates, normalizer: str = "marks") -> Figure:
    """What forcing the gates changes against the learned ones, in points, with 95 % intervals.

    A column per domain. Above the whole model with its gates soft, open and closed, and at random
    where that was decoded (the mean of its draws), below the expert of one layer off at a time, on
    a scale of their own: one layer moves less than all of them. Right of 0 forcing makes it worse,
    so the layers that reach far to the right carry the gain.
    UserError where the file has no forced case yet.
    """
    domains = [d for d in DOMAINS if len(forced["domains"].get(d, {}).get("cases", ())) > 1]
    if not domains:
        raise UserError(
            f"the file of {forced['run_id']} has learned gates only: run "
            "`distilwhisper_lib gates` to its end"
        )
    tables = [differences(forced, domain, normalizer=normalizer) for domain in domains]
    cases = rows_of(name for table in tables for name in table.index.drop(LEARNED))
    parts = [[c for c in cases if "." not in c], [c for c in cases if "." in c]]
    parts = [part for part in parts if part]
    heights = [len(part) + 0.6 for part in parts]
    with style():
        figure, axes = panels(
            len(parts), len(domains), 4.2, 0.27 * sum(heights) / len(parts) + 0.7,
            sharex="row", sharey="row", height_ratios=heights,
        )  # fmt: skip
        for column, (domain, table) in enumerate(zip(domains, tables, strict=True)):
            for axis, part in zip(axes[:, column], parts, strict=True):
                _draw_changes(axis, table.reindex(part))
            metric, learned = table.attrs["metric"].upper(), table.loc[LEARNED]
            axes[0, column].set_title(
                f"{DOMAINS[domain].capitalize()}: {learned['error']:.1f} % {metric}\n"
                f"{learned['clips']:,} clips, {learned['blocks']:,} blocks",
                fontsize=9,
            )
            axes[-1, column].set_xlabel(f"change in {metric} (points); right of 0: worse")
        (title,) = titles([forced])
        figure.suptitle(f"{title} ({forced['run_id']}): gates forced", x=0.01, ha="left")
    return figure


def _draw_changes(axis: Axes, table: pd.DataFrame) -> None:
    """One row a case, the first on top; those not decoded yet (NaN) stay empty."""
    places: Sequence[int] = range(len(table) - 1, -1, -1)
    for place, (name, row) in zip(places, table.iterrows(), strict=True):
        look = _LOOKS[str(name).partition(".")[0]]
        axis.hlines(place, row["low"], row["high"], color=look["color"], linewidth=1.4)
        axis.plot(row["difference"], place, linestyle="", markersize=5.5, markeredgecolor=BLACK,
                  markeredgewidth=0.5, **look)  # fmt: skip
    axis.axvline(0, color=BLACK, linewidth=0.8, zorder=1)
    axis.set_yticks(places, [_label(str(name)) for name in table.index])
    axis.set_ylim(-0.6, len(table) - 0.4)
    axis.grid(axis="y", visible=False)


def _label(case: str) -> str:
    side, _, layer = case.partition(".")
    return _NAMES.get(case, f"{side} {layer} off")
