"""A language without a token speaks under another's, and that one stays what it was."""

from __future__ import annotations

import copy
import dataclasses
import functools

import pytest
import torch

from distilwhisper_lib import DistilWhisperForConditionalGeneration, UserError
from distilwhisper_lib.data.checklist import write_data_report
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.evaluation.record import evaluate, record_run
from distilwhisper_lib.evaluation.run import load_run
from distilwhisper_lib.export.bundle import export_run
from distilwhisper_lib.model.checkpoint import check_models
from distilwhisper_lib.model.tensors import read_metadata
from distilwhisper_lib.results.records import read_record
from distilwhisper_lib.speech.features import Collator
from distilwhisper_lib.training.loop import train
from distilwhisper_lib.transcription.transcriber import Transcriber


@pytest.fixture
def features():
    return torch.randn(2, 80, 300, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def borrower(tiny_model):
    """Guarani speaks as Catalan, whose expert is there too."""
    model = tiny_model("ca", seed=3)
    model.borrow_token("gn", "catalan")
    model.add_expert("gn")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".clsr.gn." in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def heard(model, features, *languages, **options):
    options |= {"max_new_tokens": 8, "num_beams": 1, "do_sample": False}
    given = {"language": list(languages)} if languages else {}
    return model.generate(input_features=features[: len(languages) or 2], **given, **options)


def test_a_borrower_goes_through_its_own_expert_and_the_lender_through_its(borrower, features):
    alone = {}
    for code, other in (("ca", "gn"), ("gn", "ca")):
        model = copy.deepcopy(borrower)
        model.remove_expert(other)
        alone[code] = heard(model, features, code, code)
        assert torch.equal(alone[code], heard(borrower, features, code, code)), code
    assert not torch.equal(alone["ca"], alone["gn"])
    assert torch.equal(heard(borrower, features, "<|gn|>", "GN"), alone["gn"])
    encoded = borrower.encode(features, ["gn", "gn"])
    assert not torch.equal(encoded[0], borrower.encode(features, ["ca", "ca"])[0])


def test_the_lender_and_what_is_detected_keep_the_base_model(tiny_model, borrower, features):
    stock = tiny_model(seed=3)
    stock.load_state_dict(borrower.state_dict(), strict=False)
    borrower.remove_expert("ca")
    assert torch.equal(heard(borrower, features, "ca", "ca"), heard(stock, features, "ca", "ca"))
    assert torch.equal(heard(borrower, features), heard(stock, features))
    mixed = heard(borrower, features, "gn", "cs")
    assert torch.equal(mixed[1:], heard(stock, features, "cs", "cs")[1:])


def test_one_call_cannot_tell_two_apart_that_share_a_token(borrower, features):
    with pytest.raises(UserError, match="'ca' and 'gn' speak under one token: transcribe them in"):
        heard(borrower, features, "ca", "gn")
    assert heard(borrower, features, "gn", "cs").shape[0] == 2


def test_what_cannot_be_borrowed_is_told(tiny_model, borrower):
    with pytest.raises(UserError, match="'cs' cannot speak as 'ca': .* is the model's own"):
        tiny_model().borrow_token("cs", "ca")
    with pytest.raises(UserError, match="'gn' cannot speak as 'pl': .* borrows that of 'ca'"):
        borrower.borrow_token("gn", "pl")
    with pytest.raises(UserError, match="no token for the language 'gn'"):
        tiny_model().add_expert("gn")
    with pytest.raises(UserError, match="no token for the language 'lg'"):
        tiny_model().borrow_token("gn", "lg")


def test_an_expert_file_and_a_saved_model_bring_what_they_borrow(
    borrower, tiny_model, features, tmp_path
):
    path = borrower.save_experts("gn", tmp_path)
    assert path.name == "expert.gn.safetensors" and read_metadata(path)["speaks_as"] == "ca"
    other = tiny_model(seed=3)
    other.load_state_dict(borrower.state_dict(), strict=False)
    other.load_experts("gn", tmp_path)
    expected = heard(borrower, features, "gn", "gn")
    assert torch.equal(heard(other, features, "gn", "gn"), expected)
    borrower.save_pretrained(tmp_path / "whole")
    whole = DistilWhisperForConditionalGeneration.from_pretrained(tmp_path / "whole").eval()
    assert torch.equal(heard(whole, features, "gn", "gn"), expected)
    assert torch.equal(heard(whole, features, "ca", "ca"), heard(borrower, features, "ca", "ca"))


def test_the_prompt_of_training_holds_the_borrowed_token(processor, token):
    row = {"id": "a", "audio": torch.zeros(16_000).numpy(), "text": "mba'e", "language": "gn"}
    batch = Collator(processor, speaks_as={"gn": "ca"})([row])
    assert batch["language_ids"].tolist() == [token("<|ca|>")]
    assert batch["decoder_input_ids"][0, 1] == token("<|ca|>")
    with pytest.raises(UserError, match="clip 'a' is in 'gn', for which this model has no token"):
        Collator(processor)([row])


@pytest.fixture
def guarani(study_of, tmp_path):
    """Factory of runs in a language that Whisper does not know."""
    configure = study_of(4, max_steps=2, learning_rate=0.05)
    for folder in ("speech", "ood"):
        sheet = tmp_path / folder / "metadata.csv"
        sheet.write_text(sheet.read_text().replace(",ca,", ",gn,"))

    return functools.partial(configure, language="gn", speaks_as="catalan")


@pytest.mark.parametrize("method", ["clsr", "lora", "full", "js", "zero_shot"])
def test_every_method_runs_in_a_language_without_a_token(method, guarani, tmp_path):
    config = guarani(method, **({"expert": "low_rank"} if method == "clsr" else {}))
    data = load_data(config)
    run = train(config, data)
    record_run(run, data, evaluate(run, data))
    record = read_record(config.record_path)
    assert record["config"]["speaks_as"] == "ca" and "-gn-s7-" in record["run_id"]
    if method == "zero_shot":
        return
    again = load_run(config.output_dir)
    mine, stock = again.model, load_run(config.output_dir).model
    assert mine.config.speaks_as == {"gn": "ca"}
    form = "trained" if method in ("clsr", "js", "lora") else "whisper"
    exported = export_run(config.output_dir, tmp_path / "exported", form=form)
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "no token for gn" in card and "Catalan" in card
    assert exported and stock
    if method in ("clsr", "js"):
        listener = Transcriber.load("student", experts=tmp_path / "exported")
        text = listener.transcribe(tmp_path / "ood" / "test1.wav", language="gn").text
        direct = Transcriber.load(config.output_dir).transcribe(
            tmp_path / "ood" / "test1.wav", language="gn"
        )
        assert (text, direct.language) == (direct.text, "gn")
        with pytest.raises(
            UserError,
            match="no token for the language 'lg': take a Whisper that has one, or lend",
        ):
            Transcriber.load("student").transcribe(tmp_path / "ood" / "test1.wav", language="lg")


def test_a_language_with_a_token_and_one_without_a_lender_are_refused(guarani):
    config = guarani("clsr")
    with pytest.raises(UserError, match="has a token of its own for 'cs': leave speaks_as out"):
        check_models(dataclasses.replace(config, language="cs"))
    with pytest.raises(
        UserError, match="student 'student' cannot be used: it has no token for the language 'gn'"
    ):
        check_models(dataclasses.replace(config, speaks_as=""))


def test_the_data_report_is_written_in_such_a_language(guarani):
    config = guarani("clsr")
    assert write_data_report(config, load_data(config))
