"""The report: one page, complete, escaped, and the same from the same files."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from make_records import make_record, make_rows, make_run

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.report import command as results
from distilwhisper_lib.report import report
from distilwhisper_lib.report.html import numbers
from distilwhisper_lib.results import hypotheses
from distilwhisper_lib.results.hypotheses import FIELD, publish
from distilwhisper_lib.results.records import load_records, write_record
from distilwhisper_lib.results.significance import NO_HYPOTHESES
from distilwhisper_lib.scoring.rates import score

ROOT = Path(__file__).parents[2]
NASTY = '<script>alert("1")</script>&<img src=x onerror=alert(2)>'


class Page(HTMLParser):
    """Tags that stay open, addresses that a browser would fetch, ids, and the text."""

    VOID = {"meta", "br", "img", "link", "path", "use", "rect"}

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.fetched, self.ids, self.text = [], set(), [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action") and not value.startswith("#"):
                self.fetched.append(value)
            assert not name.startswith("on"), f"{tag} {name}={value}"

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data


@pytest.fixture
def folder(tmp_path):
    """Two systems in two languages with published hypotheses, one of them hostile."""
    demo = tmp_path / "results" / "demo"
    for language in ("ca", "cs"):
        for method, errors in (("zero_shot", 0.5), ("js", 0.3)):
            make_run(demo, method, language, errors=errors)
    record = make_record("lora", "ca")
    rows = make_rows("ca", errors=0.4)
    rows[0] |= {"hypothesis": NASTY * 5, "id": NASTY}
    for evaluation in record["evaluations"]:
        evaluation |= {"scores": score(rows, "ca"), "clips": len(rows)}
        evaluation[FIELD] = publish(rows, demo, record["run_id"], evaluation["domain"])
    record["provenance"]["command"] = NASTY
    record["models"]["student"]["name"] = NASTY
    write_record(record, demo)
    return demo


def test_the_page_is_whole_escaped_and_loads_nothing(folder):
    text = report.write_report(folder).read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert page.fetched == []
    assert "script" not in page.tags and "img" not in page.tags
    assert NASTY in page.text  # told, as text
    assert not re.search(r"@import|url\((?!#)|https?://(?!www\.w3\.org/)", text)
    assert len(page.ids) == len(set(page.ids))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    assert used <= set(page.ids)


def test_the_page_shows_tables_intervals_errors_and_origins(folder):
    page = Page(report.write_report(folder).read_text(encoding="utf-8"))
    for expected in (
        *("Error rates", "not run", "Student zero-shot", "+ CLSR + JS", "p (Holm)", "speaker"),
        *(
            "results/published.csv holds no value yet",
            "Loops",
            "No values came out otherwise",
            "abcdef0123456789",
        ),
        "No run listened to languages",
    ):
        assert expected in page.text, expected
    assert page.text.count("nan") == 0
    assert {"svg", "table", "details"} <= page.tags


def test_words_stand_left_numbers_right_and_nothing_is_cut_or_taken_for_html():
    words = {"system": [NASTY * 3, "b"], "domain": "in_domain"}
    counts = {"p": [0.00123, None], "clips": [1200, 7], NASTY: [1.25, 2.0]}
    frame = pd.DataFrame(words | counts | {"said": ["", "so"]})
    text = numbers(frame)
    assert re.findall(r"left-\d+", text) == ["left-1", "left-2", "left-6"]
    assert Page(text).tags == {"table", "thead", "tbody", "tr", "th", "td"}
    cells = re.findall(r"<t[hd]>(.*?)</t[hd]>", text)
    assert [html.unescape(cell) for cell in cells] == [
        *("system", "domain", "p", "clips", NASTY, "said"),
        *(NASTY * 3, "in domain", "0.0012", "1,200", "1.2", ""),
        *("b", "in domain", "", "7", "2.0", "so"),
    ]


def test_a_folder_is_text_or_a_path(folder):
    shutil.copytree(ROOT / "results" / "demo" / "gates", folder / "gates")
    records = load_records(folder)
    assert report.report_html(records, str(folder)) == report.report_html(records, folder)


def test_every_file_is_read_and_every_text_aligned_once(folder, monkeypatch):
    counted = Counter()

    def counting(module, name):
        call = getattr(module, name)

        def counted_call(*arguments):
            counted[name] += 1
            return call(*arguments)

        monkeypatch.setattr(module, name, counted_call)

    counting(hypotheses, "_uncompressed")
    counting(hypotheses, "utterance_errors")
    report.report_html(load_records(folder), folder)
    files = len(list((folder / "hypotheses").iterdir()))
    assert counted == {"_uncompressed": files, "utterance_errors": 4 * files}  # WER, CER; two rules


def test_the_same_files_give_the_same_page(folder):
    first = report.write_report(folder).read_bytes()
    assert report.write_report(folder).read_bytes() == first


def test_published_values_are_shown_with_their_source(folder, tmp_path, monkeypatch):
    # An invented value in an invented corpus.
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "results" / "published.csv"
    path.write_text(
        "system,train_size,corpus,language,wer,source\njs,,folder/speech,ca,77.7,table of a test\n"
    )
    text = report.write_report(folder).read_text()
    assert "77.7" in text and "table of a test" in text and "not filled" in text


def test_records_without_hypotheses_still_make_a_page(tmp_path):
    write_record(make_record(), tmp_path)
    page = Page(report.write_report(tmp_path).read_text())
    assert f"{NO_HYPOTHESES.capitalize()}: nothing to resample" in page.text
    assert f"2 evaluations have {NO_HYPOTHESES}" in page.text
    assert "25.0" in page.text and "0 of 2 evaluations and 0 transcriptions" in page.text
    assert report.write_report(tmp_path / "nothing") is None


def test_two_training_sizes_have_their_blocks(tmp_path):
    for size in (100, 200):
        write_record(make_record(train_size=size), tmp_path)
    page = Page(report.write_report(tmp_path).read_text())
    assert "demo, 100 training clips" in page.text and "demo, 200 training clips" in page.text


# -------------------------------------------------------------------------------- command line


def test_report_command_writes_a_page_per_folder_with_records(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path / "results")  # where nothing came with a kit
    assert results.main(["report", "--results", str(tmp_path / "results")]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert (folder / "report.html").is_file() and not (folder.parent / "report.html").exists()
    assert results.main(["report", "--results", str(tmp_path / "none")]) == 0
    assert capsys.readouterr().out == "No run is recorded here yet.\n"


def test_without_own_runs_report_and_check_take_what_came_with_the_kit(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    before = sorted((tmp_path / "results").rglob("*"))
    assert results.main(["report"]) == 0
    line, path = capsys.readouterr().out.splitlines()
    assert line.startswith("No run of your own to show in outputs/results/demo: ")
    assert path == "outputs/results/demo/report.html"
    page = Page((tmp_path / path).read_text(encoding="utf-8"))
    assert "5 of them came with the kit" in page.text
    assert "all 800 training clips, came with the kit" in page.text
    assert results.main(["check"]) == 0
    assert "\nresults/demo: 10 of 10 evaluations" in capsys.readouterr().out
    assert sorted((tmp_path / "results").rglob("*")) == before
    make_run("outputs/results/demo", "js")
    assert results.main(["check", "--published"]) == 0
    own, theirs = capsys.readouterr().out.splitlines()
    assert own.startswith("outputs/results/demo: 2 of 2 evaluations")
    assert theirs.startswith("results/demo: 10 of 10 evaluations")


def test_check_command_scores_again_and_fails_on_a_difference(folder, tmp_path, capsys):
    arguments = ["check", "--demo", "--results", str(tmp_path / "results")]
    assert results.main(arguments) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{folder}: 10 of 10 evaluations and 0 transcriptions of untrained lang")
    assert "No values came out otherwise" in said and said.count("\n") == 1
    record = make_record("kl")
    rows = make_rows()
    record["evaluations"][0] |= {"clips": len(rows)}
    record["evaluations"][0][FIELD] = publish(rows, folder, record["run_id"], "in_domain")
    write_record(record, folder)  # with scores of nothing in particular
    assert results.main(arguments) == 1
    captured = capsys.readouterr()
    assert "11 of 12 evaluations" in captured.out and "values came out otherwise" in captured.out
    for name in ("wer", "deletions (cer)", "utterances"):
        assert f"{name} under 'whisper' is recorded as" in captured.err
    assert f"run {record['run_id']}, in_domain ca: wer under 'marks' is recorded" in captured.err


@pytest.mark.parametrize("command", ["report", "check", "show"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: r.pop("models"), "field 'models' is missing"),
        (lambda r: r.update(schema=2), "field 'schema' is 2, newer than the 1 that this version"),
        (
            lambda r: r["evaluations"][0]["scores"].pop("whisper"),
            "scores' is scored under 'marks', expected",
        ),
    ],
)
def test_an_odd_record_is_one_sentence(folder, tmp_path, capsys, command, spoil, message):
    path = next((folder / "runs").glob("js-ca*.json"))
    record = json.loads(path.read_text())
    spoil(record)
    path.write_text(json.dumps(record))
    assert results.main([command, "--demo", "--results", str(tmp_path / "results")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: ") and message in error and error.count("\n") == 1


def test_a_missing_hypotheses_file_is_one_sentence(folder, tmp_path):
    next((folder / "hypotheses").glob("js-ca*")).unlink()
    with pytest.raises(UserError, match="is missing, expected the hypotheses that record js-ca"):
        report.write_report(folder)
