"""Runs as files for others: plain Whisper, expert or adapter, with a card; and the hub."""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import jinja2
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from peft import PeftModel
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from benchmarks.study.ctranslate import hear
from distilwhisper_lib.config.settings import locate
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.evaluation.decoding import transcribe
from distilwhisper_lib.evaluation.record import evaluate, record_run
from distilwhisper_lib.evaluation.run import load_run
from distilwhisper_lib.export import bundle as export
from distilwhisper_lib.export import publish
from distilwhisper_lib.export.bundle import export_run, plain_whisper, read_manifest, to_ctranslate2
from distilwhisper_lib.export.card import KINDS, model_card
from distilwhisper_lib.export.publish import push_to_hub
from distilwhisper_lib.model.tensors import read_metadata
from distilwhisper_lib.results.records import read_record, write_record
from distilwhisper_lib.speech.features import extract_features, fits_window
from distilwhisper_lib.training.loop import train
from distilwhisper_lib.transcription.transcriber import Transcriber

# What a stock Whisper folder holds, for transformers and for the ctranslate2 converter.
WHISPER_FILES = {
    "config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json",
    "processor_config.json", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip


@pytest.fixture
def finished(study_of):
    """Factory of finished runs of tiny models: a step or two of training and a record."""
    configure = study_of(4, max_steps=2, learning_rate=0.05)

    def make(method, **overrides):
        config = configure(method, **overrides)
        data = load_data(config)
        trained = train(config, data)
        record_run(trained, data, evaluate(trained, data))
        return SimpleNamespace(run=load_run(config.output_dir), clips=data.in_domain)

    return make


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return {
        "input_features": torch.randn(2, 80, 300),
        "decoder_input_ids": torch.randint(0, 350, (2, 7)),
    }


def logits(model, batch, **options):
    with torch.no_grad():
        return model(**batch, **options).logits


# Runs read back --------------------------------------------------------------------------------


def test_a_finished_run_transcribes_as_it_did(finished):
    for method in ("lora", "clsr", "full"):
        run, table = vars(finished(method)).values()
        heard = transcribe(run.model, run.processor, table, progress=False,
                           max_new_tokens=run.config.max_new_tokens, batch_size=4)  # fmt: skip
        lines = (run.folder / "in_domain-test.jsonl").read_text(encoding="utf-8").splitlines()
        recorded = [json.loads(line)["hypothesis"] for line in lines]
        assert recorded == [r["hypothesis"] for r in heard]
        spoken = Transcriber.load(run.folder).transcribe(table.iloc[0]["audio"], "ca")
        assert spoken.error is None


@pytest.mark.parametrize("method", ["lora", "clsr", "full"])
def test_what_was_trained_in_windows_that_fit_becomes_plain_whisper(finished, tmp_path, method):
    run, clips = vars(finished(method, window="fit", forgetting="cs")).values()
    folder = export_run(run, tmp_path / "plain", compare=clips)
    processor = WhisperProcessor.from_pretrained(folder)
    assert not fits_window(processor.feature_extractor)
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    features = extract_features(processor.feature_extractor, [np.zeros(16_000, np.float32)])
    assert model.generate(input_features=features, language="ca", max_new_tokens=3).shape[0] == 1
    assert model.config.learned_timestamps == 0  # else Transcriber took it for stock Whisper
    assert "plain Whisper hears that silence" in (folder / "README.md").read_text()
    if method != "full":
        trained = export_run(run, tmp_path / "trained", form="trained")
        assert "without the silence that fills" in (trained / "README.md").read_text()


def test_what_is_no_finished_run_is_named(finished, tmp_path):
    with pytest.raises(UserError, match="holds no finished run"):
        load_run(tmp_path)
    run = finished("clsr").run
    with torch.no_grad():
        run.model.model.encoder.layers[0].clsr["ca"].fc1.weight.add_(1)
    run.model.save_experts("ca", run.folder)
    with pytest.raises(UserError, match="are not those that the run noted"):
        load_run(run.folder)
    with pytest.raises(UserError, match="'teacher' is not the model that the run started from"):
        load_run(run.folder, base="teacher")
    shutil.rmtree("student")
    with pytest.raises(UserError, match="no config.json in .*repository 'student'.*with base"):
        load_run(run.folder)
    record = read_record(run.folder / "record.json")
    record["config"]["method"] = "zero_shot"
    shutil.move(write_record(record, tmp_path), run.folder / "record.json")
    with pytest.raises(UserError, match="trained nothing"):
        load_run(run.folder)


# Plain Whisper ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "LoRA on the feed-forward networks"),
        ({"lora_layers": "all", "distil": "js"}, "LoRA on all linear layers, distilled with the J"),
        ({"adapter": "dora"}, "DoRA on the feed-forward networks"),
        ({"adapter": "token"}, "the embedding of the language's token"),
    ],
)
def test_the_merged_adapter_computes_what_the_adapter_does(
    finished, batch, tmp_path, token, settings, words
):
    run = finished("lora", **settings).run
    batch["decoder_input_ids"][:, 1] = token("<|ca|>")
    before = logits(run.model, batch)
    folder = export_run(run, tmp_path / "merged")
    plain = WhisperForConditionalGeneration.from_pretrained(folder)
    assert type(plain) is WhisperForConditionalGeneration
    assert torch.allclose(logits(plain, batch), before, atol=1e-4)
    assert torch.equal(logits(run.model, batch), before)  # nothing was merged in place
    stock = WhisperForConditionalGeneration.from_pretrained("student", key_mapping={})
    assert not torch.allclose(logits(stock, batch), before, atol=1e-2)
    assert words in (folder / "README.md").read_text()


