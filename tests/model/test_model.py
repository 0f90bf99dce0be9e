"""The routed model: equal to stock Whisper where it must be, routed where it should be."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSpeechSeq2Seq, WhisperConfig, WhisperForConditionalGeneration

from distilwhisper_lib import DistilWhisperForConditionalGeneration, UserError
from distilwhisper_lib.model.clsr import CLSR, SHARED, soft_gate
from distilwhisper_lib.model.loading import load_model

FRAMES = 300


@pytest.fixture
def features():
    return torch.randn(4, 80, FRAMES, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def prompts(token):
    def make(*languages, task="transcribe", text=(5, 6, 7)):
        tail = [token(f"<|{task}|>"), token("<|notimestamps|>"), *text]
        start = token("<|startoftranscript|>")
        return torch.tensor([[start, token(f"<|{code}|>"), *tail] for code in languages])

    return make


def stock_twin(model):
    """Stock Whisper with the same base weights, under their stock names."""
    config = WhisperConfig(**{k: v for k, v in model.config.to_dict().items() if k != "model_type"})
    twin = WhisperForConditionalGeneration(config).eval()
    base = {k: v for k, v in model.state_dict().items() if ".clsr." not in k}
    assert twin.load_state_dict(base, strict=True)
    return twin


@torch.no_grad()
def test_closed_gates_and_no_experts_are_stock_whisper_bit_for_bit(tiny_model, features, prompts):
    model = tiny_model("ca", "cs")
    twin = stock_twin(model)
    prompt = prompts("ca", "cs", "en", "ca")
    expected = twin(features, decoder_input_ids=prompt).logits
    assert torch.equal(model(features, prompt, gate_mode="closed").logits, expected)
    model.remove_expert("ca")
    model.remove_expert("cs")
    assert torch.equal(model(features, prompt).logits, expected)


@torch.no_grad()
def test_experts_change_only_their_own_rows(tiny_model, features, prompts):
    model = tiny_model("ca", "cs")
    expected = stock_twin(model)(features, decoder_input_ids=prompts("ca", "cs", "en", "pl")).logits
    logits = model(features, prompts("ca", "cs", "en", "pl")).logits
    difference = (logits - expected).abs().amax((1, 2))
    assert (difference[:2] > 1e-3).all()
    assert (difference[2:] < 1e-5).all()


@torch.no_grad()
def test_mixed_batch_equals_single_rows(tiny_model, features, prompts):
    model = tiny_model("ca", "cs")
    codes = ("cs", "ca", "en", "cs")
    mixed = model(features, prompts(*codes)).logits
    for i, code in enumerate(codes):
        single = model(features[i : i + 1], prompts(code)).logits
        torch.testing.assert_close(mixed[i : i + 1], single, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_hard_routing_equals_the_dense_equation(tiny_model):
    """y = g expert(x) + (1 - g) shared(x), token by token, at several densities."""
    model = tiny_model("ca", "cs")
    layer = model.model.encoder.layers[0]
    x = torch.randn(3, 20, 32)
    ids = torch.tensor([1, SHARED, 0])
    for bias in (-1e3, 0.0, 1e3):  # nobody, some, everybody
        for expert in layer.clsr.values():
            torch.nn.init.constant_(expert.gate.inner.bias, 1.0)
            expert.gate.outer.weight.copy_(torch.randn(1, 8) + bias)
        y, gates = layer.clsr(x, layer.shared, layer.activation_fn, 0.0, ids)
        for row, code in ((0, "cs"), (2, "ca")):
            g = (layer.clsr[code].gate(x[row]) >= 0).float()
            assert torch.equal(gates.values[row], g)
            expert = layer.clsr[code](x[row], layer.activation_fn, 0.0)
            dense = g[:, None] * expert + (1 - g[:, None]) * layer.shared(x[row])
            torch.testing.assert_close(y[row], dense, atol=1e-5, rtol=1e-5)
        assert not gates.values[1].any()
        torch.testing.assert_close(y[1], layer.shared(x[1]), atol=1e-5, rtol=1e-5)
        assert {-1e3: gates.values.sum() == 0, 0.0: True, 1e3: gates.values.sum() == 40}[bias]


@pytest.mark.parametrize("dense", [False, True])
def test_soft_mode_weighs_both_branches_without_noise_or_dropout(tiny_model, monkeypatch, dense):
    """y = sigmoid(score) expert(x) + (1 - sigmoid(score)) shared(x), in the rows with an expert."""
    monkeypatch.setattr(CLSR, "dense", dense)
    model = tiny_model("ca", "cs").eval()
    layer = model.model.encoder.layers[0]
    x, ids = torch.randn(3, 20, 32), torch.tensor([1, SHARED, 0])
    y, gates = layer.clsr(x, layer.shared, layer.activation_fn, 0.5, ids, "soft")
    for row, code in ((0, "cs"), (2, "ca")):
        g = layer.clsr[code].gate(x[row]).sigmoid()
        torch.testing.assert_close(gates.values[row], g)
        expert = layer.clsr[code](x[row], layer.activation_fn, 0.0)
        blend = g[:, None] * expert + (1 - g[:, None]) * layer.shared(x[row])
        torch.testing.assert_close(y[row], blend, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(y[1], layer.shared(x[1]), atol=1e-5, rtol=1e-5)
    assert not gates.values[1].any()


def test_a_tie_counts_as_one(tiny_model):
    clsr = tiny_model("ca").model.encoder.layers[0].clsr
    torch.nn.init.zeros_(clsr["ca"].gate.outer.weight)
    layer = tiny_model().model.encoder.layers[0]
    x, ids = torch.randn(1, 5, 32), torch.tensor([0])
    _, gates = clsr(x, layer.shared, layer.activation_fn, 0.0, ids)
    assert gates.values.eq(1).all()


def test_soft_gates_are_noisy_and_in_float32(tiny_model, features, prompts):
    model = tiny_model("ca").train()
    gates = model(features, prompts("ca", "ca", "ca", "ca"), output_gates=True).gates
    values = torch.cat([g.values.flatten() for g in gates.encoder])
    assert values.dtype == torch.float32
    assert ((values > 0) & (values < 1)).all()


@torch.no_grad()
@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
def test_gate_noise_has_the_deviation_alpha(tiny_model, alpha):
    gate = tiny_model("ca").model.encoder.layers[0].clsr["ca"].gate
    x = torch.randn(50, 40, 32)
    torch.nn.init.normal_(gate.outer.weight, std=0.1)
    noise = soft_gate(gate, x, "learned", alpha).double().logit() - gate(x)
    assert noise.std().item() == pytest.approx(alpha, rel=0.05, abs=1e-3)


def test_skip_leaves_the_expert_out_but_keeps_its_gate_in_the_trace(tiny_model, features, prompts):
    model = tiny_model("ca", skip=1.0, gate_dropout=0.0).train()
    twin = stock_twin(model).train()
    prompt = prompts("ca", "ca", "ca", "ca")
    out = model(features, prompt, output_gates=True)
    torch.testing.assert_close(out.logits, twin(features, decoder_input_ids=prompt).logits)
    assert all(g.skipped for g in out.gates.encoder + out.gates.decoder)
    out.gates.encoder[0].values.mean().backward()
    layer = model.model.encoder.layers[0].clsr["ca"]
    assert layer.gate.outer.weight.grad.abs().sum() > 0
    assert layer.fc1.weight.grad is None


def blended(layer, x, ids, mode="learned", skip=0.0, **options):
    return layer.clsr(x, layer.shared, layer.activation_fn, 0.0, ids, mode, skip=skip, **options)


def alone(layer, code, x):
    """What one low-rank expert says, from weights that have its change in them."""
    expert, act = layer.clsr[code], layer.activation_fn
    first = layer.fc1.weight + expert.fc1.product()
    second = layer.fc2.weight + expert.fc2.product()
    return F.linear(act(F.linear(x, first, layer.fc1.bias)), second, layer.fc2.bias)


@pytest.fixture
def trained(tiny_model):
    """A layer in training of a whole and a low-rank expert, without dropout."""
    settings = dict(gate_dropout=0.0, expert_dropout=0.0, dropout=0.0, activation_dropout=0.0)
    model = tiny_model("ca", "cs", ranks={"cs": 4}, **settings).train()
    return model.model.encoder.layers[0]


@pytest.mark.parametrize("straight", [False, True])
def test_training_weighs_both_branches_of_low_rank_experts_too(trained, straight):
    """y = g expert(x) + (1 - g) shared(x); straight-through g is 0 or 1."""
    x, ids = torch.randn(3, 20, 32), torch.tensor([1, SHARED, 0])
    y, gates = blended(trained, x, ids, straight_through=straight)
    whole = trained.clsr["ca"](x[2], trained.activation_fn, 0.0)
    for row, code, expert in ((0, "cs", alone(trained, "cs", x[0])), (2, "ca", whole)):
        score = trained.clsr[code].gate(x[row])
        g = (score >= 0).float() if straight else score.sigmoid()
        assert 0 < g.mean() < 1
        torch.testing.assert_close(gates.values[row], g)
        blend = g[:, None] * expert + (1 - g[:, None]) * trained.shared(x[row])
        torch.testing.assert_close(y[row], blend, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(y[1], trained.shared(x[1]), atol=1e-5, rtol=1e-5)


def test_a_straight_through_gate_has_the_soft_gates_gradient(trained):
    gate, x, weights = trained.clsr["cs"].gate, torch.randn(4, 20, 32), torch.randn(4, 20)
    grads = []
    for straight in (False, True):
        values = soft_gate(gate, x, "learned", 0.0, straight)
        grads.append(torch.autograd.grad((values * weights).sum(), list(gate.parameters())))
    assert set(values.detach().unique().tolist()) == {0.0, 1.0}
    for soft, hard in zip(*grads, strict=True):
        assert soft.abs().sum() > 0
        torch.testing.assert_close(hard, soft)


@pytest.mark.parametrize("code", ["ca", "cs"])
def test_open_training_hears_the_expert_alone(trained, code, monkeypatch):
    """An expert's warm-up: the shared branch is no second one there, and no gate trains."""
    x, ids = torch.randn(2, 20, 32), torch.full((2,), ["ca", "cs"].index(code))
    expert = trained.clsr[code]
    whole = code == "ca"
    expected = expert(x, trained.activation_fn, 0.0) if whole else alone(trained, code, x)
    asked, shared = [], trained.shared
    monkeypatch.setattr(trained, "shared", lambda *a: asked.append(len(a)) or shared(*a))
    y, gates = blended(trained, x, ids, "open")
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    assert asked == ([] if whole else [2])  # a low-rank expert speaks within it, once
    assert gates.values.eq(1).all() and not gates.skipped
    y.square().sum().backward()
    assert all(p.grad is None for p in expert.gate.parameters())
    assert all(p.grad.abs().sum() > 0 for n, p in expert.named_parameters() if "gate" not in n)


