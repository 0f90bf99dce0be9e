"""The numbers beside gate figures are those of the files."""

from __future__ import annotations

import numpy as np
import pytest
from make_gates import LAYERS, gate_file, make_rows
from make_records import make_record

from distilwhisper_lib.gates.counts import BINS, SCORE_EDGES, SIDES
from distilwhisper_lib.gates.statistics import summarise
from distilwhisper_lib.gates.tables import (
    entropy_table,
    means_table,
    routes_table,
    score_table,
    share_table,
)


def test_shares():
    file = gate_file()
    table = share_table([file])
    assert len(table) == LAYERS * (2 + 1 + 4)
    (row,) = table[(table.positions == "inside") & (table.layer == 2)].to_dict("records")
    found = file["domains"]["in_domain"]["classes"]["inside"]
    assert row["share"] == pytest.approx(100 * found["share"][1])
    assert [row["low"], row["high"]] == pytest.approx([100 * x for x in found["interval"][1]])
    assert (row["run"], row["side"], row["seed"]) == (file["run_id"], "decoder", 77)
    old = {
        "run_id": "js-ca-s77-0a",
        "language": "ca",
        "domains": {
            "in_domain": {"clips": 3, "encoder": [0.5], "decoder": [0.1]},
            "out_of_domain": None,
        },
    }
    assert list(share_table([old])["share"]) == [50.0, 10.0]
    assert entropy_table([old]).empty and score_table(old).empty


def test_entropies():
    file = gate_file()
    table = entropy_table([file])
    assert len(table) == LAYERS * (2 + 3)  # within_class is the decoder's alone
    (row,) = table[(table.side == "encoder") & (table.of == "all") & (table.layer == 3)].to_dict(
        "records"
    )
    found = file["domains"]["in_domain"]["entropy"]["encoder"]
    assert row["entropy"] == pytest.approx(100 * found["all"][2])
    assert [row["low"], row["high"]] == pytest.approx([100 * x for x in found["interval"][2]])


def test_scores():
    counts = {side: [list(range(BINS))] * LAYERS for side in SIDES}
    rows, _ = make_rows(utterances=4)
    summary = summarise(rows, {"edges": list(SCORE_EDGES), **counts}, resamples=100)
    table = score_table(gate_file() | {"domains": {"in_domain": summary}})
    assert len(table) == 2 * LAYERS * BINS
    first = table.iloc[:BINS]
    assert list(first["positions"]) == list(range(BINS))
    assert list(first["to"][:-1]) == list(SCORE_EDGES) and first["from"].iloc[0] == -np.inf


def test_means_and_routes():
    record = make_record("js", "ca")
    record["training"]["log"] = [{"step": 1, "loss": 2.0, "gate_mean": 0.5, "gate_noise": None}]
    record["training"]["validation"][0]["gate_hard"] = 0.9
    table = means_table(record)
    assert table[["of", "step", "name", "value"]].to_numpy().tolist() == [
        ["training", 1, "gate_mean", 0.5], ["validation", 250, "gate_hard", 0.9],
    ]  # fmt: skip
    example = {"tokens": ["a", "b"], "token_gates": [[0, 1]], "frame_gates": [[1, 0, 1, 1]],
               "seconds": 2.0}  # fmt: skip
    routes = routes_table(gate_file() | {"example": example})
    assert list(routes["expert"]) == [1, 0, 1, 1, 0, 1]
    assert list(routes["second"][:4]) == [0.0, 0.5, 1.0, 1.5] and list(routes["token"][4:]) == [
        "a", "b",
    ]  # fmt: skip
