"""One frozen configuration per run: every setting, its default and where that comes from.

Defaults are the paper's. What a method, a preset or a machine sets otherwise stands in presets.py;
``overrides`` is what a user wants otherwise. What a value may be stands in values.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import html
import json
import typing
from collections.abc import Collection
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
    PAPERS,
    PRESETS,
    RECIPE,
    SEED,
    THIS_RUN,
    Preset,
    recipe_settings,
    revision_of,
    settings_for,
    without_usual_revisions,
)
from distilwhisper_lib.config.values import check_values, coerce, parse_overrides
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.io.checked import one_of
from distilwhisper_lib.languages import find_language

# What runs leave, and what is published: only `results publish` and `results readme` write there.
OWN_RESULTS, PUBLISHED_RESULTS = Path("outputs/results"), Path("results")
CAME_WITH_KIT = "came with the kit"  # how published results are marked beside one's own
PROGRESS = "progress.txt"  # in a run's folder while it trains: how far it is


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


METHODS = ("teacher", "zero_shot", "full", "lora", "clsr", "kl", "js")
TRAINED = ("full", "lora", "clsr", "kl", "js")
BASELINES = ("full", "lora")  # that train, and have no experts
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
    "window_seconds", "max_new_tokens", "keep_notes", "speaks_as",
}  # fmt: skip

# What decides which clips a run reads, beside preset and language.
OF_DATA = {
    "in_domain", "out_of_domain", "data_dir", "train_size", "train_subset", "validation_size",
    "validation_subset", "test_size", "max_seconds", "keep_notes",
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
    teacher: str = _setting("openai/whisper-large-v2", PAPER)  # "": none is at hand
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
    keep_notes: bool = _setting(False)  # also clips whose text is but a note: "[music]"
    # The language whose token stands in the prompt of a language for which the models have none.
    speaks_as: str = _setting("")
    # Whole seconds that student and teacher hear at once, not all they can: see model/loading.py.
    window_seconds: int | None = _setting(None)
    # "fit": what is trained hears only as many of them as its clip lasts, see there too; what
    # is not, zero-shot or teacher, hears the silence that it knows.
    window: Literal["whole", "fit"] = _setting("whole")

    # Training clips side by side in one window, and the share of rows whose text is learned with
    # timestamps: see data/packing.py. A batch is then of so many windows.
    pack: bool = _setting(False)
    timestamps: float = _setting(0.0)

    # Optimisation (AdamW, linear decay).
    epochs: int = _setting(10, PAPER)
    # An epoch goes through fewer training clips as many times as come nearest to this number; 0:
    # once. So few clips are trained for long enough, and validated as seldom as many are.
    epoch_clips: int = _setting(0)
    # Stop when so many epochs one after another were no better on validation; 0: never.
    patience: int = _setting(0)
    # The weights that a run keeps: the best epoch's on validation, or the mean of so many best.
    averaged: int = _setting(1)
    max_steps: int = _setting(-1)  # above 0: stop each stage there, for smoke runs
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
    hardware: Literal["none", "auto", "cpu", "t4", "l4", "a100"] = _setting("none", hashed=False)
    workers: int = _setting(0, hashed=False)  # processes that read audio

    # The method's training as the paper has it, or as gates come to decide: presets.RECIPES, which
    # sets what stands below. Only of methods with experts.
    recipe: Literal["paper", "decisive"] = _setting(PAPERS, hashed=False)

    # Experts and gates. ``expert``: "ffn", a copy of the feed-forward network; "low_rank", a change
    # of its two weights of expert_rank (LoRA, Hu et al., 2021, eq. 3), a ninth of the size.
    expert: Literal["ffn", "low_rank"] = _setting("ffn", PAPER)
    expert_rank: int = _setting(64)
    gate_dim: int = _setting(64, CODE)
    gate_noise: float = _setting(5.0, CODE)  # alpha at the end of training
    gate_dropout: float = _setting(0.1, CODE)
    # On an ffn expert's output; of a low-rank one on what its products read, as LoRA's.
    expert_dropout: float = _setting(0.3, CODE)
    skip: float = _setting(0.2, PAPER)  # chance per layer and pass to leave the expert out
    budget: float = _setting(0.5, PAPER)  # b of the gate loss
    gate_weight: float = _setting(1.0, PAPER)
    # L_gate = mean over means of |mean gate - b|: one mean over all positions; one for the encoder
    # and one for the decoder; one a layer.
    budget_scope: Literal["pooled", "side", "layer"] = _setting("pooled", PAPER)
    # "noisy": g = sigmoid(score + alpha N(0, 1)). "straight_through": 0 or 1 as at inference, with
    # the gradient of the former (Bengio et al., 2013), from this fraction of a stage on.
    gate_training: Literal["noisy", "straight_through"] = _setting("noisy", PAPER)
    straight_through_from: float = _setting(0.0)
    # The gates' learning rate, in multiples of the experts'.
    gate_rate: float = _setting(1.0, PAPER)
    # Fraction of the training with every gate open and none of them trained: g = 1.
    expert_warmup: float = _setting(0.0, PAPER)
    # After ``epochs`` so many more in which the best experts are frozen and gates train alone.
    router_epochs: int = _setting(0, PAPER)
    # Which gates are heard in validation and tests: 0 or 1; weighing both branches, sigmoid(score);
    # or none, the expert everywhere.
    gate_mode: Literal["hard", "soft", "open"] = _setting("hard", PAPER)

    # Distillation: task_weight (CE + gate_weight gate) + distil_weight KD.
    task_weight: float = _setting(1.0, PAPER)
    distil_weight: float = _setting(2.0, PAPER)
    temperature: float = _setting(1.0, PAPER)
    # What full fine-tuning and LoRA learn from the teacher too; experts' methods say it by name.
    distil: Literal["none", "kl", "js"] = _setting("none")
    # Which stage of a training with router_epochs learns from the teacher.
    distil_stage: Literal["both", "experts", "router"] = _setting("both")
    # The teacher runs once and its final hidden states are kept, or its likeliest tokens, or it
    # runs in every step, as it always does under the authors' conventions: see losses/targets.py.
    teacher_targets: Literal["hidden", "top_k", "online"] = _setting("hidden")
    rebuild_teacher_targets: bool = _setting(False, hashed=False)  # where they are damaged

    # LoRA baseline: of the feed-forward networks (fc1 and fc2), as the authors', of the projections
    # of attention, or both. "dora": direction and magnitude apart (Liu et al., 2024, eq. 5).
    # "token": the one embedding of the run's language token trains, and nothing else.
    adapter: Literal["lora", "dora", "token"] = _setting("lora", CODE)
    lora_layers: Literal["feed_forward", "attention", "all"] = _setting("feed_forward", CODE)
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
        usual = PRESETS[self.preset].common.get("hardware", "none")
        profile = {} if self.hardware == usual else {"hardware": self.hardware}
        if self.speaks_as:
            profile["speaks_as"] = self.speaks_as  # without it there is no such run
        if self.recipe != usual_recipe(self.preset, self.method):
            profile["recipe"] = self.recipe
        usual = resolve(self.method, self.preset, self.language, self.seed, profile)
        changed = {k: v for k, v in self.to_dict().items() if v != getattr(usual, k)}
        return profile | without_usual_revisions(changed, self.to_dict())

    def sources(self) -> dict[str, str]:
        """Where each value comes from, in the order in which resolve() puts them together."""
        preset = PRESETS[self.preset]
        found = {f.name: f.metadata.get("source", THIS_RUN) for f in _fields()}
        found |= dict.fromkeys(METHOD_SETTINGS.get(self.method, {}), RECIPE)
        found |= dict.fromkeys(preset.common | preset.methods.get(self.method, {}), preset.source)
        found |= dict.fromkeys(recipe_settings(self.preset, self.recipe), f"recipe {self.recipe}")
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
    def needs_teacher(self) -> bool:
        """Whether it hears a teacher, or is one."""
        return self.divergence is not None or self.method == "teacher"

    @property
    def divergence(self) -> str | None:
        """What it takes from a teacher's distribution: "kl", "js", or None."""
        distil = self.method if self.method in DISTILLED else self.distil
        return None if distil == "none" else distil

    @property
    def targets(self) -> str | None:
        """How this run learns from a teacher: "hidden", "top_k", "online", or not at all."""
        if self.divergence is None:
            return None
        return "online" if self.conventions == "authors" else self.teacher_targets

    @property
    def spoken(self) -> str:
        """The language whose token stands in the prompt."""
        return self.speaks_as or self.language

    @property
    def borrowed(self) -> dict[str, str]:
        """The run's language and whose token it borrows, where it does."""
        return {self.language: self.speaks_as} if self.speaks_as else {}

    def passes(self, clips: int) -> int:
        """How often an epoch goes through a training set of so many clips, see epoch_clips."""
        return max(1, round(self.epoch_clips / clips))

    @property
    def inference_gates(self) -> str:
        """``gate_mode`` as the model's forward() calls it."""
        return "learned" if self.gate_mode == "hard" else self.gate_mode

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
    given = settings | overrides
    recipe = coerce("recipe", given.get("recipe", PAPERS), _types()["recipe"])
    # A grid may name any of them for all of its methods.
    idle = ["recipe"] * (method not in WITH_EXPERTS)
    idle += ["window", "pack", "timestamps"] * (method not in TRAINED)
    if method not in BASELINES:
        _check_distil(method, overrides.get("distil", "none"))
        idle += ["distil", "adapter", "lora_layers"]
    settings, overrides = (_without(idle, named) for named in (settings, overrides))
    if method in WITH_EXPERTS:
        settings |= recipe_settings(preset, recipe)
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
    if values.get("speaks_as"):
        values["speaks_as"] = find_language(values["speaks_as"]).code
    config = RunConfig(**identity, **values)
    check_values(config)
    return config


