"""The corpora of preset mini: dialogues of the game Fish Fillets NG, spoken in Czech and Dutch.

    apt-get download fillets-ng-data fillets-ng-data-cs fillets-ng-data-nl
    for deb in fillets-ng-data*.deb; do dpkg -x "$deb" unpacked; done
    python -m benchmarks.recipes.fillets unpacked

An hour and a half a language of real actors with exact subtitles, GPL-2, from Debian's packages
(1.0.1-1.1). Written below ``data``, as folders of one's own recordings:

- ``fillets``: the small fish's lines, for students: train, validation, test;
- ``fillets_ood``: the big fish's lines of the test scenes, whom no student hears in training;
- ``fillets_teacher``: everyone's lines of the scenes for training and validation, for a teacher;
  its test set is that of ``fillets``.

No scene stands in two splits, and both languages are split alike. No line stands in a language
twice; how many of the test lines are much like one for training is told. All scenes are of one
game and its two actors a language: out of domain means another voice.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import re
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from distilwhisper_lib.errors import UserError, command
from distilwhisper_lib.io.files import write_atomic
from distilwhisper_lib.scoring.text import normalize_marks
from distilwhisper_lib.speech.guarded import header_seconds

LANGUAGES = ("cs", "nl")
CORPORA = ("fillets", "fillets_ood", "fillets_teacher")
GAME = "usr/share/games/fillets-ng"
STUDENT, OTHER = "font_small", "font_big"  # the game tells speakers by the font of their subtitles
SHARES = {"test": 0.3, "validation": 0.1}  # of the lines of both; the rest is for training
MIN_WORDS, MIN_SECONDS, MAX_SECONDS = 3, 0.8, 25.0
ALIKE = 0.75  # of the words of two lines, in order: SequenceMatcher.ratio()
LICENCE = "GPL-2.0-only: Fish Fillets NG, Debian packages fillets-ng-data-cs and -nl\n"

_SPEAKER = re.compile(r'dialogId\(\s*"([^"]+)"\s*,\s*"([^"]*)"')
_SUBTITLE = re.compile(r'dialogStr\(\s*"((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")
_NOT_SPOKEN_SO = re.compile(r"[\d<>\[\]{}%#*_]")  # markup, and numbers, which can be read two ways
_COLUMNS = ("id", "file_name", "text", "language", "speaker", "seconds", "split")


@dataclass(frozen=True)
class Line:
    """A recorded line of dialogue."""

    language: str
    scene: str
    name: str
    speaker: str
    text: str
    audio: Path
    seconds: float


def build(unpacked: str | Path, data_dir: str | Path = "data") -> dict[str, dict[str, int]]:
    """Write the three corpora; returns their clips by corpus and "language split".

    Raises UserError, before anything is written, when ``unpacked`` does not hold the packages or
    one of the corpora exists.
    """
    target = Path(data_dir)
    if there := [name for name in CORPORA if (target / name).exists()]:
        raise UserError(
            f"{target / there[0]} exists already: remove it, or name another --data-dir"
        )
    lines = [line for code in LANGUAGES for line in _lines(Path(unpacked) / GAME, code)]
    split = _split_scenes(lines)
    lines = _once_each(lines, split)
    chosen = {name: [] for name in CORPORA}
    for line in lines:
        part = split[line.scene]
        if line.speaker == STUDENT:
            chosen["fillets"].append(line)
        elif line.speaker == OTHER and part == "test":
            chosen["fillets_ood"].append(line)
        if part != "test" or line.speaker == STUDENT:
            chosen["fillets_teacher"].append(line)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fillets-", dir=target) as folder:
        for name in CORPORA:
            _write(Path(folder) / name, chosen[name], split)
        for name in CORPORA:
            (Path(folder) / name).rename(target / name)
    return {name: _counted(chosen[name], split) for name in CORPORA}


def _lines(game: Path, language: str) -> Iterator[Line]:
    """Every recorded line with a subtitle that tells what is said, by scene and name."""
    recordings = sorted(game.glob(f"sound/*/{language}/*.ogg"))
    if not recordings:
        raise UserError(
            f"{game}: no recordings in {language!r}, expected those of Debian's package "
            f"fillets-ng-data-{language}: unpack it there with dpkg -x"
        )
    said: dict[str, dict[str, tuple[str, str]]] = {}
    for audio in recordings:
        scene = audio.parts[-3]
        if scene not in said:
            said[scene] = _subtitles(game / "script" / scene, language)
        if audio.stem not in said[scene]:
            continue
        speaker, text = said[scene][audio.stem]
        if _NOT_SPOKEN_SO.search(text) or len(normalize_marks(text).split()) < MIN_WORDS:
            continue
        try:
            seconds = header_seconds(audio)
        except UserError:  # the Dutch package has a recording without a sample
            continue
        if MIN_SECONDS <= seconds <= MAX_SECONDS:
            yield Line(language, scene, audio.stem, speaker, text, audio, seconds)


def _subtitles(scripts: Path, language: str) -> dict[str, tuple[str, str]]:
    """Name of a line -> speaker, subtitle; from a scene's Lua scripts."""
    found = {}
    for path in sorted(scripts.glob(f"*dialogs_{language}.lua")):
        name = None
        for text in path.read_text(encoding="utf-8").splitlines():
            if heading := _SPEAKER.match(text.strip()):
                name, speaker = heading.groups()
            elif name and (subtitle := _SUBTITLE.match(text.strip())):
                spaced = subtitle.group(1).replace("\\n", " ")
                found[name] = speaker, " ".join(_ESCAPED.sub(r"\1", spaced).split())
                name = None
    return found


