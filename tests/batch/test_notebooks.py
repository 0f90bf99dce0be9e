"""The notebooks: thin, alike where they do the same, and running from anywhere."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest
import torch
from badges import repository, write_badges
from committed import CHECKPOINTS, text_of
from make_releases import cached_snapshot, write_release
from transformers import WhisperProcessor

from distilwhisper_lib import DistilWhisperForConditionalGeneration, __version__
from distilwhisper_lib.batch.command import NOTEBOOKS
from distilwhisper_lib.config.settings import METHODS, locate, resolve
from distilwhisper_lib.data.splits import sample_clips
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.evaluation.decoding import transcribe

ROOT = Path(__file__).parents[2]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TRAINING = [path for path in PATHS if "02" <= path.stem[:2] <= "06"]
SHARED_TAGS = ("setup", "parameters", "config", "data", "train", "evaluate", "record", "written")
# Small enough for seconds, large enough to go through every cell.
SMOKE = {"max_steps": 2, "train_size": 8, "validation_size": 4, "test_size": 6,
         "max_new_tokens": 12, "batch_size": 4, "micro_batch": 4}  # fmt: skip


@cache
def read(path):
    return nbformat.reads(text_of(path), as_version=4)


def cells(notebook, kind="code"):
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def tagged(notebook, tag):
    (cell,) = [c for c in notebook.cells if tag in c.metadata.get("tags", [])]
    return cell.source


def test_the_notebooks_are_the_ordered_nine():
    assert [path.stem for path in PATHS] == list(NOTEBOOKS)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_a_notebook_is_thin_and_defines_nothing(path):
    notebook = read(path)
    nbformat.validate(notebook)
    sources = [cell.source for cell in cells(notebook)]
    lines = [[line for line in s.splitlines() if line.strip()] for s in sources]
    assert len(sources) <= 12
    assert sum(map(len, lines)) <= 80
    assert max(map(len, lines)) <= 14
    for source in sources:
        nodes = list(ast.walk(ast.parse(source)))
        kinds = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.AsyncFunctionDef)
        assert not any(isinstance(node, kinds) for node in nodes)
    prose = cells(notebook, "markdown")
    assert len(prose) >= len(sources) / 2
    assert prose[0].source.startswith("# ")


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_a_notebook_is_committed_without_traces_of_a_run(path):
    notebook = read(path)
    assert "widgets" not in notebook.metadata
    for cell in cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None
        assert "execution" not in cell.metadata


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_badge_address_and_tag_are_the_projects(path):
    notebook, address = read(path), repository()
    badge = f"https://colab.research.google.com/github/{address}/blob/main/notebooks/{path.name}"
    assert badge in notebook.cells[0].source
    setup = tagged(notebook, "setup")
    assert f'REPO, TAG = "https://github.com/{address}", "v{__version__}"' in setup


def test_shared_cells_are_the_same_to_the_byte():
    for tag in SHARED_TAGS:
        assert len({tagged(read(path), tag) for path in TRAINING}) == 1, tag
    for tag in ("setup", "parameters"):
        assert len({tagged(read(path), tag) for path in PATHS}) == 1, tag
    named = {ast.literal_eval(tagged(read(path), "method").split("= ")[1]) for path in TRAINING}
    assert named == set(METHODS) - {"teacher", "zero_shot"}


def test_the_parameters_are_four_plain_literals():
    tree = ast.parse(tagged(read(PATHS[0]), "parameters"))
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in tree.body}
    assert values == {"preset": "demo", "language": "ca", "seed": 77, "overrides": {}}


def test_badges_writes_one_address_everywhere(tmp_path):
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    without = shutil.ignore_patterns(CHECKPOINTS)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=without)
    old = repository(tmp_path)
    changed = write_badges("someone/their.fork", tmp_path)
    assert {path.name for path in changed} >= {path.name for path in PATHS}
    assert repository(tmp_path) == "someone/their.fork"
    for path in tmp_path.rglob("*.*"):
        assert f"github.com/{old}".encode() not in path.read_bytes()
        assert f"github/{old}".encode() not in path.read_bytes()
    assert write_badges("someone/their.fork", tmp_path) == []
    for wrong in ("", "owner", "https://github.com/a/b", "a/b c"):
        with pytest.raises(UserError, match="expected owner/name"):
            write_badges(wrong, tmp_path)


# Executed --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The notebooks and the library as in a clone, so that nothing is written to this one."""
    root = tmp_path_factory.mktemp("clone")
    (root / "notebooks").mkdir()
    for path in PATHS:
        (root / "notebooks" / path.name).write_text(text_of(path), encoding="utf-8")
    (root / "distilwhisper_lib").symlink_to(ROOT / "distilwhisper_lib")
    return root


def kit(*arguments, cwd):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("MPLBACKEND", None)  # a kernel draws inline unless told otherwise
    if cwd.name != "notebooks":  # there, as for a user, the set-up cell has to find the library
        environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


