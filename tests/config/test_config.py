"""One place for every setting, strict about names, types and ranges."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shlex
from types import SimpleNamespace

import pytest

from distilwhisper_lib import PACKAGE, UserError, hardware, resolve
from distilwhisper_lib.config.presets import (
    CODE,
    KIT,
    PAPER,
    PRESETS,
    RECIPE,
    RECIPES,
    THIS_RUN,
)
from distilwhisper_lib.config.settings import METHODS, RunConfig, locate
from distilwhisper_lib.languages import LANGUAGES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "magic"}, "unknown method 'magic': expected one of teacher, zero_shot"),
        ({"preset": "huge"}, "unknown preset 'huge': expected one of demo, mini, own"),
        ({"language": "klingon"}, "'klingon'"),
        ({"language": False}, "False"),  # YAML's "no"
        ({"seed": "x"}, "seed='x' has the wrong type str: expected int"),
        ({"seed": True}, "seed=True has the wrong type bool"),
        ({"overrides": {"epoch": 3}}, "unknown setting 'epoch' in overrides: .*epochs"),
        ({"overrides": {"language": "cs"}}, "unknown setting 'language' in overrides"),
        ({"overrides": {"epochs": 2.5}}, "epochs=2.5 has the wrong type float: expected int"),
        ({"overrides": {"epochs": True}}, "epochs=True has the wrong type bool"),
        ({"overrides": {"student": False}}, "student=False has the wrong type bool: expected str"),
        ({"overrides": {"learning_rate": "fast"}}, "learning_rate='fast' has the wrong type"),
        (
            {"overrides": {"learning_rate": float("inf")}},
            "learning_rate=inf is out of range: expected a finite",
        ),
        ({"overrides": {"epochs": "nan"}}, "epochs='nan' has the wrong type"),
        ({"seed": -5}, "seed=-5 is out of range"),
        ({"overrides": {"adam_beta1": 7}}, "adam_beta1=7.0 is out of range: expected from 0 to 1"),
        ({"overrides": {"gate_noise": -1}}, "gate_noise=-1.0 is out of range"),
        ({"overrides": {"max_steps": 0}}, "max_steps=0 is out of range"),
        ({"overrides": {"student": " "}}, "setting student is empty"),
        ({"overrides": {"budget": 1.5}}, "budget=1.5 is out of range: expected from 0 to 1"),
        ({"overrides": {"recipe": "x"}}, "unknown recipe 'x': expected one of paper, decisive"),
        ({"overrides": {"expert": "lora"}}, "unknown expert 'lora': expected one of ffn, low_rank"),
        ({"overrides": {"expert_rank": 0}}, "expert_rank=0 is out of range: expected above 0"),
        ({"overrides": {"router_epochs": -1}}, "router_epochs=-1 is out of range"),
        ({"overrides": {"straight_through_from": 1.5}}, "straight_through_from=1.5 is out of"),
        (
            {"overrides": {"expert_warmup": 1.0}},
            "expert_warmup=1 with router_epochs=0 never trains a gate: set router_epochs above 0",
        ),
        ({"overrides": {"epochs": 0}}, "epochs=0 is out of range: expected above 0"),
        ({"overrides": {"train_size": 10**30}}, "train_size=.* is out of range: expected far less"),
        ({"overrides": {"data_dir": "a\0b"}}, "data_dir=.* holds a NUL character"),
        ({"overrides": {"batch_size": 10, "micro_batch": 4}}, "no multiple of micro_batch=4"),
        ({"overrides": {"conventions": "mine"}}, "unknown conventions 'mine'"),
        ({"overrides": "{epochs: 3}"}, "is not JSON"),
        ({"overrides": [1]}, "expected a dict"),
    ],
)
def test_bad_input_is_one_clear_sentence(arguments, message):
    with pytest.raises(UserError, match=message):
        resolve(**({"method": "clsr"} | arguments))


def test_strings_from_a_command_line_become_what_the_field_wants():
    text = '{"learning_rate": "1e-4", "epochs": "3", "train_size": null}'
    config = resolve("clsr", "demo", "Catalan", "5", text)
    assert config == resolve(
        "clsr", "demo", "ca", 5, {"learning_rate": 1e-4, "epochs": 3, "train_size": None}
    )
    assert (config.language, config.seed, config.learning_rate) == ("ca", 5, 1e-4)


def test_a_recipe_is_what_it_sets_and_its_name_stands_for_it():
    config = resolve("js", "mini", "cs", 77, {"recipe": "decisive", "train_size": 200})
    spelled = RECIPES["decisive"] | {"learning_rate": 1e-3, "train_size": 200}
    assert resolve("js", "mini", "cs", 77, spelled).run_id == config.run_id
    assert config.overrides() == {"recipe": "decisive", "train_size": 200}
    assert config.sources()["expert"] == config.sources()["learning_rate"] == "recipe decisive"
    other = resolve("js", "mini", "cs", 77, {"recipe": "decisive", "budget": 0.3})
    assert other.overrides() == {"recipe": "decisive", "budget": 0.3}
    assert (other.expert, other.sources()["budget"]) == ("low_rank", THIS_RUN)


def test_a_recipe_leaves_methods_without_experts_alone():
    for method in ("lora", "full", "teacher", "zero_shot"):
        plain, named = (resolve(method, "mini", "cs", 77, o) for o in ({}, {"recipe": "decisive"}))
        assert named == plain


# What preset "own" set when the ids below were given.
OWN_AT_FIRST = {
    "hardware": "none", "epochs": 10, "epoch_clips": 0, "batch_size": 16, "label_smoothing": 0.1,
    "validation_size": 1000,
}  # fmt: skip


def test_a_language_without_a_token_needs_one_to_borrow():
    with pytest.raises(
        UserError, match="Whisper does not know the language 'gn': lend it the token"
    ):
        resolve("clsr", "own", "gn")
    config = resolve("clsr", "own", "GRN", overrides={"speaks_as": "Spanish"})
    assert (config.language, config.speaks_as, config.spoken) == ("gn", "es", "es")
    assert config.overrides() == {"speaks_as": "es"} and config.borrowed == {"gn": "es"}
    for lender in ("gn", "lg"):
        with pytest.raises(UserError, match=f"speaks_as='{lender}' is no language whose token"):
            resolve("clsr", "own", "gn", overrides={"speaks_as": lender})
    ids = {
        resolve("zero_shot", "own", "yue", overrides=o).run_id for o in ({}, {"speaks_as": "zh"})
    }
    assert len(ids) == 2


@pytest.mark.parametrize(
    ("gpu", "memory", "eval_batch", "checkpointing"),
    [(False, 6, 8, True), (False, 24, 8, False), (True, 8, 16, True), (True, 15.6, 16, True),
     (True, 22.5, 32, False), (True, 79, 64, False)],
)  # fmt: skip
def test_auto_fits_the_machine_and_leaves_the_run_id(
    gpu, memory, eval_batch, checkpointing, monkeypatch
):
    usual = resolve("clsr", "own", "ca").run_id
    device = SimpleNamespace(total_memory=memory * 2**30)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda number: device)
    monkeypatch.setattr("os.sysconf", lambda name: memory * 2**30 if "PHYS" in name else 1)
    hardware.profile_here.cache_clear()
    try:
        config = resolve("clsr", "own", "ca")
        half = resolve("clsr", "own", "ca", overrides={"batch_size": 12})
    finally:
        hardware.profile_here.cache_clear()
    assert (config.hardware, config.micro_batch, config.precision) == ("auto", 8, "auto")
    assert (config.eval_batch_size, config.activation_checkpointing) == (eval_batch, checkpointing)
    assert (config.run_id, config.overrides(), half.micro_batch) == (usual, {}, 6)


def test_own_recordings_take_the_decisive_recipe_and_can_have_the_papers():
    own, paper = (resolve("clsr", "own", "ca", 77, o) for o in ({}, {"recipe": "paper"}))
    assert (own.expert, own.overrides()) == ("low_rank", {})
    assert (paper.expert, paper.overrides()) == ("ffn", {"recipe": "paper"})
    assert resolve("clsr", "own", "ca", 77, paper.overrides() | OWN_AT_FIRST).run_id == (
        "clsr-ca-s77-9493c9c0"
    )


@pytest.mark.parametrize(
    ("run_id", "method", "preset", "overrides"),
    [
        ("clsr-ca-s77-a3b5534e", "clsr", "demo", {}),
        ("teacher-nl-s77-df0d2c3c", "teacher", "mini", {"train_size": 200}),
        ("js-cs-s78-aefad441", "js", "cv10k", {}),
        ("lora-ta-s77-c9077fae", "lora", "cv28k", {"hardware": "t4"}),
        ("kl-sk-s79-f6d2e8f8", "kl", "cv3k", {"conventions": "authors"}),
        (
            "full-gl-s77-086d63d8",
            "full",
            "own",
            OWN_AT_FIRST | {"learning_rate": "5e-5", "train_size": 100},
        ),
        ("zero-shot-th-s77-b264e9b5", "zero_shot", "cv10k", {}),
    ],
)
def test_run_ids_stay_what_they_are(run_id, method, preset, overrides):
    language, seed, _ = run_id.rsplit("-", 3)[1:]
    assert resolve(method, preset, language, int(seed[1:]), overrides).run_id == run_id


def test_the_command_in_a_committed_record_gives_the_id_of_the_record():
    for path in sorted((PACKAGE.parent / "results").rglob("runs/*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        words = shlex.split(record["provenance"]["command"])
        given = words[words.index("--overrides") + 1] if "--overrides" in words else None
        identity = (record["config"][name] for name in ("method", "preset", "language", "seed"))
        assert resolve(*identity, given).run_id == record["run_id"] == path.stem


def test_the_run_id_covers_what_decides_numbers_and_nothing_else():
    config = resolve("clsr", "demo", "ca", 77)
    assert config.run_id.startswith("clsr-ca-s77-")
    same = {"eval_batch_size": 7, "workers": 3}
    assert resolve("clsr", "demo", "ca", 77, same).run_id == config.run_id
    for other in (
        {"budget": 0.4},
        {"data_dir": "/elsewhere"},
        {"train_size": 10},
        {"student": "x"},
        {"precision": "bf16"},
        {"micro_batch": 16},  # losses are means over a micro-batch
    ):
        assert resolve("clsr", "demo", "ca", 77, other).run_id != config.run_id
    assert resolve("zero_shot", "demo", "ca", 77).run_id.startswith("zero-shot-ca-s77-")


def test_a_config_is_frozen_and_goes_through_json():
    config = resolve("js")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    assert RunConfig(**json.loads(json.dumps(config.to_dict()))) == config


def test_overrides_are_told_from_the_preset():
    assert resolve("js").overrides() == {}
    assert resolve("js", overrides={"epochs": 3}).overrides() == {"epochs": 3}


def test_authors_conventions_change_the_scale_and_keep_the_ratio():
    paper, authors = (resolve("js", overrides={"conventions": c}) for c in ("corrected", "authors"))
    assert (paper.task_weight, paper.distil_weight) == (1.0, 2.0)
    assert authors.distil_weight / authors.task_weight == pytest.approx(1.41**2)
    assert resolve("clsr", overrides={"conventions": "authors"}).task_weight == 1.0


def test_defaults_are_the_papers_settings():
    """The paper's settings; presets may shrink them, defaults may not."""
    default = {f.name: f.default for f in dataclasses.fields(RunConfig)}
    expected = {
        "student": "openai/whisper-small", "teacher": "openai/whisper-large-v2", "epochs": 10,
        "learning_rate": 1e-4, "batch_size": 16, "micro_batch": 8, "warmup_fraction": 0.1,
        "adam_beta1": 0.9, "adam_beta2": 0.98, "weight_decay": 0.0, "clip_norm": 1.0,
        "label_smoothing": 0.1, "gate_dim": 64, "gate_noise": 5.0, "gate_dropout": 0.1,
        "expert_dropout": 0.3, "skip": 0.2, "budget": 0.5, "distil_weight": 2.0,
        "temperature": 1.0, "lora_rank": 64, "lora_alpha": 64, "lora_dropout": 0.05,
        "max_new_tokens": 225, "validation_size": 1000,
    }  # fmt: skip
    assert {name: default[name] for name in expected} == expected


