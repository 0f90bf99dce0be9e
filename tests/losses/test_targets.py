"""Teacher targets: as good as the teacher, built once, and never read when they are damaged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from distilwhisper_lib import UserError, resolve
from distilwhisper_lib.config.settings import locate
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.losses import target_files
from distilwhisper_lib.losses.chunked import States
from distilwhisper_lib.losses.objective import loss_parts
from distilwhisper_lib.losses.targets import FOLDER, StoredTargets
from distilwhisper_lib.model import loading
from distilwhisper_lib.model.hub import Source
from distilwhisper_lib.model.tensors import checkpoint_hash, weights_hash
from distilwhisper_lib.speech.features import IGNORE, Collator, SpeechDataset
from distilwhisper_lib.training import loop as kit

ONE_CLIP = 400  # bytes: less than any clip of the tiny teacher takes, so a shard each


@pytest.fixture
def study(study_of, monkeypatch):
    monkeypatch.setattr(target_files, "SHARD_BYTES", ONE_CLIP)
    return study_of(clips=6, max_steps=2)


def targets_of(config, data=None):
    data = data or load_data(config)
    student, processor = loading.load_model(config.student)
    return kit.teacher_of(
        config, data, processor, kit.find_teacher(config, processor), student.config
    )


def no_teacher(monkeypatch):
    """From here on, a teacher that is loaded fails the test."""
    monkeypatch.setattr("distilwhisper_lib.losses.teacher.Teacher", None)


def files_of(folder):
    """Name -> bytes of a cache, but for the seconds that its index tells."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    index = json.loads(found.pop("index.json"))
    index.pop("seconds")
    for entry in index["files"]:
        entry.pop("seconds")
    return found | {"index": index}


# As good as the teacher ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """Loss and gradients of all experts on 24 clips of the demo, for a way to know the teacher."""
    folder = tmp_path_factory.mktemp("embedded")

    def losses(kind, temperature, mode):
        settings = {"train_size": 24, "temperature": temperature, "teacher_targets": mode}
        config = resolve(kind, "demo", "ca", 1, settings)
        data = load_data(config)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            teacher = targets_of(config, data)
        stored = isinstance(teacher, StoredTargets)
        rows = SpeechDataset(data.train, teacher.read if stored else None)
        student, processor = loading.load_model(config.student)
        torch.manual_seed(0)  # gates and dropout
        student = kit.prepare(student, config).train()
        batch = Collator(processor)(list(rows))
        target = (teacher.teacher() if stored else teacher).targets(batch)
        out = student(
            input_features=batch["input_features"],
            decoder_input_ids=batch["decoder_input_ids"],
            language_ids=batch["language_ids"],
            with_logits=False,
        )
        head = student.get_output_embeddings().weight
        parts = loss_parts(
            config, States(out.last_hidden_state, head), batch["labels"], torch.tensor(0.5), target
        )
        parts.distil.backward()
        gradients = [p.grad.flatten() for p in student.parameters() if p.grad is not None]
        return parts.distil.item(), torch.cat(gradients)

    return losses


def errors(embedded, kind, temperature, mode):
    loss, gradient = embedded(kind, temperature, mode)
    exact, exact_gradient = embedded(kind, temperature, "online")
    off = (gradient - exact_gradient).norm() / exact_gradient.norm()
    print(f"{kind} T={temperature:g} {mode}: loss {loss / exact - 1:+.2e}, gradient {off:.2e}")
    return abs(loss / exact - 1), off.item()


