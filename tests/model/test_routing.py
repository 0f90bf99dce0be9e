"""Hard routing: each token through one branch, equal to computing both and choosing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from distilwhisper_lib import DistilWhisperForConditionalGeneration, UserError
from distilwhisper_lib.gates.recorder import GateRecorder
from distilwhisper_lib.model.clsr import (
    SHARED,
    Gate,
    check_gate_mode,
    hard_gate,
    mode_of,
    rows_by_expert,
)
from distilwhisper_lib.model.low_rank import LowRankExpert

WIDTH = 32
DENSITIES = (0.0, 0.25, 0.5, 0.75, 1.0)
KINDS = {"ffn": {}, "low-rank": {"ca": 4, "cs": 8}, "mixed": {"cs": 4}}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@pytest.fixture(params=KINDS)
def layer(tiny_model, request):
    """A layer of two languages whose gates score a token by its first number."""
    layer = tiny_model("ca", "cs", ranks=KINDS[request.param]).model.encoder.layers[0]
    with torch.no_grad():
        for expert in layer.clsr.values():
            for parameter in expert.gate.parameters():
                parameter.zero_()
            expert.gate.inner.weight[0, 0], expert.gate.inner.weight[1, 0] = 1.0, -1.0
            expert.gate.outer.weight[0, 0], expert.gate.outer.weight[0, 1] = 1.0, -1.0
        for block in (layer, *layer.clsr.values()):
            if not isinstance(block, LowRankExpert):
                block.fc1.bias.normal_()
                block.fc2.bias.normal_()
    return layer


def tokens(rows: int, density: float, length: int = 20) -> torch.Tensor:
    """Tokens of which exactly this share has a score of 1, the rest of -1."""
    random = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, length, WIDTH, generator=random)
    order = torch.randperm(rows * length, generator=random)
    x.view(-1, WIDTH)[:, 0] = torch.where(order < density * rows * length, 1.0, -1.0)
    return x


def route(layer, x, ids, dense=False, mode="learned"):
    layer.clsr.dense = dense
    return layer.clsr(x, layer.shared, layer.activation_fn, 0.0, ids, mode)


@torch.no_grad()
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize(("rows", "length"), [(1, 20), (2, 20), (16, 20), (64, 20), (16, 1)])
def test_sparse_equals_dense(layer, rows, length, density, dtype):
    layer.to(dtype)
    x = tokens(rows, density, length).to(dtype)
    for batch in ([0], [SHARED], [0, 1], [1, SHARED, 0, 0]):
        ids = torch.tensor((batch * rows)[:rows])
        y, gates = route(layer, x, ids)
        expected, dense_gates = route(layer, x, ids, dense=True)
        assert y.dtype == dtype and gates.values.dtype == torch.float32
        assert torch.equal(gates.values, dense_gates.values)
        heard = (ids != SHARED)[:, None] & (x[..., 0] > 0)
        assert torch.equal(gates.values, heard.float())
        torch.testing.assert_close(y, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@torch.no_grad()
@pytest.mark.parametrize("dense", [False, True])
def test_a_low_rank_expert_is_the_shared_network_with_other_weights(tiny_model, dense):
    """(W2 + B2 A2) act((W1 + B1 A1) x + b1) + b2, at the tokens that its gate picks."""
    layer = tiny_model("ca", ranks={"ca": 4}).model.decoder.layers[1]
    merged, expert = copy.deepcopy(layer), layer.clsr["ca"]
    for linear in ("fc1", "fc2"):
        getattr(merged, linear).weight += getattr(expert, linear).product()
    for length in (1, 20):
        x, ids = torch.randn(16, length, WIDTH), torch.zeros(16, dtype=torch.long)
        opened, said = merged.shared(x), layer.shared(x)
        assert (opened - said).abs().max() > 1e-2
        y, gates = route(layer, x, ids, dense)
        assert 0 < gates.values.mean() < 1
        expected = torch.where(gates.values.bool().unsqueeze(-1), opened, said)
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            route(layer, x, ids, dense, "open")[0], opened, atol=1e-5, rtol=1e-5
        )


@torch.no_grad()
@pytest.mark.parametrize("dense", [False, True])
def test_without_an_open_gate_the_layer_is_stock_bit_for_bit(layer, dense):
    x, ids = tokens(3, 0.5), torch.tensor([0, 1, SHARED])
    expected = layer.shared(x)
    assert torch.equal(route(layer, x, ids, dense, "closed")[0], expected)
    assert torch.equal(route(layer, tokens(3, 0.0), ids, dense)[0], layer.shared(tokens(3, 0.0)))
    assert torch.equal(route(layer, x, torch.full((3,), SHARED), dense)[0], expected)


@torch.no_grad()
@pytest.mark.parametrize("dense", [False, True])
def test_a_share_of_tokens_goes_to_the_expert_at_random(layer, dense):
    """Whatever the gates say; the same tokens again from the same seed."""
    x, ids = tokens(40, 0.5, 100), torch.tensor([0, 1, SHARED, 0] * 10)
    mine = ids != SHARED
    for share in (0, 0.1, 0.73, 1):
        torch.manual_seed(3)
        y, gates = route(layer, x, ids, dense, share)
        heard = gates.values[mine]
        deviation = (share * (1 - share) / heard.numel()) ** 0.5
        assert heard.mean().item() == pytest.approx(share, abs=4 * deviation)
        of_gates = heard[x[mine][..., 0] > 0].mean().item()
        assert of_gates == pytest.approx(share, abs=6 * deviation)  # half of the tokens
        assert not gates.values[~mine].any()
        torch.manual_seed(3)
        again, same = route(layer, x, ids, dense, share)
        assert torch.equal(gates.values, same.values) and torch.equal(again, y)
        _, other = route(layer, x, ids, dense, share)
        assert torch.equal(gates.values, other.values) == (share in (0, 1))
    closed, opened = (route(layer, x, ids, dense, mode)[0] for mode in ("closed", "open"))
    assert torch.equal(route(layer, x, ids, dense, 0.0)[0], closed)
    assert torch.equal(route(layer, x, ids, dense, 1.0)[0], opened)
    y, gates = route(layer, x, ids, dense, 0.4)
    expected = torch.where(gates.values.bool().unsqueeze(-1), opened, closed)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_each_layer_has_a_share_of_its_own(tiny_model, token):
    model = tiny_model("ca")
    shares = dict(zip(model.layer_names, (0.2, 0.8, 0.0, 1.0), strict=True))
    features, prompt = torch.randn(4, 80, 300), torch.full((4, 6), token("<|ca|>"))
    torch.manual_seed(0)
    ids = torch.zeros(4, dtype=torch.long)
    out = model(features, prompt, gate_mode=shares, expert_ids=ids, output_gates=True)
    gates = [*out.gates.encoder, *out.gates.decoder]
    for layer, share in zip(gates, shares.values(), strict=True):
        assert layer.values.mean().item() == pytest.approx(share, abs=0.3)
    options = {"language": "ca", "max_new_tokens": 8, "gate_mode": shares}
    torch.manual_seed(1)
    said = model.generate(features, **options)
    torch.manual_seed(1)
    assert torch.equal(model.generate(features, **options), said)
    assert mode_of({"encoder.1": 0.2}, "encoder.2") == "learned"


@pytest.mark.parametrize("mode", [1.5, -0.1, float("nan"), True, "x", None])
def test_what_is_no_share_is_one_sentence(tiny_model, mode):
    model = tiny_model("ca")
    check_gate_mode(0.5, model.layer_names)
    for given in (mode, {"encoder.1": 0.5, "decoder.2": mode}):
        with pytest.raises(UserError, match=f"gate_mode {mode!r} is unknown: .* share from 0 to 1"):
            check_gate_mode(given, model.layer_names)
    if mode is not None:  # None is the model's own
        with pytest.raises(UserError, match="share from 0 to 1"):
            model.generate(torch.randn(1, 80, 300), language="ca", gate_mode=mode)


@torch.no_grad()
@pytest.mark.parametrize("layer", ["ffn"], indirect=True)
def test_each_token_goes_through_one_branch(layer, monkeypatch):
    x, ids = tokens(4, 0.25), torch.tensor([0, 0, 1, SHARED])
    went = []
    shared = layer.shared
    monkeypatch.setattr(layer, "shared", lambda t: went.append(t[..., 0].numel()) or shared(t))
    for expert in layer.clsr.values():
        expert.register_forward_hook(lambda m, i, out: went.append(out[..., 0].numel()))
    _, gates = route(layer, x, ids)
    assert sum(went) == 80
    assert max(went) == 80 - gates.values.sum()


@torch.no_grad()
@pytest.mark.parametrize("layer", ["low-rank"], indirect=True)
@pytest.mark.parametrize("length", [1, 20])
def test_low_rank_products_are_of_the_picked_tokens_alone(layer, length):
    x, ids = tokens(16, 0.25, length), torch.tensor([0, 1, SHARED, 1] * 4)
    read = []
    for expert in layer.clsr.values():
        for linear in (expert.fc1.down, expert.fc2.down):
            linear.register_forward_hook(lambda m, i, out: read.append(out[..., 0].numel()))
    _, gates = route(layer, x, ids)
    assert sum(read) == 2 * gates.values.sum() > 0


@pytest.mark.parametrize("layer", ["low-rank", "mixed"], indirect=True)
@pytest.mark.parametrize("open_", [False, True])
def test_gradients_at_inference_are_those_of_both_branches(layer, open_):
    """What looks into a model after the fact: nothing is overwritten that a gradient needs."""
    grads = []
    for dense in (False, True):
        x = tokens(4, 0.5).requires_grad_()
        y, _ = route(
            layer, x, torch.tensor([0, 1, 1, SHARED]), dense, "open" if open_ else "learned"
        )
        grads.append(torch.autograd.grad(y.square().sum(), [x, layer.fc1.weight]))
    for sparse, both in zip(*grads, strict=True):
        torch.testing.assert_close(sparse, both, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_half_precision_does_not_flip_tokens():
    torch.manual_seed(0)
    exact = Gate(64, 16, 0.0).eval()
    gate = copy.deepcopy(exact).to(torch.bfloat16)
    assert all(map(torch.equal, gate.parameters(), exact.parameters()))
    x = torch.randn(50, 400, 64).bfloat16()
    scores = exact(x.float())
    assert torch.equal(gate(x), scores)
    assert torch.equal(hard_gate(gate, x), scores >= 0)
    with torch.autocast("cpu", torch.bfloat16):
        assert gate(x).dtype == torch.float32
        assert torch.equal(hard_gate(exact, x.float()), scores >= 0)
    inner, outer = (t.bfloat16() for t in (gate.inner.weight, gate.outer.weight))
    half = F.linear(F.relu(F.linear(x, inner, gate.inner.bias.bfloat16())), outer).squeeze(-1)
    assert not torch.equal(half >= 0, scores >= 0)  # what float32 saves from


@torch.no_grad()
def test_a_batch_is_sorted_into_languages_once(tiny_model):
    model = tiny_model("ca", "cs")
    features = torch.randn(5, 80, 300)
    rows_by_expert.cache_clear()
    languages = ["cs", "ca", "en", "ca", "cs"]
    model.generate(features, language=languages, task="transcribe", max_new_tokens=6)
    assert rows_by_expert.cache_info().misses == 1
    assert rows_by_expert.cache_info().hits >= 4


@pytest.mark.parametrize(("mode", "share"), [("open", 1.0), ("closed", 0.0)])
def test_generate_hears_the_gates_that_it_is_to_on_both_sides(tiny_model, tmp_path, mode, share):
    """The encoder is called past forward(); None is no mode of its own; a loaded model's settings
    are none of generation's."""
    tiny_model("ca").save_pretrained(tmp_path)
    load = DistilWhisperForConditionalGeneration.from_pretrained
    own, other = load(tmp_path, gate_mode=mode).eval(), load(tmp_path, gate_mode="soft").eval()
    for model, options in ((own, {}), (own, {"gate_mode": None}), (other, {"gate_mode": mode})):
        with GateRecorder(model) as gates:
            model.generate(torch.randn(2, 80, 300), language="ca", max_new_tokens=6, **options)
        heard = gates.take()
        assert {heard[side].float().mean().item() for side in ("encoder", "decoder")} == {share}


