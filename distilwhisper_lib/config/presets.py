"""What the methods and the presets set: everything that RunConfig's defaults leave to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Where a value comes from. A notebook shows it beside each setting.
PAPER = "paper"  # arXiv 2311.01070, its text
CODE = "authors' code"  # the code published with it, where the text is silent
RECIPE = "authors' recipe"  # its training recipe of the LoRA baseline
KIT = "kit"  # this kit's own choice, or what only this kit has
THIS_RUN = "this run"  # whoever started it

SEED = 77  # CODE

# The hub's main branch can change under a study, so these models are taken at a commit: the one at
# which many public repositories pin them (the hub itself could not be asked from where this was
# written). student_revision and teacher_revision name another; records tell which commit it was.
REVISIONS = {
    "openai/whisper-small": "973afd24965f72e36ca33b3055d56a652f456b4d",
    "openai/whisper-large-v2": "ae4642769ce2ad8fc292556ccea8e901f1530655",
}


def revision_of(model: str) -> str:
    """The commit at which a model is taken unless another is asked for; "main" of the others."""
    return REVISIONS.get(model, "main")


def without_usual_revisions(changed: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that differ, without the commits that come with their models: they need no word."""
    roles = [r for r in ("student", "teacher") if f"{r}_revision" in changed]
    usual = {f"{r}_revision" for r in roles if changed[f"{r}_revision"] == revision_of(config[r])}
    return {name: value for name, value in changed.items() if name not in usual}


# What a method changes for every preset (RECIPE).
METHOD_SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"label_smoothing": 0.0, "precision": "fp16"},
}

# conventions="authors" keeps the paper's ratio at the public code's smaller scale (CODE).
AUTHORS_DISTILLATION = {"task_weight": 0.5 / 1.41**2, "distil_weight": 0.5}


# Ways to train experts and gates, see RunConfig.recipe. "decisive" (KIT): gates that are hard in
# training, an expert that is a small change of the shared network, experts first and gates after,
# a budget for each side. Found in a trial on Czech; what was tried on validation since then is in
# benchmarks/tuning.json, what the study makes of it in results/README.md.
PAPERS = "paper"
RECIPES: dict[str, dict[str, Any]] = {
    PAPERS: {},
    "decisive": {
        "expert": "low_rank",
        "expert_dropout": 0.05,
        "skip": 0.0,
        "expert_warmup": 1.0,
        "router_epochs": 2,
        "gate_rate": 3.0,
        "gate_training": "straight_through",
        "gate_noise": 0.0,
        "budget_scope": "side",
    },
}


@dataclass(frozen=True)
class Preset:
    """``common`` holds for every method, ``methods`` for one, ``recipes`` for those with experts
    under one of RECIPES; ``languages`` empty means any.

    ``source``: where the values come from.
    """

    about: str
    source: str
    common: dict[str, Any]
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)
    languages: tuple[str, ...] = ()


# The paper's languages: in FLEURS, 10,000 Common Voice utterances or more, and a gap above 11 WER
# between whisper-small and large-v2; those that the 3k setting adds; those of 28k.
PAPER_LANGUAGES = ("ca", "cs", "gl", "hu", "pl", "ta", "th", "uk")
ADDED_BY_3K = ("bg", "fi", "hi", "id", "ro", "sk", "sl", "vi", "ar")
OF_28K = ("ca", "ta", "th")


def _paper(train_size: int, validation_size: int, experts: str) -> dict[str, Any]:
    """What the paper's three settings write down beyond RunConfig's defaults, which are its own.

    Source: arXiv 2311.01070: Common Voice 13.0 train and validation subsets by votes,
    the whole of its test set in domain and of FLEURS's test set out of domain.
    """
    corpora = {"in_domain": "common_voice", "out_of_domain": "fleurs"}
    sizes = {"train_size": train_size, "validation_size": validation_size, "test_size": None}
    return corpora | sizes | {"experts": f"naver/multilingual-distilwhisper-{experts}"}


