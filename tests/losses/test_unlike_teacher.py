"""A teacher of other mel bins and one more language, as large-v3 is to a student of before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from distilwhisper_lib import UserError
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.evaluation.record import evaluate
from distilwhisper_lib.losses import compare_on, load_teacher
from distilwhisper_lib.losses.chunked import States, token_losses
from distilwhisper_lib.losses.teacher import Teacher
from distilwhisper_lib.model import load_model, load_student
from distilwhisper_lib.speech.features import IGNORE, Collator, SpeechDataset
from distilwhisper_lib.training import loop
from distilwhisper_lib.training.loop import train

NEW, MELS = "<|gsw|>", 128


def moved_up(folder: Path, tiny_model) -> None:
    """Put a Whisper there whose tokenizer has one more language, and hears MELS mel bins.

    All special tokens behind it stand one further; one of them has its other name.
    """
    text = (folder / "tokenizer_config.json").read_text().replace("nospeech", "nocaptions")
    (folder / "tokenizer_config.json").write_text(
        text.replace('"<|translate|>"', f'"{NEW}", "<|translate|>"')
    )
    tokenizer = json.loads(
        (folder / "tokenizer.json").read_text().replace("nospeech", "nocaptions")
    )
    place = next(t["id"] for t in tokenizer["added_tokens"] if t["content"] == "<|translate|>")
    for token in tokenizer["added_tokens"]:
        token["id"] += token["id"] >= place
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][-1] | {"id": place, "content": NEW})
    tokenizer["added_tokens"].sort(key=lambda token: token["id"])
    for token in tokenizer["post_processor"]["special_tokens"].values():
        token["ids"] = [id_ + (id_ >= place) for id_ in token["ids"]]
    generation = json.loads((folder / "generation_config.json").read_text())
    model = tiny_model(seed=3, num_mel_bins=MELS)
    model.resize_token_embeddings(model.config.vocab_size + 1)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    WhisperFeatureExtractor(feature_size=MELS, chunk_length=3).save_pretrained(folder)
    (folder / "processor_config.json").unlink(missing_ok=True)
    for name in ("lang_to_id", "task_to_id"):
        generation[name] = {k: v + (v >= place) for k, v in generation[name].items()}
    generation["lang_to_id"][NEW] = place
    generation["no_timestamps_token_id"] += generation["no_timestamps_token_id"] >= place
    (folder / "generation_config.json").write_text(json.dumps(generation))


@pytest.fixture
def study(study_of, tmp_path, tiny_model):
    make = study_of(clips=4, max_steps=2)
    moved_up(tmp_path / "teacher", tiny_model)
    return make


def batch_of(config, processor, extractor=None):
    rows = SpeechDataset(load_data(config).train)
    collator = Collator(processor, teacher_extractor=extractor)
    return collator([rows[i] for i in range(len(rows))])


def test_its_distribution_is_its_own_renormalised_over_the_students_tokens(study):
    config = study("js")
    processor = load_student(config)[1]
    teacher = load_teacher(config, processor)
    batch = batch_of(config, processor, teacher.extractor)
    labelled = batch["labels"] != IGNORE
    said, head = teacher.targets(batch)
    found = (said[labelled] @ head.T).log_softmax(-1)

    model, its = load_model("teacher")  # asked as itself
    alone = batch_of(config, its)
    assert torch.equal(alone["labels"] != IGNORE, labelled)
    names = processor.tokenizer.convert_ids_to_tokens(range(len(processor.tokenizer)))
    renamed = [name.replace("nospeech", "nocaptions") for name in names]
    ids = its.tokenizer.convert_tokens_to_ids(renamed)
    with torch.no_grad():
        logits = model(
            input_features=alone["input_features"], decoder_input_ids=alone["decoder_input_ids"]
        ).logits[labelled]
    own = logits.log_softmax(-1)[:, ids]
    own = own - own.logsumexp(-1, keepdim=True)
    torch.testing.assert_close(found, own, rtol=0, atol=1e-6)

    # What public scripts do: the student's ids, and the first of the teacher's logits.
    naive = Teacher(model, extractor=teacher.extractor).targets(batch)
    cut = (naive.states[labelled] @ naive.head[: len(ids)].T).log_softmax(-1)
    assert (cut - own).abs().max() > 0.1
    task = processor.tokenizer.convert_tokens_to_ids("<|transcribe|>")
    assert its.tokenizer.convert_ids_to_tokens(task) == "<|translate|>"


@pytest.mark.parametrize("method", ["kl", "js"])
def test_experts_learn_from_it_alike_stored_and_online(study, method):
    losses = {}
    for mode in ("hidden", "online"):
        config = study(method, teacher_targets=mode)
        run = train(config, load_data(config))
        losses[mode] = [entry["loss_distil"] for entry in run.training["log"]]
        assert run.training["weights_sha256"]
    assert losses["hidden"] == pytest.approx(losses["online"], rel=1e-3)
    assert min(losses["online"]) > 0


def test_stored_and_online_losses_are_equal(study):
    config = study("js")
    data = load_data(config)
    student, processor = load_student(config)
    source = loop.find_teacher(config, processor)
    stored = loop.teacher_of(config, data, processor, source, student.config)
    teacher = load_teacher(config, processor)
    rows = SpeechDataset(data.train, stored.read)
    batch = Collator(processor, teacher_extractor=teacher.extractor)([rows[0], rows[1]])
    assert batch["teacher_features"].shape[1] == MELS
    said = student(
        input_features=batch["input_features"],
        decoder_input_ids=batch["decoder_input_ids"],
        with_logits=False,
    ).last_hidden_state
    mine = States(said, student.get_output_embeddings().weight)
    both = []
    for source in (teacher, stored.teacher()):
        target, keep = source.targets(batch), batch["labels"] != IGNORE
        both.append(token_losses(mine, batch["labels"], target, "js", keep=keep)[1].item())
    assert both[0] == pytest.approx(both[1], rel=1e-4)


def test_a_student_of_its_kind_learns_from_it(study, tmp_path):
    """As large-v3-turbo from large-v3: nothing has to be matched."""
    shutil.rmtree(tmp_path / "student")
    shutil.copytree(tmp_path / "teacher", tmp_path / "student")
    config = study("js")
    teacher = load_teacher(config, load_student(config)[1])
    assert teacher.tokens is None and teacher.extractor is None
    run = train(config, load_data(config))
    assert all(0 <= entry["loss_distil"] < 1 for entry in run.training["log"])
    assert run.model.config.num_mel_bins == MELS


def test_it_hears_the_whole_window_where_the_students_fits_its_clips(study):
    config = study("js", window="fit")
    processor = load_student(config)[1]
    collator = Collator(processor, teacher_extractor=load_teacher(config, processor).extractor)
    sound = np.random.default_rng(0).normal(0, 0.1, 8_000).astype(np.float32)
    batch = collator([{"id": "a", "audio": sound, "text": "un dos", "language": "ca"}])
    assert batch["teacher_features"].shape[1:] == (MELS, 300)
    assert batch["input_features"].shape[1:] == (80, 200)
    train(config, load_data(config))


def test_the_teachers_own_row_and_the_table_of_both(study):
    config = study("teacher")
    data = load_data(config)
    assert evaluate(train(config, data), data)
    student, processor = load_student(study("js"))
    rows = compare_on(data.train, load_teacher(study("js"), processor), student, processor)
    assert {"token", "teacher", "student", "KL", "JS"} == set(rows[0])


def test_targets_of_an_unlike_teacher_are_others(study):
    """Another naming of the same head is another cache."""
    config = study("js")
    student, processor = load_student(config)
    source = loop.find_teacher(config, processor)
    data = load_data(config)
    made = [
        loop.teacher_of(config, data, processor, one, student.config).folder
        for one in (source, source._replace(tokens=source.tokens[::-1]))
    ]
    assert made[0] != made[1]


def test_a_teacher_without_one_of_the_students_tokens_is_refused(study, tmp_path):
    for old, new in (("student", "spare"), ("teacher", "student"), ("spare", "teacher")):
        (tmp_path / old).rename(tmp_path / new)
    with pytest.raises(UserError, match=r"lacks the student's token <\|gsw\|>: take a teacher tha"):
        load_data(study("js"))


def test_a_teacher_that_cuts_text_otherwise_is_refused(study, tmp_path):
    path = tmp_path / "teacher" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[100:102]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="of the student is .*, and the teacher's .*: take a teach"):
        load_data(study("js"))


def test_rows_without_a_name_cannot_be_matched(study, tmp_path):
    path = tmp_path / "teacher" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 51_866}))
    with pytest.raises(UserError, match="the teacher has 51866 tokens in its config.json and name"):
        load_data(study("js"))
