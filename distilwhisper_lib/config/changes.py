"""In which settings runs differ from their preset's: what the rows of tables and figures name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from distilwhisper_lib.config.presets import (
    PAPERS,
    PRESETS,
    RECIPES,
    without_usual_revisions,
)
from distilwhisper_lib.config.settings import Record, decisive, resolve, usual_recipe


def changed_settings(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The settings in which each record differs from its preset's, by name.

    A recipe is named as one, and only what differs from it beside it. Of a preset of elsewhere,
    from those that most of its runs of the method have.
    """
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        found[_preset_and_method(record)].append(_settings(record["config"]))
    changed = []
    for record in records:
        settings = _settings(record["config"])
        alike = found[_preset_and_method(record)]
        usual = _usual_settings(record) or max(alike, key=alike.count)
        shared = sorted(settings.keys() & usual.keys())
        differing = {name: settings[name] for name in shared if settings[name] != usual[name]}
        changed.append(_recipe(record) | without_usual_revisions(differing, record["config"]))
    return changed


def _recipe(record: Record) -> dict[str, Any]:
    """The run's recipe by name, where its preset would take another."""
    preset, method = _preset_and_method(record)
    recipe = record["config"].get("recipe", PAPERS)
    usual = usual_recipe(preset, method) if preset in PRESETS else PAPERS
    return {} if recipe == usual else {"recipe": recipe}


def named(settings: Mapping[str, Any]) -> list[str]:
    """["decisive", "epochs=3", "no teacher"]: a recipe goes by its name alone."""
    told = [(name, str(value)) for name, value in settings.items()]
    return [v if name == "recipe" else f"{name}={v}" if v else f"no {name}" for name, v in told]


def _preset_and_method(record: Record) -> tuple[str, str]:
    return record["preset"], record["config"]["method"]


def _usual_settings(record: Record) -> dict[str, Any] | None:
    """What the run had without overrides; None for a preset of elsewhere."""
    preset, method = _preset_and_method(record)
    if preset not in PRESETS:
        return None
    language, covered = record["config"]["language"], PRESETS[preset].languages
    if covered and language not in covered:
        language = covered[0]
    return _preset_settings(preset, method, language, record["config"].get("recipe", PAPERS))


@cache
def _preset_settings(preset: str, method: str, language: str, recipe: str) -> dict[str, Any]:
    overrides = {"recipe": recipe} if recipe in RECIPES else {}
    return _settings(resolve(method, preset, language, overrides=overrides).to_dict())


# What does not make a different system: whose run it is, and its training size, which has a table
# of its own.
_NOT_SETTINGS = {"method", "language", "seed", "train_size"}


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    counted = decisive(config["method"]) - _NOT_SETTINGS
    return {name: value for name, value in config.items() if name in counted}
