"""The authors' checkpoints: their base, their expert files, in a folder or a hub repository."""

from __future__ import annotations

import huggingface_hub
import pytest
import soundfile
import torch
from make_releases import cached_snapshot, theirs, write_release
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSpeechSeq2Seq,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

from distilwhisper_lib import DistilWhisperForConditionalGeneration, UserError
from distilwhisper_lib.io.files import sha256_file
from distilwhisper_lib.model import experts
from distilwhisper_lib.model.authors import our_name, their_name
from distilwhisper_lib.model.experts import convert_expert
from distilwhisper_lib.model.hub import Source

REPOSITORY = "naver/stand-in"
COMMITS = {"main": "a" * 40, "v1": "b" * 40}


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model, before):
    after = model.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in before)


@pytest.fixture
def release(tiny_model, tmp_path):
    """(model with experts for ca and th, its release: base without experts, two expert files)."""
    model = tiny_model("ca", "th", gate_dropout=0.0)
    folder = write_release(model, tmp_path / "release", experts=False)
    model.save_experts("ca", folder, layout="authors")
    model.save_experts("th", folder, layout="authors")
    return model, folder


@pytest.fixture
def features():
    return torch.randn(3, 80, 300, generator=torch.Generator().manual_seed(1))


def test_names_go_both_ways(tiny_model):
    names = list(tiny_model("ca", "th").state_dict())
    assert "model.encoder.layers.1.ffn_clsr.gate_in.catalan.bias" in map(their_name, names)
    for name in names:
        assert our_name(their_name(name))[0] == name
    assert our_name("model.decoder.layers.10.ffn_clsr.proj.ca.fc1.bias") == (
        "model.decoder.layers.10.clsr.ca.fc1.bias",
        "ca",
    )
    with pytest.raises(UserError, match="'klingon'"):
        our_name("model.decoder.layers.0.ffn_clsr.proj.klingon.fc1.bias")


@torch.no_grad()
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_their_base_loads_and_is_saved_as_stock_whisper(tiny_model, tmp_path, features, form):
    original = tiny_model()
    folder = write_release(original, tmp_path / "base", form)
    prompt = torch.tensor([[original.config.decoder_start_token_id, 5, 6, 7]] * 3)
    expected = original(features, prompt).logits
    model = DistilWhisperForConditionalGeneration.from_pretrained(folder)
    assert model.languages == []
    assert model.config.gate_dim == 8  # their clsr_gate_dim
    assert not model.training
    assert torch.equal(model(features, prompt).logits, expected)
    auto = AutoModelForSpeechSeq2Seq.from_pretrained(folder)
    assert type(auto) is DistilWhisperForConditionalGeneration
    assert auto.config.gate_dim == 8
    assert torch.equal(auto(features, prompt).logits, expected)
    model.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert not [name for name in saved if "clsr" in name]
    assert "clsr" not in (tmp_path / "saved" / "config.json").read_text()
    stock = WhisperForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert torch.equal(stock(features, decoder_input_ids=prompt).logits, expected)
    again = DistilWhisperForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(features, prompt).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("langs", [("catalan", "thai"), ()])
def test_experts_inside_their_base_are_resident(tiny_model, tmp_path, features, langs):
    """Whatever clsr_langs says: the public code forgets to update it."""
    original = tiny_model("ca", "th")
    folder = write_release(original, tmp_path / "base", langs=langs)
    model = DistilWhisperForConditionalGeneration.from_pretrained(folder)
    assert sorted(model.languages) == ["ca", "th"]
    arguments = dict(language=["th", "ca", "en"], task="transcribe", max_new_tokens=8)
    expected = original.generate(features, **arguments)
    assert torch.equal(model.generate(features, **arguments), expected)
    model.save_pretrained(tmp_path / "saved")
    again = DistilWhisperForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.generate(features, **arguments), expected)


def test_settings_can_be_given_when_their_base_is_loaded(release):
    _, folder = release
    model = DistilWhisperForConditionalGeneration.from_pretrained(
        str(folder), skip=0.5, dropout=0.25, dtype=torch.bfloat16, attn_implementation="eager"
    )
    assert (model.config.skip, model.config.dropout) == (0.5, 0.25)
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    model, info = DistilWhisperForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert model.name_or_path == str(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("model.encoder.layers.1.ffn_clsr.proj.shared.fc1.bias"), "is missing"),
        (lambda s: s.update({"model.encoder.layers.1.odd": torch.ones(1)}), "odd is not expected"),
        (lambda s: s.update({"model.encoder.conv1.bias": torch.ones(3)}), r"shape \(3,\), not"),
        (lambda s: s.update({"model.encoder.layers.1.fc1.bias": torch.ones(64)}), "twice"),
    ],
)
def test_a_base_that_does_not_fit_its_config_is_refused(release, spoil, message):
    _, folder = release
    state = load_file(folder / "model.safetensors")
    spoil(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=message):
        DistilWhisperForConditionalGeneration.from_pretrained(folder)


