"""What the gates do when nobody forces them: recorded while transcribing, at no second pass."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperProcessor

from .audio import read_audio
from .clsr import Gates
from .config import RunConfig
from .errors import UserError
from .features import audio_positions, extract_features
from .model import DistilWhisperForConditionalGeneration

SCHEMA = 1
PROMPT_TOKENS = 4  # start, language, task, no-timestamps
_RESAMPLES = 1000


class GateRecorder:
    """``with GateRecorder(model) as gates: model.generate(...)`` and then ``gates.take()``."""

    def __init__(self, model: DistilWhisperForConditionalGeneration) -> None:
        self._layers = {
            "encoder": [layer.clsr for layer in model.model.encoder.layers],
            "decoder": [layer.clsr for layer in model.model.decoder.layers],
        }
        self._heard: dict[str, list[list[Tensor]]] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> GateRecorder:
        self._clear()
        for side, layers in self._layers.items():
            for index, clsr in enumerate(layers):
                self._hooks.append(clsr.register_forward_hook(self._listen(side, index)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def take(self) -> dict[str, Tensor]:
        """{"encoder", "decoder"} -> bool (layers, B, positions) since the last call, on the CPU.

        The decoder's positions are the prompt and then one per generated token, the last
        token excepted: nothing follows it.
        """
        sides = {
            side: torch.stack([torch.cat(steps, 1) for steps in layers]).bool().cpu()
            for side, layers in self._heard.items()
        }
        self._clear()
        return sides

    def _clear(self) -> None:
        self._heard = {side: [[] for _ in layers] for side, layers in self._layers.items()}

    def _listen(self, side: str, index: int) -> Any:
        def hook(_module: Any, _inputs: Any, output: tuple[Tensor, Gates]) -> None:
            self._heard[side][index].append(output[1].values.detach())

        return hook


def utterance_shares(
    gates: dict[str, Tensor], positions: Tensor, tokens: Sequence[int]
) -> list[dict[str, list[float]]]:
    """Share of expert routing per utterance, side and layer.

    ``gates`` as GateRecorder.take() gives them; ``positions`` (B,) encoder positions that hold
    audio; ``tokens`` text tokens generated per row. Padding does not count; the prompt does.
    """
    shares = []
    for row, (heard, said) in enumerate(zip(positions.tolist(), tokens, strict=True)):
        encoder = gates["encoder"][:, row, :heard]
        decoder = gates["decoder"][:, row, : PROMPT_TOKENS + said]
        shares.append({"encoder": _shares(encoder), "decoder": _shares(decoder)})
    return shares


def summarise(rows: Sequence[dict[str, Any]], seed: int = 0) -> dict[str, Any]:
    """Mean share per layer over a test set, with 95 % bootstrap intervals over its clips.

    ``rows`` are hypotheses as transcribe() writes them. Clips weigh by their seconds in the
    encoder and by their tokens in the decoder.
    """
    weights = {
        "encoder": np.array([row["seconds"] for row in rows]),
        "decoder": np.array([row["tokens"] + PROMPT_TOKENS for row in rows], dtype=float),
    }
    draws = np.random.default_rng(seed).integers(0, len(rows), (_RESAMPLES, len(rows)))
    summary: dict[str, Any] = {"clips": len(rows)}
    for side, weight in weights.items():
        shares = np.array([row["gates"][side] for row in rows])  # (clips, layers)
        weighted = shares * weight[:, None]
        means = weighted[draws].sum(1) / weight[draws].sum(1)[:, None]  # (draws, layers)
        low, high = np.quantile(means, [0.025, 0.975], axis=0)
        summary[side] = _rounded(weighted.sum(0) / weight.sum())
        summary[f"{side}_interval"] = [_rounded(pair) for pair in zip(low, high, strict=True)]
    return summary


def inspect_clip(
    model: DistilWhisperForConditionalGeneration,
    processor: WhisperProcessor,
    row: dict[str, Any],
    max_new_tokens: int,
    gate_mode: str = "learned",
) -> dict[str, Any]:
    """Transcribe one clip of a corpus table and keep every gate, frame by frame, token by token.

    A token that the limit made the last one is left out: it never went through the layers.
    """
    audio = read_audio(row["audio"], row["start"], row["end"])
    features = extract_features(processor.feature_extractor, [audio]).to(model.device)
    with GateRecorder(model) as recorder, torch.no_grad():
        ids = model.generate(
            input_features=features, language=row["language"], task="transcribe",
            max_new_tokens=max_new_tokens, gate_mode=gate_mode,
        )[0].tolist()  # fmt: skip
    gates = recorder.take()
    tokenizer = processor.tokenizer
    text = [token for token in ids if token != tokenizer.eos_token_id]
    heard = int(audio_positions(processor.feature_extractor, [audio])[0])
    said = min(PROMPT_TOKENS + len(text), gates["decoder"].shape[-1])
    prompt = ["<|startoftranscript|>", f"<|{row['language']}|>", "<|transcribe|>",
              "<|notimestamps|>"]  # fmt: skip
    return {
        "id": row["id"],
        "reference": row["text"],
        "text": tokenizer.decode(text).strip(),
        "seconds": round(len(audio) / 16_000, 3),
        "tokens": (prompt + [tokenizer.decode([token]) for token in text])[:said],
        "token_gates": gates["decoder"][:, 0, :said].int().tolist(),
        "frame_gates": gates["encoder"][:, 0, :heard].int().tolist(),
    }


def gate_path(config: RunConfig) -> Path:
    """Where a run's gate file is published."""
    return config.results_dir / "gates" / f"{config.run_id}.json"


def read_gates(path: Path) -> dict[str, Any]:
    """A gate file. Raises UserError when it is missing, unreadable or of a newer format."""
    try:
        gates = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"no gate file {path}: run one of the notebooks 04 to 06 first") from None
    except ValueError as error:
        raise UserError(f"gate file {path} is not JSON ({error}): run its notebook again") from None
    if gates.get("schema") != SCHEMA:
        raise UserError(
            f"gate file {path} has schema {gates.get('schema')!r}, expected {SCHEMA}: update the "
            "kit or run its notebook again"
        )
    return gates


def load_gates(results: Path) -> list[dict[str, Any]]:
    """All gate files of a results folder, by run id. Raises UserError when there is none."""
    paths = sorted((results / "gates").glob("*.json"))
    if not paths:
        raise UserError(f"no gate files in {results / 'gates'}: run notebooks 04 to 06 first")
    return [read_gates(path) for path in paths]


def _shares(gates: Tensor) -> list[float]:
    return _rounded(gates.float().mean(1).tolist())


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 4) for value in values]
