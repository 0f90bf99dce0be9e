"""A model card for the hub, made from a run's record alone.

Its YAML metadata are made here; its text is the template card.md.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from distilwhisper_lib import PACKAGE
from distilwhisper_lib.config.settings import DOMAINS, WITH_EXPERTS, Record
from distilwhisper_lib.data.splits import PARTS
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.languages import find_language
from distilwhisper_lib.model.hub import could_be_repository

PAPER = "2311.01070"
_TEMPLATE = PACKAGE / "export" / "card.md"
_LAYERS = {
    "feed_forward": "the feed-forward networks",
    "attention": "the projections of attention",
    "all": "all linear layers",
}
_TAUGHT = {
    "none": "",
    "kl": ", distilled with the KL divergence",
    "js": ", distilled with the Jensen-Shannon divergence",
}


def _method(config: Mapping[str, Any]) -> str:
    """What was trained, in words."""
    method = config["method"]
    if method in WITH_EXPERTS:
        return f"a language expert with gates (CLSR){_TAUGHT.get(method, '')}"
    taught = _TAUGHT[config.get("distil", "none")]
    if method == "full":
        return f"full fine-tuning{taught}"
    adapter = config.get("adapter", "lora")
    if adapter == "token":
        return f"the embedding of the language's token{taught}"
    name = {"lora": "LoRA", "dora": "DoRA"}[adapter]
    return f"{name} on {_LAYERS[config.get('lora_layers', 'feed_forward')]}{taught}"


# How the gates of a run with an expert are heard.
_GATES = {
    "hard": "Each token goes through the base model's network or the expert's, as its gate decides",
    "soft": "Each token goes through both, the base model's network and the expert's, weighed by "
    "its gate",
    "open": "The gates are always open: each token of this language goes through the expert",
}
# What was exported: the hub's library, and the relation to the base model.
KINDS = {
    "expert": ("distilwhisper", "adapter"),
    "adapter": ("peft", "adapter"),
    "merged": ("transformers", "finetune"),
    "folded": ("transformers", "finetune"),
    "full": ("transformers", "finetune"),
}
# Of these the record says what became of languages that were not trained; an expert leaves them as
# they were, and a folded one is another model than the record's.
_CHANGE_ALL = ("adapter", "merged", "full")
# Base models whose licence is known; weights made from others need one to be named.
_LICENSES = {"openai/whisper-": "apache-2.0", "embedded/": "mit"}
# Corpora that are on the hub; Common Voice left it in October 2025.
_ON_HUB = {"fleurs": "google/fleurs"}
_RULES = {"marks": "vowel signs and tone marks kept", "whisper": "Whisper's own normaliser"}


def model_card(
    record: Record,
    what: str,
    *,
    comparison: pd.DataFrame | None = None,
    license: str | None = None,
    size: int | None = None,
    dtype: str = "float32",
    base_folder: bool = False,
) -> str:
    """The card of what was exported of a run.

    ``what``: "expert", "adapter", "merged", "folded" or "full". ``comparison``: what
    export.compare_with_plain() found; scores of a folded expert come from there only, because the
    record tells of the model with gates, unless they were always open. ``license``: as the hub
    writes it; None for that of the base model where it is known, and none in the card elsewhere.
    ``size`` and ``dtype``: of an expert file, in bytes; by default what the record says that the
    weights take. ``base_folder``: that the base model is a folder on somebody's machine, which
    the reader of the card has to name, and no repository of the hub.
    """
    if what not in KINDS:
        raise UserError(f"{what!r} has no card: expected one of {', '.join(KINDS)}")
    scores, config = _scores(record, what, comparison), record["config"]
    card = ModelCard.from_template(
        _metadata(record, what, scores, license, base_folder),
        template_path=str(_TEMPLATE),
        record=record,
        config=config,
        what=what,
        megabytes=(size or record["training"]["artifact_bytes"] or 0) / 1e6,
        dtype=dtype,
        rank=_rank(config),
        heard_with=_gates(config),
        gates=_GATES[_gates(config)],
        recipe=config.get("recipe", "paper") if config["method"] in WITH_EXPERTS else None,
        base=_base(record),
        base_folder=base_folder,
        lender=config.get("speaks_as"),
        window=config.get("window_seconds") if what in ("expert", "adapter") else None,
        fits=config.get("window", "whole") == "fit",
        timestamps=config.get("timestamps", 0),
        scores=scores,
        heard=_other_languages(record),
        changes_all=what in _CHANGE_ALL,
        compared=None if comparison is None else comparison.to_dict("index"),
        parts=PARTS,
        method=_method(config),
        rules=_RULES,
        paper=PAPER,
        name=_name,
        cell=_cell,
    )
    return f"{card}\n"


def known_license(record: Record) -> str | None:
    """The licence of a run's base model, where this kit knows it."""
    matches = (value for start, value in _LICENSES.items() if _base(record).startswith(start))
    return next(matches, None)