@pytest.fixture(scope="module")
def batch(checkout):
    return kit(
        "distilwhisper_lib.batch", "run", "--languages", "ca", "--overrides", json.dumps(SMOKE),
        "--jobs", "2", cwd=checkout,
    )  # fmt: skip


def test_every_notebook_runs_from_the_root(batch, checkout):
    assert batch.returncode == 0, batch.stdout + batch.stderr
    assert batch.stdout.strip().endswith("10 done")  # and the teacher targets
    executed = {path.stem[:-9] for path in (checkout / "outputs" / "notebooks").glob("*.ipynb")}
    assert executed == {
        f"{name}-ca-s77" if "01" <= name[:2] <= "06" else name for name in NOTEBOOKS
    }


def test_the_runs_leave_records_gates_tables_and_figures(batch, checkout):
    demo = checkout / "outputs" / "results" / "demo"
    methods = {p.stem.rsplit("-ca-s77-", 1)[0] for p in (demo / "runs").glob("*.json")}
    assert methods == {m.replace("_", "-") for m in METHODS}
    assert len(list((demo / "gates").glob("*.json"))) == 3
    (forced,) = (demo / "gates" / "forced").glob("*.json")  # notebook 08 decoded them
    assert forced.name.startswith("js-ca-")
    assert len(list((demo / "figures").glob("gate-forced-*.png"))) == 1
    # Two test sets a run; two other languages and translation of all but the teacher.
    assert len(list((demo / "hypotheses").glob("*.jsonl.gz"))) == 7 * 2 + 6 * 3
    assert "No values came out otherwise" in (demo / "report.html").read_text(encoding="utf-8")
    assert len(list((demo / "data").glob("demo-ca-*.json"))) == 1  # named after what it read
    assert len(list((demo / "subsets").glob("demo-ca-*.txt"))) == 4
    assert {p.name for p in (demo / "tables").glob("*.csv")} == {
        "headline-marks.csv", "headline-whisper.csv", "wer-marks.csv", "wer-whisper.csv",
        "cer-marks.csv", "cer-whisper.csv",
    }  # fmt: skip
    figures = {p.stem.split("-")[0] for p in (demo / "figures").glob("*.png")}
    assert figures == {
        "corpus", "preflight", "training", "error_rates", "error_kinds",
        "error_by_length", "intervals", "size_and_share", "gate", "tokens",
        "explorer",
    }  # fmt: skip
    runs = [p for p in (checkout / "outputs").glob("*-ca-s77-*") if p.is_dir()]  # not their locks
    assert runs
    for run in runs:
        assert (run / "record.json").is_file()
        assert not (run / "checkpoints").exists()


def test_executed_notebooks_show_figures_and_hide_paths(batch, checkout):
    for path in (checkout / "outputs" / "notebooks").glob("*.ipynb"):
        notebook = read(path)
        outputs = [output for cell in cells(notebook) for output in cell.outputs]
        images = [o for o in outputs if "image/png" in o.get("data", {})]
        assert images, f"{path.stem} shows no figure"
        shown = json.dumps(outputs)
        assert str(checkout) not in shown
        assert str(ROOT) not in shown
        assert "Traceback" not in shown
    (gates,) = (checkout / "outputs" / "notebooks").glob("08*.ipynb")
    (own,) = [cell for cell in cells(read(gates)) if "collect(" in cell.source]
    assert sum("image/png" in output.get("data", {}) for output in own.outputs) == 1


def test_running_the_batch_again_skips_what_is_finished(batch, checkout):
    again = kit(
        "distilwhisper_lib.batch", "run", "02", "05", "--languages", "ca",
        "--overrides", json.dumps(SMOKE), cwd=checkout,
    )  # fmt: skip
    assert again.returncode == 0
    assert again.stdout.strip().endswith("2 skipped")


