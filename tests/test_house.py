"""What holds of the library as a whole: what its parts may import, what they may ask."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys

import house
import pytest

from distilwhisper_lib import PACKAGE
from distilwhisper_lib.__main__ import WORDS, main


@pytest.mark.parametrize("name", ["config", "results", "report", "report.command"])
def test_reading_records_needs_no_torch(name):
    code = (
        f"import sys, distilwhisper_lib.{name}\n"
        "sys.exit(', '.join({'torch', 'transformers', 'datasets'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_rooms_import_one_way():
    graph = house.imports()
    assert house.upward(graph) == [] and house.circles(graph) == []
    assert len(house.rooms(graph)["training"]) > 5  # or nothing was read


def test_an_import_that_goes_up_or_round_is_named(tmp_path):
    for name, text in {
        "io/files.py": "def f():\n    from distilwhisper_lib.config import settings\n",
        "config/settings.py": "from ..io.files import f\n",
        "cellar.py": "",
    }.items():
        path = tmp_path / "distilwhisper_lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.with_name("__init__.py").touch()
    graph = house.imports(tmp_path)
    assert house.upward(graph) == ["io imports config"]
    assert house.circles(graph) == [
        {"distilwhisper_lib.io.files", "distilwhisper_lib.config.settings"}
    ]
    assert house.floors(graph) == 2 or house.floors(graph) == 1


def test_every_room_says_what_it_is_for_and_has_what_it_hands_on():
    for path in sorted(PACKAGE.glob("*/__init__.py")):
        room = importlib.import_module(f"distilwhisper_lib.{path.parent.name}")
        assert 1 <= len(re.findall(r"\.(?:\s|$)", room.__doc__)) <= 4, room.__name__
        names = getattr(room, "__all__", ())
        # A module of that name, once imported, would stand before it.
        assert not {p.stem for p in path.parent.glob("*.py")} & set(names)
        assert all(getattr(room, name) is not None for name in names)
    plain = [p for p in PACKAGE.glob("*.py") if not p.name.startswith("__")]
    assert len(plain) <= 6


def test_one_place_asks_where_the_code_lies():
    asking = [p.name for p in PACKAGE.rglob("*.py") if "__file__" in p.read_text("utf-8")]
    assert asking == ["__init__.py"]


def test_one_command_says_its_words_without_importing_what_they_need(capsys):
    for word, (module, does) in WORDS.items():
        with pytest.raises(SystemExit) as ended:
            main([word, "--help"])
        assert ended.value.code == 0, module
        assert f"python -m distilwhisper_lib {word}" in capsys.readouterr().out.split("\n")[0]
        assert main(["--help"]) == 0
        assert does in capsys.readouterr().out
    code = (
        "import sys; from distilwhisper_lib.__main__ import main; main(['--help'])\n"
        "sys.exit(', '.join(m for m in sys.modules if m[:18] == 'distilwhisper_lib.'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert set(done.stderr.strip().split(", ")) == {
        "distilwhisper_lib.__main__", "distilwhisper_lib.errors",
    }  # fmt: skip


def test_an_unknown_word_is_told_the_known_ones(capsys):
    assert main(["listen"]) == 2
    assert "unknown word 'listen': expected one of transcribe, train" in capsys.readouterr().err
