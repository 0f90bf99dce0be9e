"""The pages: the figure can be made again; what they link, run and import is there."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import itertools
import re
import shlex
from pathlib import Path

import pytest
from clsr_figure import FIGURE, RESULTS, clsr_figure, main, routed, what_is_drawn
from house import LAYERS

from distilwhisper_lib.__main__ import WORDS
from distilwhisper_lib.config.settings import RunConfig
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.evaluation import run
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

PAGES = sorted(
    path
    for folder, pattern in {
        ".": "*.md", "benchmarks": "**/*.md", "notebooks": "*.md", "results": "*.md",
        "tests": "**/*.md",
    }.items()
    for path in (ROOT / folder).glob(pattern)
)  # fmt: skip
each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(path: Path, kind: str) -> list[str]:
    """The fenced blocks of a page that name this language, or none."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.M | re.S)
    return [block for language, block in fenced if language == kind]


def prose(path: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)


def test_the_first_page_is_short_and_all_pages_are_found():
    assert README.stat().st_size <= 10_000
    found = {str(path.relative_to(ROOT)) for path in PAGES}
    assert found >= {
        "README.md",
        "CONTRIBUTING.md",
        "benchmarks/cost/README.md",
        "results/README.md",
    }


@each_page
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)\s]+)\)", prose(path))
    assert links or path.parent.name == "golden"
    for link in links:
        name, _, anchor = link.partition("#")
        target = (path.parent / name) if name else path
        if "://" not in link:
            assert target.exists(), link
            assert not anchor or anchor in _anchors(target), link


def _anchors(path: Path) -> set[str]:
    """The headings' addresses, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_linked_from_another():
    linked = {
        (path.parent / link.partition("#")[0]).resolve()
        for path in PAGES
        for link in re.findall(r"\]\(([^)\s]+)\)", prose(path))
        if not link.startswith("#")
    }
    assert {page.resolve() for page in PAGES} - linked <= {README.resolve()}


def test_the_first_page_shows_every_room():
    tree = next(block for block in blocks(README, "") if "distilwhisper_lib/" in block)
    shown = re.findall(r"^  ([\w.]+)/? ", tree, re.M)
    assert {name.removesuffix(".py") for name in shown} >= {r for floor in LAYERS for r in floor}
    assert all((ROOT / "distilwhisper_lib" / name).exists() for name in shown)


@each_page
def test_python_on_a_page_parses_and_what_it_imports_exists(path):
    for block in blocks(path, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)
            elif isinstance(node, ast.Import):
                assert all(importlib.util.find_spec(name.name) for name in node.names)


@each_page
def test_commands_on_a_page_exist(path):
    text = path.read_text(encoding="utf-8")
    for module, word in re.findall(
        r"-m ((?:distilwhisper_lib|benchmarks)[\w.]*)(?: ([-\w]+))?", text
    ):
        assert importlib.util.find_spec(module), module
        assert module != "distilwhisper_lib" or word in {*WORDS, "WORD", "--help"}, word
    for target in re.findall(r"(?:^|`)make ([a-z][\w-]*)", text, re.M):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target
    for line in _lines(path):
        words = shlex.split(line, comments=True)
        for script in (word for word in words if word.startswith((".ci/", "benchmarks/"))):
            assert (ROOT / script).exists(), line
        if "-m" in words and words[words.index("-m") + 1].startswith(("distil", "bench")):
            _check_options(words[words.index("-m") + 1 :], line)


def _lines(path: Path) -> list[str]:
    return [
        line
        for block in blocks(path, "sh")
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip()
    ]


def _check_options(words: list[str], line: str) -> None:
    """Of ``package word ...``: each option is one of the command's, each notebook is there."""
    module, *rest = words
    if module == "distilwhisper_lib":
        if rest[0].startswith("--"):
            return
        module = f"{module}.{WORDS[rest[0]][0]}"
    spec = importlib.util.find_spec(module)
    folder = spec.submodule_search_locations[0] if spec.submodule_search_locations else None
    files = Path(folder).glob("*.py") if folder else [Path(spec.origin)]
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    if "add_run_arguments" in source:
        source += Path(run.__file__).read_text(encoding="utf-8")
    for option in (word for word in rest if word.startswith("--")):
        assert f'"{option}"' in source, line
    if rest[:2] in (["batch", "run"], ["batch", "plan"]):
        given = itertools.takewhile(lambda word: not word.startswith("-"), rest[2:])
        for notebook in (word for word in given if not word.endswith(".yaml")):
            assert list(ROOT.glob(f"notebooks/{notebook}*.ipynb")), line


def test_every_setting_that_switches_something_back_exists():
    text = GUIDE.read_text(encoding="utf-8").split("## What departs")[1].split("## Glossary")[0]
    table = [row for row in text.splitlines() if row.startswith("| ")][2:]
    named = {
        name for row in table for name in re.findall(r"`(\w+)(?:=[^`]*)?`", row.split(" | ")[-1])
    }
    assert {"conventions", "teacher_targets", "train_subset", "task_weight"} <= named
    assert named <= {field.name for field in dataclasses.fields(RunConfig)}