def _split_scenes(lines: Sequence[Line]) -> dict[str, str]:
    """Scene -> split. Scenes are drawn in an order that their names decide, until each share of
    the student's speaker's lines is reached."""
    counts: dict[str, int] = {}
    for line in lines:
        counts[line.scene] = counts.get(line.scene, 0) + (line.speaker == STUDENT)
    drawn, total, found = 0, sum(counts.values()), {}
    ends = {part: sum(list(SHARES.values())[: i + 1]) for i, part in enumerate(SHARES)}
    for scene in sorted(counts, key=_shuffled):
        found[scene] = next((p for p, end in ends.items() if drawn < end * total), "train")
        drawn += counts[scene]
    return found


def _once_each(lines: Sequence[Line], split: dict[str, str]) -> list[Line]:
    """Without lines whose words were said before: kept in the test, then validation, scenes."""
    order = [*SHARES, "train"]
    seen, kept = set(), []
    for line in sorted(lines, key=lambda line: order.index(split[line.scene])):
        said = line.language, normalize_marks(line.text)
        if said not in seen:
            seen.add(said)
            kept.append(line)
    return kept


def _shuffled(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _write(folder: Path, lines: Sequence[Line], split: dict[str, str]) -> None:
    """A folder of recordings. Ids begin with a number drawn at random, so that the first n of them,
    which is what train_size takes, are a random share, and smaller shares lie in larger ones."""
    rows = []
    ordered = sorted(
        lines, key=lambda line: (line.language, _shuffled(f"{line.scene}/{line.name}"))
    )
    for number, line in enumerate(ordered):
        id_ = f"{number:04d}-{line.scene}-{line.name}"
        file = Path("audio", line.language, f"{id_}.ogg")
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(line.audio, folder / file)
        speaker = f"{line.language} {line.speaker.removeprefix('font_')}"
        seconds = f"{line.seconds:.4f}"
        rows.append(
            (id_, file.as_posix(), line.text, line.language, speaker, seconds, split[line.scene])
        )
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([_COLUMNS, *rows])
    write_atomic(folder / "metadata.csv", table.getvalue())
    write_atomic(folder / "LICENSE", LICENCE)


def _counted(lines: Sequence[Line], split: dict[str, str]) -> dict[str, int]:
    keys = [f"{line.language} {split[line.scene]}" for line in lines]
    return {key: keys.count(key) for key in sorted(set(keys))}


def near_lines(data_dir: str | Path = "data") -> dict[str, tuple[int, int]]:
    """Who was trained and the language -> lines of both test sets that are like one of the training
    lines, and all lines of both. Alike are two lines with ALIKE of their words in common, in
    order."""
    student, other, teacher = (_texts(Path(data_dir) / name) for name in CORPORA)
    found = {}
    for who, texts in (("student", student), ("teacher", teacher)):
        for language in LANGUAGES:
            heard = texts[language, "train"]
            tested = student[language, "test"] + other[language, "test"]
            near = sum(any(_alike(line, said) for said in heard) for line in tested)
            found[f"{who} {language}"] = near, len(tested)
    return found


def _texts(folder: Path) -> dict[tuple[str, str], list[list[str]]]:
    """Language, split -> the words of every line."""
    found = defaultdict(list)
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found[row["language"], row["split"]].append(normalize_marks(row["text"]).split())
    return found


def _alike(first: Sequence[str], second: Sequence[str]) -> bool:
    matcher = SequenceMatcher(None, first, second, autojunk=False)
    bounds = (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)  # cheap ones first
    return all(bound() >= ALIKE for bound in bounds)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recipes.fillets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("unpacked", type=Path, help="where dpkg -x put the packages")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), metavar="DIR")
    given = parser.parse_args(arguments)
    for name, counts in build(given.unpacked, given.data_dir).items():
        told = ", ".join(f"{key} {count:,}" for key, count in counts.items())
        print(f"{given.data_dir / name}: {told}")
    for who, (near, tested) in near_lines(given.data_dir).items():
        print(f"{who}: {near} of {tested} test lines are much like one it is trained on")
    return 0


if __name__ == "__main__":
    sys.exit(main())
