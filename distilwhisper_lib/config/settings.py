"""One frozen configuration per run: every setting, its default and where that comes from.

Defaults are the paper's. What a method, a preset or a machine sets otherwise stands in presets.py;
``overrides`` is what a user wants otherwise. What a value may be stands below, at checked().
"""

from __future__ import annotations

import dataclasses
import hashlib
import html
import json
import math
import re
import typing
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from distilwhisper_lib import PACKAGE
from distilwhisper_lib.config.presets import (  # fmt: skip
    AUTHORS_DISTILLATION,
    CODE,
    KIT,
    METHOD_SETTINGS,
    PAPER,
    PRESETS,
    RECIPE,
    SEED,
    THIS_RUN,
    Preset,
    revision_of,
    settings_for,
)
from distilwhisper_lib.errors import UserError, reason
from distilwhisper_lib.io.checked import one_of, shown
from distilwhisper_lib.io.files import parse_json
from distilwhisper_lib.io.leaks import refuse_tokens
from distilwhisper_lib.languages import code_in, find_language


def parse_overrides(overrides: dict[str, Any] | str | None) -> dict[str, Any]:
    """A dict or a JSON string, as a command line has it, as a dict; names are not checked.

    None of its values may hold a token: settings are written into records.
    """
    refuse_tokens("overrides", overrides)
    if isinstance(overrides, str):
        try:
            overrides = parse_json(overrides or "{}")
        except ValueError as error:
            told = error.msg if isinstance(error, json.JSONDecodeError) else reason(error)
            raise UserError(
                f"overrides {shown(overrides)} is not JSON ({told}): write it like "
                '{"max_steps": 2}'
            ) from None
    if overrides is None:
        return {}
    if not isinstance(overrides, dict):
        raise UserError(f"overrides {shown(overrides)}: expected a dict such as {{'max_steps': 2}}")
    return overrides


def coerce(name: str, value: Any, wanted: Any) -> Any:
    """Give ``value`` the type a field declares, or say what was expected.

    Command lines and YAML turn 1e-4 into a string and ``no`` into False, so numbers are read
    from strings and a bool is never taken for a number or a name.
    """
    if typing.get_origin(wanted) is Literal:
        return one_of(name, value, typing.get_args(wanted))
    options = typing.get_args(wanted) or (wanted,)
    if value is None and type(None) in options:
        return None
    kind = options[0]
    if isinstance(value, bool) is (kind is bool):
        if isinstance(value, kind):
            return value
        if kind in (int, float) and isinstance(value, (int, float, str)):
            try:
                number = float(value)
            except (ValueError, OverflowError):  # 400 digits
                number = None
            if number is not None and (kind is float or number.is_integer()):
                return kind(number)
    raise UserError(
        f"setting {name}={shown(value)} has the wrong type {type(value).__name__}: "
        f"expected {' or '.join('None' if o is type(None) else o.__name__ for o in options)}"
    )


_POSITIVE = ("batch_size", "micro_batch", "epochs", "gate_dim", "lora_rank", "max_new_tokens",
             "eval_batch_size", "learning_rate", "temperature", "clip_norm", "lora_alpha",
             "max_seconds", "train_size", "validation_size", "test_size",
             "forgetting_clips", "window_seconds")  # fmt: skip
_NOT_NEGATIVE = ("gate_noise", "weight_decay", "gate_weight", "task_weight", "distil_weight",
                 "workers")  # fmt: skip
_FRACTIONS = ("warmup_fraction", "label_smoothing", "gate_dropout", "expert_dropout", "skip",
              "budget", "lora_dropout", "adam_beta1", "adam_beta2")  # fmt: skip

_LARGEST = 2**53  # whole numbers up to here are the same in every JSON reader