def test_papermill_alone_runs_a_notebook_from_its_own_folder(batch, checkout):
    smoke = json.dumps(SMOKE | {"test_size": 4})
    done = kit(
        "papermill", "04_clsr_only.ipynb", "../outputs/alone.ipynb", "-p", "preset", "demo",
        "-p", "language", "cs", "-p", "overrides", smoke, "--no-progress-bar",
        cwd=checkout / "notebooks",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    records = list((checkout / "outputs" / "results" / "demo" / "runs").glob("clsr-cs-s77-*.json"))
    assert len(records) == 1
    assert json.loads(records[0].read_text())["config"]["max_steps"] == 2


def test_papermill_runs_from_a_folder_that_has_nothing_to_do_with_it(batch, checkout, tmp_path):
    """The set-up cell then finds the installed package, here by PYTHONPATH, and its checkout."""
    done = subprocess.run(
        [sys.executable, "-m", "papermill", str(checkout / "notebooks/07_evaluation_tables.ipynb"),
         "out.ipynb", "-p", "preset", "demo", "--no-progress-bar"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(checkout)}, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert [p.name for p in tmp_path.iterdir()] == ["out.ipynb"]


NAVER = "naver/stand-in"


def write_stand_in(cache):
    """NAVER in a hub cache: base and expert in the authors' layout; returns the model."""
    model = DistilWhisperForConditionalGeneration.from_pretrained(locate("embedded/student"))
    folder = cached_snapshot(cache, NAVER, "main", "a" * 40)
    write_release(model, folder)
    WhisperProcessor.from_pretrained(locate("embedded/student")).save_pretrained(folder)
    model.load_experts("catalan", locate("embedded/experts"))
    assert model.save_experts("catalan", folder, layout="authors").suffix == ".bin"
    return model


def test_quickstart_speaks_with_a_released_expert_and_ones_own(checkout, tmp_path, monkeypatch):
    """Base and expert come from a hub repository as the authors have them, here from its cache."""
    model, clips = write_stand_in(tmp_path), sample_clips(resolve("zero_shot"), 5)
    processor = WhisperProcessor.from_pretrained(locate("embedded/student"))
    overrides = {"student": NAVER, "experts": NAVER, "max_new_tokens": 30}

    def spoken():
        options = {"max_new_tokens": overrides["max_new_tokens"], "progress": False}
        return [row["hypothesis"] for row in transcribe(model, processor, clips, **options)]

    expected = {"ready-made expert": spoken()}
    with torch.no_grad():  # one's own: of the same language, and different
        for layer in model.routed_layers():
            layer.clsr["ca"].fc2.weight.mul_(0.3)
    own = checkout / resolve("js", overrides=overrides).output_dir
    model.save_experts("ca", own)
    (own / "record.json").write_text("{}")
    expected["own expert"] = spoken()
    model.remove_expert("ca")
    expected["without"] = spoken()
    assert len({tuple(texts) for texts in expected.values()}) == 3

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    before = sorted(path for path in checkout.rglob("*") if path.is_file())
    done = kit(
        "papermill", "00_quickstart.ipynb", str(tmp_path / "out.ipynb"), "-p", "overrides",
        json.dumps(overrides), "--no-progress-bar", cwd=checkout / "notebooks",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    outputs = [output for cell in cells(read(tmp_path / "out.ipynb")) for output in cell.outputs]
    html = ["".join(output.get("data", {}).get("text/html", "")) for output in outputs]
    assert any("<audio" in page for page in html)
    (page,) = [page for page in html if "own expert" in page]
    table = ElementTree.fromstring(re.search("<table.*</table>", page, re.DOTALL)[0])
    head, *rows = [[cell.text or "" for cell in row] for row in table.iter("tr")]
    shown = dict(zip(head, zip(*rows, strict=True), strict=True))
    assert {name: list(shown[name]) for name in expected} == expected
    assert list(shown["reference"]) == list(clips["text"])
    assert sorted(path for path in checkout.rglob("*") if path.is_file()) == before


def test_quickstart_goes_without_an_expert_that_the_source_has_not(checkout, tmp_path):
    """Preset own, of a language that its experts' source can be looked into for and lacks."""
    (tmp_path / "experts").mkdir()
    overrides = {"student": "embedded/student", "data_dir": "embedded", "max_new_tokens": 12,
                 "experts": str(tmp_path / "experts")}  # fmt: skip
    command = [
        "papermill", "00_quickstart.ipynb", str(tmp_path / "out.ipynb"), "-p", "preset", "own",
        "-p", "language", "cs", "-p", "overrides", json.dumps(overrides), "--no-progress-bar",
    ]  # fmt: skip
    done = kit(*command, cwd=checkout / "notebooks")
    assert done.returncode == 0, done.stderr[-3000:]
    outputs = [output for cell in cells(read(tmp_path / "out.ipynb")) for output in cell.outputs]
    said = "".join(output.get("text", "") for output in outputs)
    assert "has no ready-made expert for cs: train one in notebook 05." in said
    pages = ["".join(output.get("data", {}).get("text/html", "")) for output in outputs]
    assert any("without" in page for page in pages)
    assert not any("ready-made expert" in page for page in pages)

    (tmp_path / "experts" / "expert.czech.safetensors").write_bytes(b"damaged")
    done = kit(*command, cwd=checkout / "notebooks")
    assert done.returncode != 0
    assert "expert.czech.safetensors" in done.stderr


def test_the_readmes_library_and_batch_lines_refuse_wrong_input(checkout):
    before = sorted(p for p in checkout.rglob("*") if "distilwhisper_lib" not in str(p))
    for arguments, message in (
        (["--preset", "huge"], "unknown preset 'huge'"),
        (["--languages", "klingon"], "klingon"),
        (["--overrides", '{"epoch": 1}'], "unknown setting 'epoch'"),
        (["--overrides", '{"epochs": "many"}'], "epochs='many' has the wrong type"),
        (["09_nothing"], "'09_nothing' is no notebook"),
        (["-p", "budget", "0.3"], "budget"),
    ):
        refused = kit("distilwhisper_lib.batch", "run", *arguments, cwd=checkout)
        assert refused.returncode == 2
        assert refused.stderr.startswith("error: ")
        assert message in refused.stderr
        assert refused.stderr.count("\n") == 1
    assert before == sorted(p for p in checkout.rglob("*") if "distilwhisper_lib" not in str(p))