@pytest.mark.parametrize("ranks", [None, {"ca": 4}])
def test_a_folded_expert_is_the_model_with_open_gates(tiny_model, batch, ranks):
    model = tiny_model("ca", "cs", ranks=ranks)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    route = {"expert_ids": torch.zeros(2, dtype=torch.long)}
    plain = plain_whisper(model, "Catalan")
    opened = logits(model, batch, **route, gate_mode="open")
    assert torch.allclose(logits(plain, batch), opened, atol=1e-4)
    assert not torch.allclose(opened, logits(model, batch, **route), atol=1e-2)
    shared = logits(plain_whisper(model), batch)
    assert torch.allclose(shared, logits(model, batch, **route, gate_mode="closed"), atol=1e-4)
    assert model.languages == ["ca", "cs"] and plain.config.model_type == "whisper"
    assert "gate_dim" not in plain.config.to_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(UserError, match="no expert for 'gl'"):
        plain_whisper(model, "gl")


def test_a_whisper_folder_is_stocks_own(finished, tmp_path):
    run, table = vars(finished("full")).values()
    folder = export_run(run, tmp_path / "full", "trained")  # of a full model there is one form
    assert {p.name for p in folder.iterdir()} == WHISPER_FILES | {"README.md", "export.json"}
    assert json.loads((folder / "config.json").read_text())["architectures"] == [
        "WhisperForConditionalGeneration"
    ]
    plain = WhisperForConditionalGeneration.from_pretrained(folder)
    processor = WhisperProcessor.from_pretrained(folder)
    options = {"max_new_tokens": 6, "progress": False}
    ours, theirs = (transcribe(m, processor, table, **options) for m in (run.model, plain))
    assert [r["hypothesis"] for r in ours] == [r["hypothesis"] for r in theirs]
    no_path = b"".join(p.read_bytes() for p in folder.iterdir())
    assert str(tmp_path).encode() not in no_path


def test_what_was_trained_goes_without_paths_of_this_machine(finished, batch, tmp_path):
    run, clips = vars(finished("clsr")).values()
    folder = export_run(run, tmp_path / "expert", "trained")
    assert read_manifest(folder)["what"] == "expert"
    assert read_metadata(folder / "expert.catalan.safetensors")["base"] == "student"
    listener = Transcriber.load("student", experts=folder)
    clip = clips.iloc[0]["audio"]
    assert (
        listener.transcribe(clip, "ca", max_new_tokens=6).text
        == Transcriber(run.model, run.processor).transcribe(clip, "ca", max_new_tokens=6).text
    )
    lora = finished("lora").run
    config = lora.folder / "adapter" / "adapter_config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps(fields | {"base_model_name_or_path": str(tmp_path / "student")}))
    adapter = export_run(lora, tmp_path / "adapter", "trained")
    assert str(tmp_path) not in (adapter / "adapter_config.json").read_text()
    stock = WhisperForConditionalGeneration.from_pretrained("student", key_mapping={})
    loaded = PeftModel.from_pretrained(stock, adapter).eval()
    assert torch.allclose(logits(loaded, batch), logits(lora.model, batch), atol=1e-4)


