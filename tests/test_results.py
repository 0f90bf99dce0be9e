"""Tables and the README's blocks."""

from __future__ import annotations

import copy
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from make_records import evaluation, make_record

from distilwhisper_lib import records as record_files
from distilwhisper_lib import results
from distilwhisper_lib.errors import UserError

# ------------------------------------------------------------------------------------ tables


def test_table_has_the_papers_rows_and_percentages():
    records = [
        make_record("js", "ca", wer=0.101, ood=0.2),
        make_record("js", "cs", wer=0.303, ood=0.4),
        make_record("teacher", "ca", wer=0.05, ood=0.06),
    ]
    table = results.results_table(records)
    assert list(table.index) == list(results.LABELS.values())
    assert list(table.columns) == [
        *[("in_domain", name) for name in ("ca", "cs", "average")],
        *[("out_of_domain", name) for name in ("ca", "cs", "average")],
    ]
    assert table.loc["+ CLSR + JS", ("in_domain", "average")] == pytest.approx(20.2)
    assert table.loc["Teacher zero-shot", ("in_domain", "ca")] == pytest.approx(5.0)
    assert math.isnan(table.loc["Teacher zero-shot", ("in_domain", "average")])
    assert table.loc["+ LoRA"].isna().all()
    cer = results.results_table(records, "cer", "whisper")
    assert cer.loc["+ CLSR + JS", ("in_domain", "ca")] == pytest.approx(100 * 0.051 / 2)


def test_seeds_become_mean_and_sample_standard_deviation():
    records = [
        make_record("js", language, seed, wer=wer)
        for language, seed, wer in (
            *(("ca", 1, 0.10), ("ca", 2, 0.20), ("ca", 3, 0.30)),
            *(("cs", 1, 0.30), ("cs", 2, 0.40)),
        )
    ]
    table = results.results_table(records)
    text = results.formatted(table)
    row = "+ CLSR + JS"
    assert text.loc[row, ("in_domain", "ca")] == "20.0 ± 10.0"
    assert text.loc[row, ("in_domain", "cs")] == "35.0 ± 7.1"
    # Seeds 1 and 2 ran in both languages: averages 20 and 30.
    assert text.loc[row, ("in_domain", "average")] == "25.0 ± 7.1"
    assert table.attrs["seeds"][row]["in_domain", "ca"] == 3


def test_average_of_languages_without_a_common_seed_has_no_deviation():
    records = [make_record("js", "ca", 1, wer=0.1), make_record("js", "cs", 2, wer=0.3)]
    text = results.formatted(results.results_table(records))
    assert text.loc["+ CLSR + JS", ("in_domain", "average")] == "20.0"


def test_headline_tables_name_the_rate_and_average_one_rate_only(tmp_path):
    records = [
        make_record("js", language, seed, wer=wer)
        for language, wers in (("ca", (0.1, 0.2)), ("cs", (0.3, 0.5)), ("ja", (0.9, 0.7)))
        for seed, wer in enumerate(wers)
    ]
    table = results.results_table(records)
    names = ["ca", "cs", "ja (CER)", "average (WER)"]
    assert list(table["in_domain"].columns) == names
    assert table.attrs["title"] == "WER or CER"
    row = "+ CLSR + JS"
    assert list(table.loc[row, "in_domain"]) == pytest.approx([15, 40, 40, 27.5])
    text = results.formatted(table).loc[row, "in_domain"]
    assert list(text) == ["15.0 ± 7.1", "40.0 ± 14.1", "40.0 ± 7.1", "27.5 ± 10.6"]
    assert table.attrs["seeds"][row]["in_domain", "ja (CER)"] == 2
    assert (
        results.to_csv(table, tmp_path / "a.csv")
        .read_text()
        .startswith(
            "system,in_domain ca,in_domain cs,in_domain ja (CER),in_domain average (WER),out_of"
        )
    )
    for metric, title in (("wer", "WER"), ("cer", "CER")):
        pure = results.results_table(records, metric)
        assert list(pure["in_domain"].columns) == ["ca", "cs", "ja", "average"]
        assert pure.attrs["title"] == title
    japanese = results.results_table(records[4:])
    assert list(japanese["in_domain"].columns) == ["ja (CER)", "average (CER)"]
    assert (japanese.attrs["title"], japanese.loc[row, ("in_domain", "average (CER)")]) == (
        "CER", pytest.approx(40),
    )  # fmt: skip
    waiting = results.results_table([*records, make_record("kl", "ca", wer=0.4)])
    assert math.isnan(waiting.loc["+ CLSR + KL", ("in_domain", "average (WER)")])
    without_japanese = [*records, *(make_record("kl", c, wer=0.4) for c in ("ca", "cs"))]
    complete = results.results_table(without_japanese)
    assert complete.loc["+ CLSR + KL", ("in_domain", "average (WER)")] == pytest.approx(40)


