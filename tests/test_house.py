"""What holds of the library as a whole: what its parts may import, what they may ask."""

from __future__ import annotations

import subprocess
import sys

import pytest

from distilwhisper_lib import PACKAGE


@pytest.mark.parametrize("name", ["config", "results", "readme"])
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