@pytest.mark.parametrize("kind", ["kl", "js"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_stored_states_are_as_good_as_the_teacher(kind, temperature, embedded):
    loss, gradient = errors(embedded, kind, temperature, "hidden")
    assert loss < 1e-4
    assert gradient < 1e-3


@pytest.mark.parametrize(
    ("kind", "temperature", "most", "most_of_gradient"),
    [("kl", 1, 0.002, 0.04), ("js", 1, 0.015, 0.06), ("kl", 2, 0.05, 0.7), ("js", 2, 0.12, 0.6)],
)
def test_the_compact_mode_is_off_by_what_it_says(
    kind, temperature, most, most_of_gradient, embedded
):
    """The figures in the docstring of targets.py; none of them is exact by chance."""
    loss, gradient = errors(embedded, kind, float(temperature), "top_k")
    assert 1e-4 < loss < most
    assert 1e-3 < gradient < most_of_gradient


# Once ----------------------------------------------------------------------------------------


def test_every_loss_and_seed_shares_one_build(study, monkeypatch):
    config = study("js")
    first = targets_of(config)
    assert first.about["built"] is True and len(first.about["sha256"]) == 64
    no_teacher(monkeypatch)
    for other in (study("kl"), study("kl", temperature=2.0), study("js", learning_rate=1e-4)):
        again = targets_of(other)
        assert again.folder == first.folder
        assert again.about == first.about | {"built": False}
    assert len(list(FOLDER.glob("ca-*/"))) == 1


def test_a_run_with_targets_holds_no_teacher(study, monkeypatch):
    """Nor does reading a finished run need it; weights do not depend on who built the targets."""
    first = kit.train(study("js"), load_data(study("js")))
    assert first.training["teacher_targets"]["built"] is True
    (study("js").output_dir / "training.json").unlink()
    no_teacher(monkeypatch)
    again = kit.train(study("js"), load_data(study("js")))
    assert again.training["teacher_targets"]["built"] is False
    assert again.training["weights_sha256"] == first.training["weights_sha256"]
    assert again.models == first.models
    assert kit.train(study("js"), load_data(study("js"))).training == again.training


def test_stored_and_online_teachers_train_the_same(study):
    logs = []
    for mode in ("hidden", "online"):
        config = study("kl", teacher_targets=mode, max_steps=3)
        trained = kit.train(config, load_data(config))
        logs.append(trained.training["log"])
        assert trained.training["teacher_targets"]["mode"] == mode
    assert len(list(FOLDER.glob("ca-*/"))) == 1
    for stored, online in zip(*logs, strict=True):
        assert stored["loss_distil"] == pytest.approx(online["loss_distil"], rel=1e-3)
        assert stored["loss"] == pytest.approx(online["loss"], rel=1e-4)


def test_the_authors_conventions_ask_the_teacher_itself(study):
    config = study("js", conventions="authors")
    assert config.targets == "online"
    assert kit.train(config, load_data(config)).training["teacher_targets"] == {"mode": "online"}
    assert not FOLDER.exists()
    assert study("clsr").targets is None


@pytest.mark.parametrize("mode", ["hidden", "top_k"])
def test_a_batch_carries_what_the_teacher_says(mode, study, processor):
    config = study("js", teacher_targets=mode, temperature=2.0)
    data = load_data(config)
    stored = targets_of(config, data)
    batch = Collator(processor)(list(SpeechDataset(data.train, stored.read)))
    kept = batch["labels"] != IGNORE
    teacher = kit.find_teacher(config, processor).load()
    said = teacher.targets(batch).states
    if mode == "hidden":
        torch.testing.assert_close(batch["teacher_states"][kept].float(), said[kept], rtol=1e-3,
                                   atol=1e-3)  # fmt: skip
        assert batch["teacher_states"][~kept].abs().sum() == 0
        return
    log_probs = ((said @ teacher.head.T) / 2).log_softmax(-1)[kept]
    assert batch["teacher_tokens"].shape == (*kept.shape, target_files.TOP_K)
    ours = batch["teacher_log_probs"][kept].float()
    torch.testing.assert_close(
        ours[:, :-1], log_probs.gather(-1, batch["teacher_tokens"][kept].long()), rtol=1e-3,
        atol=1e-3,
    )  # fmt: skip
    torch.testing.assert_close(ours.exp().sum(-1), torch.ones(len(ours)), rtol=0, atol=5e-3)


# What makes other targets --------------------------------------------------------------------


def test_a_students_own_noise_changes_nothing(study, tmp_path, monkeypatch):
    """SpecAugment and dropout happen in the student's forward pass, after the features."""
    first = targets_of(study("js"))
    no_teacher(monkeypatch)
    path = tmp_path / "student" / "config.json"
    noise = {"apply_spec_augment": True, "mask_time_prob": 0.5, "mask_feature_prob": 0.5}
    path.write_text(json.dumps(json.loads(path.read_text()) | noise | {"dropout": 0.3}))
    config = study("js", expert_dropout=0.5, gate_noise=1.0)
    assert targets_of(config).folder == first.folder
    assert kit.train(config, load_data(config)).training["teacher_targets"]["built"] is False


def test_an_online_teacher_hears_what_a_stored_one_heard(study, tmp_path):
    """transformers masks features in place: the teacher must be asked first."""
    path = tmp_path / "student" / "config.json"
    noise = {"apply_spec_augment": True, "mask_time_prob": 0.5, "mask_feature_prob": 0.5}
    path.write_text(json.dumps(json.loads(path.read_text()) | noise))
    logs = []
    for mode in ("hidden", "online"):
        config = study("js", teacher_targets=mode, max_steps=1)
        logs.append(kit.train(config, load_data(config)).training["log"][0])
    assert logs[0]["loss_distil"] == pytest.approx(logs[1]["loss_distil"], rel=1e-3)


def test_whatever_the_teacher_hears_or_is_asked_makes_other_targets(study, tmp_path, tiny_model):
    folders = [targets_of(study("js")).folder]

    def other(**overrides):
        folders.append(targets_of(study("js", **overrides)).folder)

    other(max_seconds=1.0)
    other(teacher_targets="top_k")
    other(teacher_targets="top_k", temperature=2.0)
    metadata = tmp_path / "speech" / "metadata.csv"
    metadata.write_text(metadata.read_text().replace("train frase a", "train frase nova"))
    other()
    extractor = tmp_path / "student" / "processor_config.json"
    about = json.loads(extractor.read_text())
    about["feature_extractor"]["dither"] = 0.01
    extractor.write_text(json.dumps(about))
    other()
    tiny_model(seed=2).save_pretrained(tmp_path / "teacher")
    other()
    assert len(set(folders)) == len(folders) == 7


# Damage --------------------------------------------------------------------------------------


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit(name, value):
    def change(folder):
        index = json.loads((folder / "index.json").read_text())
        (index if name in index else index["identity"])[name] = value
        (folder / "index.json").write_text(json.dumps(index))

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: flip(f / "shard-00001.safetensors"), "are damaged: shard-00001.safetensors"),
        (lambda f: flip(f / "head.safetensors"), "are damaged: head.safetensors"),
        (lambda f: os.truncate(f / "shard-00002.safetensors", 300), "are cut off: .* 300 bytes"),
        (lambda f: (f / "shard-00000.safetensors").unlink(), "are cut off: .* has 0 bytes"),
        (lambda f: os.truncate(f / "index.json", 50), "unreadable index.json"),
        (lambda f: (f / "index.json").write_text("[]"), "unreadable index.json"),
        (edit("labels", "0" * 64), "were made for labels '0000"),
        (edit("teacher_weights", "ab"), "were made for teacher_weights 'ab'"),
        (edit("teacher", "someone/else"), "were made for teacher 'someone/else', this run has"),
        (edit("format", 2), "have format 2, expected 1"),
        (edit("files", []), "list other clips or files"),
        (edit("clips", [["x", "shard-00000.safetensors", 0, 3]]), "list other clips or files"),
    ],
)
def test_damaged_targets_are_refused_in_a_sentence_and_rebuilt_on_request(study, spoil, message):
    config = study("js")
    folder = targets_of(config).folder
    sound = files_of(folder)
    spoil(folder)
    for _ in range(2):  # the refusal itself mends nothing
        with pytest.raises(UserError, match=f"teacher targets in .*{message}") as error:
            kit.train(config, load_data(config))
        assert "\n" not in str(error.value) and "rebuild_teacher_targets" in str(error.value)
    assert not (config.output_dir / "checkpoints").exists()
    willing = study("js", rebuild_teacher_targets=True)
    assert willing.run_id == config.run_id
    assert targets_of(willing).about["built"] is True
    assert files_of(folder) == sound
    assert targets_of(config).about["built"] is False