LOW_RANK = {"recipe": "decisive", "expert_rank": 4, "router_epochs": 1}


def test_a_low_rank_expert_goes_in_the_dtype_asked_for(finished, batch, tmp_path, capsys):
    run, clips = vars(finished("clsr", **LOW_RANK)).values()
    assert run.model.rank_of("ca") == 4
    route = {"expert_ids": torch.zeros(2, dtype=torch.long)}
    clip, sizes, heard = (
        clips.iloc[0]["audio"],
        {},
        logits(run.model, batch, **route, gate_mode="open"),
    )
    shared = logits(run.model, batch, **route, gate_mode="closed")
    assert not torch.allclose(heard, shared, atol=0.1)
    for dtype in ("float32", "float16", "int8"):
        folder = tmp_path / dtype
        if dtype == "float16":
            call = [str(run.folder), "--to", str(folder), "--form", "trained", "--dtype", dtype]
            assert export.main([*call, "--data-dir", str(tmp_path)]) == 0
        else:
            export_run(run, folder, "trained", dtype=dtype, license="mit")
        path = folder / "expert.catalan.safetensors"
        sizes[dtype], about = path.stat().st_size, read_metadata(path)
        assert about["version"] == "2" and about["base"] == "student"
        listener = Transcriber.load("student", experts=folder)
        assert listener.transcribe(clip, "ca", max_new_tokens=6).error is None
        assert listener.model.rank_of("ca") == 4
        mine = logits(listener.model, batch, **route, gate_mode="open")
        assert torch.allclose(
            mine, heard, atol={"float32": 1e-6, "float16": 1e-3, "int8": 0.02}[dtype]
        )
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert "low-rank changes (rank 4)" in card and "recipe 'decisive'" in card
        assert f"{sizes[dtype] / 1e6:.1f} MB in {dtype}" in card
        assert ("rounded to" in card) == (dtype != "float32")
    assert sizes["int8"] < sizes["float16"] < sizes["float32"]
    options = {"dry_run": True, "allow_demo": True}
    sent = push_to_hub(tmp_path / "int8", "you/whisper-ca", **options)
    assert sent.files["expert.catalan.safetensors"] == sizes["int8"]
    with pytest.raises(UserError, match="unknown dtype 'bf16': expected one of float32, float1"):
        export_run(run, tmp_path / "new", "trained", dtype="bf16")
    with pytest.raises(
        UserError, match="dtype 'int8' is for expert files, and this export is none"
    ):
        export_run(run, tmp_path / "new", dtype="int8")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("mode", ["soft", "open"])
def test_gates_that_are_not_hard_go_along_and_are_told(finished, tmp_path, mode):
    run, clips = vars(finished("clsr", gate_mode=mode, **LOW_RANK)).values()
    folder = export_run(run, tmp_path / "expert", "trained", dtype="int8")
    assert read_metadata(folder / "expert.catalan.safetensors")["gate_mode"] == mode
    listener = Transcriber.load("student", experts=folder)
    listener.transcribe(clips.iloc[0]["audio"], "ca", max_new_tokens=6)
    assert listener.model.config.gate_mode == mode
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert {"soft": "goes through both", "open": "gates are always open"}[mode] in card
    folded = (export_run(run, tmp_path / "folded") / "README.md").read_text(encoding="utf-8")
    assert "a low-rank change, rank 4, added to their weights" in folded
    assert ("another model than the expert with soft gates" in folded) == (mode == "soft")
    assert ("Not measured" in folded) == (mode == "soft")  # with open gates it is the run's model