def test_each_domain_averages_what_it_has():
    records = [make_record("js", "ca", wer=0.2), make_record("js", "th", wer=0.6)]
    records[0]["evaluations"].pop()  # Catalan was not scored out of domain
    table = results.results_table(records)
    assert list(table["in_domain"].columns) == ["ca", "th (CER)", "average (WER)"]
    assert list(table["out_of_domain"].columns) == ["th (CER)", "average (CER)"]


def test_every_table_is_written_with_its_rate_in_the_headings(tmp_path):
    records = [make_record("js", "th"), make_record("js", "ca")]
    written = [Path(path) for path in results.write_tables(records, tmp_path)]
    assert {path.stem for path in written} == {
        f"{metric}-{rule}" for metric in ("headline", "wer", "cer") for rule in ("marks", "whisper")
    }
    for path in written:
        assert ("th (CER)" in path.read_text()) == path.stem.startswith("headline")


def test_exports_say_not_run(tmp_path):
    table = results.results_table([make_record("lora", "ca", wer=0.25, ood=1.25)])
    lines = results.to_markdown(table).splitlines()
    assert lines[0] == (
        "| System | in domain<br>ca | in domain<br>average | out of domain<br>ca "
        "| out of domain<br>average |"
    )
    assert lines[1] == "| :-- | --: | --: | --: | --: |"
    assert "| + LoRA | 25.0 | 25.0 | 125.0 | 125.0 |" in lines
    assert "| + CLSR | not run | not run | not run | not run |" in lines
    path = results.to_csv(table, tmp_path / "tables" / "wer.csv")
    rows = path.read_text(encoding="utf-8").splitlines()
    assert rows[0] == (
        "system,in_domain ca,in_domain average,out_of_domain ca,out_of_domain average"
    )
    assert "+ LoRA,25.0,25.0,125.0,125.0" in rows
    assert "+ CLSR,not run,not run,not run,not run" in rows


def test_no_records_give_seven_empty_rows():
    table = results.results_table([])
    assert table.shape == (7, 0)
    assert results.to_markdown(table).count("\n") == 9


def test_other_settings_and_presets_are_never_averaged_together():
    records = [make_record("js", wer=0.1), make_record("js", wer=0.9, max_steps=2)]
    table = results.results_table(records)
    assert table.loc["+ CLSR + JS", ("in_domain", "ca")] == pytest.approx(10)
    assert table.loc["+ CLSR + JS (max_steps=2)", ("in_domain", "ca")] == pytest.approx(90)
    assert len(table) == 8
    presets = [make_record(preset="mine", wer=0.2), make_record(preset="theirs", wer=0.1)]
    table = results.results_table(presets)
    assert table.loc["+ CLSR + JS (theirs)", ("in_domain", "ca")] == pytest.approx(10)
    assert table.loc["+ CLSR + JS (mine)", ("in_domain", "ca")] == pytest.approx(20)


def test_hardware_settings_do_not_split_a_row():
    records = [make_record(seed=1, wer=0.1), make_record(seed=2, wer=0.3, eval_batch_size=4)]
    assert len(results.results_table(records)) == 7


def test_only_the_runs_own_language_is_tabled():
    record = make_record("js", "ca")
    record["evaluations"].append(evaluation("in_domain", "en", 0.5))
    assert ("in_domain", "en") not in results.results_table([record]).columns


def test_table_refuses_unknown_names_and_repeated_runs():
    with pytest.raises(UserError, match="unknown metric 'mer': expected one of headline, wer, cer"):
        results.results_table([], "mer")
    with pytest.raises(UserError, match="unknown normalizer 'basic': expected one of marks"):
        results.results_table([], "wer", "basic")
    with pytest.raises(UserError, match="pass each run once"):
        results.results_table([make_record(), make_record()])


# ------------------------------------------------------------------------------------ README

README = "# Kit\n<!-- results:demo:start -->\nold\n<!-- results:demo:end -->\ntail\n"


@pytest.fixture
def kit(tmp_path):
    record_files.write_record(make_record("js", wer=0.123), tmp_path / "results" / "demo")
    (tmp_path / "README.md").write_text(README)
    return ["readme", "--readme", f"{tmp_path}/README.md", "--results", f"{tmp_path}/results"]


def test_readme_command_rewrites_and_checks(kit, tmp_path, capsys):
    assert results.main([*kit, "--check"]) == 1
    assert (tmp_path / "README.md").read_text() == README
    assert "stale" in capsys.readouterr().err
    assert results.main(kit) == 0
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("# Kit\n<!-- results:demo:start -->\n")
    assert text.endswith("<!-- results:demo:end -->\ntail\n")
    assert "| + CLSR + JS | 12.3 |" in text and "old" not in text
    assert "`abcdef01`" in text and "A CPU, 2 cores" in text
    assert results.main([*kit, "--check"]) == 0
    assert results.main(kit) == 0
    assert (tmp_path / "README.md").read_text() == text


