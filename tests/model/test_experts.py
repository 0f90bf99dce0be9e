"""Expert files: whole, checked before anything is touched, and refused with one sentence."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from distilwhisper_lib import UserError
from distilwhisper_lib.model import hub
from distilwhisper_lib.model.experts import look_for_expert


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
