"""No token and no folder of this machine in what is kept or published, and nothing else changed."""

from __future__ import annotations

import ast
import gzip
import json
from pathlib import Path

import nbformat
import papermill
import pytest
from committed import CHECKPOINTS, text_of
from hypothesis import given
from hypothesis import strategies as st
from make_records import make_record

from distilwhisper_lib.batch import ledger
from distilwhisper_lib.batch.command import expand
from distilwhisper_lib.batch.notebooks import checked_parameters
from distilwhisper_lib.batch.task import Task, execute_one
from distilwhisper_lib.config.settings import resolve
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.io import leaks
from distilwhisper_lib.io.leaks import REMOVED, mask, mask_notebook, mask_values, write_public
from distilwhisper_lib.report.report import write_report
from distilwhisper_lib.results.hypotheses import hypotheses_path, publish
from distilwhisper_lib.results.records import read_record, write_record

ROOT = Path(__file__).parents[2]
HUB = "hf_" + "aB3" * 11  # put together, so that no scanner takes this file for a leak
TOKENS = {
    "hub": HUB,
    "openai": "sk-" + "proj-" + "x1" * 20,
    "github": "ghp_" + "Z9" * 18,
    "aws": "AKIA" + "ABCD" * 4,
    "aws, for a time": "ASIA" + "ABCD" * 4,
    "google": "AIza" + "b" * 35,
    "google, for an hour": "ya29." + "c" * 30,
    "npm": "npm_" + "d" * 36,
    "pypi": "pypi-" + "e" * 50,
    "web token": ".".join(["eyJ" + "f" * 20, "eyJ" + "g" * 20, "h" * 20]),
    "private key": "-----BEGIN RSA PRIVATE KEY-----\nabc+/=\n-----END RSA PRIVATE KEY-----",
}


@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS)
def test_what_looks_like_a_token_is_removed(token):
    coloured = f"\x1b[31m{token}\x1b[0m", f"\\u001b[1;31m{token}\\u001b[0m"
    for text in (token, f"key={token}", f'{{"a": "{token}"}}', f"\n{token}.", *coloured):
        assert mask(text) == text.replace(token, REMOVED)
        assert leaks.has_token(text)


@pytest.mark.parametrize("text", ["hf_hub_download", "sk-SK", "risk-management-of-the-whole-of-it",
                                  "AKIA", "a_ghp_b", "js-ca-s77-1a2b3c4d"])  # fmt: skip
def test_what_does_not_stays(text):
    assert mask(text) == text and not leaks.has_token(text)


def test_the_environments_own_secrets_are_removed_whatever_they_look_like(monkeypatch):
    monkeypatch.setenv("MDC_API_KEY", "0123-plain-value")
    monkeypatch.setenv("MY_TOKEN", "on")  # too short to be one
    monkeypatch.setenv("OTHER_TOKEN", str(ROOT))  # where a token lies is none
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "0123456789")
    assert mask("is 0123-plain-value on 0123456789") == f"is {REMOVED} on 0123456789"


def test_an_executed_notebook_loses_the_paths_that_it_was_given(tmp_path, monkeypatch):
    monkeypatch.setattr(leaks.sys, "prefix", "/srv/ours/.venv")
    monkeypatch.setattr(leaks.sys, "base_prefix", "/usr")
    given = {"data_dir": "/srv/secret project/data", "student": "/srv/models/base"}
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["papermill"] = {"parameters": {"overrides": json.dumps(given), "seed": 77}}
    said = "read /srv/secret project/data/speech and /srv/models/base, not /srv/models/base2"
    trace = "\x1b[32m/srv/ours/.venv/lib/python3.11/x.py\x1b[39m:3 of /usr/lib"
    output = [nbformat.v4.new_output("stream", text=text) for text in (said, trace)]
    notebook.cells = [nbformat.v4.new_code_cell("", outputs=output)]
    nbformat.write(notebook, path := tmp_path / "out.ipynb")
    mask_notebook(path)
    text = path.read_text(encoding="utf-8")
    assert "secret project" not in text and "/srv/ours" not in text and "/srv/models/base2" in text
    told = [output["text"] for output in nbformat.read(path, 4).cells[0].outputs]
    assert told == ["read data/speech and base, not /srv/models/base2",
                    "\x1b[32m.venv/lib/python3.11/x.py\x1b[39m:3 of /usr/lib"]  # fmt: skip


