"""Every gate as a table: the same gates that transcribe() counts and a forced pass takes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from transcribing import run

from distilwhisper_lib import UserError, resolve
from distilwhisper_lib.data import sample_clips
from distilwhisper_lib.gates import collect
from distilwhisper_lib.gates.counts import CLASSES, COUNTED, SIDES
from distilwhisper_lib.model import load_model
from distilwhisper_lib.speech.features import SpeechDataset, extract_features

COLUMNS = ["clip", "side", "layer", "position", "token", "class", "score", "gate"]


def gather(model, processor, table, **options):
    options = {"max_new_tokens": 6, "batch_size": 4, "progress": False} | options
    return collect(model, processor, table, **options)


@pytest.mark.parametrize("ranks", [None, {"ca": 4}])
def test_sums_are_the_counts_that_transcribing_stores(tiny_model, processor, table, ranks):
    """Whatever clips share a batch: transcribe() begins with the longest."""
    model = tiny_model("ca", ranks=ranks)
    found = gather(model, processor, table, padding=True)
    counted = found.groupby(["clip", "class", "layer"], observed=True)["gate"]
    sums, counts = counted.sum(), counted.count()
    for row in run(model, processor, table):
        clip, gates = row["id"], row["gates"]
        for name, positions in gates["positions"].items():
            assert (clip, name) in counts if positions else (clip, name, 1) not in counts
            if positions:
                assert counts[clip, name].tolist() == [positions] * 2
                assert sums[clip, name].tolist() == gates["expert"][name]
        for side in SIDES:
            mine = found[(found["clip"] == clip) & (found["side"] == side)]
            mine = mine[mine["class"].isin(COUNTED[side])]
            shares = mine.groupby("layer")["gate"].mean()
            np.testing.assert_allclose(shares, gates[side], atol=5e-5)
            soft = 1 / (1 + np.exp(-mine["score"]))
            np.testing.assert_allclose(
                soft.groupby(mine["layer"]).mean(), gates["soft"][side], atol=1e-4
            )


def test_scores_and_gates_are_those_of_one_pass_over_the_same_tokens(tiny_model, processor, table):
    model, tokenizer = tiny_model("ca"), processor.tokenizer
    found = gather(model, processor, table.iloc[[5]], padding=True)
    features = extract_features(processor.feature_extractor, [SpeechDataset(table)[5]["audio"]])
    with torch.no_grad():
        ids = model.generate(features, language="ca", task="transcribe", max_new_tokens=6,
                             return_dict_in_generate=True).sequences[:, :-1]  # fmt: skip
        forced = model(features, ids, output_gates=True).gates
    for side in SIDES:
        mine = found[found["side"] == side]
        for layer, gates in enumerate(getattr(forced, side), start=1):
            rows = mine[mine["layer"] == layer]
            assert rows["gate"].tolist() == gates.values[0].int().tolist()
            assert rows["position"].tolist() == list(range(len(rows)))
    assert (found["gate"] == (found["score"] >= 0)).all()
    first = found[(found["side"] == "decoder") & (found["layer"] == 1)]
    assert first["class"].tolist()[:4] == ["prompt"] * 4
    assert "".join(first["token"]) == tokenizer.decode(ids[0])
    # Independent: the first encoder layer's gate, asked about what went into it.
    layer, inputs = model.model.encoder.layers[0], []
    layer.clsr.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.no_grad():
        model(features, ids)
    scores = found[(found["side"] == "encoder") & (found["layer"] == 1)]["score"]
    expected = layer.clsr["ca"].gate(inputs[0][0]).detach()
    torch.testing.assert_close(torch.tensor(scores.to_numpy()), expected)


def test_the_table_is_small_and_in_the_order_of_the_clips(tiny_model, processor, table):
    model = tiny_model("ca").train()
    found = gather(model, processor, table)
    assert model.training  # as it was; and no noise was in the gates:
    pd.testing.assert_frame_equal(found, gather(model.eval(), processor, table))
    assert list(found) == COLUMNS
    assert found["clip"].drop_duplicates().tolist() == table["id"].tolist()
    heard = (found["side"] == "encoder").sum()
    assert heard == 2 * np.ceil(table["seconds"] * 50).sum()  # layers, and 20 ms a position
    assert found.loc[found["side"] == "encoder", "token"].isna().all()
    assert set(found["class"].unique()) <= {"audio", *CLASSES["decoder"]}
    assert found["score"].dtype == np.float32
    assert found.memory_usage(index=False).drop("token").sum() < 16 * len(found) + 10_000


def test_a_language_without_an_expert_has_no_scores(tiny_model, processor, table):
    table = table.assign(language=["ca", "en"] * 3)
    found = gather(tiny_model("ca"), processor, table)
    shared = found["clip"].isin(table["id"][1::2])
    assert found.loc[shared, "score"].isna().all() and not found.loc[shared, "gate"].any()
    assert found.loc[~shared, "score"].notna().all() and found.loc[~shared, "gate"].any()
    assert {"<|ca|>", "<|en|>"} <= set(found["token"].dropna())


def test_what_has_no_gates_is_one_sentence(tiny_model, processor, table):
    with pytest.raises(UserError, match="no experts, hence no gates: load_experts"):
        gather(tiny_model(), processor, table)
    with pytest.raises(UserError, match="the table holds no clip"):
        gather(tiny_model("ca"), processor, table[:0])


def test_the_embedded_expert_by_its_name_and_with_no_limit_said(processor):
    model, _ = load_model("embedded/student")
    with pytest.raises(UserError, match=r"no experts, hence no gates: load_experts\(\) first"):
        collect(model, processor, sample_clips(resolve("clsr"), 1))
    model.load_experts("catalan", "embedded/experts")
    found = collect(model, processor, sample_clips(resolve("clsr"), 2), progress=False)
    assert found["clip"].nunique() == 2 and set(found["gate"]) == {0, 1}
