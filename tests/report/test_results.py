"""The pages' blocks and the command line."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
from make_records import make_record

from distilwhisper_lib.gates import forced as forced_gates
from distilwhisper_lib.report import command as results
from distilwhisper_lib.report import pages as readme
from distilwhisper_lib.results import records as record_files
from distilwhisper_lib.results import significance

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
    assert "All of them together: 0 min of training, 1 min of transcribing" in text
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
        ("# Kit\n", "holds no <!-- results:headline:start -->"),
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
    block = readme.readme_block(records)
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
    spaced = readme.readme_block(records[1:])
    assert [title for title, _, _ in tables_of(spaced)] == ["WER", "CER", "WER", "CER"]
    assert "Thai" not in spaced and "(CER)" not in spaced and "(WER)" not in spaced


def test_block_is_the_same_in_any_order_of_records():
    records = [make_record("js", "ca"), make_record("lora", "cs"), make_record("kl", "ca", 1)]
    assert readme.readme_block(records) == readme.readme_block(copy.deepcopy(records[::-1]))


def test_a_system_without_a_run_has_no_row_on_the_page():
    block = readme.readme_block([make_record("js"), make_record("clsr")])
    rows = [line.split(" | ")[0] for line in block.splitlines() if line.startswith("| +")]
    assert set(rows) == {"| + CLSR", "| + CLSR + JS"}
    assert "A system that was not run at a size has no row there." in block


def test_the_reading_of_results_shows_intervals_and_differences(kit, tmp_path, capsys):
    """Numbers as significance gives them; a changed setting is held against the unchanged one."""
    demo = Path(__file__).parents[2] / "results" / "demo"
    records = record_files.load_records(demo)
    block = readme.intervals_block(records, demo)
    found = significance.resample(records, demo)
    for one in found.intervals().to_dict("records"):
        assert f" {one['error']:.1f} [{one['low']:.1f}, {one['high']:.1f}] |" in block
    table = block.partition("| Difference |")[2]
    pairs = (*readme.COMPARISONS, *readme.variants(records))
    for one in found.differences(pairs).to_dict("records"):
        told = (
            f"{one['difference']:.1f} [{one['low']:.1f}, {one['high']:.1f}] p {one['p (Holm)']:.2g}"
        )
        (line,) = (
            line
            for line in table.splitlines()
            if line.startswith(f"| {one['system']} against {one['against']} |")
        )
        assert f" {told} |" in line
    assert "5,000 resampled test sets, drawn by speaker" in block
    changed = [make_record("js", budget=0.3), make_record("js"), make_record("clsr")]
    told, js = "+ CLSR + JS (budget=0.3)", "+ CLSR + JS"
    rivals = [(told, rival) for rival in (js, "+ CLSR (budget=0.3)", "+ LoRA")]
    assert readme.variants(changed) == rivals
    changed = [make_record("clsr", recipe="decisive")]
    told = "+ CLSR (decisive)"
    assert readme.variants(changed) == [(told, "+ CLSR"), (told, "+ LoRA")]

    page = tmp_path / "results" / "README.md"
    page.write_text("# Read\n<!-- results:intervals:start -->\n<!-- results:intervals:end -->\n")
    assert results.main([*kit, "--check"]) == 1
    assert f"{page}: stale" in capsys.readouterr().err
    assert results.main(kit) == 0
    assert "No run is recorded here yet." in page.read_text()
    assert results.main([*kit, "--check"]) == 0


def test_the_reading_of_results_shows_what_choosing_a_branch_costs():
    """The same numbers as forced_gates.py makes of the same file."""
    demo = Path(__file__).parents[2] / "results" / "demo"
    block = readme.soft_block(record_files.load_records(demo), demo)
    rows = {line.split(" | ")[0]: line for line in block.splitlines()}
    files = {f["language"]: f for f in forced_gates.load_forced(demo)}
    for domain in ("in_domain", "out_of_domain"):
        for code in ("ca", "cs"):
            one = forced_gates.differences(files[code], domain).loc["soft"]
            assert f"| {one['error']:.1f} [" in rows["| + CLSR + JS (soft gates)"]
            told = f"| {one['difference']:.1f} [{one['low']:.1f}, {one['high']:.1f}] p "
            assert told in rows["| + CLSR + JS (soft gates) against + CLSR + JS"]
    assert "| + CLSR + JS (soft gates) against + LoRA" in rows
    assert "| + CLSR" not in rows  # what is not soft stands in the table above
    assert readme.soft_block([], demo) == "No run was heard with soft gates yet.\n"


def test_the_reading_of_results_holds_the_learned_choice_against_chance_and_always_on(monkeypatch):
    """The same numbers as forced_gates.py makes of the same file, the other way round."""
    demo = Path(__file__).parents[2] / "results" / "demo"
    file = next(f for f in forced_gates.load_forced(demo) if f["run_id"] == "js-ca-s77-e3ebbf23")
    cases = file["domains"]["in_domain"]["cases"]
    cases |= {"random.1": cases["closed"], "random.2": cases["open"]}
    monkeypatch.setattr(readme, "load_forced", lambda _: [file])
    records = [r for r in record_files.load_records(demo) if r["config"]["language"] == "ca"]
    block = readme.soft_block(records, demo)
    rows = {line.split(" | ")[0]: line for line in block.splitlines()}
    table = forced_gates.differences(file)
    for way, name in (("open", "always open"), ("random", "random gates")):
        one = table.loc[way]
        assert f" | {one['error']:.1f} [" in rows[f"| + CLSR + JS ({name})"]
        told = f" | {-one['difference']:.1f} [{-one['high']:.1f}, {-one['low']:.1f}] p "
        assert told in rows[f"| + CLSR + JS against + CLSR + JS ({name})"]
    assert "(evenly random gates)" not in block  # not decoded

    for domain in file["domains"].values():
        domain["cases"] = {name: domain["cases"][name] for name in ("learned", "soft")}
    block = readme.soft_block(records, demo)
    assert "(soft gates)" in block and "random" not in block and "always open" not in block


def test_show_prints_the_tables(kit, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    assert results.main(["show", "--demo", *kit[3:]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "WER in percent, lower is better (normaliser: marks), demo, all 800 training clips"
    )
    assert "in domain ca" in lines[1]
    assert lines[2].split() == ["+", "CLSR", "+", "JS", "12.3", "50.0"]
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert results.main(["show"]) == 0
    assert capsys.readouterr().out == "No run is recorded here yet.\n"
    record_files.write_record(make_record("js", "th", wer=0.9), tmp_path / "results" / "demo")
    assert results.main(["show", "--demo", *kit[3:]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("WER or CER in percent, lower is better (normaliser: marks)")
    assert "in domain th (CER)" in lines[1] and "in domain average (WER)" in lines[1]
    assert lines[2].split()[4:7] == ["12.3", "45.0", "12.3"]


def test_show_tells_ones_own_runs_from_those_that_came_with_the_kit(
    kit, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)  # where results/demo has a run
    monkeypatch.setenv("COLUMNS", "200")
    assert results.main(["show", "--demo", "--compare"]) == 0
    line, head, *rest = capsys.readouterr().out.splitlines()
    assert line.startswith("No run of your own to show in outputs/results/demo: shown is what came")
    assert head.endswith(", demo, all 800 training clips, came with the kit")
    assert rest[-1] == "None of your own runs is a published one: nothing to compare."
    record_files.write_record(make_record("js", wer=0.125), tmp_path / "outputs/results/demo")
    assert results.main(["show", "--demo", "--compare"]) == 0
    said = capsys.readouterr().out
    assert "came with the kit" not in said and " 12.5 " in said and " 12.3 " not in said
    assert said.endswith(
        "\n2 of 2 error rates within 0.5 points of the published ones; largest difference 0.2.\n"
    )
    assert results.main(["show", "--demo", "--published"]) == 0
    said = capsys.readouterr().out
    assert said.index(" 12.5 ") < said.index("came with the kit") < said.index(" 12.3 ")


def test_show_finds_ones_own_runs_of_the_demo_by_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    record_files.write_record(make_record("lora", preset="cv3k"), "results")
    record_files.write_record(make_record("js", wer=0.125), "outputs/results/demo")
    assert results.main(["show"]) == 0
    said = capsys.readouterr().out
    assert " 12.5 " in said and "No run of your own" not in said and "cv3k" not in said


@pytest.mark.parametrize("buffered", [True, False])
def test_show_ends_quietly_when_its_reader_has_seen_enough(kit, buffered):
    """As in ``... show | head -1``: the pipe is closed before all of it is written."""
    command = [sys.executable, *([] if buffered else ["-u"]), "-m", "distilwhisper_lib", "results"]
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [*command, "show", "--demo", *kit[3:]], stdout=write_end, stderr=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, "")


def test_tables_need_no_torch():
    """Which takes seconds to load: only the report has figures that bring it."""
    code = "import sys, distilwhisper_lib.results; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


def test_the_first_page_has_one_table_of_the_systems_with_their_presets_settings(kit, tmp_path):
    pages = ["intervals", "soft", "demo", "full"]
    markers = "".join(f"<!-- results:{n}:start -->\n<!-- results:{n}:end -->\n" for n in pages)
    (tmp_path / "results" / "README.md").write_text(markers)
    runs = [make_record("js", wer=0.2), make_record("js", seed=78, wer=0.4), make_record("full")]
    runs += [make_record("clsr", recipe="decisive", wer=0.222)]
    for record in [*runs, make_record("full", epochs=3, train_size=900, wer=0.111)]:
        record_files.write_record(record, tmp_path / "results")
    empty = "<!-- results:headline:start -->\n<!-- results:headline:end -->\n"
    (tmp_path / "README.md").write_text(empty)
    assert results.main(kit) == 0
    first = (tmp_path / "README.md").read_text()
    assert "| + CLSR + JS | 30.0 ± 14.1 |" in first and "± is the sample" in first
    assert [title for title, _, _ in tables_of(first)] == ["WER"]
    assert "| + CLSR (decisive) | 22.2 |" in first
    assert "11.1" not in first and "Command" not in first
    whole = (tmp_path / "results" / "README.md").read_text()
    assert "(epochs=3)" in whole and "11.1" in whole and "Command" in whole


def test_the_committed_pages_show_the_committed_records():
    root = Path(__file__).parents[2]
    shown = {"README.md": ["headline"], "results/README.md": ["full", "intervals", "soft", "demo"]}
    for page, blocks in shown.items():
        text = (root / page).read_text(encoding="utf-8")
        assert re.findall(r"<!-- results:(\w+):start -->", text) == blocks
    where = ["--readme", str(root / "README.md"), "--results", str(root / "results")]
    assert results.main(["readme", "--check", *where]) == 0


def test_every_cell_names_its_runs_and_their_commands(tmp_path):
    folder = tmp_path / "results"
    runs = [make_record("js", wer=0.1, seed=77), make_record("js", wer=0.2, seed=78)]
    for record in [*runs, make_record("clsr", "cs", wer=0.5)]:
        record_files.write_record(record, folder)
    page = readme.reproduce_page(folder)
    (line,) = (line for line in page.splitlines() if "| + CLSR + JS | in domain ca, WER |" in line)
    links = ", ".join(f"[{r['run_id']}](runs/{r['run_id']}.json)" for r in runs)
    assert line == f"| + CLSR + JS | in domain ca, WER | 15.00 | {links} |"
    for record in runs:
        assert (folder / f"runs/{record['run_id']}.json").is_file()
        command = record["provenance"]["command"]
        assert f"{record['run_id']}.json) | `abcdef01` |  | `{command}` |" in page
    assert not readme.update_page(folder, check=True)
    assert not readme.update_page(folder) and readme.update_page(folder, check=True)
    record_files.write_record(make_record("js", wer=0.3, seed=79), folder)
    assert not readme.update_page(folder, check=True)


def study() -> list[dict]:
    """Two systems in two languages, with settings that all share and one that some have."""
    shared = {"epochs": 3, "learning_rate": 0.0002}
    return [
        make_record(method, language, 77, wer + more, 2 * wer, **settings)
        for language, more in (("ca", 0.0), ("cs", 0.1))
        for method, wer, settings in (
            ("zero_shot", 0.5, {}),
            ("lora", 0.3, shared),
            ("lora", 0.25, shared | {"lora_rank": 2}),
        )
    ]


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (
            120,
            """
