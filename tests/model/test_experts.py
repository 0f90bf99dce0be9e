"""Expert files: whole, checked before anything is touched, and refused with one sentence."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from distilwhisper_lib import DistilWhisperForConditionalGeneration, UserError
from distilwhisper_lib.model import hub
from distilwhisper_lib.model.clsr import Expert, Gate
from distilwhisper_lib.model.experts import (
    from_model_names,
    look_for_expert,
    read_expert,
    write_expert,
)
from distilwhisper_lib.model.low_rank import LowRankExpert
from distilwhisper_lib.model.rounding import rounded
from distilwhisper_lib.model.tensors import read_metadata


@pytest.fixture
def saved(tiny_model, tmp_path):
    model = tiny_model("ca")
    return model, model.save_experts("catalan", tmp_path, run="clsr-ca-s1-0")


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model, before):
    after = model.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in before)


def test_a_file_restores_the_expert_under_name_or_code(saved, tiny_model, tmp_path):
    model, path = saved
    assert path.name == "expert.catalan.safetensors"
    for language, source in (("Catalan", tmp_path), ("ca", path)):
        other = tiny_model()
        other.load_experts(language, source)
        assert same(other, snapshot(model))
        assert other.languages == ["ca"]


def test_the_file_tells_what_it_is_and_holds_only_the_expert(saved):
    model, path = saved
    with safe_open(path, "pt") as file:
        metadata, names = file.metadata(), list(file.keys())
    assert metadata["language"] == "ca"
    assert metadata["run"] == "clsr-ca-s1-0"
    assert len(names) == 4 * 7
    assert sum(t.numel() for t in load_file(path).values()) == sum(
        p.numel() for n, p in model.named_parameters() if ".clsr." in n
    )


def test_loading_twice_replaces(saved, tmp_path):
    model, _ = saved
    before = snapshot(model)
    with torch.no_grad():
        model.model.encoder.layers[0].clsr["ca"].fc1.weight.zero_()
    model.load_experts("ca", tmp_path)
    assert same(model, before)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.pop("encoder.0.fc1.bias"), "encoder.0.fc1.bias is missing"),
        (lambda t: t.update({"encoder.9.fc1.bias": torch.zeros(1)}), "is not expected"),
        (lambda t: t.update({"decoder.1.gate.outer.weight": torch.zeros(1, 9)}), r"\(1, 9\), not"),
    ],
)
def test_a_file_that_does_not_fit_leaves_the_model_as_it_was(saved, tiny_model, spoil, message):
    _, path = saved
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    spoil(tensors)
    save_file(tensors, path, metadata)
    for other in (tiny_model(), tiny_model("ca", seed=3)):
        before = snapshot(other)
        with pytest.raises(UserError, match=message):
            other.load_experts("ca", path)
        assert same(other, before)


def test_missing_truncated_and_mislabelled_files_are_named(saved, tiny_model, tmp_path):
    model, path = saved
    other = tiny_model()
    before = snapshot(other)
    with pytest.raises(UserError, match="no expert.czech.safetensors, expert.czech.bin or cs-exp"):
        other.load_experts("cs", tmp_path)
    with pytest.raises(UserError, match="is for 'ca', not 'cs'"):
        other.load_experts("cs", path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        other.load_experts("ca", path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        other.load_experts("ca", path)
    assert same(other, before)


def test_writing_leaves_no_partial_file(saved, tmp_path):
    assert [p.name for p in tmp_path.iterdir()] == ["expert.catalan.safetensors"]


def test_half_precision_halves_the_file_and_loads_as_float32(saved, tiny_model, tmp_path):
    model, path = saved
    half = model.save_experts("ca", tmp_path / "half", dtype=torch.float16)
    assert half.stat().st_size < 0.6 * path.stat().st_size
    other = tiny_model()
    other.load_experts("ca", half)
    for name, tensor in other.state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, model.state_dict()[name], atol=1e-2, rtol=1e-3)


# Rounded, low-rank ----------------------------------------------------------------------------


@pytest.fixture
def spoken():
    """spoken(model, language, **options): logits of two clips in that language."""
    draw = torch.Generator().manual_seed(1)
    features, ids = torch.randn(2, 80, 300, generator=draw), torch.tensor([[1, 2, 3, 4]] * 2)

    @torch.no_grad()
    def logits(model, language, **options):
        places = torch.full((2,), model.languages.index(language))
        return model(features, ids, expert_ids=places, **options).logits

    return logits


@pytest.mark.parametrize("ranks", [None, {"ca": 4}])
@pytest.mark.parametrize("dtype", [torch.float16, torch.int8])
@pytest.mark.parametrize("into", [torch.float32, torch.float16])
def test_a_rounded_file_moves_no_weight_by_more_than_its_step(
    tiny_model, tmp_path, ranks, dtype, into
):
    model = tiny_model("ca", ranks=ranks)
    with torch.no_grad():  # a row that has no scale
        next(model.model.encoder.layers[1].clsr["ca"].fc2.parameters())[3] = 0
    path = model.save_experts("ca", tmp_path, dtype=dtype)
    about = read_metadata(path)
    assert about.get("weights") == ("int8" if dtype == torch.int8 else None)
    assert about["version"] == ("2" if ranks or dtype == torch.int8 else "1")
    other = tiny_model(seed=3).to(into)
    other.load_experts("ca", path)
    assert other.rank_of("ca") == (ranks and 4)
    expected = from_model_names(model.state_dict(), "ca")
    for name, tensor in from_model_names(other.state_dict(), "ca").items():
        assert tensor.dtype == (torch.float32 if ".gate." in name else into)
        step = expected[name].abs() * 2**-9 + 2**-24  # of float16, twice
        if dtype == torch.int8 and ".gate." not in name and expected[name].dim() == 2:
            step = step + expected[name].abs().amax(1, keepdim=True) / 127 / 2
        assert ((tensor.float() - expected[name]).abs() <= 1.01 * step).all()


@pytest.fixture
def small_layer():
    """An expert of whisper-small's dimensions, without numbers."""

    def make(rank):
        with torch.device("meta"):
            if rank is None:
                return Expert(768, 3072, 64, 0.0, 0.0)
            return LowRankExpert(768, 3072, rank, 0.0, Gate(768, 64, 0.0))

    return make