def test_training_follows_inference_on_the_same_batch(tiny_model, token):
    model = tiny_model("ca", "cs", skip=0.0)
    features, ids = torch.randn(3, 80, 300), torch.tensor([1, 0, SHARED])
    prompt = torch.full((3, 5), token("<|startoftranscript|>"))
    rows_by_expert.cache_clear()
    with torch.inference_mode():
        model(features, prompt, expert_ids=ids)
    model.train()(features, prompt, expert_ids=ids).logits.sum().backward()
    assert model.model.encoder.layers[0].clsr["ca"].fc1.weight.grad is not None


@torch.no_grad()
def test_a_compiled_layer_is_one_graph_for_any_gates(layer):
    """Static shapes: no break in the graph, no second compilation for other gates and rows."""
    torch._dynamo.reset()
    compiled = torch.compile(route, fullgraph=True, backend="aot_eager")  # no compiler needed
    batches = (0.5, [0, 1, SHARED]), (0.0, [1, 1, 1]), (1.0, [SHARED, 0, 0])
    for number, (density, batch) in enumerate(batches):
        x, ids = tokens(3, density), torch.tensor(batch)
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            y, gates = compiled(layer, x, ids)
        expected, expected_gates = route(layer, x, ids)
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(gates.values, expected_gates.values)