def test_a_skipped_low_rank_expert_says_nothing(trained):
    x, ids = torch.randn(2, 20, 32), torch.tensor([1, 1])
    for mode in ("learned", "open"):
        y, gates = blended(trained, x, ids, mode, skip=1.0)
        assert gates.skipped and torch.equal(y, trained.shared(x))


def test_only_one_languages_experts_train_and_get_gradients(tiny_model, features, prompts):
    model = tiny_model("ca", "cs", skip=0.0).train()
    model.freeze_all_but_expert("catalan")
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == {n for n, _ in model.named_parameters() if ".clsr.ca." in n}
    model(features, prompts("ca", "ca", "ca", "ca")).logits.square().mean().backward()
    assert all(model.get_parameter(n).grad is not None for n in trainable)
    assert all(p.grad is None for n, p in model.named_parameters() if n not in trainable)
    # 4 layers x (FFN copy + gate), as the paper counts them
    ffn, gate = 32 * 64 * 2 + 64 + 32, 32 * 8 + 8 + 8
    assert sum(model.get_parameter(n).numel() for n in trainable) == 4 * (ffn + gate)


def test_an_expert_starts_as_a_copy_of_the_ffn(tiny_model):
    model = tiny_model()
    model.add_expert("Polish")
    for layer in model.routed_layers():
        assert torch.equal(layer.clsr["pl"].fc1.weight, layer.fc1.weight)
        assert torch.equal(layer.clsr["pl"].fc2.bias, layer.fc2.bias)
        assert layer.clsr["pl"].gate.inner.bias.eq(0).all()
    with pytest.raises(UserError, match="already"):
        model.add_expert("pl")
    with pytest.raises(UserError, match="no expert here"):
        model.freeze_all_but_expert("cs")


