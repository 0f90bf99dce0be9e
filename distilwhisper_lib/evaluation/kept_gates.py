"""Every gate of a test set, kept on request (setting ``keep_gates``), one bit each.

``outputs/<run_id>/<domain>-test.gates.npz``, a few hundred bytes a clip; read_kept() unpacks it.
While clips are decoded there is one part a batch beside it, so that an interruption loses nothing.
"""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from distilwhisper_lib.errors import UserError, reason
from distilwhisper_lib.gates.counts import TOKEN_CLASSES
from distilwhisper_lib.io.files import write_atomic

FORMAT = 1
MAX_BYTES = 2**32  # unpacked: a hundred times the largest test set of the paper
_PER_CLIP = ("ids", "audio", "tokens_of", "encoder_of", "decoder_of")
_FLAT = ("tokens", "classes", "encoder", "decoder")


@dataclass(frozen=True)
class KeptGates:
    """One clip's gates."""

    tokens: np.ndarray  # (T,) int32, decoder inputs: the transcript without its prompt
    classes: list[str]  # of the decoder positions, prompt first
    audio: int  # encoder positions that hold audio; the others are padding
    encoder: np.ndarray  # (layers, positions) bool, padding and all
    decoder: np.ndarray  # (layers, positions) bool


def kept_path(path: Path) -> Path:
    """Where the gates of the hypotheses ``path`` are kept."""
    return path.with_suffix(".gates.npz")


def part_path(path: Path, number: int) -> Path:
    """Where the gates of one batch of the hypotheses ``path`` wait for the others."""
    return path.with_suffix(".gates") / f"{number}.npz"


def write_part(
    path: Path,
    ids: Sequence[str],
    heard: dict[str, Tensor],
    audio: Tensor,
    texts: Sequence[Sequence[int]],
    classes: Sequence[Sequence[str]],
) -> Path:
    """Write one batch; arguments as for count_gates(), and the tokens of each text."""
    columns: dict[str, list] = {name: [] for name in (*_PER_CLIP, *_FLAT)}
    for row, (clip, tokens, names) in enumerate(zip(ids, texts, classes, strict=True)):
        encoder, decoder = (heard[side][:, row].numpy() for side in ("encoder", "decoder"))
        decoder = decoder[:, : len(names)]
        codes = [TOKEN_CLASSES.index(name) for name in names[: decoder.shape[1]]]
        bits = [np.packbits(encoder), np.packbits(decoder)]
        clips = (clip, int(audio[row]), len(tokens), encoder.shape[1], decoder.shape[1])
        for name, value in zip((*_PER_CLIP, *_FLAT), (*clips, tokens, codes, *bits), strict=True):
            columns[name].append(value)
    arrays = {name: np.array(columns[name]) for name in _PER_CLIP}
    for name, dtype in zip(_FLAT, (np.int32, np.uint8, np.uint8, np.uint8), strict=True):
        arrays[name] = np.concatenate([np.asarray(piece, dtype) for piece in columns[name]])
    layers = [heard[side].shape[0] for side in ("encoder", "decoder")]
    return _write(path, arrays | {"format": np.array(FORMAT), "layers": np.array(layers)})


def join_parts(path: Path, parts: int) -> Path:
    """Put the first ``parts`` parts of the hypotheses ``path`` into one file."""
    found = [_load(part_path(path, number)) for number in range(parts)]
    joined = {name: np.concatenate([part[name] for part in found]) for name in (*_PER_CLIP, *_FLAT)}
    about = {name: found[0][name] for name in ("format", "layers")}
    return _write(kept_path(path), joined | about)


def remove_parts(path: Path) -> None:
    """Remove the parts of the hypotheses ``path``, once they and the joined file stand."""
    shutil.rmtree(path.with_suffix(".gates"), ignore_errors=True)


