"""Where results come from, without telling whose machine it was."""

from __future__ import annotations

import json
import re
import socket
import subprocess

import pytest

from distilwhisper_lib.results import provenance


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "kit"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "distilwhisper_lib").mkdir()
    (folder / "distilwhisper_lib" / "a.py").write_text("x = 1\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder


def test_provenance_knows_the_commit_and_ignores_what_a_run_writes(checkout):
    for name in ("results/runs/a.json", "outputs/b.txt", "data/speech/a.wav", "out.ipynb"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("{}")
    clean = provenance.provenance(device="cpu", root=checkout)
    assert re.fullmatch("[0-9a-f]{40}", clean["commit"])
    assert clean["dirty"] is False
    (checkout / "distilwhisper_lib" / "a.py").write_text("x = 2\n")
    assert provenance.provenance(device="cpu", root=checkout)["dirty"] is True
    (checkout / "distilwhisper_lib" / "a.py").write_text("x = 1\n")
    (checkout / "distilwhisper_lib" / "new.py").write_text("")
    assert provenance.provenance(device="cpu", root=checkout)["dirty"] is True


def notebook(*cells, **metadata):
    content = {"metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    content["cells"] = [
        {"cell_type": "code", "metadata": {"tags": [tag]}, "source": source, "outputs": out}
        for tag, source, out in cells
    ]
    return json.dumps(content)


def test_stepping_through_a_notebook_is_no_change_and_changing_a_cell_is(checkout):
    def dirty():
        return provenance.git_state(checkout)[1]

    path = checkout / "notebooks" / "05.ipynb"
    path.parent.mkdir()
    path.write_text(notebook(("parameters", "seed = 1", []), ("train", ["a\n", "b"], [])))
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "notebook")
    stepped = ("parameters", "seed = 2", []), ("x", "a\nb", ["0.3"]), ("", "", [])
    path.write_text(notebook(*stepped, widgets={}))
    (path.parent / ".ipynb_checkpoints").mkdir()
    (path.parent / ".ipynb_checkpoints" / "05-checkpoint.ipynb").write_text("{}")
    assert dirty() is False
    code = ("parameters", "seed = open('x')", []), *stepped[1:]
    for changed in (
        notebook(*stepped[:1], ("train", "a\nc", [])), notebook(*stepped[:1]), notebook(*code), "{",
    ):  # fmt: skip
        path.write_text(changed)
        assert dirty() is True
    path.unlink()
    assert dirty() is True


def test_provenance_works_outside_git_and_before_the_first_commit(tmp_path, checkout):
    plain = provenance.provenance(device="cpu", root=tmp_path)
    assert (plain["commit"], plain["dirty"]) == (None, None)
    inside = checkout / "site-packages"  # somebody else's repository
    inside.mkdir()
    assert provenance.provenance(device="cpu", root=inside)["commit"] is None
    git(tmp_path, "init", "-q")
    assert provenance.provenance(device="cpu", root=tmp_path)["commit"] is None


def test_provenance_holds_no_host_user_or_path(checkout):
    command = (
        f"papermill {checkout}/notebooks/05.ipynb /home/someone/out.ipynb ~/x/y.ipynb -p preset "
        "demo -y https://example.org/a/b -p data_dir ../data/cv 'C:\\Users\\someone\\f.csv'"
    )
    made = provenance.provenance(command, device="cpu", root=checkout)
    assert made["command"] == (
        "papermill notebooks/05.ipynb out.ipynb y.ipynb -p preset "
        "demo -y https://example.org/a/b -p data_dir ../data/cv 'f.csv'"
    )
    text = json.dumps(made)
    assert str(checkout) not in text
    assert socket.gethostname() not in text
    assert made["hardware"]["cores"] >= 1 and made["hardware"]["memory_gib"] > 0
    assert set(made["versions"]) == {
        *("python", "torch", "transformers", "datasets", "peft", "evaluate", "jiwer"),
        "distilwhisper_lib",
    }


def test_cpu_model_is_read_where_there_is_one(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nmodel name\t: Some CPU @ 2 GHz\n")
    assert provenance.cpu_model(info) == "Some CPU @ 2 GHz"
    assert provenance.cpu_model(tmp_path / "missing") is not None
