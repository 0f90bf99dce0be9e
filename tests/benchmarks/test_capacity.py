"""Counted operations are those of a pencil, estimates say what they follow from, tables add up."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from benchmarks.cost import capacity, operations, study
from benchmarks.cost.facts import DEVICES, TEST_CLIPS
from benchmarks.cost.operations import KNOWN, PROMPT, Dimensions
from distilwhisper_lib.config.settings import resolve
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.losses.target_files import plan

PAPERS = {"recipe": "paper"}
SMALL = KNOWN["openai/whisper-small"]
TINY = Dimensions(32, 4, 4, 2, 2, 64, 64, vocab_size=100, max_source_positions=20)


@pytest.fixture(autouse=True)
def nothing_recorded(tmp_path, monkeypatch):
    """No records and no races but those that a test makes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(capacity, "BENCHMARKS", tmp_path / "races.json")
    monkeypatch.setattr(study, "SIZES", ("cv3k", "cv28k"))


@pytest.fixture
def small(monkeypatch):
    """Models of two layers under the names of the paper's: to count them costs next to nothing."""
    two = dataclasses.replace(TINY, encoder_layers=2, decoder_layers=2)
    for name in ("openai/whisper-small", "openai/whisper-large-v2"):
        monkeypatch.setitem(KNOWN, name, two)
    return two


def by_hand(w: Dimensions, positions: int) -> int:
    """Two operations for each multiplication of a forward pass up to the head."""
    d, heard = w.d_model, w.max_source_positions
    convolutions = 2 * heard * w.num_mel_bins * 3 * d + heard * d * 3 * d
    encoder = heard * (4 * d * d + 2 * d * w.encoder_ffn_dim) + 2 * heard * heard * d
    own = positions * (4 * d * d + 2 * d * w.decoder_ffn_dim) + 2 * positions * positions * d
    cross = 2 * positions * d * d + 2 * heard * d * d + 2 * positions * heard * d
    return 2 * (convolutions + w.encoder_layers * encoder + w.decoder_layers * (own + cross))


@pytest.mark.parametrize(("whisper", "positions"), [(TINY, 7), (SMALL, 48)])
def test_hearing_is_counted_to_the_last_operation(whisper, positions):
    assert operations.hearing_operations(whisper, positions) == by_hand(whisper, positions)


def test_a_training_step_is_counted_to_the_last_operation():
    d, layers, said = TINY.d_model, TINY.encoder_layers, PROMPT + 5
    config = resolve("full", "own", "ca")
    forward = by_hand(TINY, said)
    # Each product of the forward pass takes two in the backward pass; nothing wants the gradient
    # of the features, nor the encoder's of its own positions.
    first = 2 * 2 * TINY.max_source_positions * TINY.num_mel_bins * 3 * d
    head = 3 * 2 * 5 * d * TINY.vocab_size
    assert operations.training_operations(config, TINY, 5) == 3 * forward - first + head
    clsr = operations.training_operations(resolve("clsr", "own", "ca", overrides=PAPERS), TINY, 5)
    expert = 4 * d * TINY.encoder_ffn_dim * (TINY.max_source_positions + said) * layers
    assert clsr > operations.training_operations(config, TINY, 5) - 2 * forward + 2 * expert


def test_layers_that_are_not_built_count_as_if_they_were():
    plain = resolve("clsr", "own", "ca", overrides=PAPERS)
    again = dataclasses.replace(plain, activation_checkpointing=True)
    told = operations.training_operations(again, TINY, 5)
    whole = operations._step(TINY, "ffn", 5, True)  # all four layers
    assert told - operations._loss(False, None, TINY, 5, None) == whole
    # A forward pass once more.
    assert 1.2 < told / operations.training_operations(plain, TINY, 5) < 1.6


