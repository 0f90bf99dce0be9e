"""Checkpoints as the authors released them: their names, their config, in a folder or hub cache."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from distilwhisper_lib.model.authors import their_name


def theirs(model, experts=True):
    """A model's weights under the authors' names, one tied twin less, as they are stored."""
    kept = {k: v for k, v in model.state_dict().items() if experts or ".clsr." not in k}
    kept.pop("proj_out.weight")
    return {their_name(name): tensor.contiguous() for name, tensor in kept.items()}


def write_release(model, folder, form="safetensors", experts=True, langs=(), **generation):
    """A checkpoint as transformers 4.30 and the public code write it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config.to_dict()
    for own in ("expert_tokens", "gate_dropout", "expert_dropout", "transformers_version"):
        config.pop(own)
    config |= {
        "clsr_gate_dim": config.pop("gate_dim"), "skip_gate_prob": config.pop("skip"),
        "clsr_langs": [*langs, "shared"], "clsr_max_steps": 10000, "clsr_residual": False,
        "use_gate_budget": False, "gate_budget": 0.0, "model_type": "distilwhisper",
        "torch_dtype": "float32", "max_length": 448, "forced_decoder_ids": None,
        "transformers_version": "4.30.1",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    old = json.loads(model.generation_config.to_json_string())
    old |= {"forced_decoder_ids": [[1, None], [2, 5]], "transformers_version": "4.27.0"}
    old = {k: v for k, v in (old | generation).items() if v is not None}
    (folder / "generation_config.json").write_text(json.dumps(old))
    state = theirs(model, experts)
    if form == "safetensors":
        save_file(state, folder / "model.safetensors", {"format": "pt"})
    else:
        state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
        torch.save(state, folder / "pytorch_model.bin")
    return folder


def cached_snapshot(cache: Path, repository: str, revision: str, commit: str) -> Path:
    """Where huggingface_hub keeps a revision of a repository; the folder is still to be filled."""
    root = cache / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / revision).write_text(commit)
    return root / "snapshots" / commit