def test_paths_lose_what_is_of_this_machine(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ana")
    cases = {
        f"in {ROOT}/outputs/x.json": "in outputs/x.json",
        f'"{ROOT}"': '"."',
        f"\x1b[32m{ROOT}/x.py\x1b[39m:72": "\x1b[32mx.py\x1b[39m:72",
        "\x1b[1;32m/home/alice/x\x1b[0m": "\x1b[1;32m~/x\x1b[0m",
        "file:///home/alice/x": "file://~/x",
        "/media/alice/disk and /mnt/c/Users/alice": "~/disk and ~",
        "https://alice:secret@host/x": f"https://{REMOVED}@host/x",
        "https://host/home/page:1@2": "https://host/home/page:1@2",
        f"{ROOT}-other/x": f"{ROOT}-other/x",
        "/home/ana/.cache": "~/.cache",
        "/home/anatol/x": "~/x",  # somebody else's
        "/Users/ben/kit": "~/kit",
        r"C:\Users\ben\kit": r"~\kit",
        "https://host/home/ana/x": "https://host/home/ana/x",
        "data/home/ana": "data/home/ana",
        "/usr/lib/python3": "/usr/lib/python3",
    }
    assert {text: mask(text) for text in cases} == cases


@given(st.text(max_size=200))
def test_masking_twice_is_masking_once(text):
    assert mask(mask(text)) == mask(text)


def test_what_is_committed_holds_nothing_to_mask():
    folders = ("results", "notebooks", "benchmarks")
    files = [f for name in folders for f in (ROOT / name).rglob("*") if f.is_file()]
    kinds = (".json", ".csv", ".txt", ".md", ".ipynb", ".tex")
    texts = [f for f in files if f.suffix in kinds and f.parent.name != CHECKPOINTS]
    assert len(texts) > 20
    for path in [*texts, *ROOT.glob("*.md")]:
        text = text_of(path)
        assert mask(text) == text, path


def test_pictures_in_a_notebook_are_left_alone():
    looks = f"/home/ana/{HUB}"
    data = {"image/png": looks, "image/svg+xml": looks, "text/plain": [looks]}
    masked = mask_values({"data": data})["data"]
    assert masked["image/png"] == looks
    assert masked["image/svg+xml"] == masked["text/plain"][0] == f"~/{REMOVED}"


# Where things are written --------------------------------------------------------------------


def test_a_planted_token_and_path_reach_no_published_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    planted = f"\n{ROOT}/x {HUB}"
    record = make_record()
    record["provenance"]["command"] += planted
    record["note"] = {"free": [planted]}
    path = write_record(record, "results")
    assert read_record(path)["note"] == {"free": [f"\nx {REMOVED}"]}
    assert f"{path.name}: held a token" in capsys.readouterr().err
    report = write_report("results")
    write_public("results/table.md", planted)
    row = {"id": "a", "reference": planted, "hypothesis": "b", "language": "ca", "speaker": "",
           "seconds": 1.0, "tokens": 1, "capped": False}  # fmt: skip
    publish([row], "results", "run", "in_domain")
    said = gzip.decompress(hypotheses_path("results", "run", "in_domain").read_bytes()).decode()
    for text in (report.read_text(), said, Path("results/table.md").read_text()):
        assert HUB not in text and str(ROOT) not in text
    assert REMOVED in said


def notebook(path: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


@pytest.mark.parametrize("fails", [False, True], ids=["done", "failed"])
def test_an_executed_notebook_is_kept_without_them(tmp_path, monkeypatch, fails):
    """Nobody loses a notebook over it, least of all the one that failed."""
    monkeypatch.setenv("SERVICE_TOKEN", "a-value-of-its-own")
    shown = f"import os; print('{ROOT}/data', os.environ['SERVICE_TOKEN']); x = 6 * 7; print(x)"
    last = f"raise RuntimeError('with {HUB}')" if fails else "x"
    source = notebook(tmp_path / "n.ipynb", shown, last)
    outcome = execute_one(Task("n", str(tmp_path), str(source), {}))
    assert outcome.status == ("failed" if fails else "done")
    text = Path(outcome.output).read_text(encoding="utf-8")
    assert "a-value-of-its-own" not in text and str(ROOT) not in text
    cells = nbformat.reads(text, as_version=4).cells
    printed = next(cell.outputs[0].text for cell in cells if "6 * 7" in cell.source)
    assert printed == f"data {REMOVED}\n42\n"
    assert HUB not in text and HUB not in outcome.error


def test_the_ledger_holds_neither_tokens_nor_folders(tmp_path, capsys):
    task = Task("04-ca-s1", str(tmp_path), "n.ipynb", {})
    error = "OSError: /home/somebody/data and " + HUB
    ledger.note("failed", [task], worker="w1", error=error)
    (event,) = ledger.read(tmp_path)
    assert event["error"] == f"OSError: ~/data and {REMOVED}" and event["worker"] == "w1"
    assert "ledger.jsonl: held a token" in capsys.readouterr().err


def test_a_notebook_that_is_no_json_any_more_is_kept_too(tmp_path):
    path = tmp_path / "n.ipynb"
    path.write_bytes(b'{"cells": ["' + HUB.encode() + b"\xff")
    mask_notebook(path)
    assert path.read_bytes() == b'{"cells": ["' + REMOVED.encode() + b"\xff"


# What people give ----------------------------------------------------------------------------


def test_a_token_as_a_parameter_or_setting_is_refused_and_not_repeated():
    calls = [
        lambda: checked_parameters(ROOT / "notebooks" / "04_clsr_only.ipynb", {"preset": HUB}),
        lambda: expand(overrides={"student": f"x/{HUB}"}, root=ROOT),
        lambda: expand(overrides=f'{{"student": "{HUB}"', root=ROOT),
        lambda: resolve("clsr", overrides={"experts": HUB}),
    ]
    for call in calls:
        with pytest.raises(UserError, match="looks like a token.*HF_TOKEN") as refused:
            call()
        assert HUB not in str(refused.value)


class Code(str):
    """A text that writes itself into a notebook as it likes."""

    def __str__(self):
        return "__import__('os').system('true')"


@pytest.mark.parametrize("value", [Code("x"), {"a": Code("x")}, {1: 2}, {"a": {1, 2}}, b"x",
                                   {"a": object()}])  # fmt: skip
def test_parameters_are_literals_only(value):
    with pytest.raises(UserError, match="no plain literal"):
        checked_parameters(ROOT / "notebooks" / "04_clsr_only.ipynb", {"overrides": value})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_papermill_writes_literals_that_read_back_as_they_were(value):
    """No text becomes code. Lone surrogates, which no file can hold, become escapes."""
    source = papermill.translators.PythonTranslator.codify({"overrides": value}, "p")
    (assignment,) = ast.parse(source).body
    try:
        assert ast.literal_eval(assignment.value) == value
    except ValueError:  # papermill writes infinity as float('inf')
        calls = [n for n in ast.walk(assignment) if isinstance(n, ast.Call)]
        assert calls and all(ast.unparse(n) in ("float('inf')", "float('-inf')") for n in calls)