# The paper's settings, row by row, and what differs between its methods.
TABLE = {
    "student": "openai/whisper-small", "teacher": "openai/whisper-large-v2",
    "in_domain": "common_voice", "out_of_domain": "fleurs", "test_size": None,
    "train_subset": None, "validation_subset": None, "max_seconds": 30.0,
    "epochs": 10, "max_steps": -1, "learning_rate": 1e-4, "batch_size": 16, "micro_batch": 8,
    "warmup_fraction": 0.1, "adam_beta1": 0.9, "adam_beta2": 0.98, "weight_decay": 0.0,
    "clip_norm": 1.0, "gate_dim": 64, "gate_noise": 5.0, "gate_dropout": 0.1,
    "expert_dropout": 0.3, "skip": 0.2, "budget": 0.5, "gate_weight": 1.0, "task_weight": 1.0,
    "distil_weight": 2.0, "temperature": 1.0, "lora_rank": 64, "lora_alpha": 64,
    "lora_dropout": 0.05, "max_new_tokens": 225, "conventions": "corrected", "seed": 77,
}  # fmt: skip
# Of these the kit decides by itself, or nobody has to.
_OURS = {"train_subset", "validation_subset", "max_seconds", "max_steps", "conventions"}


@pytest.mark.parametrize("preset", ["cv3k", "cv10k", "cv28k"])
@pytest.mark.parametrize("method", METHODS)
def test_every_value_of_the_paper_names_its_source(method, preset):
    config = resolve(method, preset, "ca")
    source = config.sources()
    assert source.keys() == config.to_dict().keys()
    assert {name for name in TABLE if source[name] == KIT} == _OURS
    for name in ("train_size", "validation_size", "test_size", "experts", "in_domain"):
        assert source[name] == PAPER
    recipe = {name for name in source if source[name] == RECIPE}
    assert recipe == ({"label_smoothing", "precision"} if method == "lora" else set())
    assert source["seed"] == CODE
    assert {n for n in source if source[n] == THIS_RUN} == {"preset", "method", "language"}
    for name, value in config.to_dict().items():
        shown = re.search(rf"<td>{name}</td><td>(?:<b>)?(.*?)(?:</b>)?</td><td><i>(.*?)</i>",
                          config._repr_html_())  # fmt: skip
        assert shown.groups() == (html.escape(str(value)), source[name])