def test_an_unknown_language_token_is_a_clear_error(tiny_model, tmp_path):
    original = tiny_model("ca")
    for name, tokens, message in (
        ("none", None, "has no lang_to_id"),
        ("others", {"<|en|>": 354}, "no token for the language 'ca'"),
    ):
        folder = write_release(original, tmp_path / name, experts=False, lang_to_id=tokens)
        original.save_experts("ca", folder, layout="authors")
        model = DistilWhisperForConditionalGeneration.from_pretrained(folder)
        before = snapshot(model)
        with pytest.raises(UserError, match=message):
            model.load_experts("catalan")
        assert same(model, before)
        inside = write_release(original, tmp_path / f"{name}-inside", lang_to_id=tokens)
        with pytest.raises(UserError, match=message):
            DistilWhisperForConditionalGeneration.from_pretrained(inside)


@pytest.mark.parametrize("language", ["catalan", "Catalan", "CA", "ca", " ca ", "Valencian"])
@pytest.mark.parametrize("name", ["expert.catalan.bin", "ca-experts.bin"])
def test_their_expert_files_are_found_under_both_names(release, language, name):
    original, folder = release
    (folder / "expert.catalan.bin").rename(folder / name)
    model = DistilWhisperForConditionalGeneration.from_pretrained(folder)
    model.load_experts(language)
    original.remove_expert("th")
    assert same(model, snapshot(original))
    assert not model.get_submodule("model.encoder.layers.0.clsr.ca").training


def test_our_safetensors_come_first_then_their_newer_name(release):
    original, folder = release
    with torch.no_grad():
        marked = original.model.encoder.layers[0].clsr["ca"].fc1.bias
        (folder / "expert.catalan.bin").rename(folder / "ca-experts.bin")
        marked.fill_(1)
        original.save_experts("ca", folder, layout="authors")
        marked.fill_(2)
        path = original.save_experts("ca", folder)
    model = DistilWhisperForConditionalGeneration.from_pretrained(folder)
    found = []
    for file in (path, folder / "expert.catalan.bin", None):
        model.load_experts("ca")
        found.append(model.model.encoder.layers[0].clsr["ca"].fc1.bias[0].item())
        if file:
            file.unlink()
    assert found[:2] == [2, 1]
    assert found[2] not in (1, 2)


def test_the_authors_layout_is_written_as_it_is_read(release, tmp_path):
    original, folder = release
    loaded = torch.load(folder / "expert.catalan.bin", weights_only=True)
    assert type(loaded) is dict
    expected = {k: v for k, v in theirs(original).items() if ".catalan." in k}
    assert loaded.keys() == expected.keys()
    assert len(loaded) == 4 * 7
    assert all(torch.equal(loaded[k], expected[k]) for k in expected)
    assert all(type(v) is torch.Tensor and v.dtype == torch.float32 for v in loaded.values())
    assert sum(v.untyped_storage().nbytes() for v in loaded.values()) == sum(
        v.nbytes for v in expected.values()
    )
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors",
        "expert.catalan.bin", "expert.thai.bin",
    }  # fmt: skip
    with pytest.raises(UserError, match="layout 'pickle' is unknown: expected one of kit, authors"):
        original.save_experts("ca", tmp_path / "new", layout="pickle")
    assert not (tmp_path / "new").exists()


def test_a_bin_is_converted_once_on_request(release):
    original, folder = release
    source, target = folder / "expert.catalan.bin", folder / "expert.catalan.safetensors"
    model = DistilWhisperForConditionalGeneration.from_pretrained(folder)
    model.load_experts("ca")
    assert not target.exists()
    model.load_experts("ca", convert=True)
    with safe_open(target, "pt") as file:
        metadata = file.metadata()
    assert metadata["source"] == source.name
    assert metadata["source_sha256"] == sha256_file(source)
    assert metadata["language"] == "ca"
    written = target.stat().st_mtime_ns
    assert convert_expert(source, "Catalan") == target
    model.load_experts("ca", source, convert=True)
    assert target.stat().st_mtime_ns == written
    source.unlink()
    other = DistilWhisperForConditionalGeneration.from_pretrained(folder)
    other.load_experts("catalan", convert=True)
    original.remove_expert("th")
    assert same(other, snapshot(original))