PRESETS: dict[str, Preset] = {
    # The embedded miniature pair on synthetic speech: offline, 2 CPU cores, a minute or two a run.
    # Learning rates were chosen on the Catalan validation split (WER, an earlier student): CLSR
    # 1e-3 34.4, 3e-3 25.3, 5e-3 26.0; LoRA 3e-3 27.4, 6e-3 23.0; full 5e-4 17.3. Five epochs on
    # 800 sentences beat ten on 400 (CLSR 25.3 against 30.2), at the same cost.
    "demo": Preset(
        "embedded miniature pair and speech; offline; CPU; minutes",
        KIT,
        {
            "student": "embedded/student",
            "teacher": "embedded/teacher",
            "experts": "embedded/experts",
            "in_domain": "folder/speech",
            "out_of_domain": "folder/speech_ood",
            "data_dir": "embedded",
            "validation_size": 100,
            "max_seconds": 3.0,
            "epochs": 5,
            "batch_size": 32,
            "micro_batch": 32,
            "label_smoothing": 0.0,
            "learning_rate": 3e-3,
            "lora_rank": 16,
            "lora_alpha": 16,
            "max_new_tokens": 60,
            "eval_batch_size": 50,
            "forgetting": "ca cs en",
        },
        {
            "full": {"learning_rate": 5e-4},
            "lora": {"learning_rate": 6e-3, "precision": "fp32"},
        },
        {"decisive": {"learning_rate": 6e-3, "expert_rank": 16}},  # as LoRA
    ),
    # Real weights and real speech in miniature: Whisper-base on the lines of one actor a language
    # (fillets.py), with a Whisper-base as teacher that was tuned on all the speech there is. It
    # tests the method and the machinery at equal size, not the paper's claim from large to small.
    # A window of 8 seconds, which 96 % of the clips fit, costs a quarter of Whisper's 30. Learning
    # rates were chosen on Czech validation (66 clips) with 200 training clips, WER/CER of the best
    # epoch: full 2e-5 50.8/17.7, 5e-5 51.3/17.8; LoRA 3e-4 54.2/19.2, 1e-3 50.8/17.1, 3e-3
    # 51.8/17.4; CLSR 1e-4 59.6/21.5, 3e-4 55.2/20.1, 1e-3 72.9/36.5 (after two epochs, then
    # stopped). The paper's dropout of 0.3 on the expert's output stays: 0 gave 60.0/21.8. All
    # within noise: CLSR's 3e-4, trained again with two threads, gave 59.1. Five epochs: CLSR was
    # best after the second, both baselines in the last two. Those that ran to their end are in
    # benchmarks/tuning.json; KL and JS take what was chosen for CLSR.
    "mini": Preset(
        "Whisper-base in models/whisper-base on Fish Fillets; a CPU or a T4; minutes a run",
        KIT,
        {
            "student": "models/whisper-base",
            "teacher": "models/teacher-{language}",
            "in_domain": "folder/fillets",
            "out_of_domain": "folder/fillets_ood",
            "max_seconds": 8.0,
            "window_seconds": 8,
            "epochs": 5,
            "batch_size": 8,
            "learning_rate": 3e-4,
            "precision": "auto",
            "label_smoothing": 0.0,
            "max_new_tokens": 100,
            "eval_precision": "bf16",
            "eval_batch_size": 32,
            "forgetting": "cs nl",
        },
        {
            "full": {"learning_rate": 2e-5},
            "lora": {"learning_rate": 1e-3},
        },
        {"decisive": {"learning_rate": 1e-3}},  # as LoRA
    ),
    # Own recordings (data/speech, data/speech_ood) with the paper's models, a few dozen clips or
    # thousands. Experts are trained by the recipe whose gates decide: on real speech the paper's
    # lose to LoRA at six times its size (results/README.md). recipe="paper" has the paper's method.
    # How much of it: as in "mini", where it was chosen for 200 clips. To go through fewer more than
    # once an epoch did not help where it was tried (benchmarks/tuning.json, epoch_clips).
    "own": Preset(
        "your recordings in data/speech and data/speech_ood; the paper's models, decisive gates",
        KIT,
        {
            "in_domain": "folder/speech",
            "out_of_domain": "folder/speech_ood",
            "recipe": "decisive",
            "hardware": "auto",
            "epochs": 5,
            "batch_size": 8,
            "label_smoothing": 0.0,
            "validation_size": 100,
        },
        {
            "full": {"learning_rate": 2e-5},
            "lora": {"learning_rate": 1e-3},
        },
        {"decisive": {"learning_rate": 1e-3}},
    ),
    # The paper's settings. Everything not named here is a default of RunConfig or a setting of
    # the method (METHOD_SETTINGS). Nobody of this project has run them yet; one GPU of 16 GB or
    # more, and Common Voice in data/common_voice (notebook 01 says how to get it).
    "cv3k": Preset(
        "the paper's 3k setting: 3,000 Common Voice clips, FLEURS out of domain; one GPU",
        PAPER,
        _paper(3_000, 500, "3k"),
        languages=PAPER_LANGUAGES + ADDED_BY_3K,
    ),
    "cv10k": Preset(
        "the paper's 10k setting, its main table: 10,000 Common Voice clips; one GPU",
        PAPER,
        _paper(10_000, 1_000, "10k"),
        languages=PAPER_LANGUAGES,
    ),
    "cv28k": Preset(
        "the paper's 28k setting: 28,000 Common Voice clips of three languages; one GPU",
        PAPER,
        _paper(28_000, 1_000, "28k"),
        languages=OF_28K,
    ),
}