def test_an_export_is_whole_or_not_there(finished, tmp_path, monkeypatch):
    run = finished("clsr").run
    with pytest.raises(UserError, match="form 'onnx' is unknown"):
        export_run(run, tmp_path / "new", "onnx")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="taken is there already"):
        export_run(run, tmp_path / "taken")
    monkeypatch.setattr(export, "model_card", lambda *_, **__: 1 / 0)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError):
        export_run(run, tmp_path / "new")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(export, "write_whisper", Mock(side_effect=full))
    with pytest.raises(UserError, match="new cannot be written, the disk is full"):
        export_run(run, tmp_path / "new")
    assert sorted(tmp_path.iterdir()) == before


def test_the_command_compares_both_forms_and_the_card_says_so(finished, tmp_path, capsys):
    run = finished("clsr").run
    call = [str(run.folder), "--to", str(tmp_path / "folded"), "--license", "cc0-1.0", "--compare"]
    call += ["--data-dir", str(tmp_path)]  # of which the record has the last part only
    assert export.main(call) == 0
    assert "same text" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "folded")
    plain = manifest["comparison"]["plain Whisper"]
    assert manifest["what"] == "folded" and plain["clips"] == 4 and 0 <= plain["same text"] <= 1
    trained = manifest["comparison"]["as trained"]["WER (marks)"]
    recorded = run.record["evaluations"][0]["scores"]["marks"]["wer"]["wer"]
    assert trained == pytest.approx(100 * recorded, abs=0.01)
    metadata = yaml.safe_load((tmp_path / "folded" / "README.md").read_text().split("---")[1])
    values = {m["value"] for m in metadata["model-index"][0]["results"][0]["metrics"]}
    assert plain["WER (marks)"] in values and metadata["license"] == "cc0-1.0"
    assert export.main([str(tmp_path), "--to", str(tmp_path / "x")]) == 2
    assert "holds no finished run" in capsys.readouterr().err


# Cards -----------------------------------------------------------------------------------------


@pytest.fixture
def record():
    path = Path(__file__).parents[2] / "results/demo/runs"
    return read_record(next(path.glob("js-ca-*.json")))


def metadata_of(card):
    return yaml.safe_load(card.split("---")[1])


def test_a_card_has_the_hubs_metadata_and_the_records_numbers(record):
    record |= {"demo": False}
    record["models"]["student"]["name"] = "openai/whisper-small"
    record["models"]["teacher"]["name"] = "openai/whisper-large-v2"
    record["data"]["out_of_domain"]["corpus"] = "fleurs"
    record["evaluations"][1]["corpus"] = "fleurs"
    card = model_card(record, "expert")
    found = metadata_of(card)
    assert found["language"] == "ca" and found["license"] == "apache-2.0"
    assert found["base_model"] == "openai/whisper-small"
    assert found["base_model_relation"] == "adapter"
    assert found["pipeline_tag"] == "automatic-speech-recognition"
    assert found["datasets"] == ["google/fleurs"] and found["metrics"] == ["wer", "cer"]
    wer = round(100 * record["evaluations"][0]["scores"]["marks"]["wer"]["wer"], 2)
    assert found["model-index"][0]["results"][0]["metrics"][0]["value"] == wer
    assert f"| {wer:.2f} |" in card
    for text in ('base = "openai/whisper-small"\n', "Transcriber.load(base, ",
                 "teacher openai/whisper-large-v2", "2311.01070", "without timestamps",
                 record["provenance"]["commit"][:12], record["provenance"]["command"]):  # fmt: skip
        assert text in card
    assert "demonstration" not in card
    assert "feed-forward network beside each of its own" in card and "as its gate decides" in card
    told = model_card(record | {"config": record["config"] | {"timestamps": 0.2}}, "expert")
    assert "with timestamps: 20 % of" in told and "without timestamps" not in told
    assert "recipe 'paper'" in card and "rounded to" not in card
    assert f"{record['training']['artifact_bytes'] / 1e6:.1f} MB in float32" in card
    assert "recipe" not in model_card(
        record | {"config": record["config"] | {"method": "lora"}}, "adapter"
    )


@pytest.mark.parametrize("what", ["expert", "adapter"])
def test_a_card_says_where_a_base_models_folder_is_to_be_named(record, what):
    """A relative path looks as a name on the hub does, and means nothing on another machine."""
    record |= {"demo": False}
    record["models"]["student"] |= {"name": "models/whisper-base", "sha256": "0123abcd"}
    card = model_card(record, what, base_folder=True)
    assert 'base = "path/to/models/whisper-base"  # the folder of the base model on your' in card
    assert "calls `models/whisper-base`; its weights have the SHA-256 `0123abcd`." in card
    assert "base_model" not in metadata_of(card)
    assert "path/to" not in model_card(record, what)


