"""The corpora of preset mini, from a game folder of the packages' layout."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from benchmarks.recipes import fillets
from distilwhisper_lib.config.settings import resolve
from distilwhisper_lib.data.corpora import load_corpus
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.data.subsets import check_disjoint

SCENES = [f"scene{n}" for n in range(12)]
SPLITS = ("train", "validation", "test")


def say(game, scene, language, name, speaker, text, seconds=1.0):
    scripts, sounds = game / "script" / scene, game / "sound" / scene / language
    for folder in (scripts, sounds):
        folder.mkdir(parents=True, exist_ok=True)
    with (scripts / f"dialogs_{language}.lua").open("a", encoding="utf-8") as file:
        file.write(
            f'\n\n dialogId("{name}", "{speaker}", "said in English")\ndialogStr("{text}")\n'
        )
    samples = 0.1 * np.sin(np.arange(int(22_050 * seconds)) / 20)
    soundfile.write(sounds / f"{name}.ogg", samples, 22_050)


@pytest.fixture
def unpacked(tmp_path):
    game = tmp_path / "unpacked" / fillets.GAME
    for language in fillets.LANGUAGES:
        for scene in SCENES:
            for speaker in ("font_small", "font_big", "font_crab"):
                for n in range(3):
                    who = speaker.removeprefix("font_")
                    text = f"line {'abc'[n]} of {who} in {scene.translate(DIGITS)}"
                    say(game, scene, language, f"{who}{n}", speaker, text)
    return tmp_path / "unpacked"


DIGITS = str.maketrans("0123456789", "klmnopqrst")


def table(data, corpus, language):
    parts = [p for p in SPLITS if corpus != "fillets_ood" or p == "test"]
    return {p: load_corpus(f"folder/{corpus}", language, p, data) for p in parts}


def scenes(rows):
    return {id_.split("-")[1] for id_ in rows["id"]}


def test_no_scene_and_no_sentence_stands_in_two_splits(unpacked, tmp_path):
    counts = fillets.build(unpacked, tmp_path / "data")
    assert list(counts) == list(fillets.CORPORA)
    by_language = {}
    for language in fillets.LANGUAGES:
        student = table(tmp_path / "data", "fillets", language)
        teacher = table(tmp_path / "data", "fillets_teacher", language)
        (other,) = table(tmp_path / "data", "fillets_ood", language).values()
        assert set().union(*map(scenes, student.values())) == set(SCENES)
        assert check_disjoint(student | {"other": other}) == check_disjoint(teacher) == []
        assert {s: counts["fillets"][f"{language} {s}"] for s in SPLITS} == {
            s: len(rows) for s, rows in student.items()
        }
        for part in SPLITS:
            assert scenes(student[part]) == scenes(teacher[part])
            assert all(student[part]["speaker"] == f"{language} small")
        assert scenes(other) == scenes(student["test"])
        assert all(other["speaker"] == f"{language} big")
        # The teacher hears everyone, but nothing of the test scenes; it is tested as students are.
        assert len(teacher["train"]) == 3 * len(student["train"])
        assert list(teacher["test"]["text"]) == list(student["test"]["text"])
        by_language[language] = {part: scenes(rows) for part, rows in student.items()}
    assert by_language["cs"] == by_language["nl"]


def test_a_smaller_share_of_the_training_clips_lies_in_a_larger_one(
    unpacked, tmp_path, monkeypatch
):
    fillets.build(unpacked, tmp_path / "data")
    settings = {"data_dir": str(tmp_path / "data"), "student": "embedded/student"}
    settings |= {"teacher": "embedded/teacher", "window_seconds": None, "max_seconds": 3.0}
    monkeypatch.chdir(tmp_path)
    ids = [
        list(
            load_data(resolve("clsr", "mini", "cs", overrides=settings | {"train_size": n})).train[
                "id"
            ]
        )
        for n in (4, 9)
    ]
    assert (len(ids[0]), len(ids[1])) == (4, 9) and ids[0] == ids[1][:4]
    assert len({id_.split("-")[1] for id_ in ids[1]}) > 3  # of many scenes


def test_lines_that_would_not_teach_are_left_out(unpacked, tmp_path):
    game = unpacked / fillets.GAME
    for name, text, seconds in (
        ("digits", "there are 3 of them", 1.0),
        ("markup", "look at <this> over there", 1.0),
        ("short", "two words", 1.0),
        ("brief", "said in no time", 0.3),
        ("kept", 'he said \\"come here\\"\\nand went', 1.0),
        ("again", "He said: come here, and went!", 1.0),
    ):
        say(game, SCENES[0], "cs", name, "font_small", text, seconds)
    empty = game / "sound" / SCENES[0] / "cs" / "silent.ogg"
    say(game, SCENES[0], "cs", "silent", "font_small", "nothing is heard of this")
    soundfile.write(empty, np.zeros(0), 22_050)
    say(game, SCENES[0], "cs", "unsaid", "font_small", "no recording has this")
    (empty.with_name("unsaid.ogg")).rename(empty.with_name("untold.ogg"))
    fillets.build(unpacked, tmp_path / "data")
    found = {}
    for rows in table(tmp_path / "data", "fillets", "cs").values():
        found |= {
            id_.split("-")[-1]: text for id_, text in zip(rows["id"], rows["text"], strict=True)
        }
    named = {"digits", "markup", "short", "brief", "kept", "again", "silent", "unsaid", "untold"}
    assert len(named & found.keys()) == 1  # one of the two that say the same
    assert {"kept", "again"} & found.keys()
    if "kept" in found:
        assert found["kept"] == 'he said "come here" and went'


def test_test_lines_much_like_a_training_line_are_told(unpacked, tmp_path):
    fillets.build(unpacked, tmp_path / "first")
    scene = {
        part: min(scenes(rows)) for part, rows in table(tmp_path / "first", "fillets", "nl").items()
    }
    for part, name, speaker, text in (
        ("train", "said", "font_small", "the water here is cold and very deep"),
        ("test", "close", "font_big", "The water here is warm, and very deep."),  # 7 of 8 words
        ("test", "turned", "font_small", "deep very and cold is here water the"),
        (
            "train",
            "crab",
            "font_crab",
            "nobody in this town can dance",
        ),  # the teacher alone hears it
        ("test", "danced", "font_small", "nobody in this town can sing"),
    ):
        say(unpacked / fillets.GAME, scene[part], "nl", name, speaker, text)
    fillets.build(unpacked, tmp_path / "data")
    before, after = (fillets.near_lines(tmp_path / name) for name in ("first", "data"))
    assert before["student nl"][1] + 3 == after["student nl"][1]
    grown = {who: after[who][0] - before[who][0] for who in after}
    assert grown == {"student cs": 0, "student nl": 1, "teacher cs": 0, "teacher nl": 2}


def test_nothing_is_written_over_and_nothing_from_half_the_packages(unpacked, tmp_path, capsys):
    data = tmp_path / "data"
    (data / "fillets_ood").mkdir(parents=True)
    assert fillets.main([str(unpacked), "--data-dir", str(data)]) == 2
    assert "fillets_ood exists already: remove it" in capsys.readouterr().err
    (data / "fillets_ood").rmdir()
    for sound in (unpacked / fillets.GAME / "sound").glob("*/nl/*.ogg"):
        sound.unlink()
    assert fillets.main([str(unpacked), "--data-dir", str(data)]) == 2
    assert "fillets-ng-data-nl" in capsys.readouterr().err
    assert list(data.iterdir()) == []


def test_the_command_tells_what_it_wrote(unpacked, tmp_path, capsys):
    assert fillets.main([str(unpacked), "--data-dir", str(tmp_path / "data")]) == 0
    told = capsys.readouterr().out.splitlines()
    names = [line.split(":")[0].rpartition("/")[2] for line in told]
    assert names == [*fillets.CORPORA, "student cs", "student nl", "teacher cs", "teacher nl"]
    assert (tmp_path / "data" / "fillets" / "LICENSE").read_text().startswith("GPL-2.0")