def test_readme_full_block_reads_full_records_only(kit, tmp_path):
    full = "<!-- results:full:start -->\n<!-- results:full:end -->\n"
    (tmp_path / "README.md").write_text(README + full)
    results.main(kit)
    after = (tmp_path / "README.md").read_text().split("<!-- results:full:start -->")[1]
    assert after == "\nNo run is recorded here yet.\n<!-- results:full:end -->\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# Kit\n", "holds no <!-- results:demo:start -->"),
        ("<!-- results:demo:start -->\n", "has no <!-- results:demo:end -->"),
        ("<!-- results:demo:start -->" * 2 + "<!-- results:demo:end -->", "remove the second"),
    ],
)
def test_readme_markers_are_checked(kit, tmp_path, capsys, text, message):
    (tmp_path / "README.md").write_text(text)
    assert results.main(kit) == 2
    error = capsys.readouterr().err
    assert message in error and "README.md" in error
    assert (tmp_path / "README.md").read_text() == text


def test_missing_readme_is_one_sentence(kit, tmp_path, capsys):
    (tmp_path / "README.md").unlink()
    assert results.main(kit) == 2
    assert "README.md: cannot be read (No such file" in capsys.readouterr().err


def tables_of(markdown):
    """[(title, headings, the cells of + CLSR + JS)] of every table of rates in a text."""
    found = re.findall(r"^\*\*(.+?)\*\* in percent[^|]*((?:\|.*\n)+)", markdown, re.MULTILINE)
    tables = []
    for title, body in found:
        lines = [[cell.strip() for cell in line.split("|")[2:-1]] for line in body.splitlines()]
        row = next(line for line in body.splitlines() if line.startswith("| + CLSR + JS |"))
        tables.append((title, lines[0], [cell.strip() for cell in row.split("|")[2:-1]]))
    return tables


def test_block_leads_with_the_cer_of_languages_without_spaces():
    records = [make_record("js", "th", wer=0.9, ood=0.8), make_record("js", "ca", wer=0.2, ood=0.3)]
    block = results.readme_block(records)
    assert "Written without spaces, so its CER comes first: Thai." in block
    first, second, *folded = tables_of(block)
    domains = ("in domain", "out of domain")
    mixed = [f"{d}<br>{name}" for d in domains for name in ("ca", "th (CER)", "average (WER)")]
    assert first == ("WER or CER", mixed, ["20.0", "45.0", "20.0", "30.0", "40.0", "30.0"])
    plain = [f"{d}<br>{name}" for d in domains for name in ("ca", "th", "average")]
    assert second == ("CER", plain, ["10.0", "45.0", "27.5", "15.0", "40.0", "27.5"])
    # Letters stand apart under Whisper's rule, and this is what the paper's numbers compare with.
    assert [title for title, _, _ in folded] == ["WER or CER", "WER", "CER"]
    assert folded[0][1] == mixed
    spaced = results.readme_block(records[1:])
    assert [title for title, _, _ in tables_of(spaced)] == ["WER", "CER", "WER", "CER"]
    assert "Thai" not in spaced and "(CER)" not in spaced and "(WER)" not in spaced


def test_block_is_the_same_in_any_order_of_records():
    records = [make_record("js", "ca"), make_record("lora", "cs"), make_record("kl", "ca", 1)]
    assert results.readme_block(records) == results.readme_block(copy.deepcopy(records[::-1]))


def test_show_prints_the_tables(kit, tmp_path, capsys):
    assert results.main(["show", "--demo", *kit[3:]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "WER in percent, lower is better (normaliser: marks)"
    assert "in domain ca" in lines[1]
    assert lines[8].split() == ["+", "CLSR", "+", "JS", "12.3", "12.3", "50.0", "50.0"]
    assert lines[2].endswith("not run")
    assert results.main(["show", *kit[3:]]) == 0
    assert capsys.readouterr().out == "No run is recorded here yet.\n"
    record_files.write_record(make_record("js", "th", wer=0.9), tmp_path / "results" / "demo")
    assert results.main(["show", "--demo", *kit[3:]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "WER or CER in percent, lower is better (normaliser: marks)"
    assert "in domain th (CER)" in lines[1] and "in domain average (WER)" in lines[1]
    assert lines[8].split()[4:7] == ["12.3", "45.0", "12.3"]


@pytest.mark.parametrize("buffered", [True, False])
def test_show_ends_quietly_when_its_reader_has_seen_enough(kit, buffered):
    """As in ``... show | head -1``: the pipe is closed before all of it is written."""
    command = [sys.executable, *([] if buffered else ["-u"]), "-m", "distilwhisper_lib.results"]
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [*command, "show", "--demo", *kit[3:]], stdout=write_end, stderr=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_committed_readme_shows_the_committed_records():
    root = Path(__file__).parents[1]
    status = ["git", "-C", str(root), "status", "--porcelain", "--", "results", "README.md"]
    changed = subprocess.run(status, capture_output=True, text=True)
    if changed.returncode or changed.stdout:
        pytest.skip("own runs lie in results/: `python -m distilwhisper_lib.results readme`")
    assert results.update_readme(root / "README.md", root / "results", check=True)
