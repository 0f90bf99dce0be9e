"""What the gates do when nobody forces them: recorded while transcribing, at no second pass."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import WhisperProcessor

from .audio import read_audio
from .clsr import CLSR, Gates
from .config import WITH_EXPERTS, RunConfig, resolve
from .errors import UserError
from .features import audio_positions, extract_features
from .model import DistilWhisperForConditionalGeneration
from .schema import LANGUAGE, Maybe, Optional, Where, at_least, between, check, read_json
from .token_classes import token_texts

SCHEMA = 2
PROMPT_TOKENS = 4  # start, language, task, no-timestamps

_SHARES = [between(0, 1)]
_INTERVAL = Maybe([[float]])
_DOMAIN = {
    "encoder": _SHARES,
    "decoder": _SHARES,
    "encoder_interval": Optional(_INTERVAL),
    "decoder_interval": Optional(_INTERVAL),
    "classes": Optional({str: {"share": _SHARES, "interval": _INTERVAL}}),
    "soft": Optional({"encoder": Maybe(_SHARES), "decoder": Maybe(_SHARES)}),
    "entropy": Optional({str: {"all": [float], "interval": _INTERVAL}}),
    "scores": Optional(Maybe({str: [[at_least(int, 0)]]})),
}
_EXAMPLE = {
    "id": str,
    "text": str,
    "seconds": at_least(float, 0),
    "tokens": [str],
    "token_gates": [[float]],
    "frame_gates": [[float]],
}
_RUN_ID = Where(
    str, re.compile(r"[a-z_-]+-s\d+-[0-9a-f]+").fullmatch, "<method>-<language>-s<seed>-<hash>"
)
# Of files of schema 1 what they are of is in their run id only.
_FILE = {
    "run_id": _RUN_ID,
    "method": Optional(str),
    "preset": Optional(str),
    "language": LANGUAGE,
    "seed": Optional(int),
    "settings": Optional({}),
    "gate_noise": Optional(Maybe(float)),
    "domains": {str: Maybe(_DOMAIN)},
    "example": Optional(Maybe(_EXAMPLE)),
}


class GateRecorder:
    """``with GateRecorder(model) as gates: model.generate(...)`` and then ``gates.take()``.

    Works whatever route the layers take (sparse, dense, forced) and changes nothing that they
    compute: it listens to what they return.
    """

    def __init__(self, model: DistilWhisperForConditionalGeneration) -> None:
        self._layers = {
            "encoder": [layer.clsr for layer in model.model.encoder.layers],
            "decoder": [layer.clsr for layer in model.model.decoder.layers],
        }
        self._heard: dict[str, list[list[_Step]]] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> GateRecorder:
        self._clear()
        for side, layers in self._layers.items():
            for index, clsr in enumerate(layers):
                self._hooks += _listen(clsr, self._heard[side][index])
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def take(self) -> dict[str, Tensor]:
        """What was heard since the last call, on the CPU.

        "encoder" and "decoder": bool (layers, B, positions), whether the expert spoke;
        "encoder_scores" and "decoder_scores": the same in float32, the gates' scores, NaN where
        no gate was asked: rows without an expert, and all of them where the gates are forced.

        The decoder's positions are the prompt and then one per generated token, the last
        token excepted: nothing follows it.
        """
        sides = {
            side: torch.stack([torch.cat([s.values for s in steps], 1) for steps in layers])
            for side, layers in self._heard.items()
        }
        taken = {side: values.bool().cpu() for side, values in sides.items()}
        for side, layers in self._heard.items():
            scores = torch.stack(
                [torch.cat([s.all_scores() for s in steps], 1) for steps in layers]
            )
            taken[f"{side}_scores"] = scores.cpu()
        self._clear()
        return taken

    def _clear(self) -> None:
        """Empty the lists; the hooks go on filling the same ones."""
        for side, layers in self._layers.items():
            self._heard.setdefault(side, [[] for _ in layers])
            for steps in self._heard[side]:
                steps.clear()


class _Step(NamedTuple):
    """One layer's gates in one forward pass."""

    values: Tensor  # (B, T)
    scores: dict[int, Tensor]  # by expert: (its rows, T), or (B, T) on the dense route
    expert_ids: Tensor | None  # (B,) on the CPU

    def all_scores(self) -> Tensor:
        """(B, T) float32, each row's by its own expert."""
        spread = torch.full_like(self.values, float("nan"))
        for expert, scores in self.scores.items():
            rows = (self.expert_ids == expert).nonzero().squeeze(1).to(spread.device)
            spread[rows] = scores if len(scores) == len(rows) else scores[rows]
        return spread


def _listen(clsr: CLSR, steps: list[_Step]) -> list[Any]:
    """Let a layer's passes be noted in ``steps``; returns the hooks."""
    asked: dict[int, Tensor] = {}  # of the pass that is going on

    def hear_gate(expert: int) -> Any:
        def hook(_module: Any, _inputs: Any, scores: Tensor) -> None:
            asked[expert] = scores.detach()

        return hook

    def hear_layer(_module: Any, _args: Any, kwargs: Any, output: tuple[Tensor, Gates]) -> None:
        steps.append(_Step(output[1].values.detach(), dict(asked), kwargs.get("expert_ids")))
        asked.clear()

    hooks = [
        expert.gate.register_forward_hook(hear_gate(index))
        for index, expert in enumerate(clsr.values())
    ]
    return [*hooks, clsr.register_forward_hook(hear_layer, with_kwargs=True)]


