"""What experts cost when a model transcribes: against stock Whisper and against both branches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
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


def forward(setting: Setting) -> Iterator[Row]:
    """A whole pass over 30 s and 32 decoder tokens."""
    samples, about = _passed(setting, setting.pair)
    title = "30 s forward with experts"
    yield row(f"{title} / stock Whisper", samples, goal="<= 1.03", **about)
    yield row(f"{title} / both branches", _of(samples, "both"), goal="<= 0.75", **about)


@torch.no_grad()
def _passed(setting: Setting, pair: models.Pair) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """The sides' times, and what was made sure of before."""
    routed, stock = pair.model, pair.stock
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
    return samples, {"checks": checks, "gates_open": shares}


def generate(setting: Setting) -> Iterator[Row]:
    """Greedy decoding: one whole clip, then 16 of two languages whose encoder is done.

    The encoder costs both sides the same (see forward()): leaving it out of the large batch makes
    that race the harder one, and minutes shorter.
    """
    heard = {"input_features": models.features(1).to(setting.device, setting.dtype)}
    title = "greedy generate with experts / stock Whisper, batch"
    yield row(f"{title} 1", goal="<= 1.12", **_decoded(setting, setting.pair, heard, ["ca"], 4))
    models.add_expert(setting.pair.model, "pl")
    many = _decoded(setting, setting.pair, _encoded(setting, 16), ["ca", "pl"] * 8, 2)
    yield row(f"{title} 16 of two languages, decoder alone", goal="<= 1.30", **many)
    setting.drop("pair")


def low_rank(setting: Setting) -> Iterator[Row]:
    """forward() and generate() of one clip, with an expert that is a change of the shared FFN."""
    samples, about = _passed(setting, setting.low_rank)
    yield row(
        "30 s forward with low-rank experts / stock Whisper", samples, goal="<= 1.05", **about
    )
    heard = {"input_features": models.features(1).to(setting.device, setting.dtype)}
    title = "greedy generate with low-rank experts / stock Whisper, batch 1"
    decoded = _decoded(setting, setting.low_rank, heard, ["ca"], 4)
    yield row(title, goal="<= 1.12", **decoded)


@torch.no_grad()
def mixed_batch(setting: Setting) -> Iterator[Row]:
    """Low-rank experts of four languages in one batch, against peft's adapters, named by row.

    Opened, gates let experts say at every token what the adapters say; then at half of them.
    """
    routed = setting.low_rank.model
    for code in ("pl", "pt", "fr"):
        models.add_expert(routed, code, models.RANK)
    each, twice = routed.languages, routed.languages * 2
    tokens = 4 if setting.small else 32
    heard, states = models.features(4).to(setting.device, setting.dtype), _encoded(setting, 8)
    ids = models.decoder_inputs(each).to(setting.device)

    def passed(model: Any, **options: Any) -> Tensor:
        return model(input_features=heard, decoder_input_ids=ids, **options).logits

    def written(model: Any, **options: Any) -> Tensor:
        length = {"max_new_tokens": tokens, "min_new_tokens": tokens}
        return model.generate(**states, **length, language=twice, task="transcribe", **options)

    said = written(routed)
    whole = torch.cat([models.decoder_inputs(twice, 0).to(said.device), said], 1)
    races = {
        "30 s forward of 4 rows": (each, passed, lambda: passed(routed), 3),
        "greedy generate of 8 rows, decoder alone": (
            twice, written, lambda: routed(**states, decoder_input_ids=whole), 4,
        ),
    }  # fmt: skip
    for title, (languages, call, hear, rounds) in races.items():
        with models.halving(routed.routed_layers()):
            hear()
        yield from _against_peft(setting, f"{title} in 4 languages", languages, call, rounds)
    setting.drop("low_rank")


def _against_peft(
    setting: Setting, title: str, languages: list[str], call: Callable[..., Tensor], rounds: int
) -> Iterator[Row]:
    routed = setting.low_rank.model
    adapted = models.adapters(routed)
    sides = {
        "experts": lambda: call(routed),
        "opened": lambda: call(routed, gate_mode="open"),
        "peft": lambda: call(adapted, adapter_names=languages),
    }
    with models.gates_open(routed) as shares:
        sides["experts"]()
    opened, named = sides["opened"](), sides["peft"]()
    if opened.is_floating_point():
        checks = [_near("logits of open gates and peft's", opened, named, TOLERANCE)]
    else:
        same = _unlike(opened, named)
        checks = [check("tokens of open gates and peft's: share that differs", same, 0.0)]
    samples = interleaved(sides, setting.rounds(rounds), setting.device, warm=0)  # all ran above
    about = {"checks": checks, "goal": "<= 1.00"}
    for side, gates in (("experts", {"gates_open": shares}), ("opened", {})):
        name = f"low-rank experts{', all gates open' * (side == 'opened')} / peft adapters, {title}"
        yield row(name, {side: samples[side], "peft": samples["peft"]}, **about, **gates)


def _encoded(setting: Setting, rows: int) -> dict[str, Any]:
    """What an encoder might say of so many clips."""
    shape = (rows, 1500, setting.student_dimensions["d_model"])
    states = F.layer_norm(torch.randn(shape), shape[-1:]).to(setting.device, setting.dtype)
    return {"encoder_outputs": BaseModelOutput(last_hidden_state=states)}


@torch.no_grad()
def _decoded(
    setting: Setting,
    pair: models.Pair,
    heard: dict[str, Any],
    languages: list[str],
    rounds: int,
) -> dict[str, Any]:
    routed, stock = pair.model, pair.stock
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
