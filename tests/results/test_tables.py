"""The paper's table, its exports, and the published values beside it."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from make_records import evaluation, make_record

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.report import pages as readme
from distilwhisper_lib.report import published, report
from distilwhisper_lib.results import exports, frame, tables

ROOT = Path(__file__).parents[2]

# ------------------------------------------------------------------------------------ tables


def numbers(records, *how):
    """Of one training size: a row a system, a column a domain and language."""
    return tables.wide(tables.results_table(records, *how), "error")


def only(cells, system, domain, language):
    place = {"system": system, "domain": domain, "language": language}
    ((_, cell),) = cells[(cells[list(place)] == pd.Series(place)).all(axis=1)].iterrows()
    return cell


def test_table_has_the_papers_rows_and_percentages():
    records = [
        make_record("js", "ca", wer=0.101, ood=0.2),
        make_record("js", "cs", wer=0.303, ood=0.4),
        make_record("teacher", "ca", wer=0.05, ood=0.06),
    ]
    table = numbers(records)
    assert list(table.index) == ["Teacher", "+ CLSR + JS"]
    assert list(table.columns) == [
        *[("in_domain", name) for name in ("ca", "cs", "average")],
        *[("out_of_domain", name) for name in ("ca", "cs", "average")],
    ]
    assert table.loc["+ CLSR + JS", ("in_domain", "average")] == pytest.approx(20.2)
    assert table.loc["Teacher", ("in_domain", "ca")] == pytest.approx(5.0)
    assert math.isnan(table.loc["Teacher", ("in_domain", "average")])
    cer = numbers(records, "cer", "whisper")
    assert cer.loc["+ CLSR + JS", ("in_domain", "ca")] == pytest.approx(100 * 0.051 / 2)


def test_seeds_become_mean_and_sample_standard_deviation():
    records = [
        make_record("js", language, seed, wer=wer)
        for language, seed, wer in (
            *(("ca", 1, 0.10), ("ca", 2, 0.20), ("ca", 3, 0.30)),
            *(("cs", 1, 0.30), ("cs", 2, 0.40)),
        )
    ]
    table = tables.results_table(records)
    text = exports.formatted(table)
    row = "+ CLSR + JS"
    assert text.loc[row, ("in_domain", "ca")] == "20.0 ± 10.0"
    assert text.loc[row, ("in_domain", "cs")] == "35.0 ± 7.1"
    # The mean of the cells beside it; the spread of seeds 1 and 2, which ran in both languages and
    # average 20 and 30.
    assert text.loc[row, ("in_domain", "average")] == "27.5 ± 7.1"
    assert only(table, row, "in_domain", "ca")["seeds"] == 3
    assert only(table, row, "in_domain", "average")["seeds"] == 2
    assert "an average's, over the seeds that ran in every language" in readme.notes(records)


def test_average_of_languages_without_a_common_seed_has_no_deviation():
    records = [make_record("js", "ca", 1, wer=0.1), make_record("js", "cs", 2, wer=0.3)]
    text = exports.formatted(tables.results_table(records))
    assert text.loc["+ CLSR + JS", ("in_domain", "average")] == "20.0"


def test_headline_tables_name_the_rate_and_average_one_rate_only(tmp_path):
    records = [
        make_record("js", language, seed, wer=wer)
        for language, wers in (("ca", (0.1, 0.2)), ("cs", (0.3, 0.5)), ("ja", (0.9, 0.7)))
        for seed, wer in enumerate(wers)
    ]
    cells = tables.results_table(records)
    names = ["ca", "cs", "ja (CER)", "average (WER)"]
    table = numbers(records)
    assert list(table["in_domain"].columns) == names
    assert tables.title_of(cells) == "WER or CER"
    row = "+ CLSR + JS"
    assert list(table.loc[row, "in_domain"]) == pytest.approx([15, 40, 40, 27.5])
    text = exports.formatted(cells).loc[row, "in_domain"]
    assert list(text) == ["15.0 ± 7.1", "40.0 ± 14.1", "40.0 ± 7.1", "27.5 ± 10.6"]
    assert only(cells, row, "in_domain", "ja (CER)")["seeds"] == 2
    assert (
        exports.to_csv(exports.formatted(cells), tmp_path / "a.csv")
        .read_text()
        .startswith(
            "system,in_domain ca,in_domain cs,in_domain ja (CER),in_domain average (WER),out_of"
        )
    )
    for metric, title in (("wer", "WER"), ("cer", "CER")):
        assert list(numbers(records, metric)["in_domain"].columns) == ["ca", "cs", "ja", "average"]
        assert tables.title_of(tables.results_table(records, metric)) == title
    japanese = numbers(records[4:])
    assert list(japanese["in_domain"].columns) == ["ja (CER)", "average (CER)"]
    assert tables.title_of(tables.results_table(records[4:])) == "CER"
    assert japanese.loc[row, ("in_domain", "average (CER)")] == pytest.approx(40)
    waiting = numbers([*records, make_record("kl", "ca", wer=0.4)])
    assert math.isnan(waiting.loc["+ CLSR + KL", ("in_domain", "average (WER)")])
    without_japanese = [*records, *(make_record("kl", c, wer=0.4) for c in ("ca", "cs"))]
    complete = numbers(without_japanese)
    assert complete.loc["+ CLSR + KL", ("in_domain", "average (WER)")] == pytest.approx(40)


def test_each_domain_averages_what_it_has():
    records = [make_record("js", "ca", wer=0.2), make_record("js", "th", wer=0.6)]
    records[0]["evaluations"].pop()  # Catalan was not scored out of domain
    table = numbers(records)
    assert list(table["in_domain"].columns) == ["ca", "th (CER)", "average (WER)"]
    assert list(table["out_of_domain"].columns) == ["th (CER)", "average (CER)"]


def test_every_table_is_written_with_its_rate_in_the_headings(tmp_path):
    records = [make_record("js", "th"), make_record("js", "ca")]
    written = [Path(path) for path in exports.write_tables(records, tmp_path)]
    assert {path.stem for path in written} == {
        f"{metric}-{rule}" for metric in ("headline", "wer", "cer") for rule in ("marks", "whisper")
    }
    for path in written:
        assert ("th (CER)" in path.read_text()) == path.stem.startswith("headline")


def test_exports_have_rows_of_what_was_run(tmp_path):
    table = tables.results_table([make_record("lora", "ca", wer=0.25, ood=1.25)])
    lines = exports.to_markdown(exports.formatted(table)).splitlines()
    assert lines[0] == (
        "| System | in domain<br>ca | in domain<br>average | out of domain<br>ca "
        "| out of domain<br>average |"
    )
    assert lines[1] == "| :-- | --: | --: | --: | --: |"
    assert "| + LoRA | 25.0 | 25.0 | 125.0 | 125.0 |" in lines
    assert len(lines) == 3  # the other systems were not run
    path = exports.to_csv(exports.formatted(table), tmp_path / "tables" / "wer.csv")
    rows = path.read_text(encoding="utf-8").splitlines()
    assert rows[0] == (
        "system,in_domain ca,in_domain average,out_of_domain ca,out_of_domain average"
    )
    assert "+ LoRA,25.0,25.0,125.0,125.0" in rows
    assert len(rows) == 2


def test_no_records_give_an_empty_table():
    table = tables.results_table([])
    assert exports.to_markdown(exports.formatted(table)) == "| System |\n| :-- |\n"


def test_other_settings_and_presets_are_never_averaged_together():
    records = [make_record("js", wer=0.1), make_record("js", wer=0.9, max_steps=2)]
    table = numbers(records)
    assert table.loc["+ CLSR + JS", ("in_domain", "ca")] == pytest.approx(10)
    assert table.loc["+ CLSR + JS (max_steps=2)", ("in_domain", "ca")] == pytest.approx(90)
    assert len(table) == 2
    presets = [make_record(preset="mine", wer=0.2), make_record(preset="theirs", wer=0.1)]
    by_preset = dict(list(tables.results_table(presets).groupby("training")))
    assert list(by_preset) == ["mine, all 800 training clips", "theirs, all 800 training clips"]
    for cells, percent in zip(by_preset.values(), (20, 10), strict=True):
        assert only(cells, "+ CLSR + JS", "in_domain", "ca")["error"] == pytest.approx(percent)


def test_in_own_tables_settings_that_all_runs_share_stand_above():
    shared = {"epochs": 3, "learning_rate": 0.0002}
    records = [
        make_record("zero_shot", wer=0.5),  # trains nothing: the settings are not its own
        make_record("lora", wer=0.3, **shared),
        make_record("js", wer=0.2, **shared),
        make_record("js", wer=0.1, **shared, budget=0.3),
    ]
    cells = tables.own_table(records)
    assert list(cells["training"].unique()) == [
        "demo, all 800 training clips, epochs=3, learning_rate=0.0002"
    ]
    assert list(cells["system"].unique()) == [
        *("Student zero-shot", "+ LoRA", "+ CLSR + JS", "+ CLSR + JS (budget=0.3)")
    ]
    assert list(tables.own_table(records[::3])["training"].unique()) == [
        "demo, all 800 training clips, budget=0.3, epochs=3, learning_rate=0.0002"
    ]
    unlike = [*records, make_record("kl")]
    assert tables.own_table(unlike).equals(tables.results_table(unlike))
    assert tables.own_table([]).empty


def test_a_recipe_stands_above_a_table_only_where_all_experts_have_it():
    decisive = make_record("clsr", recipe="decisive")
    both = [make_record("lora"), make_record("clsr"), decisive]
    assert {"+ LoRA", "+ CLSR", "+ CLSR (decisive)"} == set(tables.own_table(both)["system"])
    alone = tables.own_table([both[0], decisive])
    assert set(alone["system"]) == {"+ LoRA", "+ CLSR"}
    assert all(title.endswith(", decisive") for title in alone["training"])


def test_hardware_settings_do_not_split_a_row():
    records = [make_record(seed=1, wer=0.1), make_record(seed=2, wer=0.3, eval_batch_size=4)]
    assert len(numbers(records)) == 1


def test_only_the_runs_own_language_is_tabled():
    record = make_record("js", "ca")
    record["evaluations"].append(evaluation("in_domain", "en", 0.5))
    assert ("in_domain", "en") not in numbers([record]).columns


def test_table_refuses_unknown_names_and_repeated_runs():
    with pytest.raises(UserError, match="unknown metric 'mer': expected one of headline, wer, cer"):
        tables.results_table([], "mer")
    with pytest.raises(UserError, match="unknown normalizer 'basic': expected one of marks"):
        tables.results_table([], "wer", "basic")
    with pytest.raises(UserError, match="pass each run once"):
        tables.results_table([make_record(), make_record()])


# -------------------------------------------------------------------------- training sizes


def sizes():
    """Two training sizes: Catalan and Czech at 100 clips, Catalan alone at 3,000."""
    return [
        make_record("js", "ca", wer=0.2, train_size=100),
        make_record("js", "cs", wer=0.4, train_size=100),
        make_record("js", "ca", wer=0.1, train_size=3000),
        make_record("teacher", "ca", wer=0.05, train_size=3000),
    ]


def test_each_training_size_has_a_table_of_its_own_small_ones_first():
    cells = tables.results_table(sizes())
    assert list(cells["training"].unique()) == [
        *("demo, 100 training clips", "demo, 3,000 training clips")
    ]
    small, large = (tables.wide(b, "error") for _, b in cells.groupby("training", sort=False))
    assert list(small.index) == list(large.index) == ["Teacher", "+ CLSR + JS"]
    assert small.loc["+ CLSR + JS", ("in_domain", "average")] == pytest.approx(30)
    assert large.loc["+ CLSR + JS", ("in_domain", "average")] == pytest.approx(10)
    assert small.loc["Teacher", ("in_domain", "ca")] == pytest.approx(5)  # of any size


def test_training_sizes_stand_one_below_the_other_in_every_format(tmp_path):
    text = exports.formatted(tables.results_table(sizes()))
    row = ("demo, 3,000 training clips", "+ CLSR + JS")
    assert text.loc[row, ("in_domain", "ca")] == "10.0"
    assert text.loc[row, ("in_domain", "cs")] == "not run"  # a column of the other size
    lines = exports.to_markdown(text).splitlines()
    assert "| **demo, 100 training clips** |  |  |  |  |  |  |" in lines
    assert len({line.count("|") for line in lines}) == 1
    latex = exports.to_latex(text)
    assert latex.count(r"\midrule") == 2
    assert r"\multicolumn{7}{l}{\emph{demo, 100 training clips}} \\" in latex
    first = exports.to_csv(text, tmp_path / "t.csv").read_text().splitlines()[:2]
    assert first[0].startswith("training,system,in_domain ca,in_domain cs,in_domain average,")
    assert first[1].startswith('"demo, 100 training clips",Teacher,5.0,not run,')


def test_latex_is_a_booktabs_tabular():
    record = make_record("lora", "ca", wer=0.25, ood=0.5, learning_rate=0.1)
    lines = exports.to_latex(exports.formatted(tables.results_table([record]))).splitlines()
    assert lines[1] == r"\begin{tabular}{lrrrr}"
    assert lines[2:4] == [
        r"\toprule",
        r" & \multicolumn{2}{c}{in domain} & \multicolumn{2}{c}{out of domain} \\",
    ]
    assert lines[4] == r"\cmidrule(lr){2-3}\cmidrule(lr){4-5}"
    assert lines[5] == r"System & ca & average & ca & average \\"
    assert r"+ LoRA (learning\_rate=0.1) & 25.0 & 25.0 & 50.0 & 50.0 \\" in lines
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    assert {line.count("&") for line in lines if line.endswith(r"\\")} == {2, 4}


def test_latex_escapes_what_latex_reads():
    table = pd.DataFrame({"a-1": ["-1.5"]}, index=[r"50% & a_b #1 ~{x}^\ ±"])
    (row,) = [line for line in exports.to_latex(table).splitlines() if line.startswith("50")]
    assert row == (
        r"50\% \& a\_b \#1 \textasciitilde{}\{x\}\textasciicircum{}\textbackslash{} $\pm$"
        r" & $-$1.5 \\"
    )


def test_all_tables_are_written_in_three_formats(tmp_path):
    written = exports.write_tables([make_record()], tmp_path)
    assert len(written) == 18
    assert {p.suffix for p in tmp_path.iterdir()} == {".csv", ".md", ".tex"}


# ------------------------------------------------------------------------ published values

HEADING = "system,train_size,corpus,language,wer,source\n"


def values(tmp_path, lines):
    path = tmp_path / "published.csv"
    path.write_text(HEADING + lines, encoding="utf-8")
    return published.read_published_values(path)


def real_record(method="js", size=3000, wer=0.3, language="ca"):
    record = make_record(method, language, preset="other", wer=wer, ood=0.6, train_size=size)
    for part, corpus in zip(record["evaluations"], ("common_voice", "fleurs@x"), strict=True):
        part["corpus"] = corpus
    return record


def test_published_values_stand_beside_ours(tmp_path):
    # Invented values, as those of the records are: this tests the layout.
    filled = values(
        tmp_path,
        "js,3000,common_voice,ca,24.0,table 9\njs,10000,common_voice,ca,1.0,t\n"
        "Teacher,,fleurs,catalan,7.5,t\njs,,common_voice,ca,2.0,t\n",
    )
    text = published.compared([real_record()], filled)
    row = text.loc["+ CLSR + JS", "in_domain"]["ca"]
    assert list(row) == ["25.0", "24.0", "+1.0"]
    assert list(text.loc["+ CLSR + JS", "out_of_domain"]["ca"]) == ["55.0", "not filled", ""]
    assert list(text.loc["Teacher", "out_of_domain"]["ca"]) == ["not run", "7.5", ""]
    heads = exports.to_markdown(text).splitlines()[0]
    assert "in domain<br>ca<br>difference" in heads
    assert r"\cmidrule(lr){2-7}\cmidrule(lr){8-13}" in exports.to_latex(text)
    two = [real_record(), real_record(size=100)]
    stacked = published.compared(two, filled)
    assert stacked.loc[("other, 100 training clips", "+ CLSR + JS")].iloc[1] == "2.0"  # any size
    assert list(text.index) == ["Teacher", "+ CLSR + JS"]  # of neither: no row


def test_a_published_value_stands_beside_its_own_corpus_only(tmp_path):
    """Another run of the same table may have been scored on something else."""
    filled = values(
        tmp_path,
        "js,,common_voice,ca,24.0,t\njs,,common_voice,average,26.0,t\nkl,,fleurs,ca,9.0,t\n"
        "js,,fleurs,ca,3.0,t\nlora,,common_voice,ca,4.0,t\n",
    )
    other = real_record("kl")
    other["evaluations"][0]["corpus"] = "fleurs"
    for records in ([real_record(), other], [other, real_record()]):
        text = published.compared(records, filled)
        assert list(text.loc["+ CLSR + JS", "in_domain"]["ca"]) == ["25.0", "24.0", "+1.0"]
        assert text.loc["+ CLSR + JS", "in_domain"]["average"]["published"] == "26.0"
        assert list(text.loc["+ CLSR + KL", "in_domain"]["ca"]) == ["25.0", "9.0", "+16.0"]
        # Not run: the column has two corpora, and nobody knows which it would have been.
        assert list(text.index) == ["+ CLSR + KL", "+ CLSR + JS"]
    czech = real_record(language="cs")
    czech["evaluations"][0]["corpus"] = "fleurs"
    text = published.compared([real_record(), czech], filled)
    assert text.loc["+ CLSR + JS", "in_domain"]["average"]["published"] == "not filled"


def test_the_shipped_file_of_published_values_has_its_heading_only():
    path = ROOT / "results" / "published.csv"
    assert path.read_text() == HEADING
    assert published.read_published_values(path) == []
    assert published.read_published_values(ROOT / "none.csv") == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("jsd,,fleurs,ca,1.0,t", "line 2 has system 'jsd', expected one of teacher"),
        ("js,,fleurs,ca,1.0,", "line 2 has no source"),
        ("js,3k,fleurs,ca,1.0,t", "line 2 has train_size '3k'"),
        ("js,,fleurs,xx,1.0,t", "language 'xx'"),
        ("js,,fleurs,ca,nan,t", "wer 'nan'"),
        ("js,,fleurs,ca,1.0,t\njs,,fleurs,ca,2.0,t", "stands twice"),
    ],
)
def test_wrong_published_values_are_named(tmp_path, line, message):
    with pytest.raises(UserError, match=f"published.csv: .*{message}"):
        values(tmp_path, line)


def test_other_columns_are_refused(tmp_path):
    (tmp_path / "p.csv").write_text("system,wer\njs,1\n")
    with pytest.raises(
        UserError, match=r"p\.csv: has the columns system, wer, expected system, tr"
    ):
        published.read_published_values(tmp_path / "p.csv")


def test_a_run_that_lacked_training_clips_is_named_below_the_tables():
    full, short = make_record("js", train_size=800), make_record("clsr", train_size=28_000)
    short["data"]["train"] = short["data"]["train"] | {"clips": 14}
    zero_shot = make_record("zero_shot", train_size=28_000)
    zero_shot["data"]["train"] = None
    records = [full, short, zero_shot, make_record("kl")]
    said = f"Trained on fewer clips than the table's size: {short['run_id']} (14 of 28,000 clips)."
    assert said in readme.readme_block(records)
    assert said in report._error_rates(records).replace("&#x27;", "'")
    assert "fewer clips" not in readme.readme_block([full, zero_shot])
    assert "fewer clips" not in report._error_rates([full, zero_shot])


def test_what_trains_nothing_stands_beside_everything_trained_from_it():
    small = [make_record("js", train_size=n) for n in (3000, 10000)]
    plain, teacher = make_record("zero_shot", train_size=3000), make_record("teacher")
    found = frame.blocks([*small, plain, teacher])
    assert [len(group) for group in found.values()] == [3, 3]
    cells = tables.results_table([*small, plain, teacher])
    assert list(cells.groupby(["training", "system"]).size()) == [4] * 6
    other = make_record("zero_shot", student="another")  # of nothing that was trained here
    assert [len(group) for group in frame.blocks([*small, other]).values()] == [1, 1, 1]
    for changed in (plain, teacher):
        changed["data"]["in_domain"]["sha256"] = "5" * 64  # other clips
    assert [len(group) for group in frame.blocks([*small, plain, teacher]).values()][:2] != [3, 3]
