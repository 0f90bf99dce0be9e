"""What figures call runs: language and method, and what else tells those that are shown apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distilwhisper_lib.config.settings import LABELS, Record, changed_settings
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.languages import find_language

# A gate file, or run_about() of a record: language, and where known run_id, method, preset, seed
# and settings (those that are not the preset's).
About = Mapping[str, Any]


def language_name(code: str) -> str:
    try:
        return find_language(code).name.capitalize()
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
        for record, changed in zip(records, changed_settings(records), strict=True)
    ]


def titles(shown: Sequence[About], among: Sequence[About] = (), separator: str = ", ") -> list[str]:
    """ "Catalan, CLSR + JS", and after a ``separator`` the preset, seed and settings of each of
    ``shown``, where these differ and only those that do; the run id where nothing else tells two
    runs apart.

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
        return parts + [f"{name}={given[name]}" for name in changed if name in given]

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