def test_a_folded_card_has_no_scores_that_it_did_not_earn(record):
    card = model_card(record, "folded")
    assert "model-index" not in metadata_of(card) and "Not measured" in card
    assert "demonstration" in card and "base_model" not in metadata_of(card)


@pytest.mark.parametrize("what", ["merged", "adapter", "full"])
def test_a_card_tells_what_became_of_other_languages(record, what):
    heard = {entry["language"]: entry for entry in record["forgetting"] if entry["scores"]}
    assert set(heard) == {"cs", "en"}
    section = model_card(record, what).split("## Other languages")[1].split("## Training")[0]
    rates = heard["cs"]["scores"]["whisper"]
    wer, cer = (f"{100 * rates[metric][metric]:.2f}" for metric in ("wer", "cer"))
    assert (
        f"| Czech | folder/speech_ood | 50 | Whisper's own normaliser | {wer} | {cer} |" in section
    )
    assert section.count("| English |") == 2 and "Catalan" not in section
    silent = {name: value for name, value in record.items() if name != "forgetting"}
    assert "## Other languages\n\nNot measured." in model_card(silent, what)


@pytest.mark.parametrize("what", ["expert", "folded"])
def test_a_card_says_nothing_of_languages_that_the_record_did_not_hear_with_it(record, what):
    assert "## Other languages" not in model_card(record, what)


@pytest.mark.parametrize("what", KINDS)
def test_the_cards_template_asks_for_nothing_unknown(record, what, monkeypatch):
    """By itself jinja writes nothing in the place of a name that it does not know."""
    strict = functools.partial(jinja2.Template, undefined=jinja2.StrictUndefined)
    card = model_card(record, what)
    monkeypatch.setattr(jinja2, "Template", strict)
    assert model_card(record, what) == card and "\n\n\n" not in card


def test_a_card_of_own_data_invents_nothing_and_breaks_on_no_name(record):
    record["models"]["student"]["name"] = "my-whisper"
    record["data"]["train"] |= {"corpus": "folder/a|b <script> {{ 7 * 7 }}", "about": {}}
    card = model_card(record, "merged")
    found = metadata_of(card)
    assert "license" not in found and "base_model" not in found and "datasets" not in found
    assert "folder/a\\|b &lt;script&gt; {{ 7 * 7 }}" in card and "not given" in card
    assert metadata_of(model_card(record, "merged", license="mit"))["license"] == "mit"
    with pytest.raises(UserError, match="'onnx' has no card"):
        model_card(record, "onnx")


# The hub ---------------------------------------------------------------------------------------


class Hub:
    """A stand-in for HfApi that keeps what it was told."""

    def __init__(self, error=None):
        self.calls, self.error = [], error

    def create_repo(self, repo_id, **options):
        if self.error:
            raise self.error
        self.calls.append(("create", repo_id, options))
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, **options):
        self.calls.append(("upload", options))


@pytest.fixture
def exported(finished, tmp_path):
    """An export that may be published: its record says that it is no demo."""

    def make(demo=False, **options):
        run = finished("clsr").run
        run.record["demo"] = demo
        return export_run(run, tmp_path / "export", "trained", **{"license": "mit"} | options)

    return make


def test_only_the_exports_own_files_go_and_only_when_asked(exported, monkeypatch):
    folder, hub = exported(), Hub()
    (folder / "diary.txt").write_text("private")
    monkeypatch.setattr(publish, "HfApi", None)  # would fail if called
    dry = push_to_hub(folder, "you/whisper-ca", dry_run=True)
    assert set(dry.files) == {"README.md", "expert.catalan.safetensors", "export.json"}
    assert "would go to the private repository you/whisper-ca" in str(dry)
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nMore.\n")
    done = push_to_hub(folder, "you/whisper-ca", api=hub)
    assert done.url == "https://hub.example/you/whisper-ca"
    (_, name, created), (_, sent) = hub.calls
    assert name == sent["repo_id"] == "you/whisper-ca"
    assert created["private"] is True and created["exist_ok"] is True
    assert set(sent["allow_patterns"]) == set(dry.files) and sent["folder_path"] == folder
    push_to_hub(folder, "you/whisper-ca", api=hub, private=False)
    assert hub.calls[-2][2]["private"] is False