def test_the_source_of_a_value_changes_with_who_set_it():
    mine = {"train_size": 7, "hardware": "t4", "budget": 0.4}
    source = resolve("lora", "cv10k", "ca", 3, mine).sources()
    assert {source[name] for name in ("train_size", "hardware", "budget", "seed")} == {THIS_RUN}
    assert source["validation_size"] == PAPER
    assert source["precision"] == source["micro_batch"] == KIT  # a profile of the kit's
    assert source["label_smoothing"] == RECIPE
    demo = resolve("lora").sources()
    assert demo["label_smoothing"] == demo["precision"] == demo["epochs"] == KIT
    assert demo["gate_dim"] == CODE
    authors = resolve("js", "cv10k", "ca", overrides={"conventions": "authors"}).sources()
    assert (authors["conventions"], authors["task_weight"]) == (THIS_RUN, CODE)


SIZES = {"cv3k": (3_000, 500), "cv10k": (10_000, 1_000), "cv28k": (28_000, 1_000)}
MAIN, ADDED = "ca cs gl hu pl ta th uk".split(), "bg fi hi id ro sk sl vi ar".split()
COVERED = {"cv3k": MAIN + ADDED, "cv10k": MAIN, "cv28k": ["ca", "ta", "th"]}


@pytest.mark.parametrize("preset", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_the_paper_s_presets_are_the_paper_s_table(preset, method):
    config = resolve(method, preset, "ca").to_dict()
    assert {name: config[name] for name in TABLE} == TABLE
    assert (config["train_size"], config["validation_size"]) == SIZES[preset]
    assert config["experts"].endswith(preset.removeprefix("cv"))
    # The LoRA baseline alone is in half precision and without label smoothing.
    assert config["precision"] == ("fp16" if method == "lora" else "fp32")
    assert config["label_smoothing"] == (0.0 if method == "lora" else 0.1)


@pytest.mark.parametrize("preset", SIZES)
def test_the_authors_scale_of_distillation(preset):
    config = resolve("js", preset, "ca", overrides={"conventions": "authors"})
    assert config.task_weight == pytest.approx(0.5 / 1.41**2)
    assert config.distil_weight == 0.5


@pytest.mark.parametrize("preset", SIZES)
def test_the_paper_s_presets_cover_the_paper_s_languages(preset):
    for code in COVERED[preset]:
        assert resolve("js", preset, code).language == code
    for code in set(LANGUAGES) - set(COVERED[preset]):
        with pytest.raises(UserError, match=f"{preset!r} does not cover language {code!r}"):
            resolve("js", preset, code)


def test_a_language_that_a_preset_has_not_is_told_where_to_go():
    with pytest.raises(UserError) as error:
        resolve("clsr", "cv28k", "czech")
    assert str(error.value) == (
        "preset 'cv28k' does not cover language 'cs': the paper has it for ca, ta, th; "
        "use preset cv3k or cv10k or own"
    )
    with pytest.raises(UserError, match="use preset own$"):
        resolve("clsr", "cv3k", "nl")


def test_a_language_that_the_corpus_cannot_have_is_refused_at_once():
    fleurs = {"out_of_domain": "fleurs/raw_transcription@main"}
    for settings in (fleurs, {"in_domain": "fleurs"}):
        assert resolve("js", "own", "swahili", 1, settings).language == "sw"
        with pytest.raises(UserError, match=r"'fleurs' does not have 'eu' \(basque\): choose"):
            resolve("js", "own", "eu", 1, settings)
    with pytest.raises(UserError, match="'fleurs' does not have 'br'"):
        resolve("js", "own", "sw", 1, fleurs | {"forgetting": "en br"})
    assert resolve("js", "own", "eu", 1, {"in_domain": "common_voice"}).language == "eu"


def test_a_subset_lists_content_is_part_of_the_run_id(tmp_path):
    plain = resolve("clsr", "demo", "ca", 77)
    listed = resolve("clsr", "demo", "ca", 77, {"train_subset": str(tmp_path / "a.txt")})
    with pytest.raises(UserError, match="is no file"):
        _ = listed.run_id
    (tmp_path / "a.txt").write_text("one")
    first = listed.run_id
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    moved = resolve("clsr", "demo", "ca", 77, {"train_subset": str(tmp_path / "b.txt")})
    assert moved.run_id == first != plain.run_id
    (tmp_path / "b.txt").write_text("two")
    assert moved.run_id != first
    assert plain.run_id == resolve("clsr", "demo", "ca", 77, {"train_subset": None}).run_id


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", METHODS)
def test_every_preset_resolves_for_every_method(preset, method):
    config = resolve(method, preset, "ca", 1)
    assert config.run_id in config._repr_html_()
    assert config.demo is (preset == "demo")
    assert resolve(method, preset, "ca", 1, {"teacher": "embedded/teacher"}).demo
    assert config.results_dir.name == ("demo" if config.demo else "results")


def test_embedded_names_are_found_in_the_package():
    assert locate("embedded/student").endswith("demo/student")
    assert locate("embedded").endswith("demo")
    assert locate("openai/whisper-small") == "openai/whisper-small"
    assert locate("/data/embedded/x") == "/data/embedded/x"


def test_a_record_tells_no_path_of_this_machine():
    config = resolve("js", overrides={"data_dir": "/data/mine", "student": "/models/base"})
    assert (config.published()["data_dir"], config.published()["student"]) == ("mine", "base")
    assert config.published()["teacher"] == "embedded/teacher"


@pytest.mark.parametrize("method", ["zero_shot", "teacher"])
def test_a_run_that_trains_nothing_serves_every_training(method):
    ids = {resolve(method, preset, "ca").run_id for preset in ("cv3k", "cv10k", "cv28k")}
    trains = {"epochs": 3, "learning_rate": 1e-5, "train_size": 7, "budget": 0.3, "hardware": "t4"}
    ids.add(resolve(method, "cv10k", "ca", overrides=trains).run_id)
    assert len(ids) == 1
    tests = [
        {"test_size": 7},
        {"max_new_tokens": 9},
        {"max_seconds": 9.0},
        {"in_domain": "folder/a"},
    ]
    model = "teacher" if method == "teacher" else "student"
    for changed in [*tests, {model: "another"}, {f"{model}_revision": "1" * 40}]:
        assert resolve(method, "cv10k", "ca", overrides=changed).run_id not in ids