def check_kept(path: Path, parts: int | None) -> None:
    """Raise UserError unless the gates of what is decoded were kept: ``parts``, or all (None)."""
    missing = [kept_path(path)] if parts is None else [part_path(path, n) for n in range(parts)]
    if not all(part.exists() for part in missing):
        begun = path if parts is None else path.with_suffix(".batches.jsonl")
        raise UserError(
            f"keep_gates asks for every gate of {path.name}, but {begun} was decoded without "
            "keeping them: remove that file to decode it again, or leave keep_gates out"
        )


def read_kept(path: Path) -> dict[str, KeptGates]:
    """The kept gates by clip id. Raises UserError when there are none or they are damaged."""
    if not path.exists():
        raise UserError(f"no kept gates {path}: run the notebook with the setting keep_gates")
    arrays = _load(path)
    _check_sizes(arrays, path)
    layers = arrays["layers"].tolist()
    clips, place = {}, dict.fromkeys(_FLAT, 0)

    def take(name: str, count: int) -> np.ndarray:
        place[name] += count
        return arrays[name][place[name] - count : place[name]]

    def gates(side: str, layers: int, length: int) -> np.ndarray:
        bits = take(side, -(-layers * length // 8))
        return np.unpackbits(bits, count=layers * length).reshape(layers, length).astype(bool)

    for values in zip(*(arrays[name].tolist() for name in _PER_CLIP), strict=True):
        clip, audio, said, frames, positions = values
        tokens = take("tokens", said)
        classes = [TOKEN_CLASSES[code] for code in take("classes", positions)]
        encoder, decoder = (
            gates("encoder", layers[0], frames),
            gates("decoder", layers[1], positions),
        )
        clips[clip] = KeptGates(tokens, classes, audio, encoder, decoder)
    return clips


def _check_sizes(arrays: dict[str, np.ndarray], path: Path) -> None:
    """Raise UserError unless the flat columns hold just what the clips' counts say."""
    counts = [arrays[name] for name in _PER_CLIP[1:]]
    whole = [arrays["layers"], *counts, *(arrays[name] for name in _FLAT)]
    sound = (
        all(array.ndim == 1 and array.dtype.kind in "iu" for array in whole)
        and all(np.all((array >= 0) & (array < 2**31)) for array in (arrays["layers"], *counts))
        and len(arrays["layers"]) == 2
        and arrays["ids"].dtype.kind == "U"
        and {array.shape for array in counts} == {arrays["ids"].shape}
        and all(arrays[name].dtype == np.uint8 for name in _FLAT[1:])
        and np.all(arrays["classes"] < len(TOKEN_CLASSES))
    )
    if sound:
        layers = arrays["layers"].astype(np.int64)
        _, said, frames, positions = (count.astype(np.int64) for count in counts)
        sizes = (said, positions, -(-frames * layers[0] // 8), -(-positions * layers[1] // 8))
        sound = all(size.sum() == len(arrays[n]) for n, size in zip(_FLAT, sizes, strict=True))
    if not sound:
        raise UserError(f"kept gates {path} are damaged: their columns do not fit: decode again")


def _write(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return write_atomic(path, buffer.getvalue())


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            _check_room(file.zip, path)
            arrays = {name: file[name] for name in file.files}
        if arrays["format"].shape or int(arrays["format"]) != FORMAT:
            raise UserError(f"kept gates {path} are of a newer format: update the kit")
        if missing := {"layers", *_PER_CLIP, *_FLAT} - set(arrays):
            raise ValueError(f"without {', '.join(sorted(missing))}")
    except UserError:
        raise
    except Exception as error:  # whatever zip and numpy make of a damaged file
        raise UserError(
            f"kept gates {path} cannot be read ({reason(error)}): decode them again"
        ) from None
    return arrays


def _check_room(archive: zipfile.ZipFile, path: Path) -> None:
    """A few kilobytes can unpack to more than memory holds."""
    size = sum(entry.file_size for entry in archive.infolist())
    if size > MAX_BYTES:
        raise UserError(f"kept gates {path} unpack to {size} bytes, more than {MAX_BYTES}")