# Profiles of machines: how many rows at once, and in which precision. None changes the batch that
# the optimiser sees: ``batch_size`` is the paper's, and gradients of several micro-batches are
# accumulated to it. What a user overrides wins.
# Sized for whisper-small, 30 s clips and a large-v2 teacher beside it in float32. What a training
# step of experts keeps was measured on a CPU under bf16 autocast: 0.7 GiB a row, 0.2 GiB with
# activation checkpointing (a fifth slower). Memory on GPUs is estimated from that, not measured.
# "auto" is the one that fits the machine at hand, but for what a run id covers: that must not move
# when a run goes on elsewhere, so rows at once are AUTO's everywhere, and what runs short of memory
# keeps no activations.
PROFILES: dict[str, dict[str, Any]] = {
    "none": {},  # as the preset says
    "cpu": {
        "micro_batch": 4,
        "eval_batch_size": 8,
        "precision": "auto",
        "activation_checkpointing": False,
    },
    "t4": {  # 16 GB, no bfloat16; with cached teacher targets it may do without checkpointing
        "micro_batch": 8,
        "eval_batch_size": 16,
        "precision": "fp16",
        "activation_checkpointing": True,
    },
    "l4": {  # 24 GB
        "micro_batch": 8,
        "eval_batch_size": 32,
        "precision": "bf16",
        "activation_checkpointing": False,
    },
    "a100": {  # 40 GB
        "micro_batch": 16,
        "eval_batch_size": 64,
        "precision": "bf16",
        "activation_checkpointing": False,
    },
}


def recipe_settings(preset: str, recipe: str) -> dict[str, Any]:
    """What a recipe sets in a preset."""
    return {"recipe": recipe} | RECIPES[recipe] | PRESETS[preset].recipes.get(recipe, {})


AUTO: dict[str, Any] = {"micro_batch": 8, "precision": "auto"}


def _auto() -> dict[str, Any]:
    from distilwhisper_lib.hardware import profile_here  # seconds: torch

    name, is_short = profile_here()
    return PROFILES[name] | AUTO | ({"activation_checkpointing": True} if is_short else {})


def settings_for(hardware: str, batch_size: int) -> dict[str, Any]:
    """A profile's settings, its micro-batch cut down to one that divides ``batch_size``."""
    profile = _auto() if hardware == "auto" else dict(PROFILES[hardware])
    if profile and batch_size > 0:
        limit = min(profile["micro_batch"], batch_size)
        profile["micro_batch"] = next(n for n in range(limit, 0, -1) if batch_size % n == 0)
    return profile
