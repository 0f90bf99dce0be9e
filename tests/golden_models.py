"""Golden models as users load them, and one forward pass, generation or training step of each.

Shared by the tests of test_golden.py; the bundles themselves are read by golden_bundles.py.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from golden_bundles import SIDES, Bundle, code_of, languages_of, prompt_of, runs_of
from safetensors.torch import load_file
from transformers import GenerationConfig

from distilwhisper_lib import DistilWhisperForConditionalGeneration, resolve
from distilwhisper_lib.losses.chunked import States
from distilwhisper_lib.losses.objective import Counted, counted, gate_means, gate_noise, loss_parts
from distilwhisper_lib.losses.teacher import Teacher
from distilwhisper_lib.model.authors import their_name
from distilwhisper_lib.model.clsr import SHARED, Gates, GateTrace
from distilwhisper_lib.model.layers import DistilWhisperConfig

EVERYWHERE = Counted(None, None)  # the positions that count under conventions "authors"


# Loading -------------------------------------------------------------------------------------


def generation_config(golden: Path) -> dict[str, Any]:
    """A generation_config.json that names the tokens of the golden models.

    The tokens behind no-timestamps are words in these vocabularies, and time stamps to Whisper's
    generate, which would cut the text there; so no-timestamps is declared to be the last token.
    The prompt is given as ids and does not come from here.
    """
    whisper = Bundle(golden, "base").json("config.json")["whisper"]
    languages = languages_of(golden)
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
    return {name: whisper[name] for name in names} | {
        "is_multilingual": True,
        "lang_to_id": {f"<|{code_of(x)}|>": prompt_of(golden, x)[0] for x in languages},
        "task_to_id": {"transcribe": prompt_of(golden, languages[0])[1]},
        "no_timestamps_token_id": whisper["vocab_size"] - 1,
        "max_length": whisper["max_target_positions"],
        "return_timestamps": False,
    }


def write_checkpoint(
    golden: Path, weights: Path, config: dict[str, Any], folder: Path, model_type: str
) -> Path:
    """A folder for from_pretrained(): recorded weights under a config.json made of ``config``."""
    folder.mkdir(parents=True, exist_ok=True)
    flat = config.get("whisper", config) | config.get("clsr", {}) | {"model_type": model_type}
    settings = Bundle(golden, "base").json("config.json")
    flat["activation_function"] = settings["activation_function"]
    flat["scale_embedding"] = settings["scale_embedding"]
    for name in ("dropout", "attention_dropout", "activation_dropout"):
        flat[name] = settings["dropouts"]
    (folder / "config.json").write_text(json.dumps(flat))
    (folder / "generation_config.json").write_text(json.dumps(generation_config(golden)))
    (folder / "model.safetensors").write_bytes(weights.read_bytes())
    return folder


def load_base(golden: Path, folder: Path, **settings: Any) -> DistilWhisperForConditionalGeneration:
    """The stock Whisper of bundle base, as users load one; without dropout."""
    bundle = Bundle(golden, "base")
    weights = bundle.folder / "model.safetensors"
    path = write_checkpoint(golden, weights, bundle.json("config.json"), folder, "whisper")
    gate_dim = Bundle(golden, "clsr_eval").json("config.json")["clsr"]["clsr_gate_dim"]
    return _load(path, gate_dim=gate_dim, **settings)


def load_student(golden: Path, folder: Path, **settings: Any) -> Any:
    """The model of bundle clsr_eval, from its own layout with the experts inside."""
    bundle = Bundle(golden, "clsr_eval")
    weights = bundle.folder / "model.safetensors"
    path = write_checkpoint(golden, weights, bundle.json("config.json"), folder, "distilwhisper")
    return _load(path, **settings)


def _load(path: Path, **settings: Any) -> DistilWhisperForConditionalGeneration:
    quiet = {"gate_dropout": 0.0, "expert_dropout": 0.0, "skip": 0.0}
    return DistilWhisperForConditionalGeneration.from_pretrained(path, **quiet | settings)


def load_teacher(golden: Path) -> DistilWhisperForConditionalGeneration:
    bundle = Bundle(golden, "clsr_train")
    settings = Bundle(golden, "base").json("config.json")
    model = DistilWhisperForConditionalGeneration(
        DistilWhisperConfig(
            **bundle.json("config.json")["teacher_whisper"],
            activation_function=settings["activation_function"],
            scale_embedding=settings["scale_embedding"],
        )
    )
    found = model.load_state_dict(load_file(bundle.folder / "teacher.safetensors"), strict=False)
    assert found.missing_keys == ["proj_out.weight"] and not found.unexpected_keys
    model.tie_weights()
    return model


def whisper_small(golden, shrink=1):
    """Layers and widths of the released checkpoints, divided by ``shrink``; memory untouched."""
    expert = Bundle(golden, "expert").json("keys_whisper_small.json")
    shapes = Bundle(golden, "expert").json("full_keys_whisper_small.json")["keys"]
    vocabulary, width = shapes["model.decoder.embed_tokens.weight"]
    config = DistilWhisperConfig(
        vocab_size=vocabulary, d_model=width // shrink, encoder_layers=12, decoder_layers=12,
        encoder_attention_heads=12, decoder_attention_heads=12,
        encoder_ffn_dim=4 * width // shrink, decoder_ffn_dim=4 * width // shrink,
        gate_dim=expert["gate_dim"] // shrink,
    )  # fmt: skip
    with torch.device("meta"):
        model = DistilWhisperForConditionalGeneration(config)
    lang_to_id = {f"<|{code_of(expert['language'])}|>": 50270}
    model.generation_config = GenerationConfig(lang_to_id=lang_to_id)
    return model.to_empty(device="cpu")


# Running -------------------------------------------------------------------------------------


def experts_of(model, language, rows):
    """Expert ids (B,) of a batch in one language; None: of none."""
    index = SHARED if language is None else model.languages.index(code_of(language))
    return torch.full((rows,), index)


def forward(model, inputs, language, **options):
    return model(
        input_features=inputs["input_features"],
        decoder_input_ids=inputs["decoder_input_ids"],
        expert_ids=experts_of(model, language, len(inputs["labels"])),
        **options,
    )


def generate(model, golden, inputs, language, variant):
    """Greedy ids as the public code returns them: start, prompt, text, padding."""
    about = Bundle(golden, "base").values["generate"]
    features = inputs["input_features"]
    prompt = [model.config.decoder_start_token_id]
    options = {}
    if variant == "prompt":  # routed by the language token that stands in it
        about_prompt = about["prompt_variant"]
        prompt += prompt_of(
            golden, language or about_prompt["base/prompt uses the language token of"]
        )
        for name in about_prompt:
            if "suppress_tokens" in name:
                options[name.split()[0]] = about_prompt[name]
    else:
        options["expert_ids"] = experts_of(model, language, len(features))
    length = 1 + about["max_new_tokens"]  # which counts the prompt, but not the start token
    ids = model.generate(
        features,
        decoder_input_ids=torch.tensor([prompt] * len(features)),
        max_new_tokens=length - len(prompt),
        **options,
    )
    pad = [model.config.pad_token_id] * length
    return torch.tensor([(prompt + row + pad)[:length] for row in ids.tolist()])


def configure(name, recorded, positions):
    """The RunConfig of a recorded run, and how many times KL its distillation is.

    Sigma, a switched-off budget and "KLseq" are weights here: see test_golden.py.
    """
    about = recorded.get("settings", {})
    overrides = {"conventions": "authors", "budget": about.get("gate_budget", 0.5)}
    if name.endswith("no_gate_loss") or not about.get("use_gate_loss", True):
        overrides["gate_weight"] = 0.0
    if not about:
        return configured("clsr", **overrides), 1
    times = positions if "KLseq" in name else 1
    overrides["temperature"] = about["temperature"]
    return configured(about["loss_type"], about["sigma"], times, **overrides), times


def configured(kind, sigma=(1.0, 1.0), times=1, **overrides):
    method = {"JS5": "js", "KL": "kl", "KLseq": "kl"}.get(kind, kind)
    if method != "clsr":
        overrides["task_weight"] = 0.5 / sigma[0] ** 2
        overrides["distil_weight"] = times * 0.5 / sigma[1] ** 2
    usual = {"conventions": "authors"}
    return resolve(method, "cv3k", "ca", 1, usual | overrides)


def layers_of(model):
    """("encoder", 0), ... in the order of a forward pass."""
    return [(side, i) for side in SIDES for i in range(len(getattr(model.model, side).layers))]


def replay(monkeypatch, golden, model, skipped=None):
    """Let the gates' noise and each layer's skipping be the recorded ones."""
    noise = Bundle(golden, "clsr_train").below("noise")
    drawn = iter([noise[f"{side}/{i}"] for side, i in layers_of(model)])
    monkeypatch.setattr(torch, "randn_like", lambda like: next(drawn).reshape(like.shape))
    for (side, i), layer in zip(layers_of(model), model.routed_layers(), strict=True):
        layer.config = copy.deepcopy(model.config)
        layer.config.skip = float(skipped[side][i]) if skipped else 0.0


def train_step(golden, model, inputs, name, monkeypatch):
    """One recorded run again: (what it printed, its tensors), gradients under their names."""
    recorded = runs_of(golden)[name]
    run, times = configure(name, recorded, inputs["labels"].shape[1])
    skipped = recorded.get("skipped_layers")
    if name.endswith("skip_all"):
        skipped = {side: [True] * len(getattr(model.model, side).layers) for side in SIDES}
    replay(monkeypatch, golden, model, skipped)
    alpha = gate_noise(run, recorded["step_proportion"])
    target = None if run.method == "clsr" else Teacher(load_teacher(golden)).targets(inputs)
    out = forward(
        model,
        inputs,
        recorded["language"],
        gate_noise=alpha,
        output_gates=True,
        with_logits=False,
    )
    head = model.get_output_embeddings()
    masks = counted(run, out.gates.encoder[0].values.shape[1], inputs, model.config.eos_token_id)
    mean = gate_means(out.gates, masks).gate_mean
    student = States(out.last_hidden_state, head.weight)
    parts = loss_parts(run, student, inputs["labels"], mean, target)
    parts.total.backward()
    printed = {
        "gate_states": mean, "gate_loss": run.gate_weight * parts.gate, "ce_loss": parts.ce,
        "kd_loss": times * parts.distil, "loss": parts.total,
    }  # fmt: skip
    tensors = {
        "logits": head(out.last_hidden_state),
        "encoder_last_hidden_state": out.encoder_last_hidden_state,
    }
    for side, i in layers_of(model):
        tensors[f"{side}_gate/{i}"] = getattr(out.gates, side)[i].values
    for parameter_name, parameter in model.named_parameters():
        if parameter.grad is not None:
            tensors[f"grad/{their_name(parameter_name)}"] = parameter.grad
    return printed, tensors


def states_of(logits):
    """Hidden states and a head that give just these logits."""
    return States(logits, torch.eye(logits.shape[-1]))


def recorded_gates(tensors):
    """The gate values of bundle losses as leaves, and as a trace."""
    gates = {k: v.clone().requires_grad_() for k, v in tensors.items() if k.startswith("gates/")}
    sides = [
        [Gates(gates[f"gates/{side}/{i}"], False) for i in range(len(gates))
         if f"gates/{side}/{i}" in gates]
        for side in SIDES
    ]  # fmt: skip
    return gates, GateTrace(*sides)