def test_what_must_not_be_published_is_refused_before_anything_is_sent(exported, tmp_path):
    folder, hub = exported(), Hub()
    with pytest.raises(UserError, match="repository 'whisper-ca': expected owner/name"):
        push_to_hub(folder, "whisper-ca", api=hub)
    with pytest.raises(UserError, match="is no export"):
        push_to_hub(tmp_path, "you/x", api=hub)
    manifest = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps(manifest | {"demo": True}))
    with pytest.raises(UserError, match="weights of the embedded demo"):
        push_to_hub(folder, "you/x", api=hub)
    assert push_to_hub(folder, "you/x", dry_run=True, allow_demo=True).url is None
    (folder / "export.json").write_text(json.dumps(manifest | {"schema": 99}))
    with pytest.raises(UserError, match="schema 99"):
        push_to_hub(folder, "you/x", api=hub)
    (folder / "export.json").write_text(json.dumps(manifest))
    card = folder / "README.md"
    card.write_text(card.read_text().replace("license: mit\n", ""))
    with pytest.raises(UserError, match="names no licence"):
        push_to_hub(folder, "you/x", api=hub)
    with (folder / "expert.catalan.safetensors").open("ab") as file:
        file.write(b"!")
    with pytest.raises(UserError, match="not as it was exported"):
        push_to_hub(folder, "you/x", api=hub)
    assert hub.calls == []


def test_the_hubs_refusals_become_sentences(exported):
    folder = exported()
    answer = SimpleNamespace(headers={}, request=None, status_code=403)
    for error, message in (
        (LocalTokenNotFoundError("no token"), "hf auth login"),
        (OSError("Name or service not known"), "hub did not take 'you/x' .OSError: Name or serv"),
        (HfHubHTTPError("403 Forbidden\nmore", response=answer), "HfHubHTTPError: 403 Forbidden"),
    ):
        with pytest.raises(UserError, match=message):
            push_to_hub(folder, "you/x", api=Hub(error))


def test_the_command_shows_what_would_go(exported, capsys):
    folder = exported(demo=True)
    assert publish.main([str(folder), "you/x", "--dry-run"]) == 2
    assert "--allow-demo" in capsys.readouterr().err
    assert publish.main([str(folder), "you/x", "--dry-run", "--allow-demo"]) == 0
    assert "expert.catalan.safetensors" in capsys.readouterr().out


# ctranslate2 -----------------------------------------------------------------------------------


def test_without_ctranslate2_the_way_to_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "ctranslate2.converters", None)
    with pytest.raises(UserError, match="ctranslate2 is not installed: pip install"):
        to_ctranslate2(tmp_path, tmp_path / "out")


def test_ctranslate2_hears_what_plain_whisper_hears(tmp_path, processor):
    """The demo's Czech expert folded in, on its own test clips, greedily, in float32."""
    pytest.importorskip(
        "ctranslate2", reason="optional: pip install 'distilwhisper-lib[faster-whisper]'"
    )
    from distilwhisper_lib.data.corpora import load_corpus
    from distilwhisper_lib.model.loading import load_model

    model, _ = load_model("embedded/student")
    model.load_experts("cs", locate("embedded/experts"))
    plain = plain_whisper(model, "cs")
    (tmp_path / "plain").mkdir()
    export.write_whisper(plain, processor, tmp_path / "plain")
    folder = to_ctranslate2(tmp_path / "plain", tmp_path / "converted")
    assert {"tokenizer.json", "preprocessor_config.json"} <= {p.name for p in folder.iterdir()}
    with pytest.raises(UserError, match="converted is there already"):
        to_ctranslate2(tmp_path / "plain", folder)
    table = load_corpus("folder/speech", "cs", "test", "embedded").head(20)
    theirs = hear(folder, processor, table, max_new_tokens=60)
    ours = transcribe(plain, processor, table, max_new_tokens=60, progress=False)
    assert theirs == [row["hypothesis"] for row in ours]