def test_a_conversion_of_an_earlier_bin_is_not_loaded(release, tiny_model, tmp_path):
    """The publisher mends a file, one downloads it anew, and the old conversion lies beside it."""
    original, folder = release
    source, target = folder / "expert.catalan.bin", folder / "expert.catalan.safetensors"
    convert_expert(source, "ca")
    mended = tiny_model("ca", "th", seed=5)
    mended.save_experts("ca", folder, layout="authors")
    model = DistilWhisperForConditionalGeneration.from_pretrained(folder)
    before = snapshot(model)
    for place in (folder, target):
        with pytest.raises(UserError, match="made of another expert.catalan.bin") as error:
            model.load_experts("ca", place)
        assert str(target) in str(error.value) and "convert=True" in str(error.value)
        assert same(model, before)
    name = "model.encoder.layers.0.clsr.ca.fc1.weight"
    model.load_experts("ca", convert=True)
    assert torch.equal(model.get_parameter(name), mended.get_parameter(name))
    with safe_open(target, "pt") as file:
        assert file.metadata()["source_sha256"] == sha256_file(source)
    model.load_experts("ca")  # the two agree again
    original.save_experts("ca", folder, layout="authors")
    source.rename(tmp_path / "away.bin")
    model.load_experts("ca")
    assert torch.equal(model.get_parameter(name), mended.get_parameter(name))


def test_a_damaged_bin_leaves_its_earlier_conversion(release):
    _, folder = release
    target = convert_expert(folder / "expert.catalan.bin", "ca")
    content = target.read_bytes()
    (folder / "expert.catalan.bin").write_bytes(b"cut")
    model = DistilWhisperForConditionalGeneration.from_pretrained(folder)
    with pytest.raises(UserError, match="truncated or no torch file"):
        model.load_experts("ca", convert=True)
    assert target.read_bytes() == content
    assert model.languages == []


def test_conversion_never_replaces_another_expert(release):
    original, folder = release
    trained = original.save_experts("ca", folder, run="mine").read_bytes()
    model = DistilWhisperForConditionalGeneration.from_pretrained(folder)
    before = snapshot(model)
    with pytest.raises(UserError, match="is there already and is not made of expert.catalan.bin"):
        model.load_experts("ca", folder / "expert.catalan.bin", convert=True)
    assert same(model, before)
    assert (folder / "expert.catalan.safetensors").read_bytes() == trained
    (folder / "expert.catalan.bin").rename(folder / "ca-experts.bin")
    (folder / "expert.catalan.safetensors").unlink()
    converted = convert_expert(folder / "ca-experts.bin", "ca").read_bytes()
    original.save_experts("ca", folder, layout="authors", dtype=torch.float16)  # another file
    with pytest.raises(UserError, match="is there already and is not made of expert.catalan.bin"):
        convert_expert(folder / "expert.catalan.bin", "ca")
    assert (folder / "expert.catalan.safetensors").read_bytes() == converted


# A hub repository, as huggingface_hub keeps it in its cache ------------------------------------


@pytest.fixture
def hub_cache(tiny_model, tmp_path):
    """A cache with two revisions of a release: (its folder, the model of each revision)."""
    cache, models = tmp_path / "cache", {}
    for seed, (revision, commit) in enumerate(COMMITS.items()):
        models[revision] = tiny_model("ca", seed=seed)
        folder = cached_snapshot(cache, REPOSITORY, revision, commit)
        write_release(models[revision], folder, "bin", experts=False)
        models[revision].save_experts("ca", folder, layout="authors")
    return cache, models


@pytest.mark.parametrize("revision", COMMITS)
def test_base_and_experts_come_from_the_same_revision_of_a_repository(hub_cache, revision):
    cache, models = hub_cache
    model = DistilWhisperForConditionalGeneration.from_pretrained(
        REPOSITORY, revision=revision, cache_dir=cache
    )
    model.load_experts("catalan")
    assert same(model, snapshot(models[revision]))
    model.load_experts("catalan", REPOSITORY, cache_dir=cache)  # named: its own main revision
    expert = models["main"].get_parameter("model.encoder.layers.0.clsr.ca.fc1.weight")
    assert torch.equal(model.get_parameter("model.encoder.layers.0.clsr.ca.fc1.weight"), expert)


