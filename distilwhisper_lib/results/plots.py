"""Figures of results: error rates, their intervals, what kind of errors, and in which clips."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from distilwhisper_lib.config.presets import PAPERS
from distilwhisper_lib.config.settings import DOMAINS, LABELS
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
    YELLOW,
    language_name,
    method_name,
    panels,
    style,
)
from distilwhisper_lib.results.frame import AVERAGE
from distilwhisper_lib.results.significance import NO_HYPOTHESES
from distilwhisper_lib.results.tables import title_of, wide

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
        hard = record["config"].get("gate_training") == "straight_through"
        draw.append(lambda axis: _draw_gate(axis, log, validation, budget, hard))
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
    if config.get("recipe", PAPERS) != PAPERS:
        method += f", {config['recipe']}"
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
    axis: Axes, log: pd.DataFrame, validation: pd.DataFrame, budget: float | None, hard: bool
) -> None:
    """As the gate loss has it, mostly soft, and as it is used: soft_and_hard() tells more."""
    values = log["gate_mean"].dropna()
    axis.plot(values.index, values, color=GREEN, label=f"{'hard' if hard else 'soft'}, training")
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


# System -> fill and hatch. Both zero-shot rows are grey: they are no result of training.
_SYSTEMS = dict(
    zip(
        LABELS.values(),
        [(BLACK, ""), (GREY, ""), (ORANGE, ""), (YELLOW, "//"), (SKY, ""), (GREEN, "\\\\"),
         (VERMILION, "")],
        strict=True,
    )
)  # fmt: skip


def results_bars(cells: pd.DataFrame) -> Figure:
    """Error rates by language and system, one panel per domain: one training size's cells of
    `tables.results_table`. Whiskers are standard deviations over seeds.
    """
    table, spread = wide(cells, "error"), wide(cells, "sd")
    domains = [domain for domain in DOMAINS if domain in table]
    if not domains:
        raise UserError(
            "the results table holds no number: expected at least one run: run a notebook of 01 "
            "to 06 first"
        )
    groups = max(len(table[domain].columns) for domain in domains)
    bars = groups * len(table)
    across = len(domains) if bars <= 12 else 1  # beside each other while they fit a page
    width = min(10.0, max(3.4, 0.28 * bars + 0.9))
    with style():
        figure, axes = panels(len(domains) // across, across, width, 3.0, sharey=True)
        for axis, domain in zip(axes.flat, domains, strict=True):
            _draw_bars(axis, table[domain], spread[domain], numbers=bars <= 30)
            axis.set_title(DOMAINS[domain].capitalize())
        for row in axes:
            row[0].set_ylabel(f"{title_of(cells)} (%)")
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    return figure


def _draw_bars(axis: Axes, table: pd.DataFrame, spread: pd.DataFrame, numbers: bool) -> None:
    names = list(table.columns)
    names = names[:1] if len(names) == 2 else names  # the average of one language says nothing
    thickness = 0.84 / len(table)
    for index, system in enumerate(table.index):
        places = np.arange(len(names)) + (index - (len(table) - 1) / 2) * thickness
        values, errors = (part.loc[system, names].to_numpy(dtype=float) for part in (table, spread))
        colour, hatch = system_style(system, index)
        bars = axis.bar(
            places, values, 0.92 * thickness, color=colour, hatch=hatch, label=system,
            edgecolor="#333333", linewidth=0.4,
        )  # fmt: skip
        seen = np.isfinite(errors) & np.isfinite(values)
        if seen.any():
            axis.errorbar(
                places[seen], values[seen], errors[seen], fmt="none", ecolor="#333333",
                capsize=2, linewidth=1,
            )  # fmt: skip
        if numbers:
            tops = [None if math.isnan(v) else f"{v:.1f}" for v in values]
            _number_bars(axis, bars, tops, np.where(seen, errors, 0.0))
    axis.set_xticks(range(len(names)), [_group_name(name) for name in names])
    axis.tick_params(axis="x", length=0)
    axis.grid(axis="x", visible=False)
    axis.margins(x=0.02, y=0.12)
    if len(names) > 1 and names[-1].startswith(AVERAGE):
        axis.axvline(len(names) - 1.5, color="#BBBBBB", linewidth=0.8)


def system_style(system: str, index: int) -> tuple[str, str]:
    """The style of a system; rows of their own ("+ LoRA (max_steps=2)") are hatched by position."""
    known = _SYSTEMS.get(system)
    base = max((name for name in _SYSTEMS if system.startswith(name)), key=len, default="")
    return known or (_SYSTEMS.get(base, (PURPLE, ""))[0], ("xx", "..", "oo", "++")[index % 4])


def _group_name(heading: str) -> str:
    """ "th (CER)" -> "Thai (CER)"."""
    name, space, rate = heading.partition(" ")
    return ("Average" if name == AVERAGE else language_name(name)) + space + rate


def _number_bars(axis: Axes, bars: Any, texts: Sequence[str | None], above: np.ndarray) -> None:
    for bar, text, lift in zip(bars, texts, above, strict=True):
        x = bar.get_x() + bar.get_width() / 2
        if text is None:  # an empty place must not look like an error rate of zero
            axis.annotate("not run", (x, 0), (0, 3), textcoords="offset points", ha="center",
                          va="bottom", rotation=90, fontsize=7, color=GREY)  # fmt: skip
        else:
            axis.annotate(text, (x, bar.get_height() + lift), (0, 2), ha="center", va="bottom",
                          textcoords="offset points", fontsize=6.5)  # fmt: skip


# ------------------------------------------------------------------------------------ intervals


def nothing(sentence: str) -> Figure:
    """A figure that says why there is none: a notebook goes on."""
    with style():
        figure, ((axis,),) = panels(1, 1, 4.0, 0.6)
        axis.axis("off")
        axis.text(0.5, 0.5, sentence, ha="center", va="center", color=GREY)
    return figure


def _one_label_a_row(table: pd.DataFrame) -> pd.DataFrame:
    """Systems named with their training size, where there are several."""
    if table.empty or table["training"].nunique() == 1:
        return table
    return table.assign(system=table["system"] + " (" + table["training"] + ")")


def interval_plot(intervals: pd.DataFrame) -> Figure:
    """95 % intervals of `significance.Resampled.intervals`: systems below each other, a panel per
    domain.

    Filled: the average (or the only language) with its interval. Hollow and grey: each language.
    """
    known = _one_label_a_row(intervals.dropna(subset=["error"]))
    if known.empty:
        return nothing(NO_HYPOTHESES)
    systems = list(dict.fromkeys(known["system"]))[::-1]  # the first on top
    domains = [domain for domain in DOMAINS if domain in set(known["domain"])]
    with style():
        labels, lines = _wrapped(systems)
        figure, axes = panels(1, len(domains), 4.0, 0.38 * lines + 1.1, sharey=True)
        for axis, domain in zip(axes[0], domains, strict=True):
            _draw_intervals(axis, known[known["domain"] == domain], systems)
            axis.set(title=DOMAINS[domain].capitalize(), xlabel="error rate (%)")
        axes[0][0].set_yticks(range(len(systems)), labels)
    return figure


def _wrapped(systems: Sequence[str]) -> tuple[list[str], float]:
    """Long names over several lines, so that they leave room for what they name; and the height
    that all need, in rows of one line."""
    labels = [textwrap.fill(system, 40) for system in systems]
    return labels, sum(1 + label.count("\n") / 2 for label in labels)


def _draw_intervals(axis: Axes, rows: pd.DataFrame, systems: Sequence[str]) -> None:
    for place, system in enumerate(systems):
        mine = rows[rows["system"] == system]
        languages = mine[mine["language"] != AVERAGE]
        whole = mine[mine["language"] == AVERAGE] if len(languages) > 1 else languages
        colour, _ = system_style(system, place)
        if len(languages) > 1:
            height = np.full(len(languages), place + 0.24)
            axis.plot(languages["error"], height, "o", color=GREY, mfc="none", markersize=3)
            for row in languages.itertuples():
                axis.annotate(row.language, (row.error, place + 0.24), (0, 3.5), ha="center",
                              textcoords="offset points", fontsize=6, color=GREY)  # fmt: skip
        for row in whole.itertuples():
            axis.errorbar(
                row.error, place, xerr=[[row.error - row.low], [row.high - row.error]], fmt="s",
                color=colour, markeredgecolor=BLACK, markeredgewidth=0.5, ecolor=BLACK, capsize=3,
                linewidth=1.2, markersize=5.5,
            )  # fmt: skip
    axis.set_ylim(-0.6, len(systems) - 0.3)
    axis.set_xlim(left=0)
    axis.grid(axis="y", visible=False)


# --------------------------------------------------------------------------------------- errors

_KINDS = {
    "substitutions": (SKY, ""), "deletions": (VERMILION, "//"), "insertions": (YELLOW, ".."),
}  # fmt: skip


def error_kinds_bars(kinds: pd.DataFrame) -> Figure:
    """Substitutions, deletions and insertions of each system (`error_analysis.error_kinds`).

    The mean over languages and seeds, a panel per domain.
    """
    if kinds.empty:
        raise UserError("no run is recorded: run a notebook of 01 to 06 first")
    kinds = _one_label_a_row(kinds)
    systems = list(dict.fromkeys(kinds["system"]))[::-1]
    domains = [domain for domain in DOMAINS if domain in set(kinds["domain"])]
    names, lines = _wrapped(systems)
    with style():
        figure, axes = panels(1, len(domains), 4.0, 0.3 * lines + 1.3, sharey=True)
        for axis, domain in zip(axes[0], domains, strict=True):
            mine = kinds[kinds["domain"] == domain]
            means = mine.groupby("system")[list(_KINDS)].mean().reindex(systems)
            left = np.zeros(len(systems))
            for kind, (colour, hatch) in _KINDS.items():
                widths = means[kind].fillna(0).to_numpy()
                axis.barh(range(len(systems)), widths, 0.7, left, color=colour, hatch=hatch,
                          label=kind, edgecolor="#333333", linewidth=0.4)  # fmt: skip
                left += widths
            axis.set(title=DOMAINS[domain].capitalize(), xlabel="per cent of the reference")
            axis.grid(axis="y", visible=False)
        axes[0][0].set_yticks(range(len(systems)), names)
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def length_lines(lengths: pd.DataFrame) -> Figure:
    """Error rate by clip length (`error_analysis.error_by_length`).

    A panel per domain and language, a line per system, at the middle of each bin.
    """
    if lengths.empty:
        return nothing(NO_HYPOTHESES)
    lengths = _one_label_a_row(lengths)
    systems = list(dict.fromkeys(lengths["system"]))
    places = list(dict.fromkeys(zip(lengths["domain"], lengths["language"], strict=True)))
    across = min(4, len(places))
    with style():
        figure, axes = panels(math.ceil(len(places) / across), across, 2.6, 2.3, sharey=True)
        for axis in axes.flat[len(places) :]:
            axis.set_visible(False)
        for axis, (domain, language) in zip(axes.flat, places, strict=False):
            mine = lengths[(lengths["domain"] == domain) & (lengths["language"] == language)]
            for index, system in enumerate(systems):
                line = mine[mine["system"] == system].groupby(["from", "to"])["error"].mean()
                middles = [(low + high) / 2 for low, high in line.index]
                colour, _ = system_style(system, index)
                axis.plot(middles, line, marker="osD^vPX"[index % 7], color=colour, label=system,
                          linestyle=("-", "--", "-.", ":")[index % 4],
                          markeredgecolor="#333333", markeredgewidth=0.4)  # fmt: skip
            axis.set_title(f"{language_name(language)}, {DOMAINS[domain]}")
            axis.set_xlabel("clip length (s)")
        axes[0][0].set_ylim(bottom=0)  # shared; when all is drawn, because it ends the scaling
        for row in axes:
            row[0].set_ylabel("error rate (%)")
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    return figure