WER in percent, lower is better (normaliser: marks), demo, all 800 training clips, epochs=3, learning_rate=0.0002
                     in domain ca in domain cs in domain average out of domain ca out of domain cs out of domain average
Student zero-shot            50.0         60.0              55.0            100.0            100.0                 100.0
+ LoRA                       30.0         40.0              35.0             60.0             60.0                  60.0
+ LoRA (lora_rank=2)         25.0         35.0              30.0             50.0             50.0                  50.0
""",  # noqa: E501
        ),
        (
            119,
            """
WER in percent, lower is better (normaliser: marks), demo, all 800 training clips, epochs=3, learning_rate=0.0002
                  in ca in cs in avg out ca out cs out avg
Student zero-shot  50.0  60.0   55.0  100.0  100.0   100.0
+ LoRA             30.0  40.0   35.0   60.0   60.0    60.0
+ LoRA [1]         25.0  35.0   30.0   50.0   50.0    50.0
[1] lora_rank=2
""",  # noqa: E501
        ),
        (
            45,
            """
WER in percent, lower is better (normaliser:
marks), demo, all 800 training clips,
epochs=3, learning_rate=0.0002
                  in ca in cs in avg
Student zero-shot  50.0  60.0   55.0
+ LoRA             30.0  40.0   35.0
+ LoRA [1]         25.0  35.0   30.0

                  out ca out cs out avg
