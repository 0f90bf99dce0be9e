"""What clips that share a window make of each other, on the demo's student."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from benchmarks.study import neighbours
from distilwhisper_lib.data.splits import load_data


def test_a_clip_alone_in_a_packed_window_costs_what_it_costs_and_more_share_windows(
    tmp_path, monkeypatch, capsys
):
    out = tmp_path / "neighbours.json"
    given = ["--preset", "demo", "--languages", "ca", "--out", str(out)]
    assert neighbours.main(given) == 0
    (row,) = json.loads(out.read_text())
    assert row["clips"] > row["windows"] and row["alone"] > 0 and row["packed"] > 0
    assert f"clips {row['clips']}" in capsys.readouterr().out

    def one(config):
        return SimpleNamespace(validation=load_data(config).validation.head(1))

    monkeypatch.setattr(neighbours, "load_data", one)
    assert neighbours.main(given) == 0
    (row,) = json.loads(out.read_text())  # in the place of the other
    assert (row["clips"], row["windows"]) == (1, 1)
    assert row["alone"] == pytest.approx(row["packed"], abs=1e-4)
