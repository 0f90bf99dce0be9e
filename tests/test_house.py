"""What holds of the library as a whole: what its parts may import, what they may ask."""

from __future__ import annotations

import subprocess
import sys

import pytest

from distilwhisper_lib import PACKAGE
from distilwhisper_lib.__main__ import WORDS, main


@pytest.mark.parametrize("name", ["config.settings", "report.command", "report.pages"])
def test_reading_records_needs_no_torch(name):
    code = (
        f"import sys, distilwhisper_lib.{name}\n"
        "sys.exit(', '.join({'torch', 'transformers', 'datasets'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


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
