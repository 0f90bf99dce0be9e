"""What the whole study costs: all languages, methods, training sizes and seeds of the presets.

The table of `python -m benchmarks.cost`, made from capacity.py's estimates.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.cost import capacity
from benchmarks.cost.facts import (
    DEVICES,
    FLEURS_BYTES,
    FLEURS_LABELLED,
    LABELLED,
    PRICES,
    PRICES_OF,
    RELEASE_BYTES,
    Device,
)
from benchmarks.cost.operations import (
    PROMPT,
    dimensions_of,
    hearing_operations,
    training_operations,
)
from distilwhisper_lib.config.presets import PAPER_LANGUAGES, PRESETS, SEED
from distilwhisper_lib.config.settings import LABELS, TRAINED, RunConfig, resolve
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.io.checked import one_of
from distilwhisper_lib.languages import find_language

SIZES = ("cv3k", "cv10k", "cv28k")
UNTRAINED = ("zero_shot", "teacher")
DECISIVE = "CLSR + JS, recipe decisive"  # low-rank experts first, then their gates alone
SEEDS = 3
GB = 1e9


@dataclass(frozen=True)
class Study:
    """What is run on which devices, and what an hour of each costs."""

    languages: Sequence[str]
    seeds: int
    devices: Sequence[Device]
    prices: Mapping[str, float]  # euros an hour, by device

    def sets(self) -> list[tuple[str, str]]:
        """(preset, language): not every size exists in every language."""
        return [
            (preset, language)
            for preset in SIZES
            for language in self.languages
            if language in PRESETS[preset].languages
        ]

    def config(self, method: str, preset: str, language: str, device: Device) -> RunConfig:
        """``method``: one of the kit's, or DECISIVE."""
        settings = {"hardware": device.profile, "recipe": "paper"}
        if method == DECISIVE:
            method, settings["recipe"] = "js", "decisive"
        return resolve(method, preset, language, SEED, settings)


@dataclass(frozen=True)
class Line:
    """One kind of work: how often, hours on each device (None: not known), bytes that stay."""

    work: str
    runs: int
    hours: Sequence[float | None]
    disk: int


def lines(study: Study) -> list[Line]:
    """Teacher targets once a set; training and testing of every run; the untrained ones once."""
    found = [_line(study, "teacher targets, once for KL, JS and all seeds", ("js",), _targets, 1)]
    for method in TRAINED:
        label = f"training and validation, {_label(method)}"
        found.append(_line(study, label, (method,), _training, study.seeds))
    found.append(_line(study, "tests of what was trained", TRAINED, _testing, study.seeds))
    found.append(_line(study, "zero-shot and teacher, tests", UNTRAINED, _testing, 1))
    return found


def _line(study: Study, work: str, methods: Sequence[str], cost: object, times: int) -> Line:
    hours, disk = [], 0
    for device in study.devices:
        parts = [
            cost(study.config(method, *one, device), device)
            for method in methods
            for one in study.sets()
        ]
        total = capacity.together(part for part, _ in parts).times(times).seconds
        hours.append(None if total is None else total / 3600)
        disk = times * sum(size for _, size in parts)
    return Line(work, times * len(methods) * len(study.sets()), hours, disk)


def _targets(config: RunConfig, device: Device) -> tuple[capacity.Cost, int]:
    return capacity.building(config, device), capacity.estimate_targets(config, device).disk_bytes


def _training(config: RunConfig, device: Device) -> tuple[capacity.Cost, int]:
    return capacity.training(config, device), capacity.artifact_bytes(config)


def _testing(config: RunConfig, device: Device) -> tuple[capacity.Cost, int]:
    whole = capacity.estimate(config, device).disk_bytes
    return capacity.testing(config, device), whole - capacity.artifact_bytes(config)


def corpora_bytes(languages: Sequence[str]) -> int | None:
    """Archives of Common Voice and FLEURS's test sets, each unpacked beside itself."""
    sizes = [RELEASE_BYTES.get(language) for language in languages]
    if None in sizes:
        return None
    return 2 * (sum(sizes) + FLEURS_BYTES * len(languages))


# As Markdown --------------------------------------------------------------------------------


def clip_table(study: Study) -> Iterator[str]:
    """What one clip costs, by method: operations, and milliseconds on each device."""
    names = [device.name.upper() for device in study.devices]
    yield _row("One clip", "TFLOP", *(f"{name}, ms" for name in names), "MB a language")
    yield _row(":--", *["--:"] * (len(names) + 2))
    language = study.languages[0]

    def configs(method: str) -> list[RunConfig]:
        return [study.config(method, SIZES[0], language, device) for device in study.devices]

    def ms(costs: Iterator[capacity.Cost]) -> list[str]:
        return [_number(None if c.seconds is None else 1000 * c.seconds) for c in costs]

    for method in (*TRAINED, DECISIVE):
        mine = configs(method)
        each = [capacity.training_clip(c, d) for c, d in zip(mine, study.devices, strict=True)]
        plain = replace(mine[0], activation_checkpointing=False)
        operations = training_operations(plain, dimensions_of(plain.student), LABELLED)
        size = f"{capacity.artifact_bytes(plain) / 1e6:,.0f}"
        yield _row(
            f"a training step, {_label(method)}", f"{operations / 1e12:.2f}", *ms(each), size
        )
    mine = configs("js")
    one = [
        capacity.building(replace(c, train_size=1), d)
        for c, d in zip(mine, study.devices, strict=True)
    ]
    teacher, student = dimensions_of(mine[0].teacher), dimensions_of(mine[0].student)
    size = f"{2 * LABELLED * teacher.d_model / 1e6:.3f} a clip"
    asked = hearing_operations(teacher, PROMPT + LABELLED) / 1e12
    yield _row("teacher target", f"{asked:.2f}", *ms(one), size)
    for method, whisper in (("zero_shot", student), ("teacher", teacher)):
        for corpus, long in (("Common Voice", LABELLED), ("FLEURS", FLEURS_LABELLED)):
            costs = [
                capacity.hearing_clip(c, d, long)
                for c, d in zip(configs(method), study.devices, strict=True)
            ]
            operations = hearing_operations(whisper, PROMPT + long) / 1e12
            name = f"transcribed, {_label(method)}, {corpus}"
            yield _row(name, f"{operations:.2f}", *ms(costs), "")


