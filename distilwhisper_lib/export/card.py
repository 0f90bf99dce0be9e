"""A model card for the hub, Markdown under YAML metadata, made from a run's record alone."""

from __future__ import annotations

import html
from typing import Any

import pandas as pd
from huggingface_hub import EvalResult, ModelCardData

from distilwhisper_lib.config.settings import DOMAINS, Record
from distilwhisper_lib.data.splits import PARTS
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.languages import whisper_language
from distilwhisper_lib.model.hub import could_be_repository

PAPER = "2311.01070"
METHODS = {
    "full": "full fine-tuning",
    "lora": "LoRA on the feed-forward networks",
    "clsr": "a language expert with gates (CLSR)",
    "kl": "a language expert with gates (CLSR), distilled with the KL divergence",
    "js": "a language expert with gates (CLSR), distilled with the Jensen-Shannon divergence",
}
# What was exported: a sentence about it, the hub's library, its relation to the base model.
KINDS = {
    "expert": (
        "One language's expert feed-forward networks and their gates, to be loaded beside the base "
        "model. Every other language, and translation, keeps the base model exactly.",
        "distilwhisper",
        "adapter",
    ),
    "adapter": ("A LoRA adapter for the base model, as peft writes it.", "peft", "adapter"),
    "merged": (
        "A plain Whisper with the LoRA adapter merged into its weights. Other languages than the "
        "one below are changed too.",
        "transformers",
        "finetune",
    ),
    "folded": (
        "A plain Whisper in which the language's expert stands in the place of every feed-forward "
        "network, as if its gates were always open. It is another model than the expert with "
        "gates, and its other languages are changed too.",
        "transformers",
        "finetune",
    ),
    "full": (
        "A plain Whisper, all of its weights fine-tuned. Other languages than the one below are "
        "changed too.",
        "transformers",
        "finetune",
    ),
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
) -> str:
    """The card of what was exported of a run.

    ``what``: "expert", "adapter", "merged", "folded" or "full". ``comparison``: what
    export.compare_with_plain() found; scores of a folded expert come from there only, because the
    record tells of the model with gates. ``license``: as the hub writes it; None for that of the
    base model where it is known, and none in the card elsewhere.
    """
    if what not in KINDS:
        raise UserError(f"{what!r} has no card: expected one of {', '.join(KINDS)}")
    scores = _scores(record, what, comparison)
    metadata = _metadata(record, what, scores, license).to_yaml(line_break="\n")
    parts = [
        f"---\n{metadata}\n---",
        f"# {record['run_id']}: {_language(record)} for {_base(record)}",
        KINDS[what][0],
        _use(record, what),
        _results(what, scores, comparison),
        *([_other_languages(record)] if what in _CHANGE_ALL else []),
        _training(record),
        _limits(record, what),
        _provenance(record),
    ]
    return "\n\n".join(parts) + "\n"


def known_license(record: Record) -> str | None:
    """The licence of a run's base model, where this kit knows it."""
    matches = (value for start, value in _LICENSES.items() if _base(record).startswith(start))
    return next(matches, None)


