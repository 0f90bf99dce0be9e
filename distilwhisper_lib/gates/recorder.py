"""What the gates do while a model transcribes: heard layer by layer, or laid open for one clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import WhisperProcessor

from distilwhisper_lib.gates.counts import token_texts
from distilwhisper_lib.model.clsr import CLSR, GateMode, Gates
from distilwhisper_lib.model.whisper import DistilWhisperForConditionalGeneration
from distilwhisper_lib.speech.audio import read_audio
from distilwhisper_lib.speech.features import audio_positions, extract_features

PROMPT_TOKENS = 4  # start, language, task, no-timestamps


def has_gates(model: Any) -> bool:
    """Whether a model has any expert, and so gates to listen to."""
    return bool(getattr(model, "languages", []))


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

        "encoder" and "decoder": bool (layers, B, positions), whether the expert spoke or, where
        gates are soft, weighed at least as much as the shared network;
        "encoder_scores" and "decoder_scores": the same in float32, the gates' scores, NaN where
        no gate was asked: rows without an expert, and all of them where the gates are forced.

        The decoder's positions are the prompt and then one per generated token, the last
        token excepted: nothing follows it.
        """
        sides = {
            side: torch.stack([torch.cat([s.values for s in steps], 1) for steps in layers])
            for side, layers in self._heard.items()
        }
        taken = {side: (values >= 0.5).cpu() for side, values in sides.items()}
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


class Hearing(NamedTuple):
    """Some clips as a model transcribed them, and what its gates did meanwhile."""

    texts: list[list[int]]  # each transcript's token ids, the end left out
    gates: dict[str, Tensor]  # as GateRecorder.take() gives them
    audio: Tensor  # (B,): encoder positions that hold audio rather than padding
    decoded: list[int]  # decoder positions of each clip: its prompt and text, see take()


def hear(
    model: DistilWhisperForConditionalGeneration,
    processor: WhisperProcessor,
    audio: Sequence[Any],  # waveforms (float32, 16 kHz)
    languages: Sequence[str],
    max_new_tokens: int,
    gate_mode: GateMode | None = None,
) -> Hearing:
    """Transcribe a batch of clips greedily, each in its own language, and listen to the gates."""
    features = extract_features(processor.feature_extractor, audio).to(model.device, model.dtype)
    with GateRecorder(model) as recorder, torch.no_grad():
        ids = model.generate(
            input_features=features, language=list(languages), task="transcribe", num_beams=1,
            do_sample=False, max_new_tokens=max_new_tokens, gate_mode=gate_mode,
        ).tolist()  # fmt: skip
    gates, end = recorder.take(), processor.tokenizer.eos_token_id
    texts = [[token for token in row if token != end] for row in ids]
    decoded = [min(PROMPT_TOKENS + len(text), gates["decoder"].shape[-1]) for text in texts]
    return Hearing(texts, gates, audio_positions(processor.feature_extractor, audio), decoded)


def prompt_of(model: DistilWhisperForConditionalGeneration, language: str) -> list[str]:
    """The decoder's first tokens as they are written."""
    language = (getattr(model.config, "speaks_as", None) or {}).get(language, language)
    return ["<|startoftranscript|>", f"<|{language}|>", "<|transcribe|>", "<|notimestamps|>"]


def inspect_clip(
    model: DistilWhisperForConditionalGeneration,
    processor: WhisperProcessor,
    row: dict[str, Any],
    max_new_tokens: int,
    gate_mode: GateMode | None = None,
    with_scores: bool = False,
) -> dict[str, Any]:
    """Transcribe one clip of a corpus table and keep every gate, frame by frame, token by token.

    A token that the limit made the last one is left out: it never went through the layers.
    ``with_scores``: keep "token_scores" and "frame_scores" too, NaN where gates are forced.
    """
    audio, language = read_audio(row["audio"], row["start"], row["end"]), row["language"]
    found = hear(model, processor, [audio], [language], max_new_tokens, gate_mode)
    (text,), (said,), heard = found.texts, found.decoded, int(found.audio[0])
    tokenizer, gates = processor.tokenizer, found.gates
    clip = {
        "id": row["id"],
        "reference": row["text"],
        "text": tokenizer.decode(text).strip(),
        "seconds": round(len(audio) / 16_000, 3),
        "tokens": (prompt_of(model, language) + token_texts(tokenizer, text))[:said],
        "token_gates": gates["decoder"][:, 0, :said].int().tolist(),
        "frame_gates": gates["encoder"][:, 0, :heard].int().tolist(),
    }
    if with_scores:
        clip["token_scores"] = gates["decoder_scores"][:, 0, :said].tolist()
        clip["frame_scores"] = gates["encoder_scores"][:, 0, :heard].tolist()
    return clip