@torch.no_grad()
def test_generate_takes_a_language_or_a_list_and_equals_single_rows(tiny_model, features):
    model = tiny_model("ca", "cs")
    codes = ["ca", "cs", "en", "ca"]
    mixed = model.generate(features, language=codes, task="transcribe", max_new_tokens=8)
    assert len({tuple(row) for row in mixed.tolist()}) > 1
    for i, code in enumerate(codes):
        single = model.generate(
            features[i : i + 1], language=code, task="transcribe", max_new_tokens=8
        )
        assert mixed[i, : single.shape[1]].tolist() == single[0].tolist()
    one = model.generate(features, language="catalan", task="transcribe", max_new_tokens=8)
    assert one[0].tolist() == mixed[0].tolist()


@torch.no_grad()
@pytest.mark.parametrize("options", [{"use_cache": False}, {"cache_implementation": "static"}])
def test_generation_is_the_same_with_any_cache(tiny_model, features, options):
    model = tiny_model("ca", "cs")
    arguments = dict(language=["ca", "cs", "en", "ca"], task="transcribe", max_new_tokens=8)
    expected = model.generate(features, **arguments).tolist()
    assert model.generate(features, **arguments, **options).tolist() == expected


@torch.no_grad()
def test_beams_route_each_row(tiny_model, features):
    model = tiny_model("ca", "cs")
    arguments = dict(task="transcribe", max_new_tokens=6, num_beams=3)
    mixed = model.generate(features, language=["ca", "cs", "en", "ca"], **arguments)
    single = model.generate(features[1:2], language="cs", **arguments)
    assert mixed[1, : single.shape[1]].tolist() == single[0].tolist()


