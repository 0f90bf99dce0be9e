"""Every gate of some clips as one long table, for plots of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from tqdm.auto import tqdm
from transformers import WhisperProcessor

from distilwhisper_lib.config.settings import RunConfig
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.gates.counts import CLASSES, SIDES, token_classes, token_texts
from distilwhisper_lib.gates.recorder import PROMPT_TOKENS, Hearing, has_gates, hear, prompt_of
from distilwhisper_lib.model.whisper import DistilWhisperForConditionalGeneration
from distilwhisper_lib.speech.features import SpeechDataset, batches_alike

_CLASSES = [name for side in SIDES for name in CLASSES[side]]
_NO_TOKEN = -1

Columns = dict[str, np.ndarray]


def collect(
    model: DistilWhisperForConditionalGeneration,
    processor: WhisperProcessor,
    table: pd.DataFrame,
    *,
    max_new_tokens: int | None = None,
    batch_size: int = 16,
    padding: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Transcribe a corpus table and lay every gate open: one row a position and layer. Columns:

    - clip: the id in the table, whose order is kept
    - side: "encoder" or "decoder"; layer: from 1
    - position: from 0. In the encoder one begins every 20 ms; in the decoder each is a token that
      went in, the prompt's first. A token that the limit made the last one never did
    - token: as token_texts() writes it; missing in the encoder
    - class: in the decoder one of TOKEN_CLASSES; in the encoder "audio", or "padding", which is
      left out unless ``padding``
    - score: the gate's, float32; its sigmoid is the soft gate of training, without noise. NaN
      where no gate was asked: in a language without an expert
    - gate: 1 where the expert spoke, 0 where it did not, which is the hard gate: shares of expert
      routing are means of it

    A clip of s seconds and t tokens gives 50 s rows an encoder layer and 4 + t a decoder layer,
    19 bytes each: 30 s are 18,000 rows and some with whisper-small. Raises UserError for a model
    without experts and for a table without clips. ``max_new_tokens``: by default 225, as runs
    have it, or what fits a model of fewer positions.
    """
    if not has_gates(model):
        raise UserError(
            "the model has no experts, hence no gates: load_experts() first, or "
            "load a run of notebooks 04 to 06"
        )
    if table.empty:
        raise UserError("the table holds no clip: expected one or more rows of a corpus table")
    clips, training = SpeechDataset(table), model.training
    if max_new_tokens is None:
        longest = model.config.max_target_positions - PROMPT_TOKENS
        max_new_tokens = min(RunConfig.max_new_tokens, longest)
    codes, ids = pd.factorize(table["id"])
    parts: list[Columns] = []
    vocabulary: dict[str, int] = {}
    model.eval()
    try:
        batches = batches_alike(processor.feature_extractor, table["seconds"], batch_size)
        for rows in tqdm(batches, desc="gates", disable=not progress):
            batch = [clips[i] for i in rows]
            languages = [clip["language"] for clip in batch]
            audio = [clip["audio"] for clip in batch]
            heard = hear(model, processor, audio, languages, max_new_tokens)
            for place, language in enumerate(languages):
                prompt = prompt_of(model, language)
                for columns in _both_sides(heard, place, prompt, processor, vocabulary, padding):
                    clip = np.full(len(columns["gate"]), codes[rows[place]], np.int32)
                    parts.append({"clip": clip, **columns})
    finally:
        model.train(training)
    words = {"clip": ids, "side": SIDES, "token": list(vocabulary), "class": _CLASSES}
    return _joined(parts, words)


def _both_sides(
    heard: Hearing,
    place: int,  # in the batch
    prompt: list[str],
    processor: WhisperProcessor,
    vocabulary: dict[str, int],  # grows by the tokens met
    padding: bool,
) -> Iterator[Columns]:
    text, said, filled = heard.texts[place], heard.decoded[place], int(heard.audio[place])
    frames = ["audio"] * filled
    if padding:
        frames += ["padding"] * (heard.gates["encoder"].shape[2] - filled)
    yield _columns(heard, place, "encoder", frames, [_NO_TOKEN] * len(frames))
    tokenizer = processor.tokenizer
    classes = ["prompt"] * len(prompt) + token_classes(tokenizer, text)
    written = prompt + token_texts(tokenizer, text)
    codes = [vocabulary.setdefault(token, len(vocabulary)) for token in written]
    yield _columns(heard, place, "decoder", classes[:said], codes[:said])


def _columns(
    heard: Hearing, place: int, side: str, classes: Sequence[str], tokens: Sequence[int]
) -> Columns:
    """All layers of one clip's side, whose first positions have these classes and tokens."""
    count = len(classes)
    gates = heard.gates[side][:, place, :count].numpy()  # (layers, positions)
    layer, position = np.indices(gates.shape, dtype=np.int16)
    codes = np.array([_CLASSES.index(name) for name in classes], np.int8)
    return {
        "side": np.full(gates.size, SIDES.index(side), np.int8),
        "layer": layer.ravel() + np.int16(1),
        "position": position.ravel(),
        "token": np.tile(np.array(tokens, np.int32), len(gates)),
        "class": np.tile(codes, len(gates)),
        "score": heard.gates[f"{side}_scores"][:, place, :count].numpy().ravel(),
        "gate": gates.ravel().astype(np.int8),
    }


def _joined(parts: list[Columns], words: dict[str, Sequence[str]]) -> pd.DataFrame:
    """The parts one below the other, with ``words`` in the place of their numbers."""
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for name, categories in words.items():
        found[name] = pd.Categorical.from_codes(found[name], categories)
    return pd.DataFrame(found)
