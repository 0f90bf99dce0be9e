"""Log-mel features of one clip: transformers' extractor against the kit's own, on one thread.

Run from the repository's root:

    python benchmarks/log_mel.py
"""

from __future__ import annotations

import numpy as np
import torch
from timing import interleaved
from transformers import WhisperFeatureExtractor

from distilwhisper_lib.log_mel import log_mel

RATE = 16_000


def extract(seconds: float = 5.0, rounds: int = 41) -> dict[str, float]:
    """CPU ms of one clip in Whisper's 30 s window, both sides."""
    extractor = WhisperFeatureExtractor()
    clip = np.random.default_rng(0).normal(0, 0.1, int(seconds * RATE)).astype(np.float32)

    def theirs() -> torch.Tensor:
        return extractor([clip], sampling_rate=RATE, return_tensors="pt").input_features

    torch.testing.assert_close(log_mel(extractor, [clip]), theirs(), atol=1e-5, rtol=0)
    sides = {"transformers": theirs, "kit": lambda: log_mel(extractor, [clip])}
    return interleaved(sides, rounds)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for seconds in (1, 5, 15, 30):
        ms = extract(seconds)
        print(f"{seconds} s: {ms}, {ms['transformers'] / ms['kit']:.1f} times")