@torch.no_grad()
def test_translation_uses_the_shared_branch(tiny_model, features):
    model = tiny_model("ca")
    translate = dict(language="ca", task="translate", max_new_tokens=8)
    expected = stock_twin_generation(model, features, **translate)
    assert model.generate(features, **translate).tolist() == expected
    transcribe = dict(language="ca", task="transcribe", max_new_tokens=8)
    assert model.generate(features, **transcribe).tolist() != stock_twin_generation(
        model, features, **transcribe
    )


@torch.no_grad()
def test_without_a_language_the_detected_one_s_expert_speaks(tiny_model, features, processor):
    """Detection goes through the shared route; then it is as if the language had been given."""
    tokens = tiny_model().detect_language(features).flatten().tolist()
    detected = [processor.tokenizer.decode(token).strip("<|>") for token in tokens]
    options = dict(task="transcribe", max_new_tokens=8)
    model = tiny_model(*sorted(set(detected)))
    assert model.detect_language(features).flatten().tolist() == tokens
    said = model.generate(features, **options).tolist()
    assert said == model.generate(features, language=detected, **options).tolist()
    assert said != stock_twin_generation(model, features, **options)
    elsewhere = tiny_model(next(code for code in ("ca", "cs", "th") if code not in detected))
    said = elsewhere.generate(features, **options).tolist()
    assert said == stock_twin_generation(elsewhere, features, **options)


def stock_twin_generation(model, features, **arguments):
    twin = stock_twin(model)
    twin.generation_config = model.generation_config
    return twin.generate(features, **arguments).tolist()


@torch.no_grad()
def test_set_language_task_are_the_defaults_of_generate(tiny_model, features):
    model = tiny_model("ca")
    expected = model.generate(features, language="ca", task="transcribe", max_new_tokens=8)
    model.set_language_task(language="catalan", task="transcribe")
    assert model.generate(features, max_new_tokens=8).tolist() == expected.tolist()


