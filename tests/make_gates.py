"""Utterances with random gates as transcribe() counts them, and gate files of such."""

from __future__ import annotations

import numpy as np

from distilwhisper_lib.gates.counts import SIDES
from distilwhisper_lib.gates.statistics import summarise

LAYERS = 3
DECODER = ("prompt", "word_initial", "inside", "punctuation")


def make_rows(utterances=40, speakers=8, seed=0, layers=LAYERS):
    """Rows as transcribe() returns them, and every gate they stand for, position by position."""
    random, rows, every = np.random.default_rng(seed), [], []
    for number in range(utterances):
        bias = random.random(layers) * (number % speakers) / speakers
        sizes = {"audio": random.integers(20, 60), "padding": random.integers(5, 90), "prompt": 4}
        sizes |= {name: random.integers(0, 9) for name in DECODER[1:]}
        gates = {n: random.random((layers, size)) < bias[:, None] for n, size in sizes.items()}
        decoder = np.concatenate([gates[name] for name in DECODER], 1)
        soft = {side: random.random(layers).round(4).tolist() for side in SIDES}
        rows.append({
            "speaker": f"s{number % speakers}",
            "gates": {
                "encoder": gates["audio"].mean(1).round(4).tolist(),
                "decoder": decoder.mean(1).round(4).tolist(),
                "positions": {name: int(size) for name, size in sizes.items()},
                "expert": {n: g.sum(1).tolist() for n, g in gates.items() if sizes[n]},
                "soft": soft,
            },
        })  # fmt: skip
        every.append(gates | {"decoder": decoder})
    return rows, every


def gate_file(language="ca", seed=77, method="js", layers=LAYERS, number=0, **about):
    rows, _ = make_rows(seed=number, layers=layers)
    return {
        "schema": 2, "run_id": f"{method}-{language}-s{seed}-0123abcd", "method": method,
        "preset": "demo", "language": language, "seed": seed, "settings": {},
        "domains": {"in_domain": summarise(rows, resamples=200)},
    } | about  # fmt: skip
