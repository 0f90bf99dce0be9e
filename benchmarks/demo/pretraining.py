"""Pretraining of the embedded Whisper pair: a curriculum that lets attention converge.

Trained on whole sentences from the first step, models of this size become language models that
ignore the sound (word error rates around 100 %). Single words, then pairs, then sentences cure it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from benchmarks.demo.pair import HOP, Recipe, build_model, prompt_ids, save_stock, word_error_rate
from benchmarks.demo.synthesis import SAMPLE_RATE, NoiseBank


@dataclass(frozen=True)
class Stage:
    """A step of the curriculum: sentences up to `max_words`, left when the loss is low enough."""

    max_words: int
    loss_below: float
    at_most: int  # steps: a stage that does not get there must not eat the whole plan
    spec_augment: bool = False
    label_smoothing: float = 0.0


CURRICULUM = (
    Stage(max_words=1, loss_below=0.35, at_most=700),
    Stage(max_words=2, loss_below=0.45, at_most=600),
    Stage(max_words=99, loss_below=0.0, at_most=10**9, spec_augment=True, label_smoothing=0.1),
)


@dataclass
class Pool:
    """Clean utterances for pretraining, with everything needed to make batches of them."""

    samples: np.ndarray  # (total,) int16, all utterances one after another
    offsets: np.ndarray  # (N + 1,) int64
    texts: list[str]
    languages: list[str]
    words: np.ndarray = field(init=False)  # (N,) number of words

    def __post_init__(self) -> None:
        self.words = np.array([len(text.split()) for text in self.texts])

    def wave(self, index: int) -> np.ndarray:
        """Samples (T,) float32 of one utterance."""
        piece = self.samples[self.offsets[index] : self.offsets[index + 1]]
        return piece.astype(np.float32) / 32768

    def select(self, shares: dict[str, float], seed: int) -> np.ndarray:
        """Indices of a random part of each language; the share is what a model gets to hear."""
        rng = np.random.default_rng(seed)
        languages = np.array(self.languages)
        chosen = []
        for language, share in shares.items():
            mine = rng.permutation(np.flatnonzero(languages == language))
            chosen.append(mine[: round(share * len(mine))])
        return np.sort(np.concatenate(chosen))

    def save(self, path: Path) -> None:
        np.savez(
            path,
            samples=self.samples,
            offsets=self.offsets,
            texts=np.array(self.texts),
            languages=np.array(self.languages),
        )

    @classmethod
    def load(cls, path: Path) -> Pool:
        stored = np.load(path)
        return cls(
            stored["samples"],
            stored["offsets"],
            stored["texts"].tolist(),
            stored["languages"].tolist(),
        )


def encode(model: WhisperForConditionalGeneration, features: Tensor) -> Tensor:
    """Encoder states (B, T/2, D) of log-mel features (B, 80, T), T at most the window.

    Whisper's own forward insists on the full window, which here is mostly silence: training on
    trimmed batches is about twice as fast.
    """
    encoder = model.model.encoder
    states = functional.gelu(encoder.conv1(features))
    states = functional.gelu(encoder.conv2(states)).transpose(1, 2)  # (B, T/2, D)
    states = states + encoder.embed_positions.weight[: states.shape[1]]
    for layer in encoder.layers:
        states = layer(states, None)
    return encoder.layer_norm(states)


def spec_augment(features: Tensor, rng: np.random.Generator) -> Tensor:
    """Blank two short spans of time and two bands of mel channels per utterance, in place."""
    silence = features.amin(dim=(1, 2))  # log-mel's floor, what padding looks like
    for row in range(len(features)):
        for _ in range(2):
            width = int(rng.integers(0, 12))
            start = int(rng.integers(0, features.shape[2] - width))
            features[row, :, start : start + width] = silence[row]
            width = int(rng.integers(0, 10))
            start = int(rng.integers(0, features.shape[1] - width))
            features[row, start : start + width] = silence[row]
    return features


class Batcher:
    """Endless batches of noisy features and prompted labels from a pool."""

    def __init__(
        self, pool: Pool, indices: np.ndarray, processor: WhisperProcessor, recipe: Recipe
    ):
        self._pool, self._indices, self._recipe = pool, indices, recipe
        self._extractor = processor.feature_extractor
        self._prompts = {code: prompt_ids(processor, code) for code in recipe.shares}
        self._tokens = {
            int(i): processor.tokenizer.encode(pool.texts[i], add_special_tokens=False)
            for i in indices
        }
        self._end = processor.tokenizer.eos_token_id
        self._rng = np.random.default_rng(recipe.seed)
        self._noise = NoiseBank(recipe.seed)

    def batches(self, stage: Stage) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Features (B, 80, T), decoder inputs (B, U) and labels (B, U; -100 is ignored)."""
        eligible = self._indices[self._pool.words[self._indices] <= stage.max_words]
        lengths = np.diff(self._pool.offsets)
        size, together = self._recipe.batch_size, 8
        while True:
            # Batches of similar length waste little on padding.
            drawn = self._rng.choice(eligible, size * together)
            drawn = drawn[np.argsort(lengths[drawn], kind="stable")].reshape(together, size)
            for rows in self._rng.permutation(drawn):
                yield self._features(rows, stage), *self._targets(rows)

    def _features(self, rows: np.ndarray, stage: Stage) -> Tensor:
        waves = [self._noise.add(self._pool.wave(i), self._rng) for i in rows]
        features = self._extractor(waves, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        features = features.input_features  # (B, 80, 300)
        if self._rng.random() >= self._recipe.full_window:
            frames = max(len(wave) for wave in waves) // HOP + 12
            features = features[..., : min(features.shape[-1], frames + frames % 2)].clone()
        return spec_augment(features, self._rng) if stage.spec_augment else features

    def _targets(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        prompts = [self._prompts[self._pool.languages[i]] for i in rows]
        texts = [self._tokens[int(i)] for i in rows]
        width = max(len(p) + len(t) for p, t in zip(prompts, texts, strict=True))
        inputs = torch.full((len(rows), width), self._end)
        labels = torch.full((len(rows), width), -100)
        for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            inputs[row, : len(prompt) + len(text)] = torch.tensor(prompt + text)
            # The prompt is given, so it carries no loss; its last token predicts the first word.
            first = len(prompt) - 1
            labels[row, first : first + len(text) + 1] = torch.tensor([*text, self._end])
        return inputs, labels


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then constant, then a cosine to zero at the end."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    left = (recipe.steps - step) / (recipe.decay * recipe.steps)
    if left >= 1:
        return recipe.learning_rate
    return recipe.learning_rate * 0.5 * (1 - math.cos(math.pi * left))


def pretrain(
    recipe: Recipe,
    pool: Pool,
    probe: dict[str, tuple[list[np.ndarray], list[str]]],
    processor: WhisperProcessor,
    folder: Path,
    log_path: Path,
) -> dict:
    """Train by the recipe, leaving a usable checkpoint in `folder` at every evaluation.

    `probe` holds a few unseen waves and texts a language: they are only watched, never used to
    choose when to stop (the plan in steps does). Returns steps, minutes and the curriculum's turns.
    """
    started = time.monotonic()
    model = build_model(recipe, processor).train()
    batcher = Batcher(pool, pool.select(recipe.shares, recipe.seed), processor, recipe)
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    stage_index, stage_start, running = 0, 0, None
    batches = batcher.batches(CURRICULUM[0])
    turns = [0]
    for step in range(recipe.steps):
        stage = CURRICULUM[stage_index]
        loss = _step(model, next(batches), optimizer, learning_rate(step, recipe), stage)
        running = loss if running is None else 0.95 * running + 0.05 * loss
        if running < stage.loss_below or step - stage_start >= stage.at_most:
            stage_index, stage_start, running = stage_index + 1, step + 1, None
            batches = batcher.batches(CURRICULUM[stage_index])
            turns.append(step + 1)
        done = step + 1
        if done % 50 == 0:
            minutes = (time.monotonic() - started) / 60
            _log(
                log_path,
                step=done,
                stage=stage_index,
                loss=round(loss, 3),
                minutes=round(minutes, 1),
            )
        if done % recipe.evaluate_every == 0 or done == recipe.steps:
            scores = {
                language: round(word_error_rate(model, processor, waves, texts, language), 1)
                for language, (waves, texts) in probe.items()
            }
            _log(log_path, step=done, probe_wer=scores)
            save_stock(model, processor, folder)
            model.train()
    return {
        "steps": recipe.steps,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "curriculum_turns_at_steps": turns,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def _step(
    model: WhisperForConditionalGeneration,
    batch: tuple[Tensor, Tensor, Tensor],
    optimizer: torch.optim.Optimizer,
    rate: float,
    stage: Stage,
) -> float:
    """One optimizer step; returns the loss without label smoothing."""
    features, inputs, labels = batch
    for group in optimizer.param_groups:
        group["lr"] = rate
    with torch.autocast("cpu", torch.bfloat16):
        states = encode(model, features)
        decoded = model.model.decoder(input_ids=inputs, encoder_hidden_states=states)
        logits = model.proj_out(decoded.last_hidden_state)  # (B, U, V)
    logits, labels = logits.float().flatten(0, 1), labels.flatten()
    loss = functional.cross_entropy(logits, labels, label_smoothing=stage.label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if stage.label_smoothing:
        loss = functional.cross_entropy(logits.detach(), labels)
    return loss.item()


def _log(path: Path, **entry) -> None:
    """Append one JSON object to the training log and show it."""
    line = json.dumps(entry)
    print(line, flush=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