def study_table(study: Study) -> Iterator[str]:
    """Hours and bytes of everything, then their sums and euros."""
    found = lines(study)
    names = [device.name.upper() for device in study.devices]
    yield _row("Work", "runs", *(f"{name}, h" for name in names), "disk, GB")
    yield _row(":--", *["--:"] * (len(names) + 2))
    for line in found:
        hours = [_number(value) for value in line.hours]
        yield _row(line.work, f"{line.runs:,}", *hours, f"{line.disk / GB:,.1f}")
    corpora = corpora_bytes(study.languages)
    shown = "not known" if corpora is None else f"{corpora / GB:,.1f}"
    yield _row("corpora, archives and unpacked", "", *[""] * len(names), shown)
    totals = [_total(line.hours[place] for line in found) for place in range(len(names))]
    disk = sum(line.disk for line in found) + (corpora or 0)
    runs = sum(line.runs for line in found[1 : 1 + len(TRAINED)])
    hours = [f"**{_number(total)}**" for total in totals]
    yield _row(f"**all, {runs} trained runs**", "", *hours, f"**{disk / GB:,.0f}**")
    euros = [
        "not known" if total is None else f"**{total * study.prices[device.name]:,.0f}**"
        for total, device in zip(totals, study.devices, strict=True)
    ]
    yield _row("**euros**", "", *euros, "")
    instead = f"instead of CLSR + JS: training and validation, {DECISIVE}"
    line = _line(study, instead, (DECISIVE,), _training, study.seeds)
    hours = [_number(value) for value in line.hours]
    yield _row(line.work, f"{line.runs:,}", *hours, f"{line.disk / GB:,.1f}")


def notes(study: Study) -> Iterator[str]:
    """What the figures follow from, and what they leave out."""
    for device in study.devices:
        price = f"{study.prices[device.name]:.2f} euros an hour"
        told = {
            source: None
            for preset, language in study.sets()[:1]
            for method in ("js", "teacher")
            for source in capacity.estimate(
                study.config(method, preset, language, device), device
            ).source.split("; ")
        }
        yield f"- {device.name.upper()}: {'; '.join(told)}; {price} ({PRICES_OF})."
    sizes = [f"{len([s for s in study.sets() if s[0] == p])} languages of {p}" for p in SIZES]
    yield (
        f"- Study: {', '.join(sizes)} (the paper has no more); {len(TRAINED)} methods; seeds: "
        f"{study.seeds}."
    )
    config = study.config("full", SIZES[0], study.languages[0], study.devices[0])
    peak = capacity.estimate(config, study.devices[0]).checkpoint_bytes
    yield (
        f"- Not in it: waiting, start-up, failed runs, and checkpoints of runs in progress (up to "
        f"{peak / GB:.1f} GB each, removed at the end)."
    )


def plan(study: Study) -> str:
    blocks = (clip_table(study), study_table(study), notes(study))
    return "\n\n".join("\n".join(block) for block in blocks)


def _label(method: str) -> str:
    return LABELS.get(method, method).removeprefix("+ ")


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    if value is None:
        return "not known"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _total(values: Iterator[float | None]) -> float | None:
    values = list(values)
    return None if None in values else sum(values)


# The command --------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=__doc__)
    parser.add_argument("--device", nargs="+", default=["t4", "a100", "h200"], metavar="NAME")
    parser.add_argument("--languages", nargs="+", default=PAPER_LANGUAGES, metavar="CODE")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument(
        "--price", nargs="+", default=[], metavar="DEVICE=EUROS", help="an hour of it"
    )
    parser.add_argument(
        "--utilisation", nargs="+", default=[], metavar="DEVICE=SHARE", help="of its peak"
    )
    given = parser.parse_args(arguments)
    try:
        print(plan(_study(given)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _study(given: argparse.Namespace) -> Study:
    shares = dict(_pair("--utilisation", text) for text in given.utilisation)
    prices = PRICES | dict(_pair("--price", text) for text in given.price)
    if given.seeds < 1:
        raise UserError(f"--seeds {given.seeds} is too few: give 1 or more")
    if wrong := [name for name, share in shares.items() if share > 1]:
        raise UserError(f"--utilisation {wrong[0]} is above 1: give a share such as h200=0.3")
    chosen = [DEVICES[one_of("device", name, tuple(DEVICES))] for name in given.device]
    devices = [replace(d, utilisation=shares.get(d.name, d.utilisation)) for d in chosen]
    languages = [find_language(name).code for name in given.languages]
    for code in languages:
        if not any(code in PRESETS[preset].languages for preset in SIZES):
            raise UserError(f"the paper's presets have no {code!r}: leave it out")
    return Study(languages, given.seeds, devices, prices)


def _pair(option: str, text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    one_of(f"the device of {option}", name, tuple(DEVICES))
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise UserError(f"{option} {text!r} is no DEVICE=NUMBER above 0, such as a100=1.2")
    return name, number
