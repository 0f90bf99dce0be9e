"""What experts cost when a model transcribes: against stock Whisper and against both branches."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput

from benchmarks.races import models
from benchmarks.races.harness import Row, check, interleaved, largest_difference, row
from benchmarks.races.setting import Setting
from distilwhisper_lib.evaluation.decoding import evaluating

TOLERANCE = 1e-3  # float32: the same sums in another order


@torch.no_grad()
def routing(setting: Setting) -> Iterator[Row]:
    """One layer's feed-forward block: over 30 s of frames, and over one token of 16 clips."""
    model = setting.pair.model
    shapes = {
        "encoder": (model.model.encoder.layers, 1, 1500),
        "decoder": (model.model.decoder.layers, 16, 1),
    }
    for side, (layers, rows, length) in shapes.items():
        layer = copy.deepcopy(layers[len(layers) // 2])
        x = torch.randn(rows, length, model.config.d_model).to(setting.device, setting.dtype)
        yield from _one_layer(setting, layer, x, f"{side} layer, {rows} x {length} tokens")


def _one_layer(setting: Setting, layer: Any, x: Tensor, title: str) -> Iterator[Row]:
    ids = torch.zeros(len(x), dtype=torch.long)

    def experts(layer: Any = layer, x: Tensor = x, mode: str = "learned") -> Tensor:
        return layer._ffn(x, {"expert_ids": ids, "gate_mode": mode})

    def both(layer: Any = layer, x: Tensor = x) -> Tensor:
        with models.dense_form():
            return experts(layer, x)

    def plain() -> Tensor:
        return x + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(x))))

    with models.halving([layer]):
        experts()
    exact = copy.deepcopy(layer).float(), x.float()
    checks = [
        _near("both branches", experts(*exact), both(*exact), TOLERANCE),
        _near("closed gates and the plain FFN", experts(mode="closed"), plain(), 0.0),
    ]
    opened = layer.clsr["ca"].gate(layer.final_layer_norm(x)) >= 0
    sides = {"experts": experts, "plain": plain, "both": both}
    samples = interleaved(sides, setting.rounds(25), setting.device, warm=3)
    about = {"checks": checks, "gates_open": round(opened.float().mean().item(), 3)}
    yield row(f"FFN with experts / plain FFN, {title}", samples, **about)
    yield row(f"FFN with experts / both branches, {title}", _of(samples, "both"), **about)


@torch.no_grad()
def forward(setting: Setting) -> Iterator[Row]:
    """A whole pass over 30 s and 32 decoder tokens."""
    routed, stock = setting.pair.model, setting.pair.stock
    heard = models.features(1).to(setting.device, setting.dtype)
    ids = models.decoder_inputs(["ca"]).to(setting.device)

    def experts(model: Any = routed, **options: Any) -> Tensor:
        return model(heard.to(model.dtype), ids, **options).logits

    def both(model: Any = routed) -> Tensor:
        with models.dense_form():
            return experts(model)

    def plain() -> Tensor:
        return stock(heard, decoder_input_ids=ids).logits

    with models.halving(routed.routed_layers()):
        experts()
    with evaluating(routed, "fp32") as exact:
        with models.gates_open(exact) as shares:
            sparse = experts(exact)
        apart = _near("logits of both branches", sparse, both(exact), TOLERANCE)
    closed = experts(gate_mode="closed")
    checks = [apart, _near("logits of closed gates and stock Whisper", closed, plain(), 0.0)]
    sides = {"experts": experts, "stock": plain, "both": both}
    samples = interleaved(sides, setting.rounds(7), setting.device)
    about = {"checks": checks, "gates_open": shares}
    title = "30 s forward with experts"
    yield row(f"{title} / stock Whisper", samples, goal="<= 1.03", **about)
    yield row(f"{title} / both branches", _of(samples, "both"), goal="<= 0.75", **about)


def generate(setting: Setting) -> Iterator[Row]:
    """Greedy decoding: one whole clip, then 16 of two languages whose encoder is done.

    The encoder costs both sides the same (see forward()): leaving it out of the large batch makes
    that race the harder one, and minutes shorter.
    """
    heard = {"input_features": models.features(1).to(setting.device, setting.dtype)}
    title = "greedy generate with experts / stock Whisper, batch"
    yield row(f"{title} 1", goal="<= 1.12", **_decoded(setting, heard, ["ca"], 4))
    models.add_expert(setting.pair.model, "pl")
    shape = (16, 1500, setting.pair.model.config.d_model)
    states = F.layer_norm(torch.randn(shape), shape[-1:]).to(setting.device, setting.dtype)
    heard = {"encoder_outputs": BaseModelOutput(last_hidden_state=states)}
    many = _decoded(setting, heard, ["ca", "pl"] * 8, 2)
    yield row(f"{title} 16 of two languages, decoder alone", goal="<= 1.30", **many)
    setting.drop("pair")


@torch.no_grad()
def _decoded(
    setting: Setting, heard: dict[str, Any], languages: list[str], rounds: int
) -> dict[str, Any]:
    routed, stock = setting.pair.model, setting.pair.stock
    timed, compared = (4, 4) if setting.small else (32, 8)  # tokens

    def side(model: Any, task: str = "transcribe", tokens: int = compared) -> Tensor:
        given = {name: _in(model.dtype, value) for name, value in heard.items()}
        given |= {"max_new_tokens": tokens, "min_new_tokens": tokens}  # as many on both sides
        return model.generate(**given, language=languages, task=task, do_sample=False)

    # Random models repeat themselves: gates are to halve what is written, not just any tokens.
    said = side(routed, tokens=timed)
    prompt = models.decoder_inputs(languages, 0).to(said.device)
    with models.halving(routed.routed_layers()):
        routed(**heard, decoder_input_ids=torch.cat([prompt, said], 1))
    with evaluating(routed, "fp32") as exact:
        with models.gates_open(exact) as shares:
            sparse = side(exact)
        with models.dense_form():
            apart = _unlike(sparse, side(exact))
    closed = _unlike(side(routed, "translate"), side(stock, "translate"))
    return {
        "samples": interleaved(
            {
                "experts": lambda: side(routed, tokens=timed),
                "stock": lambda: side(stock, tokens=timed),
            },
            setting.rounds(rounds),
            setting.device,
            warm=0,  # all of it has run above
        ),
        "checks": [
            check("tokens of both branches: share that differs", apart, 0.0),
            check("tokens of closed gates and stock Whisper: share that differs", closed, 0.0),
        ],
        "gates_open": shares,
        "tokens": timed,
    }


def _in(dtype: torch.dtype, heard: Any) -> Any:
    if isinstance(heard, Tensor):
        return heard.to(dtype)
    return BaseModelOutput(last_hidden_state=heard.last_hidden_state.to(dtype))


def _of(samples: dict[str, list[float]], other: str) -> dict[str, list[float]]:
    return {name: samples[name] for name in ("experts", other)}


def _near(what: str, a: Tensor, b: Tensor, limit: float) -> dict[str, Any]:
    return check(f"{what}: largest difference", largest_difference(a, b), limit)


def _unlike(a: Tensor, b: Tensor) -> float:
    return (a != b).float().mean().item() if a.shape == b.shape else 1.0