Student zero-shot  100.0  100.0   100.0
+ LoRA              60.0   60.0    60.0
+ LoRA [1]          50.0   50.0    50.0
[1] lora_rank=2
""",
        ),
        (
            40,
            """
WER in percent, lower is better
(normaliser: marks), demo, all 800
training clips, epochs=3,
learning_rate=0.0002
                  in ca in cs in avg
Student zero-shot  50.0  60.0   55.0
+ LoRA             30.0  40.0   35.0
+ LoRA [1]         25.0  35.0   30.0

                  out ca out cs
Student zero-shot  100.0  100.0
+ LoRA              60.0   60.0
+ LoRA [1]          50.0   50.0

                  out avg
Student zero-shot   100.0
+ LoRA               60.0
+ LoRA [1]           50.0
[1] lora_rank=2
""",
        ),
    ],
)  # fmt: skip
def test_a_table_is_no_wider_than_the_terminal(monkeypatch, width, expected):
    monkeypatch.setenv("COLUMNS", str(width))
    text = results.shown_tables(study())
    assert text.partition("\n\nCER")[0] == expected.strip()
    assert max(map(len, text.splitlines())) <= width


def test_no_table_stands_twice_and_short_runs_are_named(tmp_path):
    thai = [make_record("js", "th", wer=0.4, train_size=3000)]
    shown = results.shown_tables(thai, width=2000)
    assert shown.count("CER in percent") == 1 and "WER in percent" not in shown
    assert f"Trained on fewer clips than the table's size: {thai[0]['run_id']} (800 of 3" in shown
    assert "WER in percent" in results.shown_tables(thai, "whisper")
    both = results.shown_tables([*thai, make_record("js", "ca", train_size=3000)])
    assert both.count("in percent") == 2


def test_the_tolerance_told_is_what_the_repeats_show():
    repeats = json.loads((Path(__file__).parents[2] / "benchmarks" / "repeats.json").read_text())
    again = [r for r in repeats if not r["weights equal"]]
    moved = [abs(t["first"] - t["again"]) for r in again for t in r["tests"].values()]
    told = " ".join(readme.reproduce_page(Path("nowhere")).split())
    half = math.ceil(10 * median(moved)) / 10
    assert len(again) == 11 and "of the eleven runs of the miniature" in told
    assert f"moved by less than {half} points, the furthest by {max(moved):.1f}." in told
    assert any(r["weights equal"] for r in repeats)
