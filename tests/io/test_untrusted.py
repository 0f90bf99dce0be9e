"""Nothing that a stranger wrote is run: no unsafe unpickling, no remote code, no moving branch."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path

import nbformat
import pytest
import torch
from make_releases import cached_snapshot

from distilwhisper_lib import UserError
from distilwhisper_lib.config.presets import REVISIONS
from distilwhisper_lib.config.settings import resolve
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.model import loading
from distilwhisper_lib.model import tensors as tensor_files
from distilwhisper_lib.model.tensors import read_pickle
from distilwhisper_lib.training import loop as kit
from distilwhisper_lib.training.stages import stages
from distilwhisper_lib.training.trainer import WEIGHTS, make_trainer

ROOT = Path(__file__).parents[2]
RUNS_CODE = {"dill", "joblib", "cloudpickle", "shelve", "marshal"}
PICKLE_ONLY = {"UnpicklingError"}  # what may be used of the module: its exception


def sources() -> dict[str, str]:
    """Every Python file and every notebook's code."""
    found = {}
    for folder in ("distilwhisper_lib", "benchmarks", ".ci"):
        for path in (ROOT / folder).rglob("*.py"):
            found[str(path.relative_to(ROOT))] = path.read_text(encoding="utf-8")
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        found[path.name] = "\n".join(c.source for c in cells if c.cell_type == "code")
    return found


def unsafe(source: str) -> list[str]:
    """What of a source could run what somebody else wrote, line by line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            modules = [getattr(node, "module", None) or "", *names]
            if RUNS_CODE & {module.split(".")[0] for module in modules}:
                found.append(f"{node.lineno}: imports {ast.unparse(node)}")
            if getattr(node, "module", None) == "pickle" and set(names) - PICKLE_ONLY:
                found.append(f"{node.lineno}: {ast.unparse(node)}")
        if isinstance(node, ast.Attribute):
            path = ast.unparse(node)
            if path.startswith("pickle.") and node.attr not in PICKLE_ONLY:
                found.append(f"{node.lineno}: {path}")
            if node.attr in ("read_pickle", "add_safe_globals", "unsafe_load", "full_load"):
                found.append(f"{node.lineno}: {path}")
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if called == "torch.load" and given.get("weights_only") != "True":
                found.append(f"{node.lineno}: torch.load without weights_only=True")
            if called in ("eval", "exec", "yaml.load", "torch.jit.load", "evaluate.load_remote"):
                found.append(f"{node.lineno}: {called}")
            for name in ("allow_pickle", "trust_remote_code"):
                if given.get(name, "False") != "False":
                    found.append(f"{node.lineno}: {name}={given[name]}")
            if (
                given.get("weights_only", "True") != "True"
                or given.get("shell", "False") != "False"
            ):
                found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def test_nothing_here_runs_what_somebody_else_wrote():
    checked = sources()
    assert len(checked) > 80 and "04_clsr_only.ipynb" in checked
    assert {name: found for name, text in checked.items() if (found := unsafe(text))} == {}


@pytest.mark.parametrize("line", [
    "torch.load(p)", "torch.load(p, weights_only=False)", "torch.load(p, weights_only=safe)",
    "import pickle; pickle.loads(b)", "from pickle import load", "import joblib", "import dill",
    "from joblib import load", "np.load(p, allow_pickle=True)", "pd.read_pickle(p)", "eval(x)",
    "AutoModel.from_pretrained(n, trust_remote_code=True)", "yaml.load(x)", "yaml.unsafe_load(x)",
    "subprocess.run(x, shell=True)", "torch.serialization.add_safe_globals([x])",
])  # fmt: skip
def test_the_search_would_see_it(line):
    assert unsafe(line)


# Files that try --------------------------------------------------------------------------------


class Bomb:
    """Unpickled without protection, it leaves a file behind."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_that_tries_to_run_code_is_refused(name, study_of, tmp_path):
    """The Trainer unpickles these itself when it goes on."""
    config = study_of(clips=2, epochs=2)("clsr", max_steps=2)
    data, folder = load_data(config), tmp_path / "checkpoint-1"
    base, processor = kit.load_student(config)
    (stage,) = stages(config, tmp_path)

    def trainer():
        model = kit.prepare(base, config) if "ca" not in base.languages else base
        return make_trainer(model, processor, None, stage, data, kit.Clock(tmp_path / "elapsed"))

    first = trainer()
    first._save(str(folder))
    state = {"global_step": 1, "epoch": 1.0, "max_steps": 2, "num_train_epochs": 2,
             "train_batch_size": 2, "log_history": [], "stateful_callbacks": {}}  # fmt: skip
    (folder / "trainer_state.json").write_text(json.dumps(state))
    first.create_optimizer_and_scheduler(2)
    torch.save(first.optimizer.state_dict(), folder / "optimizer.pt")
    torch.save(first.lr_scheduler.state_dict(), folder / "scheduler.pt")
    torch.save(Bomb(tmp_path / "ran"), folder / name)
    assert (folder / WEIGHTS).is_file()
    with pytest.raises(UserError, match="checkpoint-1 holds something other than tensors and num"):
        trainer().train(resume_from_checkpoint=str(folder))
    assert not (tmp_path / "ran").exists()
    torch.load(folder / name, weights_only=False)  # it does try
    assert (tmp_path / "ran").is_dir()


