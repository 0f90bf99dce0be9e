"""Faulty and hostile expert files: one clear sentence each, and the model as it was before."""

from __future__ import annotations

import os
import pickle
import zipfile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from distilwhisper_lib import DistilWhisperForConditionalGeneration, UserError
from distilwhisper_lib.model.tensors import MAX_PICKLE_BYTES, read_pickle

FIRST = "model.encoder.layers.0.ffn_clsr."


class Bomb:
    """Unpickled without protection, it leaves a file behind through os.system."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


@pytest.fixture
def files(tiny_model, tmp_path):
    """{"kit", "authors"} -> a healthy expert file for Catalan."""
    model = tiny_model("ca", "th")
    return {
        layout: model.save_experts("ca", tmp_path / layout, layout=layout)
        for layout in ("kit", "authors")
    }


@pytest.fixture
def refused(tiny_model):
    """refused(path, message): loading fails with one sentence; the model does not change."""

    def state(model):
        return (
            {name: tensor.clone() for name, tensor in model.state_dict().items()},
            [p.requires_grad for p in model.parameters()],
            [m.training for m in model.modules()],
            model.config.to_dict(),
            torch.get_rng_state(),
        )

    def check(path, message, language="catalan"):
        for model in (tiny_model(), tiny_model("ca", "cs", seed=3).train()):
            if model.languages:
                model.freeze_all_but_expert("ca")
            before = state(model)
            with pytest.raises(UserError, match=message) as error:
                model.load_experts(language, path)
            said = str(error.value)
            assert "\n" not in said and len(said) < 450
            assert error.value.__suppress_context__ or error.value.__context__ is None
            after = state(model)
            assert before[0].keys() == after[0].keys()
            assert all(torch.equal(before[0][k], after[0][k]) for k in before[0])
            assert before[1:4] == after[1:4]
            assert torch.equal(before[4], after[4])

    return check


def rewrite(path, change):
    """Change the tensors of an expert file, in its own format."""
    if path.suffix == ".bin":
        tensors = torch.load(path, weights_only=True)
        changed = change(tensors)
        torch.save(tensors if changed is None else changed, path)
    else:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata)


@pytest.mark.parametrize("layout", ["kit", "authors"])
@pytest.mark.parametrize("keep", [0, 7, 0.5, 0.99])
def test_truncated(files, refused, layout, keep):
    path = files[layout]
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    refused(path, "cannot be read" if layout == "kit" else "truncated or no torch file")


@pytest.mark.parametrize("layout", ["kit", "authors"])
def test_wrong_language(files, refused, layout):
    refused(files[layout], "is for 'ca', not 'th'", language="Thai")
    misnamed = files[layout].with_name(files[layout].name.replace("catalan", "thai"))
    files[layout].rename(misnamed)
    refused(misnamed.parent, "is for 'ca', not 'th'", language="th")


@pytest.mark.parametrize("layout", ["kit", "authors"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, k: t.pop(k), r"encoder.0.fc1.bias is missing: use"),
        (lambda t, k: t.update({k: t[k][:-1].clone()}), r"encoder.0.fc1.bias has shape \(63,\), "),
        (lambda t, k: t.update({k: t[k][None].clone()}), r"has shape \(1, 64\), not \(64,\)"),
        (lambda t, k: t.update({k.replace("0", "7", 1): t[k].clone()}), "encoder.7.*not expected"),
        (lambda t, k: t.update({k + "s": t[k].clone()}), "encoder.0.fc1.biass is not expected"),
        (lambda t, k: t.clear(), "missing|no language"),
    ],
)
def test_one_tensor_wrong(files, refused, layout, change, message):
    path = files[layout]
    key = {"kit": "encoder.0.fc1.bias", "authors": f"{FIRST}proj.catalan.fc1.bias"}[layout]
    rewrite(path, lambda tensors: (change(tensors, key), None)[1])
    refused(path, message)


@pytest.mark.parametrize("layout", ["kit", "authors"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e5m2])
def test_tensors_that_are_no_floats(files, refused, layout, dtype):
    """Copied into a weight they would load, as whole numbers or without their other half."""
    key = {"kit": "decoder.1.fc2.weight", "authors": f"{FIRST}proj.catalan.fc2.weight"}[layout]
    rewrite(files[layout], lambda tensors: tensors.update({key: tensors[key].to(dtype)}))
    refused(files[layout], f"holds a {dtype} tensor under '{key}', expected")


@pytest.fixture(params=[None, 4])
def int8(tiny_model, tmp_path, request):
    """(a sound int8 file, the name of a matrix in it), of whole experts and of low-rank ones."""
    model = tiny_model("ca", ranks=request.param and {"ca": request.param})
    name = "encoder.0.fc1.down.weight" if request.param else "encoder.0.fc1.weight"
    return model.save_experts("ca", tmp_path / "int8", dtype=torch.int8), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, k: t.pop(f"{k}.scale"), "as int8 without .*weight.scale of shape"),
        (lambda t, k: t.update({f"{k}.scale": t[f"{k}.scale"][1:].clone()}), "as int8 without"),
        (lambda t, k: t.update({f"{k}.scale": t[f"{k}.scale"][:, None].clone()}), "of shape"),
        (lambda t, k: t.update({f"{k}.scale": t[f"{k}.scale"].to(torch.int8)}), "as int8"),
        (lambda t, k: t.update({f"{k}.scale": t[f"{k}.scale"].long()}), "holds a torch.int64 ten"),
        (lambda t, k: t.update({k: t[k].to(torch.int16)}), "holds a torch.int16 tensor under"),
        (lambda t, k: t.update({k: t[k].float()}), "a scale without a matrix of int8"),
        (lambda t, k: t.pop(k), "a scale without a matrix of int8"),
        (lambda t, k: t.update({k: t[k][0].clone()}), "as int8, expected a matrix of fc1 or fc2"),
        (lambda t, k: t.update({k: t[k][1:].clone()}), "as int8 without .*weight.scale of shape"),
        (lambda t, k: t.update({k: t[k][:, 1:].clone()}), r"has shape \(\d+, 31\), not"),
        (
            lambda t, k: t.update(
                {"encoder.0.gate.inner.weight": t["encoder.0.gate.inner.weight"].to(torch.int8)}
            ),
            "gate.inner.weight as int8, expected a matrix of fc1 or fc2",
        ),
        (lambda t, k: t[f"{k}.scale"].fill_(torch.nan), "holds values in .* that are not finite"),
        (lambda t, k: t[f"{k}.scale"].fill_(torch.inf), "holds values in .* that are not finite"),
        (lambda t, k: t[f"{k}.scale"].fill_(3e38), "holds values in .* that are not finite"),
    ],
)
def test_int8_that_cannot_be_meant(int8, refused, change, message):
    path, name = int8
    rewrite(path, lambda tensors: change(tensors, name))
    refused(path, message)


@pytest.mark.parametrize("mark", [None, "float", "int4"])
def test_int8_without_its_mark(int8, refused, mark):
    path, _ = int8
    with safe_open(path, "pt") as file:
        about = file.metadata()
    marked = {"weights": mark} if mark else {}
    save_file(load_file(path), path, {k: v for k, v in about.items() if k != "weights"} | marked)
    refused(path, "unknown weights of .* 'int4'" if mark == "int4" else "holds a torch.int8 tensor")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("decoder.1.fc2.up.weight"), "decoder.1.fc2.up.weight is missing"),
        (lambda t: t.update({"decoder.0.fc1.bias": torch.ones(64)}), "fc1.bias is not expected"),
        (
            lambda t: t.update({"decoder.1.fc1.down.weight": torch.ones(3, 32)}),
            r"has shape \(3, 32\), not \(4, 32\)",
        ),
        (lambda t: t.update({k: t[k][:0] for k in t if ".down." in k}), "rank 0, expected 1 or"),
        (lambda t: t.update({k: torch.ones(()) for k in t if ".down." in k}), "missing|expected"),
        (lambda t: t["encoder.1.fc2.up.weight"].fill_(torch.nan), "that are not finite"),
    ],
)
def test_low_rank_experts_that_do_not_fit(tiny_model, tmp_path, refused, change, message):
    path = tiny_model("ca", ranks={"ca": 4}).save_experts("ca", tmp_path / "low")
    rewrite(path, change)
    refused(path, message)


@pytest.mark.parametrize("layout", ["kit", "authors"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_values_that_are_not_finite(files, refused, layout, value, dtype):
    key = {"kit": "encoder.0.fc2.weight", "authors": f"{FIRST}proj.catalan.fc2.weight"}[layout]

    def spoil(tensors):
        tensors[key] = tensors[key].to(dtype)
        tensors[key][3, 5] = value

    rewrite(files[layout], spoil)
    refused(files[layout], "holds values in encoder.0.fc2.weight that are not finite")


def test_values_too_large_for_the_model_s_own_dtype(files, tiny_model):
    def spoil(tensors):
        tensors["encoder.0.fc1.bias"][0] = 1e5

    rewrite(files["kit"], spoil)
    tiny_model().load_experts("ca", files["kit"])
    half = tiny_model().half()
    with pytest.raises(UserError, match="in encoder.0.fc1.bias that are not finite in torch.floa"):
        half.load_experts("ca", files["kit"])
    assert half.languages == []


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({f"{FIRST}proj.shared.fc1.bias": torch.ones(64)}, "belongs to no expert"),
        ({f"{FIRST}proj.thai.fc1.bias": torch.ones(64)}, "is for 'ca', 'th', not 'ca'"),
        ({f"{FIRST}proj.ca.fc1.bias": torch.ones(64)}, "twice"),
        ({f"{FIRST}proj.klingon.fc1.bias": torch.ones(64)}, "Unknown language 'klingon'"),
        ({"optimizer": {"lr": torch.ones(1)}}, "holds dict under 'optimizer'"),
        ({"step": 3}, "holds int under 'step'"),
        ({7: torch.ones(1)}, "holds a torch.float32 tensor under 7"),
        ({"ids": torch.ones(2, dtype=torch.long)}, "holds a torch.int64 tensor under 'ids'"),
        ({"sparse": torch.eye(2).to_sparse()}, "holds a torch.float32 tensor under 'sparse'"),
        ({"meta": torch.ones(2, device="meta")}, "holds a torch.float32 tensor under 'meta'"),
    ],
)
def test_a_bin_with_something_more_in_it(files, refused, extra, message):
    rewrite(files["authors"], lambda tensors: tensors.update(extra))
    refused(files["authors"], message)


@pytest.mark.parametrize("content", [[torch.ones(2)], torch.ones(2), "text", None, 7, ()])
def test_a_pickle_of_no_dict(files, refused, content):
    torch.save(content, files["authors"])
    refused(files["authors"], f"holds a {type(content).__name__}, expected a dict")


@pytest.mark.parametrize("how", ["torch", "torch, legacy", "plain pickle", "beside the tensors"])
def test_a_malicious_pickle_does_not_run(files, refused, how, tmp_path):
    marker = tmp_path / "owned"
    path, bomb = files["authors"], Bomb(marker)
    pickle.loads(pickle.dumps(bomb))
    assert marker.exists()  # the bomb is live ...
    marker.unlink()
    if how == "torch":
        torch.save(bomb, path)
    elif how == "torch, legacy":
        torch.save({"weight": bomb}, path, _use_new_zipfile_serialization=False)
    elif how == "plain pickle":
        path.write_bytes(pickle.dumps(bomb))
    else:
        rewrite(path, lambda tensors: tensors.update(weight=bomb))
    zipped = how in ("torch", "beside the tensors")
    refused(path, "was not unpickled" if zipped else "no torch file")
    assert not marker.exists()  # ... and did not go off


def test_a_malicious_base_does_not_run(tiny_model, tmp_path):
    marker = tmp_path / "owned"
    folder = tmp_path / "base"
    tiny_model().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    config = (folder / "config.json").read_text().replace('"gate_dim"', '"clsr_gate_dim"')
    (folder / "config.json").write_text(config)
    torch.save({"weight": Bomb(marker)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model.bin holds something other than tensors"):
        DistilWhisperForConditionalGeneration.from_pretrained(folder)
    assert not marker.exists()


@pytest.mark.parametrize("model_type", ["whisper", "distilwhisper"])
@pytest.mark.parametrize("damage", ["malicious", "cut", "text"])
def test_a_damaged_or_malicious_stock_checkpoint(tiny_model, tmp_path, model_type, damage):
    """Transformers' own answer has ten lines and advises to switch torch's safety off."""
    marker, folder = tmp_path / "owned", tmp_path / "base"
    model = tiny_model()
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"distilwhisper"', f'"{model_type}"'))
    weights = folder / "pytorch_model.bin"
    torch.save({"weight": Bomb(marker)} if damage == "malicious" else model.state_dict(), weights)
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif damage == "text":
        weights.write_text("<html>not found</html>" * 9)
    with pytest.raises(
        UserError, match=r"model '.*base' cannot be loaded \(.+\): expected"
    ) as error:
        DistilWhisperForConditionalGeneration.from_pretrained(folder)
    said = str(error.value)
    assert "\n" not in said and "weights_only" not in said and len(said) < 550
    assert error.value.__suppress_context__
    assert not marker.exists()


def test_a_file_that_would_unpack_into_more_than_it_weighs(files, refused):
    path = files["authors"]
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    refused(path, "packs '.*' in a way torch never does")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"." * (MAX_PICKLE_BYTES + 1))
    refused(path, "packs 'archive/data.pkl' in a way torch never does")


def test_too_large_a_file_is_not_opened(files):
    with pytest.raises(UserError, match=r"has [\d,]+ bytes, more than 1,000: name a smaller file"):
        read_pickle(files["authors"], limit=1000)


def test_damage_anywhere_in_a_bin_never_escapes_as_another_error(files, tiny_model):
    """Whatever byte flips: the file loads, as a flip in a weight must, or is refused."""
    path = files["authors"]
    content = bytearray(path.read_bytes())
    model = tiny_model()
    refusals = 0
    for position in range(0, len(content), len(content) // 150):
        spoilt = content.copy()
        spoilt[position] ^= 0xFF
        path.write_bytes(spoilt)
        try:
            model.load_experts("ca", path)
        except UserError:
            refusals += 1
    assert 0 < refusals < 150