def test_low_rank_experts_cost_their_thin_products_and_stages_what_trains_in_them():
    paper, decisive = (
        resolve("js", "own", "ca", overrides={"recipe": recipe, "epochs": 8, "expert_rank": 4})
        for recipe in ("paper", "decisive")
    )
    d, wide, said = TINY.d_model, TINY.encoder_ffn_dim, PROMPT + 5
    tokens = TINY.encoder_layers * TINY.max_source_positions + TINY.decoder_layers * said
    experts, router = operations.stages(decisive, Path())
    head = operations._loss(False, "js", TINY, 5, operations.dimensions_of(decisive.teacher))
    first, second = (operations.stage_operations(s, TINY, 5) - head for s in (experts, router))
    lora = resolve("lora", "own", "ca", overrides={"lora_rank": 4, "lora_alpha": 4})
    plain = operations._loss(False, None, TINY, 5, None)
    gate = 2 * tokens * (d * 64 + 64)  # asked in a warm-up too, though nobody heeds it
    # Alone an expert costs what LoRA does.
    assert first == operations.training_operations(lora, TINY, 5) - plain + gate
    # Then every network speaks twice, backward too but in the first layer, which no gate precedes;
    # thin products take no gradients of their own.
    thin, network = 2 * tokens * 2 * 4 * (d + wide), 2 * tokens * 2 * d * wide
    assert first + network < second < first + 2 * network + 2 * gate - thin
    mean = (8 * first + 2 * second) / 10 + head
    assert operations.training_operations(decisive, TINY, 5) == pytest.approx(mean)
    assert mean < operations.training_operations(paper, TINY, 5)


def test_a_stage_that_does_not_distil_hears_no_teacher():
    settings = {"recipe": "decisive", "distil_stage": "experts", "teacher_targets": "online"}
    config = resolve("js", "own", "ca", overrides=settings | {"epochs": 8})
    assert operations.distilled_share(config) == 0.8
    whole = dataclasses.replace(config, distil_stage="both")
    teacher = operations.hearing_operations(
        operations.dimensions_of(config.teacher), PROMPT + capacity.LABELLED
    )
    saved = capacity._operations(whole) - capacity._operations(config)
    assert saved > 0.2 * teacher


def test_values_are_those_of_the_paper():
    assert operations.trained_values("ffn", SMALL, 64) == 114_521_088
    assert operations.trained_values("lora", SMALL, 64) == 11_796_480
    gates = 24 * (768 * 64 + 64 + 64)
    assert operations.trained_values("low_rank", SMALL, 64) == 11_796_480 + gates
    assert operations.all_values(SMALL) == 241_734_912
    assert operations.dimensions_of("embedded/student").d_model == 128
    assert operations.dimensions_of("somebody/whisper") is None


def test_a_step_of_decoding_reads_weights_once_and_keys_of_each_row():
    one, two = (operations.decoding_bytes(SMALL, rows) for rows in (1, 2))
    assert two - one == 2 * 12 * 2 * 1500 * 768
    # Whisper-small's decoder and head without embeddings of positions, cross keys and values,
    # norms and biases; and an expert of the same size beside each of its networks.
    assert one - (two - one) == 2 * (12 * (6 + 8 + 8) * 768**2 + 51865 * 768)


def test_unmeasured_hours_are_assumed_and_follow_from_peak_and_utilisation(small):
    config = resolve("js", "cv10k", "gl", overrides={"hardware": "a100", "workers": 2})
    found = capacity.estimate(config, "a100")
    assert "30% of a100's 312 TFLOPS (bf16), ASSUMED" in found.source
    half = dataclasses.replace(DEVICES["a100"], utilisation=0.15)
    step = capacity.training_clip(config, "a100").seconds
    assert capacity.training_clip(config, half).seconds == pytest.approx(2 * step)
    assert step == pytest.approx(operations.training_operations(config, small, 45) / (0.3 * 312e12))
    alone = dataclasses.replace(config, workers=0)
    assert capacity.training_clip(alone, "a100").seconds == step + capacity.READ_SECONDS
    heard = capacity.hearing_clip(config, "a100", 45).seconds * 1000
    whole = 10_000 * 10 * step + heard * 10 + capacity.testing(config, "a100").seconds
    assert found.hours * 3600 == pytest.approx(whole)
    values = operations.trained_values("ffn", small, 64)
    assert found.disk_bytes > 4 * values and found.checkpoint_bytes == 6 * 4 * values


def test_what_is_not_known_is_none_and_says_why(small):
    nowhere = resolve("js", "own", "ca")
    assert capacity.estimate(nowhere, "t4").hours is None
    assert "how many clips there are is not known" in capacity.estimate(nowhere, "t4").source
    bf16 = resolve("js", "cv10k", "ca", overrides={"hardware": "a100"})
    found = capacity.estimate(bf16, "t4")
    assert found.hours is None and "t4 has no bf16" in found.source
    other = resolve("clsr", "cv10k", "ca", overrides={"student": "somebody/whisper"})
    assert "dimensions of somebody/whisper not known" in capacity.estimate(other, "h200").source
    assert "nothing measured on cpu" in capacity.estimate(bf16, "cpu").source
    with pytest.raises(UserError, match="unknown device 'tpu': expected one of cpu, t4"):
        capacity.estimate(bf16, "tpu")