@pytest.mark.parametrize("version, accepted", [("2.9.1", False), ("2.6.0+cu124", False),
                                               ("2.10.0", True), ("2.13.0+cpu", True),
                                               ("3.0.0a0", True)])  # fmt: skip
def test_pickles_are_read_by_a_torch_that_keeps_its_promise(
    version, accepted, tmp_path, monkeypatch
):
    path = tmp_path / "expert.bin"
    torch.save({"a": torch.ones(2)}, path)
    monkeypatch.setattr(tensor_files.torch, "__version__", version)
    if accepted:
        assert read_pickle(path)["a"].tolist() == [1, 1]
    else:
        for read in (lambda: read_pickle(path), lambda: loading.load_model("embedded/student")):
            with pytest.raises(UserError, match=f"torch {version[:3]}.*CVE-2026-24747.*2.10 or"):
                read()


# Models of the hub -------------------------------------------------------------------------------


def test_the_papers_models_are_taken_at_a_commit():
    config = resolve("js", "cv10k", "ca")
    assert config.student_revision == REVISIONS["openai/whisper-small"]
    assert config.teacher_revision == REVISIONS["openai/whisper-large-v2"]
    assert all(len(commit) == 40 for commit in REVISIONS.values())
    assert resolve("js").student_revision == resolve("js").teacher_revision == "main"  # a folder


def test_a_commit_that_comes_with_its_model_is_no_part_of_the_run_id():
    usual = resolve("js", "cv10k", "ca")
    assert usual.run_id == "js-ca-s77-93dba767"
    assert (
        resolve("js", "cv10k", "ca", overrides={"student_revision": "main"}).run_id != usual.run_id
    )
    other = resolve("js", "cv10k", "ca", overrides={"student": "openai/whisper-base"})
    assert other.student_revision == "main"
    assert other.overrides() == {"student": "openai/whisper-base"}


def test_a_record_tells_the_commit_that_a_branch_stood_at(
    tmp_path, monkeypatch, tiny_model, processor
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef" * 2 + "01234567"
    folder = cached_snapshot(tmp_path, "someone/whisper-tiny", "main", commit)
    tiny_model().save_pretrained(folder)
    processor.save_pretrained(folder)
    source = loading.load_model("someone/whisper-tiny")[0].source
    assert source.commit == source.options["revision"] == commit
    about = kit._about("someone/whisper-tiny", source, "0" * 64)
    assert about == {"name": "someone/whisper-tiny", "sha256": "0" * 64, "commit": commit}
    assert loading.load_model(str(folder))[0].source.commit is None
