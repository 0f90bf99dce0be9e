"""The guide beside the notebooks: its figure can be made again, its links and commands exist."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
from clsr_figure import FIGURE, RESULTS, clsr_figure, main, routed, what_is_drawn

from distilwhisper_lib.__main__ import WORDS
from distilwhisper_lib.config.settings import RunConfig
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.figures import BLUE
from distilwhisper_lib.gates.files import load_gates

ROOT = Path(__file__).parents[1]
GUIDE, README = ROOT / "notebooks" / "GUIDE.md", ROOT / "README.md"


def gate_file(run_id: str, tokens: list[str], *layers: list[int]) -> dict:
    example = {"id": "one", "tokens": tokens, "token_gates": [list(layer) for layer in layers]}
    return {"run_id": run_id, "language": "ca", "example": example}


MIXED = gate_file("clsr-ca-s1-a", ["<|ca|>", " sí", "$"], [0, 0, 0], [0, 1, 1])


# The figure -----------------------------------------------------------------------------------


def test_the_command_draws_the_committed_figure_again(tmp_path, capsys):
    status = ["git", "-C", str(ROOT), "status", "--porcelain", "--", "results"]
    changed = subprocess.run(status, capture_output=True, text=True)
    if changed.returncode or changed.stdout:
        pytest.skip("own runs lie in results/: `python .ci/clsr_figure.py`")
    main(["--to", str(tmp_path / "again.png")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "again.png")
    assert what_is_drawn(tmp_path / "again.png") == what_is_drawn(FIGURE)
    assert FIGURE.stat().st_size < 100_000


def test_the_committed_figure_shows_a_committed_gate_file():
    drawn = what_is_drawn()
    (found,) = [g for g in load_gates(RESULTS) if g["run_id"] == drawn.run_id]
    assert drawn.tokens == found["example"]["tokens"]
    assert drawn.gates == found["example"]["token_gates"][drawn.layer - 1]
    assert 0 < sum(drawn.gates) < len(drawn.gates)


def test_boxes_and_numbers_are_the_gates():
    axis = clsr_figure(routed([MIXED])).axes[1]
    filled = [box.get_facecolor()[:3] for box in axis.patches]
    blue = tuple(int(BLUE[i : i + 2], 16) / 255 for i in (1, 3, 5))
    assert [colour == pytest.approx(blue) for colour in filled] == [False, True, True]
    texts = [text.get_text() for text in axis.texts]
    assert texts[:6] == ["<ca>", "0", "␣sí", "1", r"\$", "1"]
    assert "2 of 3 tokens" in texts[6]


def test_boxes_stay_inside_however_long_the_utterance():
    tokens = ["<|startoftranscript|>", *[" paraula"] * 60, "x" * 80]
    axis = clsr_figure(routed([gate_file("kl-ca", tokens, [1] * 62)])).axes[1]
    for box in axis.patches:
        assert 0 <= box.get_x() and box.get_x() + box.get_width() <= axis.get_xlim()[1]
        assert 1.5 < box.get_y()
    tops = sorted({box.get_y() for box in axis.patches})
    assert all(low + 1.35 < high for low, high in zip(tops, tops[1:], strict=False))
    assert f"62 of 62 tokens; the first {len(axis.patches)} are shown" in axis.texts[-1].get_text()


def test_the_example_is_the_one_that_routes_most():
    even = gate_file("js-ca-s1-b", ["a", "b"], [1, 1], [1, 0])
    cut = gate_file("kl-ca-s1-c", ["�", "�"], [1, 0])
    assert routed([MIXED, cut, even]).run_id == "js-ca-s1-b"
    assert routed([MIXED, cut, even]).layer == 2
    assert routed([MIXED, cut]).run_id == "clsr-ca-s1-a"
    assert routed([MIXED, cut], "kl-ca-s1-c").gates == [1, 0]
    assert routed([MIXED], layer=1).gates == [0, 0, 0]


@pytest.mark.parametrize("run_id, layer", [("kl-xx", None), (None, 3), (None, 0)])
def test_what_does_not_exist_is_one_sentence(run_id, layer):
    with pytest.raises(UserError, match="no example for run .*: expected one of clsr-ca-s1-a"):
        routed([MIXED], run_id, layer)


def test_the_command_refuses_before_it_writes(tmp_path, capsys):
    assert main(["--results", str(tmp_path), "--to", str(tmp_path / "a.png")]) == 2
    assert capsys.readouterr().err.startswith("error: no gate files in")
    assert not list(tmp_path.iterdir())


# The text -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [README, GUIDE], ids=["README", "GUIDE"])
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert links
    for link in links:
        name, _, anchor = link.partition("#")
        target = (path.parent / name) if name else path
        assert target.is_file(), link
        assert not anchor or anchor in _anchors(target), link


def _anchors(path: Path) -> set[str]:
    """The headings' addresses, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_guides_commands_exist():
    block = re.search(r"```sh\nP=(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)[1]
    lines = [line.split("#")[0].split() for line in block.splitlines() if " -m " in line]
    assert len(lines) == 6
    for words in lines:
        package, word = words[words.index("-m") + 1 :][:2]
        module = Path(importlib.util.find_spec(f"{package}.{WORDS[word][0]}").origin)
        source = module.read_text(encoding="utf-8")
        for option in (word for word in words if word.startswith("--")):
            assert f'"{option}"' in source, (module, option)
        for number in filter(str.isdigit, words):
            assert list(ROOT.glob(f"notebooks/{number}_*.ipynb"))


def test_every_setting_that_switches_something_back_exists():
    text = GUIDE.read_text(encoding="utf-8").split("## What departs")[1].split("## Glossary")[0]
    table = [row for row in text.splitlines() if row.startswith("| ")][2:]
    named = {
        name for row in table for name in re.findall(r"`(\w+)(?:=[^`]*)?`", row.split(" | ")[-1])
    }
    assert {"conventions", "teacher_targets", "train_subset", "task_weight"} <= named
    assert named <= {field.name for field in dataclasses.fields(RunConfig)}