def _check_distil(method: str, distil: Any) -> None:
    """Experts that learn from a teacher are methods of their own."""
    if method in WITH_EXPERTS and distil not in ("none", method):
        raise UserError(
            f"distil={distil!r} with method {method!r}: expected it of full or lora; experts with "
            "a teacher are the methods js and kl (notebooks 05 and 06)"
        )


def decisive(method: str) -> set[str]:
    """The fields that the run id of such a run covers."""
    if method in TRAINED:
        return {f.name for f in _fields() if f.metadata.get("hashed", True)} - {"preset"}
    model = "teacher" if method == "teacher" else "student"
    return OF_TESTS | {model, f"{model}_revision"}


def _without(names: Collection[str], settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in names}


def usual_recipe(preset: str, method: str) -> str:
    """The recipe that a preset takes by itself."""
    common = PRESETS[preset].common if method in WITH_EXPERTS else {}
    return common.get("recipe", PAPERS)


def _of_hardware(settings: dict[str, Any]) -> dict[str, Any]:
    hardware, batch_size = (
        coerce(name, settings.get(name, getattr(RunConfig, name)), _types()[name])
        for name in ("hardware", "batch_size")
    )
    return settings_for(hardware, batch_size)


def setting_of(record: Record, name: str) -> Any:
    """A record's setting; the default of one that is newer than the record."""
    return record["config"].get(name, getattr(RunConfig, name, None))


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