@torch.no_grad()
def test_round_trips_with_and_without_experts(tiny_model, features, prompts, tmp_path):
    prompt = prompts("ca", "cs", "en", "ca")
    for languages in ((), ("ca", "cs")):
        model = tiny_model(*languages)
        folder = tmp_path / f"with-{len(languages)}"
        model.save_pretrained(folder)
        again = DistilWhisperForConditionalGeneration.from_pretrained(folder).eval()
        assert again.languages == list(languages)
        assert torch.equal(again(features, prompt).logits, model(features, prompt).logits)
        auto = AutoModelForSpeechSeq2Seq.from_pretrained(folder)
        assert type(auto) is DistilWhisperForConditionalGeneration


@torch.no_grad()
def test_stock_checkpoints_load_and_a_saved_base_is_stock(tiny_model, features, prompts, tmp_path):
    twin = stock_twin(tiny_model())
    twin.save_pretrained(tmp_path / "stock")
    model = DistilWhisperForConditionalGeneration.from_pretrained(tmp_path / "stock", gate_dim=16)
    assert model.config.gate_dim == 16
    prompt = prompts("ca", "cs", "en", "ca")
    expected = twin(features, decoder_input_ids=prompt).logits
    assert torch.equal(model(features, prompt).logits, expected)
    model.save_pretrained(tmp_path / "again")
    stock = WhisperForConditionalGeneration.from_pretrained(tmp_path / "again")
    assert torch.equal(stock(features, decoder_input_ids=prompt).logits, expected)


def test_unknown_gate_mode_and_language_are_refused(tiny_model, features, prompts):
    with pytest.raises(UserError, match="gate_mode 'ajar'"):
        tiny_model("ca")(features, prompts("ca", "ca", "ca", "ca"), gate_mode="ajar")
    with pytest.raises(UserError, match="'klingon'"):
        tiny_model("klingon")


@torch.no_grad()
@pytest.mark.parametrize("language", ["ca", "CA", " Catalan ", "Valencian", "<|ca|>"])
def test_generate_takes_a_language_by_any_name(tiny_model, features, language):
    model = tiny_model("ca")
    expected = model.generate(features, language=["ca"] * 4, task="transcribe", max_new_tokens=8)
    given = model.generate(features, language=language, task="transcribe", max_new_tokens=8)
    assert given.tolist() == expected.tolist()
    listed = model.generate(features, language=[language] * 4, max_new_tokens=8)
    assert listed.tolist() == expected.tolist()


@pytest.mark.parametrize("language", ["xx", "klingon", 7, "<|xx|>", ["ca", "xx", "ca", "ca"], ""])
def test_generate_refuses_an_unknown_language_in_one_sentence(tiny_model, features, language):
    model = tiny_model("ca")
    with pytest.raises(UserError, match="Unknown language .*: give the code or English") as error:
        model.generate(features, language=language, task="transcribe", max_new_tokens=3)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_generate_refuses_a_language_that_this_model_has_not(tiny_model, features):
    model = tiny_model("ca")
    del model.generation_config.lang_to_id["<|yue|>"]  # as in large-v2 and everything before it
    with pytest.raises(UserError, match="it has no token for the language 'yue'"):
        model.generate(features, language="Cantonese", max_new_tokens=3)


@pytest.mark.parametrize(
    ("name", "message", "of_load_model"),
    [
        ("naver/absent", "find them in the cached files", "no config.json in the local cache"),
        ("/no/such/folder", "Repo id", "no file or folder"),
        ("not a name!", "Repo id", "no file or folder"),
    ],
)
def test_a_model_that_does_not_exist_is_one_sentence(name, message, of_load_model):
    for load, told in (
        (DistilWhisperForConditionalGeneration.from_pretrained, f"cannot be loaded .*{message}"),
        (load_model, of_load_model),
    ):
        with pytest.raises(UserError, match=told) as error:
            load(name)
        said = str(error.value)
        assert f"'{name}'" in said
        assert "\n" not in said and "check the name, the revision and the network" in said


def test_a_model_without_its_processor_is_one_sentence(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match="no tokenizer.json or vocab.json in .*base: the model ne"):
        load_model(str(tmp_path / "base"))