@pytest.mark.parametrize(
    ("rank", "dtype", "megabytes"),
    [
        (64, torch.float32, 52.0),
        (64, torch.float16, 26.0),
        (64, torch.int8, 14.6),
        (None, torch.int8, 116.5),
    ],
)
def test_sizes_at_whisper_smalls_dimensions(tmp_path, small_layer, rank, dtype, megabytes):
    """A whole expert has 458 MB there in float32."""
    shapes = small_layer(rank).state_dict()
    tensors = {
        f"{side}.{layer}.{name}": torch.ones(shape.shape)
        for side in ("encoder", "decoder")
        for layer in range(12)
        for name, shape in shapes.items()
    }
    path = write_expert(rounded(tensors, dtype), "ca", tmp_path, {})
    assert 0.99 * megabytes < path.stat().st_size / 1e6 <= megabytes
    read, _ = read_expert(path, "ca")
    assert read.keys() == tensors.keys()
    assert all(torch.allclose(read[name].float(), tensors[name]) for name in read)


def test_a_low_rank_expert_is_a_whole_one_in_the_authors_layout(tiny_model, tmp_path, spoken):
    model = tiny_model("ca", "cs", ranks={"ca": 4})
    path = model.save_experts("ca", tmp_path, layout="authors")
    other = tiny_model("cs")
    other.load_experts("ca", path)
    assert other.rank_of("ca") is None and other.config.expert_ranks is None
    for mode in ("learned", "open"):
        expected = spoken(model, "ca", gate_mode=mode)
        torch.testing.assert_close(
            spoken(other, "ca", gate_mode=mode), expected, atol=1e-3, rtol=1e-3
        )
    assert not torch.allclose(expected, spoken(model, "ca", gate_mode="closed"), atol=1e-2)