def test_only_what_is_damaged_is_rebuilt(study, monkeypatch):
    config = study("js", rebuild_teacher_targets=True)
    folder = targets_of(config).folder
    flip(folder / "shard-00001.safetensors")
    asked = []
    plain = target_files.stored
    monkeypatch.setattr(
        target_files, "stored", lambda *said: asked.append(said[-1]) or plain(*said)
    )
    assert targets_of(config).about["built"] is True
    assert asked == ["train1"]


def test_a_full_disk_is_noticed_before_the_teacher_is_loaded(study, monkeypatch):
    no_teacher(monkeypatch)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(UserError, match="targets need 0.0 GB in outputs/teacher_targets"):
        targets_of(study("js"))


def test_states_beyond_half_precision_are_refused(study, tmp_path):
    weights = load_file(tmp_path / "teacher" / "model.safetensors")
    weights["model.decoder.layer_norm.weight"] *= 1e6
    save_file(weights, tmp_path / "teacher" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="clip 'train0' does not fit into float16: set teacher_t"):
        targets_of(study("js"))


# Processes -----------------------------------------------------------------------------------

SLOW = """
import time
from distilwhisper_lib import resolve
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.losses import target_files
from distilwhisper_lib.training import loop as training
target_files.SHARD_BYTES = {shard}
plain = target_files.stored
target_files.stored = lambda *said: time.sleep({pause}) or plain(*said)
config = resolve({method!r}, "demo", "ca", 7, {overrides!r})
about = training.train(config, load_data(config)).training["teacher_targets"]
print("built" if about["built"] else "found")
"""