def _metadata(
    record: Record, what: str, scores: list[dict[str, Any]], license: str | None
) -> ModelCardData:
    _, library, relation = KINDS[what]
    base, corpora = _base(record), {part["corpus"] for part in record["data"].values() if part}
    on_hub = {_ON_HUB.get(corpus.split("/")[0].split("@")[0]) for corpus in corpora} - {None}
    public = could_be_repository(base) and "/" in base and not record["demo"]
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
                dataset_name=f"{row['corpus']} ({row['domain']})",
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
    if what == "folded":
        if comparison is None:
            return []
        mine = comparison.loc["plain Whisper"]
        return [
            {
                "domain": DOMAINS["in_domain"],
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
    about = {"domain": DOMAINS[evaluation["domain"]]}
    about |= {name: evaluation[name] for name in ("corpus", "clips", "language")}
    return [
        about
        | {"rule": rule}
        | {m: round(100 * evaluation["scores"][rule][m][m], 2) for m in ("wer", "cer")}
        for rule in _RULES
    ]


def _use(record: Record, what: str) -> str:
    base, (_, language) = _base(record), whisper_language(record["config"]["language"])
    here = 'here = "."  # this repository\'s name, or the folder that it was downloaded to'
    plain = f"""from transformers import pipeline

{here}
listen = pipeline("automatic-speech-recognition", model=here)
print(listen("recording.wav", generate_kwargs={{"language": "{language}"}})["text"])"""
    snippets = {
        "expert": f"""from distilwhisper_lib import Transcriber

{here}
listener = Transcriber.load("{base}", experts=here)
print(listener.transcribe("recording.wav", language="{language}").text)""",
        "adapter": f"""from peft import PeftModel
from transformers import WhisperForConditionalGeneration

{here}
base = WhisperForConditionalGeneration.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, here)""",
    }
    return f"## Use\n\n```python\n{snippets.get(what, plain)}\n```"


def _results(what: str, scores: list[dict[str, Any]], comparison: pd.DataFrame | None) -> str:
    lines = ["## Results", ""]
    if scores:
        lines += [
            "Per cent, lower is better; greedy decoding, no timestamps.",
            "",
            *_score_table("Test set", [(row["domain"], row) for row in scores]),
        ]
    else:
        lines.append(
            "Not measured. The scores of the run are those of the expert *with* its gates, and do "
            "not hold for this model."
        )
    if comparison is not None:
        trained, plain = (comparison.loc[name] for name in ("as trained", "plain Whisper"))
        rule = "whisper"
        lines += [
            "",
            f"On the same {int(plain['clips'])} clips, {_RULES[rule]}: WER "
            f"{trained[f'WER ({rule})']:.2f} as trained"
            f"{', with gates' if what == 'folded' else ''}, {plain[f'WER ({rule})']:.2f} as this "
            "plain Whisper; both wrote the same text for "
            f"{100 * plain['same text']:.1f} % of them.",
        ]
    return "\n".join(lines)


def _score_table(heading: str, rows: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Lines of Markdown; each row begins with the text that stands before it."""
    return [
        f"| {heading} | Corpus | Clips | Text rule | WER | CER |",
        "| :-- | :-- | --: | :-- | --: | --: |",
        *(
            f"| {first} | {_cell(row['corpus'])} | {row['clips']} | {_RULES[row['rule']]} "
            f"| {row['wer']:.2f} | {row['cer']:.2f} |"
            for first, row in rows
        ),
    ]


def _other_languages(record: Record) -> str:
    """What it was heard to say in languages that it was not trained on."""
    heard = [entry for entry in record.get("forgetting", ()) if entry["scores"] is not None]
    if not heard:
        return "## Other languages\n\nNot measured."
    rows = [(_name(row["language"]), row) for entry in heard for row in _rates(entry)]
    lines = [
        "## Other languages",
        "",
        "Languages that it was not trained on, transcribed after training. Compare with the base "
        "model before using it for them: training on one language changes all.",
        "",
        *_score_table("Language", rows),
    ]
    return "\n".join(lines)


def _training(record: Record) -> str:
    config, training = record["config"], record["training"]
    lines = [
        "## Training",
        "",
        f"{METHODS[config['method']]}; {training['steps']} steps, "
        f"{training['trainable_parameters']:,} trained values, seed {config['seed']}, "
        f"conventions {config['conventions']!r}"
        + (f", learning rate {config['learning_rate']:g}" if "learning_rate" in config else "")
        + (f"; teacher {_cell(record['models']['teacher']['name'])}." if _teacher(record) else "."),
        "",
        "| Part | Corpus | Clips | Hours | Licence |",
        "| :-- | :-- | --: | --: | :-- |",
    ]
    for part in PARTS:
        if (about := record["data"][part]) is not None:
            licence = about.get("about", {}).get("licence") or "not given"
            lines.append(
                f"| {part.replace('_', ' ')} | {_cell(about['corpus'])} | {about['clips']} "
                f"| {about['hours']:.2f} | {_cell(licence)} |"
            )
    return "\n".join(lines)


def _limits(record: Record, what: str) -> str:
    lines = [
        "## Limits",
        "",
        "- Trained without timestamps: the times it predicts, and with them long-form decoding, "
        "are worse than the base model's. Decoding window by window needs none.",
        "- One seed; on other recordings than those above nothing was measured.",
    ]
    if record["demo"]:
        lines.insert(
            2,
            "- **A demonstration**: a miniature Whisper trained on synthetic speech of about 90 "
            "words. It is of no use for real recordings.",
        )
    if what == "folded":
        lines.append("- The gates are gone: every token goes through the expert.")
    return "\n".join(lines)


def _provenance(record: Record) -> str:
    about = record["provenance"]
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items() if v)
    commit = f"commit `{about['commit'][:12]}`" if about["commit"] else "no commit"
    lines = [
        "## Where it comes from",
        "",
        f"Run `{record['run_id']}`, {about['created'][:10]}, {commit}"
        + (", with uncommitted changes" if about["dirty"] else "")
        + f"; {_cell(about['hardware']['device'])}; {versions}.",
    ]
    if about["command"]:
        lines += ["", f"```sh\n{about['command']}\n```"]
    lines += [
        "",
        "Method: *Multilingual DistilWhisper: Efficient Distillation of Multi-task Speech Models "
        f"via Language-Specific Experts* ([arXiv {PAPER}](https://arxiv.org/abs/{PAPER})).",
    ]
    return "\n".join(lines)


def _base(record: Record) -> str:
    return record["models"]["student"]["name"]


def _teacher(record: Record) -> bool:
    return record["models"]["teacher"] is not None


def _language(record: Record) -> str:
    return _name(record["config"]["language"])


def _name(code: str) -> str:
    return whisper_language(code)[1].capitalize()


def _cell(text: str) -> str:
    """Somebody's text inside a table or a sentence."""
    return html.escape(" ".join(str(text).split()), quote=False).replace("|", "\\|")