def test_an_expert_of_one_kind_takes_the_place_of_the_other(tiny_model, tmp_path, spoken):
    low, whole = tiny_model("ca", "cs", ranks={"ca": 4}), tiny_model("ca", "cs", seed=2)
    files = {
        4: low.save_experts("ca", tmp_path / "low"),
        None: whole.save_experts("ca", tmp_path / "whole", layout="authors"),
    }
    model, fresh = tiny_model("ca", "cs"), {}
    for rank, path in files.items():
        fresh[rank] = tiny_model()
        fresh[rank].load_experts("ca", path)
    for rank in (4, None, 4, 4):
        model.load_experts("ca", files[rank])
        assert model.languages == ["ca", "cs"] and model.rank_of("ca") == rank
        assert list(model.model.decoder.layers[0].clsr) == ["ca", "cs"]
        torch.testing.assert_close(spoken(model, "ca"), spoken(fresh[rank], "ca"))
    before = spoken(model, "cs")
    model.remove_expert("ca")
    assert model.languages == ["cs"] and model.config.expert_ranks is None
    assert torch.equal(spoken(model, "cs"), before)


def test_a_model_with_both_kinds_is_saved_and_loaded(tiny_model, tmp_path, spoken):
    model = tiny_model("ca", "cs", "th", ranks={"cs": 4, "th": 2}, gate_mode="soft")
    model.save_pretrained(tmp_path)
    other = DistilWhisperForConditionalGeneration.from_pretrained(tmp_path)
    assert same(other, snapshot(model))
    assert other.config.expert_ranks == {"cs": 4, "th": 2} and other.config.gate_mode == "soft"
    for language in ("ca", "cs", "th"):
        assert torch.equal(spoken(other, language), spoken(model, language))


def test_what_cannot_be_saved_is_refused_before_anything_is_written(tiny_model, tmp_path):
    model = tiny_model("ca", ranks={"ca": 4}, gate_mode="soft")
    for options, message in (
        (
            {"dtype": torch.int16},
            "unknown dtype 'int16': expected one of float32, float16, int8",
        ),
        ({"layout": "authors"}, "cannot say that gates are soft"),
    ):
        with pytest.raises(UserError, match=message):
            model.save_experts("ca", tmp_path, **options)
    model.config.gate_mode = "learned"
    with pytest.raises(UserError, match="layout 'authors' has no int8"):
        model.save_experts("ca", tmp_path, layout="authors", dtype=torch.int8)
    assert not list(tmp_path.iterdir())


# Sources --------------------------------------------------------------------------------------


def test_a_source_without_the_expert_is_told_from_one_that_cannot_be_asked(
    saved, tmp_path, monkeypatch
):
    _, path = saved
    assert look_for_expert("Catalan", tmp_path) == path
    assert look_for_expert("swahili", tmp_path) is None
    with pytest.raises(UserError, match="there is no file or folder"):
        look_for_expert("swahili", tmp_path / "elsewhere")

    def answer(error):
        def download(repository, name, **options):
            raise error

        monkeypatch.setattr(hub.huggingface_hub, "hf_hub_download", download)

    answer(hub.EntryNotFoundError("404"))
    assert look_for_expert("swahili", "some/experts") is None
    answer(hub.LocalEntryNotFoundError("offline"))
    with pytest.raises(UserError, match="local cache of hub repository 'some/experts'"):
        look_for_expert("swahili", "some/experts")
    answer(OSError("no network"))
    with pytest.raises(UserError, match="no network"):
        look_for_expert("swahili", "some/experts")


def test_a_conversion_whose_source_is_gone_is_held_against_the_other_bin(tiny_model, tmp_path):
    model = tiny_model("ca")
    first = model.save_experts("ca", tmp_path, layout="authors")
    model.load_experts("ca", tmp_path, convert=True)
    other = first.rename(tmp_path / "ca-experts.bin")
    model.load_experts("ca", tmp_path)  # the same under its other name
    with torch.no_grad():
        model.model.encoder.layers[0].clsr["ca"].fc1.weight.mul_(0.5)
    model.save_experts("ca", tmp_path / "new", layout="authors").replace(other)
    with pytest.raises(UserError, match="made of another ca-experts.bin"):
        model.load_experts("ca", tmp_path)
    other.unlink()
    model.load_experts("ca", tmp_path)