def start(config, tmp_path, pause):
    script = SLOW.format(
        shard=ONE_CLIP, pause=pause, method=config.method, overrides=config.overrides()
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    environment |= {"OMP_NUM_THREADS": "1"}  # as here: sums in another order are other bytes
    return subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def test_a_killed_build_goes_on_to_the_same_targets_and_run(study, tmp_path, monkeypatch):
    config = study("js")
    undisturbed = kit.train(config, load_data(config)).training
    (folder,) = FOLDER.glob("ca-*/")
    whole = files_of(folder)
    for place in (folder, config.output_dir):
        place.rename(place.with_name(f"old-{place.name}"))
    process = start(config, tmp_path, pause=0.5)
    while len(list(folder.glob("shard-*.safetensors"))) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert not (folder / "index.json").exists()
    finished = {p.name: p.stat().st_mtime_ns for p in folder.glob("shard-*")}
    assert 2 <= len(finished) < 6
    resumed = kit.train(config, load_data(config)).training
    assert files_of(folder) == whole
    for name in list(finished)[:-1]:  # those that were noted: the last may not have been
        assert (folder / name).stat().st_mtime_ns == finished[name]
    assert resumed["weights_sha256"] == undisturbed["weights_sha256"]
    assert resumed["teacher_targets"]["built"] is True


def test_of_two_processes_one_builds_and_one_waits(study, tmp_path):
    runs = [start(study(method), tmp_path, pause=0.7) for method in ("js", "kl")]
    said = ["\n".join(run.communicate(timeout=300)[0].splitlines()) for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    ends = sorted(text.splitlines()[-1] for text in said)
    assert ends == ["built", "found"]
    waiting = [line for text in said for line in text.splitlines() if "waiting" in line]
    assert len(waiting) == 1
    assert waiting[0].startswith("another process is building the teacher targets in outputs/")


# The hash that stands for a teacher ----------------------------------------------------------


@pytest.mark.parametrize("shard_size", ["5GB", "40KB"])
def test_a_checkpoint_is_hashed_without_loading_it(shard_size, tiny_model, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "model", max_shard_size=shard_size)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > (shard_size == "40KB")
    assert checkpoint_hash(Source(tmp_path / "model")) == weights_hash(
        dict(model.named_parameters())
    )
    assert checkpoint_hash(Source(tmp_path)) is None


def test_the_embedded_teacher_is_hashed_as_its_records_say():
    record = next(Path(__file__).parents[2].glob("results/demo/runs/js-ca-*.json"))
    recorded = json.loads(record.read_text())["models"]["teacher"]["sha256"]
    assert checkpoint_hash(Source(locate("embedded/teacher"))) == recorded