def test_a_branch_that_moves_on_does_not_part_a_base_from_its_experts(hub_cache):
    cache, models = hub_cache
    model = DistilWhisperForConditionalGeneration.from_pretrained(REPOSITORY, cache_dir=cache)
    folder = cached_snapshot(cache, REPOSITORY, "main", COMMITS["v1"])
    model.load_experts("catalan")
    assert same(model, snapshot(models["main"]))
    assert model.source.commit == COMMITS["main"]
    (folder / "base").mkdir()
    (folder / "config.json").rename(folder / "base" / "config.json")
    for subfolder, commit in (("base", COMMITS["v1"]), ("", None)):
        place = Source(REPOSITORY, {"cache_dir": cache, "subfolder": subfolder})
        assert place.at_commit().commit == commit


def test_a_repository_s_bin_is_converted_once_too(hub_cache, monkeypatch):
    cache, models = hub_cache
    model = DistilWhisperForConditionalGeneration.from_pretrained(REPOSITORY, cache_dir=cache)
    model.load_experts("ca", convert=True)
    assert len(list(cache.rglob("expert.catalan.safetensors"))) == 1
    model.remove_expert("ca")
    monkeypatch.setattr(experts, "read_pickle", lambda path: pytest.fail(f"{path} was read"))
    model.load_experts("ca")
    assert same(model, snapshot(models["main"]))


def test_what_a_repository_lacks_is_said(hub_cache, tiny_model):
    cache, _ = hub_cache
    model = tiny_model()
    before = snapshot(model)
    for source, options, message in (
        (REPOSITORY, {"cache_dir": cache}, "no expert.thai.safetensors.* 'naver/stand-in'"),
        ("naver/absent", {"cache_dir": cache}, "local cache of hub repository 'naver/absent'"),
        ("not a name!", {}, "no file or folder 'not a name!'"),
        ("/absent/folder", {}, "no file or folder '/absent/folder'"),
        (REPOSITORY, {"branch": "main"}, "unknown option 'branch'.*revision, token"),
        (None, {}, "loaded from nowhere"),
    ):
        with pytest.raises(UserError, match=message):
            model.load_experts("th", source, **options)
    assert same(model, before)


def test_hub_options_reach_huggingface_hub(release, tiny_model, monkeypatch):
    original, folder = release
    asked = []

    def download(repository, name, **options):
        asked.append((repository, name, options))
        if not (folder / name).exists():
            raise huggingface_hub.errors.EntryNotFoundError("404")
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    options = {
        "revision": "v1", "token": "hf_x", "cache_dir": "/c", "local_files_only": False,
        "force_download": True, "subfolder": "experts",
    }  # fmt: skip
    model = tiny_model(seed=5)
    model.load_experts("Catalan", REPOSITORY, **options)
    assert asked == [
        (REPOSITORY, "expert.catalan.safetensors", options),
        (REPOSITORY, "expert.catalan.bin", options),
    ]
    name = "model.encoder.layers.0.clsr.ca.fc1.weight"
    assert torch.equal(model.get_parameter(name), original.get_parameter(name))


def test_a_repository_that_may_not_be_read_is_said(tiny_model, monkeypatch):
    def refuse(*_, **__):
        raise OSError("401 Client Error. Cannot access gated repo")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(UserError, match="'naver/stand-in' is no folder here.*gated repo.*token"):
        tiny_model().load_experts("ca", REPOSITORY)


def test_any_language_of_whisper_can_have_an_expert(tiny_model, tmp_path):
    """Basque is not in the kit's table of languages; whoever brings it needs it in a model only."""
    model = tiny_model("Basque")
    assert model.languages == ["eu"]
    assert model.save_experts("eu", tmp_path, layout="authors").name == "expert.basque.bin"
    model.load_experts("BASQUE", tmp_path)


def test_the_published_example_runs_as_it_is_written(release, processor, speech_folder):
    """Load the repository, load an expert by name, set language and task, generate, decode."""
    repository = release[1]
    processor.save_pretrained(repository)
    samples, rate = soundfile.read(speech_folder() / "test1.wav", dtype="float32")

    reader = WhisperProcessor.from_pretrained(repository)
    model = DistilWhisperForConditionalGeneration.from_pretrained(repository)
    model.load_experts("catalan")
    model.set_language_task(language="catalan", task="transcribe")
    features = reader(samples, sampling_rate=rate, return_tensors="pt").input_features
    ids = model.generate(features, max_new_tokens=8)
    text = reader.batch_decode(ids, skip_special_tokens=True)

    assert model.languages == ["ca"]
    spoken = model.generate(features, language="ca", task="transcribe", max_new_tokens=8)
    assert ids.tolist() == spoken.tolist()
    assert len(text) == 1
    assert "<|" not in text[0]