def _metadata(
    record: Record,
    what: str,
    scores: list[dict[str, Any]],
    license: str | None,
    base_folder: bool,
) -> ModelCardData:
    library, relation = KINDS[what]
    base, corpora = _base(record), {part["corpus"] for part in record["data"].values() if part}
    on_hub = {_ON_HUB.get(corpus.split("/")[0].split("@")[0]) for corpus in corpora} - {None}
    public = could_be_repository(base) and "/" in base and not (record["demo"] or base_folder)
    return ModelCardData(
        language=record["config"]["language"],
        license=license or known_license(record),
        library_name=library,
        base_model=base if public else None,
        base_model_relation=relation if public else None,
        pipeline_tag="automatic-speech-recognition",
        datasets=sorted(on_hub) or None,
        metrics=["wer", "cer"],
        tags=["whisper", "distilwhisper", record["config"]["method"], f"arxiv:{PAPER}"],
        model_name=record["run_id"],
        eval_results=[
            EvalResult(
                task_type="automatic-speech-recognition",
                task_name="speech recognition",
                dataset_type=row["corpus"],
                dataset_name=f"{row['corpus']} ({row['label']})",
                dataset_config=record["config"]["language"],
                dataset_split="test",
                metric_type=metric,
                metric_name=f"{metric.upper()} ({_RULES[row['rule']]})",
                metric_value=row[metric],
            )
            for row in scores
            for metric in ("wer", "cer")
        ]
        or None,
    )


def _scores(record: Record, what: str, comparison: pd.DataFrame | None) -> list[dict[str, Any]]:
    """Error rates in per cent of what was exported, one row a test set and normaliser."""
    if what == "folded" and _gates(record["config"]) != "open":
        if comparison is None:
            return []
        mine = comparison.loc["plain Whisper"]
        return [
            {
                "label": DOMAINS["in_domain"],
                "corpus": record["data"]["in_domain"]["corpus"],
                "clips": int(mine["clips"]),
                "rule": rule,
                "wer": float(mine[f"WER ({rule})"]),
                "cer": float(mine[f"CER ({rule})"]),
            }
            for rule in _RULES
        ]
    return [row for evaluation in record["evaluations"] for row in _rates(evaluation)]


def _rates(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a normaliser of what a record says of a test set, in per cent."""
    about = {"label": DOMAINS[evaluation["domain"]]}
    about |= {name: evaluation[name] for name in ("corpus", "clips", "language")}
    return [
        about
        | {"rule": rule}
        | {m: round(100 * evaluation["scores"][rule][m][m], 2) for m in ("wer", "cer")}
        for rule in _RULES
    ]


def _gates(config: dict[str, Any]) -> str:
    """One of _GATES; records of earlier versions know one kind."""
    return config.get("gate_mode", "hard")


def _rank(config: dict[str, Any]) -> int | None:
    """The rank of a low-rank expert."""
    return config.get("expert_rank") if config.get("expert") == "low_rank" else None


def _base(record: Record) -> str:
    return record["models"]["student"]["name"]


def _other_languages(record: Record) -> list[dict[str, Any]]:
    """What it was heard to say in languages that it was not trained on."""
    heard = [entry for entry in record.get("forgetting", ()) if entry["scores"] is not None]
    return [row | {"label": _name(row["language"])} for entry in heard for row in _rates(entry)]


def _name(code: str) -> str:
    return find_language(code).title


def _cell(text: str) -> str:
    """Somebody's text inside a table or a sentence."""
    return html.escape(" ".join(str(text).split()), quote=False).replace("|", "\\|")