RECORDS = Path(__file__).resolve().parents[2] / "results" / "demo" / "runs"


@pytest.fixture
def recorded(tmp_path):
    """Put a committed record of a method here, made on a device."""

    def put(method, device="cpu", seconds=80.0):
        source = RECORDS / f"{resolve(method, 'demo', 'ca').run_id}.json"
        record = json.loads(source.read_text(encoding="utf-8"))
        record["provenance"]["hardware"]["device"] = device
        if record["training"]:
            record["training"]["seconds"] = seconds
        target = tmp_path / "results" / "demo" / "runs" / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(record), encoding="utf-8")
        return record

    return put


def test_records_of_the_device_come_first_and_have_their_validations_in_them(recorded):
    record = recorded("clsr", seconds=123.0)
    config = resolve("clsr", "demo", "ca")
    tests = sum(evaluation["seconds"] for evaluation in record["evaluations"])
    found = capacity.estimate(config, "cpu")
    assert found.hours * 3600 == pytest.approx(123.0 + tests)
    assert re.fullmatch(r"records of 1 run on .* \(clsr\)", found.source)
    assert capacity.estimate(config, "t4").source.count("ASSUMED") > 0  # not of this card
    recorded("clsr", device="Tesla T4", seconds=12.0)
    assert capacity.training(config, "t4").seconds == pytest.approx(12.0)
    half = resolve("clsr", "demo", "ca", overrides={"epochs": 10})
    assert capacity.training(half, "t4").seconds == pytest.approx(24.0)


def test_records_of_another_recipe_are_scaled_by_operations(recorded):
    record = recorded("js", device="NVIDIA H200", seconds=10.0)
    paper = resolve("js", "demo", "ca", overrides={"recipe": "paper"})
    decisive = resolve("js", "demo", "ca", overrides={"recipe": "decisive"})
    ratio = capacity._ratio(decisive, capacity._trained_as(record, decisive))
    assert ratio < 1
    found, clips = capacity.training(decisive, "h200"), record["data"]["train"]["clips"]
    epochs = decisive.epochs + decisive.router_epochs
    once = 10.0 / (record["training"]["epochs"] * clips)
    assert found.seconds == pytest.approx(epochs * clips * once * ratio)
    assert "scaled by operations" in found.source
    assert "(js)" in capacity.training(paper, "h200").source


def test_records_of_other_methods_are_scaled_by_operations(recorded):
    recorded("lora", device="NVIDIA H200", seconds=10.0)
    lora, clsr = (resolve(method, "demo", "ca") for method in ("lora", "clsr"))
    student = operations.dimensions_of("embedded/student")
    ratio = operations.training_operations(clsr, student, 45) / operations.training_operations(
        lora, student, 45
    )
    found = capacity.training(clsr, "h200")
    assert found.seconds == pytest.approx(10.0 * ratio)
    assert "other methods, scaled by operations" in found.source


def test_teacher_targets_cost_what_records_say_else_what_is_counted(small, recorded):
    config = resolve("js", "cv3k", "ca", overrides={"hardware": "t4"})
    found = capacity.estimate_targets(config, "t4")
    clip = operations.hearing_operations(small, PROMPT + 45)
    once = clip / (0.3 * 65e12) + capacity.READ_SECONDS
    assert found.hours * 3600 == pytest.approx(3000 * once)
    assert found.disk_bytes == 3000 * 45 * 2 * small.d_model + 2 * 100 * small.d_model
    few = dataclasses.replace(config, teacher_targets="top_k")
    assert capacity.estimate_targets(few, "t4").disk_bytes == 3000 * 45 * 386
    assert capacity.estimate_targets(resolve("clsr", "cv3k", "ca"), "t4").hours == 0
    record = recorded("js")
    said = record["training"]["teacher_targets"]
    demo = capacity.estimate_targets(resolve("js", "demo", "ca"), "cpu")
    assert (demo.hours * 3600, demo.disk_bytes) == (pytest.approx(said["seconds"]), said["bytes"])


