"""A finished run is decoded again with its gates forced: what is read, decoded and kept."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from distilwhisper_lib import UserError
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.evaluation import forced as counterfactuals
from distilwhisper_lib.evaluation.decoding import transcribe
from distilwhisper_lib.evaluation.forced import (
    ensure_forced,
    gate_modes,
    hear_forced,
    random_modes,
)
from distilwhisper_lib.evaluation.record import evaluate, record_run
from distilwhisper_lib.evaluation.run import load_run
from distilwhisper_lib.gates.forced import count_case, forced_path, read_forced
from distilwhisper_lib.gates.forced_plots import forced_changes
from distilwhisper_lib.model.loading import load_student
from distilwhisper_lib.training.loop import train

LAYERS = ["encoder.1", "encoder.2", "decoder.1", "decoder.2"]


def complete(config):
    data = load_data(config)
    trained = train(config, data)
    return record_run(trained, data, evaluate(trained, data))


@pytest.fixture
def configure(study_of):
    return study_of(4, max_steps=2, learning_rate=0.05, gate_dropout=0.0)


@pytest.fixture
def js(configure):
    config = configure("clsr")
    complete(config)
    return config


@pytest.fixture
def decoded(monkeypatch):
    """The routings that were decoded; after ``stop_after`` of them the user interrupts."""
    calls = Calls()

    def counted(*args, **options):
        if len(calls) == calls.stop_after:
            raise KeyboardInterrupt
        calls.append(options["gate_mode"])
        return transcribe(*args, **options)

    monkeypatch.setattr(counterfactuals, "transcribe", counted)
    return calls


class Calls(list):
    stop_after = None


def file_of(config):
    return forced_path(config.results_dir, config.run_id)


def files_of(config):
    return {p.name: p.read_bytes() for p in config.output_dir.glob("*.*") if p.suffix != ".lock"}


def hear(here, run=None, **options):
    """A record does not tell the folders of a path: the configuration does."""
    run = run or load_run(here.output_dir, data_dir=here.data_dir)
    return hear_forced(run, **{"progress": False} | options)


def cases_of(path, domain="in_domain"):
    return read_forced(path)["domains"][domain]["cases"]


def test_every_case_is_what_the_model_says_and_the_run_stays_as_it_is(js, configure, decoded):
    student = complete(configure("zero_shot"))
    run = load_run(js.output_dir, data_dir=js.data_dir)
    before = files_of(js)
    path = hear(js, run)
    assert path == file_of(js)
    assert files_of(js) == before
    found = read_forced(path)
    assert found["weights_sha256"] == run.record["training"]["weights_sha256"]
    assert "test0" in found["domains"]["in_domain"]["ids"][0]
    data = load_data(js)
    for evaluation in run.record["evaluations"]:
        domain = evaluation["domain"]
        cases = cases_of(path, domain)
        assert list(cases) == ["learned", "soft", "open", "closed", *LAYERS]
        for normalizer, scores in cases["learned"]["scores"].items():
            for metric, value in scores.items():
                assert value == pytest.approx(evaluation["scores"][normalizer][metric][metric])
        assert cases["closed"]["source"] == student["run_id"]
        options = {"max_new_tokens": js.max_new_tokens, "batch_size": 4, "progress": False}
        for name, mode in gate_modes(run.model).items():
            again = transcribe(
                run.model, run.processor, getattr(data, domain), gate_mode=mode, **options
            )
            assert cases[name]["errors"] == count_case(again, "ca")["errors"]
    closed = [{name: "closed"} for name in LAYERS]
    assert decoded == ["soft", "open", *closed] * 2  # the rest is read


def test_closed_gates_are_decoded_where_no_student_was_recorded(js, decoded):
    path = hear(js, domains=["in_domain"])
    assert decoded[2] == "closed"
    closed = cases_of(path)["closed"]
    assert closed["source"] == "decoded"
    model, processor = load_student(js)
    table = load_data(js).in_domain
    said = transcribe(model, processor, table, max_new_tokens=6, batch_size=4, progress=False)
    assert closed["errors"] == count_case(said, "ca")["errors"]


def test_chosen_cases_are_decoded_alone_and_the_rest_later(js, decoded):
    run = load_run(js.output_dir, data_dir=js.data_dir)
    path = hear(js, run, domains=["in_domain"], cases=["soft"])
    assert list(cases_of(path)) == ["learned", "soft"] and decoded == ["soft"]
    assert len(forced_changes(read_forced(path)).axes) == 1
    hear(js, run, domains=["in_domain"])
    assert list(cases_of(path)) == ["learned", *gate_modes(run.model)]
    with pytest.raises(UserError, match="unknown case 'encoder.9'"):
        hear(js, run, cases=["encoder.9"])


def test_random_cases_take_the_learned_shares_and_come_out_the_same_again(js, decoded):
    run = load_run(js.output_dir, data_dir=js.data_dir)
    before = torch.random.get_rng_state()
    path = hear(js, run, cases=["random", "even.2"])
    assert torch.equal(torch.random.get_rng_state(), before)
    drawn = ["random.1", "random.2", "random.3", "even.2"]
    shares = [evaluation["gates"] for evaluation in run.record["evaluations"]]
    assert decoded == [random_modes(of)[name] for of in shares for name in drawn]
    for domain in ("in_domain", "out_of_domain"):
        assert list(cases_of(path, domain)) == ["learned", *drawn]
    first = path.read_bytes()
    path.unlink()
    torch.manual_seed(5)
    hear(js, run, cases=["random.2"])  # a draw depends on its own number alone
    again = {d: cases_of(path, d)["random.2"] for d in ("in_domain", "out_of_domain")}
    hear(js, run, cases=["random", "even.2"])
    found = json.loads(first)["domains"]
    assert again == {d: found[d]["cases"]["random.2"] for d in again}
    assert read_forced(path)["domains"] == found and len(decoded) == 16
    with pytest.raises(UserError, match="unknown case 'random.4': expected one of layers, random"):
        hear(js, run, cases=["random.4"])


def test_groups_of_cases_have_a_name_and_nothing_random_is_decoded_unasked(js, decoded):
    run = load_run(js.output_dir, data_dir=js.data_dir)
    path = hear(js, run, domains=["in_domain"], cases=["layers", "encoder.1", "even"])
    evens = ["even.1", "even.2", "even.3"]
    assert list(cases_of(path)) == ["learned", *LAYERS, *evens]
    hear(js, run, domains=["in_domain"])
    assert list(cases_of(path)) == ["learned", *LAYERS, *evens, "soft", "open", "closed"]
    assert ensure_forced(js, domains=["in_domain"]).endswith("is complete") and len(decoded) == 10


def test_even_shares_are_a_sides_mean_and_random_ones_each_layers():
    modes = random_modes({"encoder": [0.0, 0.9, 0.3], "decoder": [0.25, 0.75]})
    layers = ["encoder.1", "encoder.2", "encoder.3", "decoder.1", "decoder.2"]
    assert list(modes) == [f"{way}.{n}" for way in ("random", "even") for n in (1, 2, 3)]
    for way, shares in (("random", [0.0, 0.9, 0.3, 0.25, 0.75]), ("even", [0.4] * 3 + [0.5] * 2)):
        for n in (1, 2, 3):
            assert list(modes[f"{way}.{n}"]) == layers
            assert list(modes[f"{way}.{n}"].values()) == pytest.approx(shares)


def test_an_interrupted_call_goes_on_and_nothing_is_decoded_twice(js, decoded):
    run = load_run(js.output_dir, data_dir=js.data_dir)
    decoded.stop_after = 3
    with pytest.raises(KeyboardInterrupt):
        hear(js, run, domains=["in_domain"])
    assert list(cases_of(file_of(js))) == ["learned", "soft", "open", "closed"]
    decoded.stop_after = None
    path = hear(js, run, domains=["in_domain"], clips=2)  # never fewer
    assert decoded == list(gate_modes(run.model).values())
    whole = path.read_bytes()
    hear(js, run, domains=["in_domain"], clips=2)
    hear(js, run, domains=["in_domain"])
    assert path.read_bytes() == whole and len(decoded) == 7

    path.unlink()
    hear(js, run, domains=["in_domain"], clips=2)
    assert len(read_forced(path)["domains"]["in_domain"]["ids"]) == 2
    hear(js, run)  # more clips, and the other test set
    assert len(decoded) == 7 + 7 + 14
    found = read_forced(path)
    assert json.loads(whole)["domains"]["in_domain"] == found["domains"]["in_domain"]

    other = found | {"weights_sha256": "5" * 64}
    path.write_text(json.dumps(other))
    hear(js, run, domains=["in_domain"], clips=1)
    assert set(read_forced(path)["domains"]) == {"in_domain"} and len(decoded) == 35


def test_what_cannot_be_compared_is_one_sentence_and_writes_nothing(js, decoded, tmp_path):
    run = load_run(js.output_dir, data_dir=js.data_dir)
    for change, message in (
        ({"clips": 0}, "clips=0 is no number of clips"),
        ({"domains": ["elsewhere"]}, "unknown domain 'elsewhere'"),
    ):
        with pytest.raises(UserError, match=message):
            hear(js, run, **change)
    gateless = dataclasses.replace(run, config=dataclasses.replace(run.config, method="lora"))
    with pytest.raises(UserError, match="has no gates .method 'lora'."):
        hear(js, gateless)
    corpus = tmp_path / "speech" / "metadata.csv"
    listed = corpus.read_text()
    corpus.write_text(listed.replace("test frase", "test altra"))
    with pytest.raises(UserError, match="'folder/speech' no longer holds the clips that the run"):
        hear(js, run)
    corpus.write_text(listed)
    path = js.output_dir / "in_domain-test.jsonl"
    path.write_bytes(path.read_bytes().replace(b"frase", b"phrase"))
    with pytest.raises(UserError, match="in_domain-test.jsonl is not the file of hypotheses"):
        hear(js, run)
    assert not file_of(js).exists() and not decoded


def test_a_notebook_makes_the_file_once_and_says_what_there_is(js, decoded):
    folder, away = js.output_dir, js.output_dir.with_name("away")
    folder.rename(away)
    said = ensure_forced(js, clips=2)
    assert f"no {file_of(js)}" in said and f"gates {folder}`" in said
    away.rename(folder)
    assert "is written" in ensure_forced(js, clips=2)
    assert len(decoded) == 14
    assert ensure_forced(js, clips=2) == f"{file_of(js)} is complete"
    found = read_forced(file_of(js))
    file_of(js).write_text(json.dumps(found | {"weights_sha256": "5" * 64}))  # of older weights
    assert "is written" in ensure_forced(js, clips=2) and len(decoded) == 28
    folder.rename(away)
    assert ensure_forced(js) == (
        f"{file_of(js)} is shown: the model that it tells of is not in outputs/"
    )
    away.rename(folder)
    file_of(js).write_text("{")
    assert "is not JSON" in ensure_forced(js) and len(decoded) == 28


def test_the_command_prints_a_table_and_refuses_in_one_sentence(js, capsys):
    about = [str(js.output_dir), "--data-dir", js.data_dir]
    assert counterfactuals.main([*about, "--clips", "2", "--domain", "in_domain"]) == 0
    printed = capsys.readouterr().out
    assert "WER in per cent, in domain" in printed and "decoder.2" in printed
    assert printed.endswith(f"{file_of(js)}\n")
    only = ["--domain", "in_domain", "--cases", "random"]
    assert counterfactuals.main([*about, *only]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("random ") for line in lines) == 1  # one row for its draws
    assert counterfactuals.main(["outputs/nothing"]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("error: outputs/nothing holds no finished run") and error.count("\n") == 1
    )