def checked(config: RunConfig) -> RunConfig:
    """The configuration as it is; UserError for a value out of range."""
    for name, value in config.to_dict().items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"setting {name}={value!r} is out of range: expected a finite number")
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise UserError(f"setting {name}={shown(value)} is out of range: expected far less")
        if isinstance(value, str) and "\0" in value:
            raise UserError(f"setting {name}={shown(value)} holds a NUL character: remove it")
    for name in _POSITIVE:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise UserError(f"setting {name}={value!r} is out of range: expected above 0")
    for name in _NOT_NEGATIVE:
        if (value := getattr(config, name)) < 0:
            raise UserError(f"setting {name}={value!r} is out of range: expected 0 or above")
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed={config.seed} is out of range: expected from 0 to 4294967295")
    if config.max_steps != -1 and config.max_steps < 1:
        raise UserError(f"setting max_steps={config.max_steps} is out of range: expected above 0")
    for name in ("student", "teacher"):
        if not getattr(config, name).strip():
            raise UserError(f"setting {name} is empty: expected a hub name or a folder")
    if config.window_seconds is not None and config.window_seconds < config.max_seconds:
        raise UserError(
            f"window_seconds={config.window_seconds} cuts clips of up to max_seconds="
            f"{config.max_seconds:g}: set max_seconds to the window, or below"
        )
    heard = [find_language(name) for name in config.forgetting.split()]
    own = find_language(config.language)
    for corpus, languages in ((config.in_domain, [own]), (config.out_of_domain, [own, *heard])):
        if re.split("[/@]", corpus)[0] == "fleurs":  # the only one that says what it has
            for language in languages:
                code_in("fleurs", language)
    for name in _FRACTIONS:
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise UserError(f"setting {name}={value!r} is out of range: expected from 0 to 1")
    if config.batch_size % config.micro_batch and config.batch_size > config.micro_batch:
        raise UserError(
            f"batch_size={config.batch_size} is no multiple of micro_batch={config.micro_batch}: "
            "choose a micro_batch that divides it"
        )
    return config


# What runs leave, and what is published: only `results publish` and `results readme` write there.
OWN_RESULTS, PUBLISHED_RESULTS = Path("outputs/results"), Path("results")
CAME_WITH_KIT = "came with the kit"  # how published results are marked beside one's own


def results_of(root: str | Path, demo: bool) -> Path:
    """The demo's folder below a root of results, or that of all other runs."""
    return Path(root) / "demo" if demo else Path(root)


DOMAINS = {"in_domain": "in domain", "out_of_domain": "out of domain"}


NORMALIZERS = ("marks", "whisper")


Record = dict[str, Any]
# What a record says once it was found among others: where it lies, and CAME_WITH_KIT, if it did.
FOLDER, ORIGIN = "folder", "origin"


# Methods in the paper's order, with the names its tables give them.
LABELS = {
    "teacher": "Teacher",
    "zero_shot": "Student zero-shot",
    "full": "+ full fine-tuning",
    "lora": "+ LoRA",
    "clsr": "+ CLSR",
    "kl": "+ CLSR + KL",
    "js": "+ CLSR + JS",
}