def test_races_of_a_device_beat_assumptions(small, tmp_path):
    races = Path(__file__).resolve().parents[2] / "benchmarks" / "results.json"
    rows = json.loads(races.read_text(encoding="utf-8"))
    for row in rows:
        row["dims"]["d_model"] = row["teacher_dims"]["d_model"] = small.d_model
    (tmp_path / "races.json").write_text(json.dumps(rows), encoding="utf-8")
    (race,) = (row for row in rows if row["race"] == "training step, cached js / lora")
    config = resolve("lora", "cv3k", "ca")
    found = capacity.training_clip(config, "cpu")
    assert found.seconds == pytest.approx(race["medians"]["lora"] / 1000)
    assert found.source.startswith("benchmarks/results.json on")
    assert capacity.estimate(config, "cpu").hours > 0
    assert "ASSUMED" in capacity.training_clip(config, "t4").source


def test_no_shard_of_teacher_targets_is_larger_than_its_bound():
    from distilwhisper_lib.losses.target_files import SHARD_BYTES

    width = 2560
    counts = {f"clip{n}": 1 + (n * 7919) % 448 for n in range(5000)}
    shards: dict[str, int] = {}
    for place, count in zip(plan(counts, width), counts.values(), strict=True):
        assert place.stop - place.start == count and place.start == shards.get(place.shard, 0)
        shards[place.shard] = place.stop
    assert max(shards.values()) * width <= SHARD_BYTES
    # No room is given away: the next clip would not have fitted.
    assert min(list(shards.values())[:-1]) * width > SHARD_BYTES - 448 * width


def test_the_table_adds_up_and_prices_are_the_user_s(small, capsys):
    arguments = ["--device", "t4", "h200", "--languages", "ca", "cs", "--seeds", "2"]
    assert study.main([*arguments, "--price", "t4=1", "h200=2", "--utilisation", "t4=0.6"]) == 0
    text = capsys.readouterr().out
    rows = [[c.strip(" *") for c in line.split("|")[1:-1]] for line in text.splitlines()]
    start = next(i for i, cells in enumerate(rows) if cells[:1] == ["Work"])
    table = [cells for cells in rows[start + 2 :] if len(cells) == 5]
    work, (total, euros, instead) = table[:-4], table[-3:]
    numbers = [[float(c.replace(",", "")) for c in cells[1:4]] for cells in work]
    assert total[0] == "all, 30 trained runs"  # 3 sets, for Czech has no 28k; 5 methods; 2 seeds
    assert numbers[0][0] == 3 and numbers[-2][0] == 30 and numbers[-1][0] == 6
    for place, price in ((1, 1), (2, 2)):
        hours = sum(line[place] for line in numbers)
        assert float(total[1 + place].replace(",", "")) == pytest.approx(hours, rel=0.02)
        assert float(euros[1 + place].replace(",", "")) == pytest.approx(hours * price, rel=0.03)
    # A sixth of the disk; the second stage is on top of the epochs that the paper has.
    assert instead[0].endswith("recipe decisive") and int(instead[1]) == 6
    assert 0.5 < float(instead[2]) / numbers[5][1] < 1.5
    assert "60% of t4's 65 TFLOPS (fp16), ASSUMED" in text and "1.00 euros an hour" in text
    assert "2 languages of cv3k, 1 languages of cv28k" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--price", "t4=free"], "'t4=free' is no DEVICE=NUMBER above 0"),
        (["--price", "t4=nan"], "'t4=nan' is no DEVICE=NUMBER above 0"),
        (["--utilisation", "t4=30"], "--utilisation t4 is above 1"),
        (["--languages", "klingon"], "klingon"),
        (["--languages", "de"], "the paper's presets have no 'de'"),
        (["--seeds", "0"], "--seeds 0 is too few"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, message):
    assert study.main(arguments) == 2
    said = capsys.readouterr()
    assert message in said.err and said.out == "" and said.err.count("\n") == 1


def test_every_language_of_the_paper_has_its_test_set():
    from benchmarks.cost.facts import RELEASE_BYTES
    from distilwhisper_lib.config.presets import PRESETS

    wanted = {code for size in ("cv3k", "cv10k", "cv28k") for code in PRESETS[size].languages}
    assert wanted == set(TEST_CLIPS) == set(RELEASE_BYTES)