def inspect_clip(
    model: DistilWhisperForConditionalGeneration,
    processor: WhisperProcessor,
    row: dict[str, Any],
    max_new_tokens: int,
    gate_mode: str = "learned",
    with_scores: bool = False,
) -> dict[str, Any]:
    """Transcribe one clip of a corpus table and keep every gate, frame by frame, token by token.

    A token that the limit made the last one is left out: it never went through the layers.
    ``with_scores``: keep "token_scores" and "frame_scores" too, NaN where gates are forced.
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
    found = {
        "id": row["id"],
        "reference": row["text"],
        "text": tokenizer.decode(text).strip(),
        "seconds": round(len(audio) / 16_000, 3),
        "tokens": (prompt + token_texts(tokenizer, text))[:said],
        "token_gates": gates["decoder"][:, 0, :said].int().tolist(),
        "frame_gates": gates["encoder"][:, 0, :heard].int().tolist(),
    }
    if with_scores:
        found["token_scores"] = gates["decoder_scores"][:, 0, :said].tolist()
        found["frame_scores"] = gates["encoder_scores"][:, 0, :heard].tolist()
    return found


def gate_path(config: RunConfig) -> Path:
    """Where a run's gate file is published."""
    return config.results_dir / "gates" / f"{config.run_id}.json"


def read_gates(path: Path) -> dict[str, Any]:
    """A gate file, of this format or of schema 1, which has the shares by layer alone.

    Raises UserError when it is missing, unreadable, of a newer format or not what it should be.
    """
    missing = f"no gate file {path}: run one of the notebooks 04 to 06 first"
    gates = read_json(path, missing, "run its notebook again")
    schema = gates.get("schema") if isinstance(gates, dict) else None
    if schema not in (1, SCHEMA):
        raise UserError(
            f"gate file {path} has schema {schema!r}, expected {SCHEMA} (or 1, of earlier "
            "versions): update the kit or run its notebook again"
        )
    check(gates, _FILE, f"gate file {path}", "run its notebook again")
    _check_lengths(gates, path)
    if schema == 1:  # what it is of was only in its name: <method>-<language>-s<seed>-<hash>
        parts = re.fullmatch(r"(\w+)-.*-s(\d{1,10})-\w+", gates["run_id"])
        if parts is None:
            raise UserError(f"gate file {path} has no run id but {gates['run_id']!r}: rename it")
        gates = {"method": parts[1], "seed": int(parts[2])} | gates
    return gates


def _check_lengths(gates: dict[str, Any], path: Path) -> None:
    """Raise UserError unless all that is by layer is of one length, and all that is by position."""
    layers: dict[str, int] = {}
    for domain in filter(None, gates["domains"].values()):
        for side in ("encoder", "decoder"):
            layers.setdefault(side, len(domain[side]))
            tables = [(domain[side], domain.get(f"{side}_interval"))]
            if side in domain.get("entropy", {}):
                entropy = domain["entropy"][side]
                tables.append((entropy["all"], entropy.get("interval")))
            for shares, interval in tables:
                even = interval is None or {len(pair) for pair in interval} <= {2}
                if not len(shares) == layers[side] == len(interval or shares) or not even:
                    raise _uneven(path, f"the {side}'s layers")
        for found in domain.get("classes", {}).values():
            interval = found.get("interval") or [(0, 0)] * len(found["share"])
            if len(found["share"]) != len(interval) or {len(p) for p in interval} - {2}:
                raise _uneven(path, "the layers of a class")
    if example := gates.get("example"):
        widths = {len(row) for row in example["token_gates"]}
        if widths != {len(example["tokens"])} or len(set(map(len, example["frame_gates"]))) != 1:
            raise _uneven(path, "the positions of the example")


def _uneven(path: Path, what: str) -> UserError:
    return UserError(f"gate file {path} is not even in {what}: run its notebook again")


def load_gates(results: str | Path) -> list[dict[str, Any]]:
    """All gate files of a results folder, by run id. Raises UserError when there is none."""
    folder = Path(results) / "gates"
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise UserError(f"no gate files in {folder}: run notebooks 04 to 06 first")
    return [read_gates(path) for path in paths]


def gates_of(
    found: Sequence[dict[str, Any]], preset: str, seed: int, overrides: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Of these gate files, those of a notebook's parameters, whatever the language; all of them
    where there is none: other seeds and training sizes would stand beside as if they were other
    systems."""
    languages = {g["language"] for g in found if g.get("preset") == preset}
    runs = {
        resolve(method, preset, language, seed, overrides).run_id
        for method in WITH_EXPERTS
        for language in languages
    }
    return [g for g in found if g["run_id"] in runs] or list(found)