def changed_settings(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The settings in which each record differs from its preset's, by name.

    Of a preset of elsewhere, from those that most of its runs of the method have.
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
        changed.append({name: settings[name] for name in shared if settings[name] != usual[name]})
    return changed


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
    return _preset_settings(preset, method, language)


@cache
def _preset_settings(preset: str, method: str, language: str) -> dict[str, Any]:
    return _settings(resolve(method, preset, language).to_dict())


# What does not make a different system: whose run it is, and its training size, which has a table
# of its own.
_NOT_SETTINGS = {"method", "language", "seed", "train_size"}


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    counted = decisive(config["method"]) - _NOT_SETTINGS
    return {name: value for name, value in config.items() if name in counted}


METHODS = ("teacher", "zero_shot", "full", "lora", "clsr", "kl", "js")
TRAINED = ("full", "lora", "clsr", "kl", "js")
WITH_EXPERTS = ("clsr", "kl", "js")
DISTILLED = ("kl", "js")

# Which notebook runs a method.
NOTEBOOK_OF = {
    "teacher": "01_data_prep",
    "zero_shot": "01_data_prep",
    "full": "02_full_finetuning",
    "lora": "03_lora_baseline",
    "clsr": "04_clsr_only",
    "js": "05_js_distillation",
    "kl": "06_kl_distillation",
}

# All that decides what a model says that trains nothing, beside which model it is: the run id of
# such a run covers nothing else, so that one run serves every training size and setting.
OF_TESTS = {
    "method", "language", "seed", "in_domain", "out_of_domain", "test_size", "max_seconds",
    "window_seconds", "max_new_tokens",
}  # fmt: skip

# What decides which clips a run reads, beside preset and language.
OF_DATA = {
    "in_domain", "out_of_domain", "data_dir", "train_size", "train_subset", "validation_size",
    "validation_subset", "test_size", "max_seconds",
}  # fmt: skip

# Settings that name a file of clip ids.
SUBSETS = {"train_subset", "validation_subset"}

EMBEDDED = "embedded/"
_LANGUAGE = "{language}"


def _setting(
    default: Any, source: str = KIT, hashed: bool | Literal["preset", "model"] = True
) -> Any:
    """A field and its source; ``hashed=False`` keeps paths and hardware out of the run id.

    "preset": part of the run id where it differs from the preset's value, not from the default;
    "model": where it differs from the commit at which the model is usually taken.
    """
    return field(default=default, metadata={"source": source, "hashed": hashed})


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's numbers, and (unhashed) where and on what it runs."""

    preset: str
    method: str
    language: str  # Whisper code
    seed: int

    # Which of the two conventions of losses and labels: see losses/divergences.py.
    conventions: Literal["corrected", "authors"] = _setting("corrected")

    # Models: a hub name, a local folder, or "embedded/..." (inside this package). "{language}" in
    # one stands for the run's, where each language has a model of its own.
    student: str = _setting("openai/whisper-small", PAPER)
    student_revision: str = _setting("main", hashed="model")  # see presets.REVISIONS
    teacher: str = _setting("openai/whisper-large-v2", PAPER)
    teacher_revision: str = _setting("main", hashed="model")

    # Where notebook 00 finds ready-made experts: a folder or a hub name.
    experts: str = _setting("naver/multilingual-distilwhisper-28k", hashed=False)

    # Data: corpus names as corpora.open_corpus knows them; sizes None = all.
    in_domain: str = _setting("common_voice", PAPER)
    out_of_domain: str = _setting("fleurs", PAPER)
    data_dir: str = _setting("data", hashed=False)
    train_size: int | None = _setting(None)
    train_subset: str | None = _setting(None)  # file of clip ids, instead of rule and train_size
    validation_size: int | None = _setting(1000, PAPER)
    validation_subset: str | None = _setting(None)  # as train_subset
    test_size: int | None = _setting(None, PAPER)
    max_seconds: float = _setting(30.0)  # Whisper's window; longer clips are left out
    # Whole seconds that student and teacher hear at once, not all they can: see model/loading.py.
    window_seconds: int | None = _setting(None)

    # Optimisation (AdamW, linear decay).
    epochs: int = _setting(10, PAPER)
    max_steps: int = _setting(-1)  # above 0: stop there instead, for smoke runs
    learning_rate: float = _setting(1e-4, PAPER)
    batch_size: int = _setting(16, PAPER)  # per optimiser step; accumulated
    # Rows on the device at once. Losses are means over a micro-batch, as the public code's are, so
    # this decides numbers too.
    micro_batch: int = _setting(8, CODE, hashed="preset")
    warmup_fraction: float = _setting(0.1, PAPER)
    adam_beta1: float = _setting(0.9, CODE)
    adam_beta2: float = _setting(0.98, CODE)
    weight_decay: float = _setting(0.0, CODE)
    clip_norm: float = _setting(1.0, CODE)
    label_smoothing: float = _setting(0.1, PAPER)
    # Hashed, unlike most of a hardware profile: rounding changes the trained weights. "auto"
    # hashes as "auto", whatever a machine makes of it; the record says what that was. On a CPU
    # "fp16" trains in fp32: see hardware.precision_here.
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _setting("fp32", CODE)
    # Keep no activations of a layer, run it again in the backward pass: same gradients, less memory
    activation_checkpointing: bool = _setting(False, hashed=False)
    # A profile of presets.py: micro_batch, eval_batch_size, precision, activation_checkpointing.
    hardware: Literal["none", "cpu", "t4", "l4", "a100"] = _setting("none", hashed=False)
    workers: int = _setting(0, hashed=False)  # processes that read audio

    # Experts and gates.
    gate_dim: int = _setting(64, CODE)
    gate_noise: float = _setting(5.0, CODE)  # alpha at the end of training
    gate_dropout: float = _setting(0.1, CODE)
    expert_dropout: float = _setting(0.3, CODE)
    skip: float = _setting(0.2, PAPER)  # chance per layer and pass to leave the expert out
    budget: float = _setting(0.5, PAPER)  # b of the gate loss
    gate_weight: float = _setting(1.0, PAPER)

    # Distillation: task_weight (CE + gate_weight gate) + distil_weight KD.
    task_weight: float = _setting(1.0, PAPER)
    distil_weight: float = _setting(2.0, PAPER)
    temperature: float = _setting(1.0, PAPER)
    # The teacher runs once and its final hidden states are kept, or its likeliest tokens, or it
    # runs in every step, as it always does under the authors' conventions: see losses/targets.py.
    teacher_targets: Literal["hidden", "top_k", "online"] = _setting("hidden")
    rebuild_teacher_targets: bool = _setting(False, hashed=False)  # where they are damaged

    # LoRA baseline, on fc1 and fc2 of every layer.
    lora_rank: int = _setting(64, CODE)
    lora_alpha: int = _setting(64, CODE)
    lora_dropout: float = _setting(0.05, CODE)

    # Decoding and model selection.
    max_new_tokens: int = _setting(225, CODE)
    eval_batch_size: int = _setting(16, hashed=False)  # halved when memory runs out
    # auto: half on a GPU. Records say which it was.
    eval_precision: Literal["auto", "fp32", "bf16", "fp16"] = _setting("auto", hashed=False)
    # Languages that are not trained, heard before and after ("cs en"; empty: none), on so many
    # out-of-domain clips each: see evaluation/forgetting.py.
    forgetting: str = _setting("", hashed=False)
    forgetting_clips: int = _setting(50, hashed=False)
    selection_normalizer: Literal["whisper", "marks"] = _setting("whisper", CODE)

    def _usual(self, f: dataclasses.Field) -> Any:
        """The value of a setting that leaves no trace in the run id."""
        if f.metadata.get("hashed") == "preset":
            return PRESETS[self.preset].common.get(f.name, f.default)
        if f.metadata.get("hashed") == "model":
            return revision_of(getattr(self, f.name.removesuffix("_revision")))
        return f.default

    @property
    def run_id(self) -> str:
        """``<method>-<language>-s<seed>-<8 hex>``.

        The hex digits cover every hashed field that differs from its default, so that a setting
        which is added later, at the value that always held, changes no earlier id. Of a method
        that trains nothing they cover OF_TESTS and the model.
        """
        hashed = {
            f.name: getattr(self, f.name)
            for f in _fields()
            if f.name in decisive(self.method) and getattr(self, f.name) != self._usual(f)
        }
        if self.data_dir != PRESETS[self.preset].common.get("data_dir", "data"):
            hashed["data_dir"] = self.data_dir  # other recordings are another run
        for name in SUBSETS.intersection(hashed):  # a list is what it names, wherever it lies
            hashed[name] = _file_hash(name, hashed[name])
        digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.method.replace('_', '-')}-{self.language}-s{self.seed}-{digest}"

    @property
    def revision_of_model(self) -> str:
        """The revision of student_or_teacher."""
        return self.teacher_revision if self.method == "teacher" else self.student_revision

    def overrides(self) -> dict[str, Any]:
        """The settings in which this run differs from its preset, method and hardware profile."""
        profile = {} if self.hardware == "none" else {"hardware": self.hardware}
        usual = resolve(self.method, self.preset, self.language, self.seed, profile)
        changed = {k: v for k, v in self.to_dict().items() if v != getattr(usual, k)}
        for role in ("student", "teacher"):  # the commit that comes with a model needs no word
            if changed.get(f"{role}_revision") == revision_of(getattr(self, role)):
                changed.pop(f"{role}_revision")
        return profile | changed

    def sources(self) -> dict[str, str]:
        """Where each value comes from, in the order in which resolve() puts them together."""
        preset = PRESETS[self.preset]
        found = {f.name: f.metadata.get("source", THIS_RUN) for f in _fields()}
        found |= dict.fromkeys(METHOD_SETTINGS.get(self.method, {}), RECIPE)
        found |= dict.fromkeys(preset.common | preset.methods.get(self.method, {}), preset.source)
        found |= dict.fromkeys(settings_for(self.hardware, self.batch_size), KIT)
        found |= dict.fromkeys(self.overrides(), THIS_RUN)
        if self.conventions == "authors" and self.method in DISTILLED:
            scale = AUTHORS_DISTILLATION.items()
            found |= {name: CODE for name, value in scale if getattr(self, name) == value}
        return found | ({"seed": CODE} if self.seed == SEED else {})

    @property
    def demo(self) -> bool:
        """Runs on anything embedded are kept apart from every other result."""
        used = (self.student, self.teacher, f"{self.data_dir}/")
        return self.preset == "demo" or any(name.startswith(EMBEDDED) for name in used)

    @property
    def output_dir(self) -> Path:
        """Where the run works: checkpoints, hypotheses, what it trained. Never committed."""
        return Path("outputs") / self.run_id

    @property
    def results_dir(self) -> Path:
        """Where its record, gates, hypotheses, figures go: everything to show. Never committed."""
        return results_of(OWN_RESULTS, self.demo)

    @property
    def record_path(self) -> Path:
        """Where records.write_record puts its record."""
        return self.results_dir / "runs" / f"{self.run_id}.json"

    @property
    def data_report(self) -> Path:
        """Where notebook 01 writes what the runs of this preset and language read.

        Where overrides change that, the name ends in a hash of them, so that one study does not
        overwrite another's.
        """
        name = f"{self.preset}-{self.language}"
        if changed := {k: v for k, v in self.overrides().items() if k in OF_DATA}:
            text = json.dumps(changed, sort_keys=True)
            name += f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        return self.results_dir / "data" / f"{name}.json"

    @property
    def targets(self) -> str | None:
        """How this run learns from a teacher: "hidden", "top_k", "online", or not at all."""
        if self.method not in DISTILLED:
            return None
        return "online" if self.conventions == "authors" else self.teacher_targets

    @property
    def student_or_teacher(self) -> str:
        """The model that this run transcribes with, before any training."""
        return self.teacher if self.method == "teacher" else self.student

    def published(self) -> dict[str, Any]:
        """The settings as a record tells them: of a path on this machine only the last part."""
        return {
            name: published_name(value) if isinstance(value, str) else value
            for name, value in self.to_dict().items()
        }

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def _repr_html_(self) -> str:
        rows, sources = [], self.sources()
        for f in _fields():
            name, value = f.name, html.escape(str(getattr(self, f.name)))
            value = value if getattr(self, name) == f.default else f"<b>{value}</b>"
            rows.append(f"<td>{name}</td><td>{value}</td><td><i>{sources[name]}</i></td>")
        half = -(-len(rows) // 2)
        pairs = zip(rows[:half], rows[half:] + [""] * (2 * half - len(rows)), strict=True)
        body = "".join(f"<tr>{left}{right}</tr>" for left, right in pairs)
        return (
            f"<p><code>{self.run_id}</code> (bold: this preset, method or run differs from the "
            f"default; beside each value, where it comes from)</p><table>{body}</table>"
        )


def resolve(
    method: str,
    preset: str = "demo",
    language: str = "ca",
    seed: int = SEED,
    overrides: dict[str, Any] | str | None = None,
) -> RunConfig:
    """Turn a notebook's four parameters and its method into a checked, frozen RunConfig.

    ``overrides`` is a dict or, as papermill hands it over from the command line, a JSON string.
    Raises UserError for an unknown method, preset, language or setting, and for a wrong type.
    """
    method = one_of("method", method, METHODS)
    chosen = PRESETS[one_of("preset", preset, tuple(PRESETS))]
    overrides = parse_overrides(overrides)
    identity = {
        "preset": preset,
        "method": method,
        "language": find_language(language).code,
        "seed": coerce("seed", seed, int),
    }
    _check_language(preset, chosen, identity["language"])
    settings = METHOD_SETTINGS.get(method, {}) | chosen.common | chosen.methods.get(method, {})
    settings |= _of_hardware(settings | overrides) | overrides
    if settings.get("conventions") == "authors" and method in DISTILLED:
        settings = AUTHORS_DISTILLATION | settings
    for role in ("student", "teacher"):
        model = str(settings.get(role, getattr(RunConfig, role)))
        if _LANGUAGE in model:
            settings[role] = model = model.replace(_LANGUAGE, identity["language"])
        settings.setdefault(f"{role}_revision", revision_of(model))
    known = _types()
    allowed = [name for name in known if name not in identity]
    for name in settings:
        if name not in allowed:
            raise UserError(
                f"unknown setting {name!r} in overrides: expected one of {', '.join(allowed)}"
            )
    values = {name: coerce(name, value, known[name]) for name, value in settings.items()}
    return checked(RunConfig(**identity, **values))


def decisive(method: str) -> set[str]:
    """The fields that the run id of such a run covers."""
    if method in TRAINED:
        return {f.name for f in _fields() if f.metadata.get("hashed", True)} - {"preset"}
    model = "teacher" if method == "teacher" else "student"
    return OF_TESTS | {model, f"{model}_revision"}


def _of_hardware(settings: dict[str, Any]) -> dict[str, Any]:
    hardware, batch_size = (
        coerce(name, settings.get(name, getattr(RunConfig, name)), _types()[name])
        for name in ("hardware", "batch_size")
    )
    return settings_for(hardware, batch_size)


def locate(name: str) -> str:
    """A model name or a path as given, with "embedded" resolved into this package's demo folder."""
    if name == EMBEDDED.rstrip("/") or name.startswith(EMBEDDED):
        return str(PACKAGE / "demo" / name.removeprefix(EMBEDDED.rstrip("/")).lstrip("/"))
    return name


def published_name(name: str) -> str:
    """What records call a model or a file: of a path on this machine only the last part."""
    return Path(name).name if Path(name).is_absolute() else name


def _file_hash(name: str, path: str) -> str:
    if not Path(path).is_file():
        raise UserError(
            f"{name} {path!r} is no file: expected a list of clips that notebook 01 wrote"
        )
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@cache
def _types() -> dict[str, Any]:
    """Of each setting, what annotations say: a grid of thousands of runs asks for each of them."""
    return typing.get_type_hints(RunConfig)


def _fields() -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(RunConfig)


def _check_language(name: str, preset: Preset, language: str) -> None:
    if preset.languages and language not in preset.languages:
        others = [n for n, p in PRESETS.items() if p.languages and language in p.languages]
        instead = " or ".join([*others, "own"])
        raise UserError(
            f"preset {name!r} does not cover language {language!r}: the paper has it for "
            f"{', '.join(preset.languages)}; use preset {instead}"
        )
