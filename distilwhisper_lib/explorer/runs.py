"""What the gate explorer listens to: runs, clips, and what a run makes of a clip.

A run whose model lies in outputs/ hears any clip, with its gates learned, open or closed. Of a run
that somebody else made, its gate file tells what it heard in one example.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distilwhisper_lib.config.settings import ORIGIN, TRAINED, WITH_EXPERTS, Record, RunConfig
from distilwhisper_lib.data.clips import COLUMNS
from distilwhisper_lib.data.splits import open_part
from distilwhisper_lib.data.subsets import by_id, take_usable
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.evaluation.run import RECORD, Run, load_run, read_config
from distilwhisper_lib.figures import run_about, titles
from distilwhisper_lib.gates.files import read_gates
from distilwhisper_lib.gates.recorder import inspect_clip
from distilwhisper_lib.hardware import best_device
from distilwhisper_lib.languages import find_language
from distilwhisper_lib.model.clsr import HARD_MODES
from distilwhisper_lib.results.places import kit_folder, located, nothing_own
from distilwhisper_lib.results.records import read_record
from distilwhisper_lib.scoring.rates import utterance_errors
from distilwhisper_lib.speech.audio import SAMPLE_RATE, is_silent
from distilwhisper_lib.speech.features import SAMPLES_PER_POSITION as POSITION
from distilwhisper_lib.speech.guarded import read_audio

WINDOW = 30.0  # seconds of a clip that are played and drawn, at most
NORMALIZER = "marks"
_KEPT_HEARINGS = 64
_KEPT_MODELS = 2  # those of a comparison

Clip = dict[str, Any]  # a row of a corpus table; "audio" may be the bytes of a file


@dataclass(frozen=True)
class ListedRun:
    """A run that can be explored: ``folder`` holds its model, ``example`` is of its gate file."""

    record: Record
    config: RunConfig
    folder: Path | None
    example: dict[str, Any] | None

    @property
    def run_id(self) -> str:
        return self.record["run_id"]

    @property
    def key(self) -> str:
        """What tells it from all others, a published run from one's own of the same id."""
        return f"{self.run_id} {self.record.get(ORIGIN, '')}".strip()

    @property
    def language(self) -> str:
        return self.config.language

    @property
    def has_gates(self) -> bool:
        return self.config.method in WITH_EXPERTS

    @property
    def missing(self) -> str | None:
        """What cannot be done with it here, and the command that mends this."""
        if self.folder is not None:
            return None
        return (
            f"the model of run {self.run_id} is not in outputs/, so only the example of its gate "
            f"file can be shown: make it with `{self.record['provenance']['command']}`"
        )


@dataclass(frozen=True)
class Heard:
    """What one run made of one clip.

    ``token_gates`` (decoder layers, tokens) and ``frame_gates`` (encoder layers, positions of
    20 ms) are 1 where the expert spoke; ``token_soft`` and ``frame_soft`` are the soft gates
    behind them, in (0, 1), None where gates were forced or nobody kept them. All four are None for
    a run without gates. ``tokens`` begins with the prompt;
    ``positions`` is how many the encoder heard.
    """

    run: ListedRun
    mode: str
    clip: str
    reference: str
    text: str
    tokens: Sequence[str]
    positions: int
    token_gates: np.ndarray | None = None
    frame_gates: np.ndarray | None = None
    token_soft: np.ndarray | None = None
    frame_soft: np.ndarray | None = None

    def errors(self) -> tuple[int, int, str] | None:
        """(errors, units of the reference, "words" or "characters"); None without a reference."""
        metric = find_language(self.run.language).headline
        row = {"reference": self.reference, "hypothesis": self.text}
        counted = utterance_errors([row], self.run.language, NORMALIZER, metric)
        if not counted.scored[0]:
            return None
        unit = "words" if metric == "wer" else "characters"
        return int(counted.errors[0]), int(counted.units[0]), unit


@dataclass(frozen=True)
class Scene:
    """All that the explorer shows at one time. ``modes``: the run under each way to set its gates,
    in the order of HARD_MODES, ``heard`` the one that was asked for; ``notes``: a sentence for each
    thing that is missing."""

    clip: Clip
    samples: np.ndarray | None  # (samples,) float32, 16 kHz
    heard: Heard | None
    modes: list[Heard]
    other: Heard | None = None
    notes: list[str] = field(default_factory=list)

    def name(self, run: ListedRun) -> str:
        """The run's language and method, and what tells it from the other one that is shown."""
        runs = [run, *(heard.run for heard in [*self.modes, *self.shown])]
        return titles(run_about([run.record for run in runs]))[0]

    def title(self, heard: Heard) -> str:
        name = self.name(heard.run)
        return f"{name}, gates {heard.mode}" if heard.run.has_gates else name

    @property
    def shown(self) -> list[Heard]:
        """The runs that were compared, or the one."""
        return [heard for heard in (self.heard, self.other) if heard is not None]


# Runs and clips ------------------------------------------------------------------------------


def find_runs(
    here: RunConfig, outputs: str | Path = "outputs", published: bool = False
) -> tuple[list[ListedRun], list[str]]:
    """Trained runs of ``here``'s results folder that can be shown: those with a model here first,
    of these and of the others those of ``here``'s seed and training size.

    Those that came with the kit come last, where ``published`` asks for them or none of one's own
    has gates. And a sentence where these stand in, and about each file that cannot be read.
    Records do not tell the folders of a path: where ``here`` names recordings or a student of the
    same name, those are taken.
    """
    results, notes = here.results_dir, []
    models = sorted(Path(outputs).glob(f"*/{RECORD}"))
    runs = _read_runs([*models, *_records_in(results)], results, here, notes)
    owns_gates = any(run.has_gates for run in runs)
    if published or not owns_gates:
        theirs = _read_runs(_records_in(kit_folder(results)), kit_folder(results), here, notes)
        notes += [nothing_own(results)] if theirs and not owns_gates else []
        runs += theirs

    def place(run: ListedRun) -> tuple[bool, bool, bool, str]:
        asked = (run.config.seed, run.config.train_size) == (here.seed, here.train_size)
        return ORIGIN in run.record, run.folder is None, not asked, run.run_id

    return sorted(runs, key=place), notes


def _records_in(results: Path) -> list[Path]:
    return sorted((results / "runs").glob("*.json"))


def _read_runs(
    paths: Sequence[Path], results: Path, here: RunConfig, faults: list[str]
) -> list[ListedRun]:
    """The trained runs of these records that can be shown; their gate files lie in ``results``."""
    runs: dict[str, ListedRun] = {}
    for path in paths:
        try:
            record = located(read_record(path), results)
            config = _placed(read_config(record), here)
            if config.method not in TRAINED or config.results_dir != here.results_dir:
                continue
            folder = path.parent if path.name == RECORD else None
            run = ListedRun(record, config, folder, _example(results, record["run_id"]))
        except UserError as error:
            faults.append(str(error))
            continue
        if run.folder or run.example:
            runs.setdefault(run.run_id, run)
    return list(runs.values())


def _placed(config: RunConfig, here: RunConfig) -> RunConfig:
    paths = {name: getattr(here, name) for name in ("data_dir", "student")}
    known = {n: p for n, p in paths.items() if Path(p).name == Path(getattr(config, n)).name}
    return dataclasses.replace(config, **known)


def _example(results: Path, run_id: str) -> dict[str, Any] | None:
    path = results / "gates" / f"{run_id}.json"
    return read_gates(path).get("example") if path.exists() else None


def clips_of(run: ListedRun, domain: str, count: int) -> list[Clip]:
    """The first clips of a run's test set "in_domain" or "out_of_domain"; UserError as corpora do.

    Of a run without its model, the example, with its recording where the corpus is here.
    """
    config = run.config
    if run.folder is None:
        return [_example_clip(run)] if domain == "in_domain" else []
    corpus = open_part(config, getattr(config, domain), "test")
    return take_usable(corpus, count, config.max_seconds)[0].to_dict("records")


def _example_clip(run: ListedRun) -> Clip:
    example, config = run.example, run.config
    try:
        corpus = open_part(config, config.in_domain, "test")
        return by_id(corpus.table, [example["id"]]).iloc[0].to_dict()
    except UserError:
        known = {"id": example["id"], "text": example["reference"], "language": run.language}
        return dict.fromkeys(COLUMNS) | known


def own_clip(name: str, content: bytes | Path, language: str) -> Clip:
    """An uploaded recording, or a file, as a row of a corpus table; its transcript is unknown."""
    if isinstance(content, bytes):  # of two uploads with one name both can be chosen
        name = f"{name} ({hashlib.sha256(content).hexdigest()[:8]})"
    known = {"id": name, "audio": content, "text": "", "language": language}
    return dict.fromkeys(COLUMNS) | known


# Listening -----------------------------------------------------------------------------------


class Listener:
    """Runs hear clips; the last models loaded and the last hearings are kept."""

    def __init__(self) -> None:
        self._models: OrderedDict[str, Run] = OrderedDict()
        self._hearings: OrderedDict[tuple[str, str, str], Heard] = OrderedDict()

    def hear(self, run: ListedRun, clip: Clip, mode: str = "learned") -> Heard:
        """What ``run`` makes of ``clip`` with its gates "learned", "open" or "closed".

        UserError when the clip cannot be read or is silent, and when the run's model is needed
        and not here.
        """
        mode = mode if run.has_gates else "learned"
        if run.folder is None:
            return _from_example(run, clip, mode)
        key = (run.run_id, clip["id"], mode)
        if key not in self._hearings:
            _put(self._hearings, key, self._listen(run, clip, mode), _KEPT_HEARINGS)
        self._hearings.move_to_end(key)
        return self._hearings[key]

    def _listen(self, run: ListedRun, clip: Clip, mode: str) -> Heard:
        read_clip(clip)  # before a model is loaded
        finished = self._load(run)
        model = finished.model
        if run.config.method == "lora":
            model = model.get_base_model()  # with its adapter, without peft's wrapper
        row = clip | {"language": run.language}
        limit = run.config.max_new_tokens
        own = None if mode == "learned" else mode  # a run may hear its own gates softly, or open
        found = inspect_clip(model, finished.processor, row, limit, own, with_scores=True)
        return _heard(run, mode, found)

    def _load(self, run: ListedRun) -> Run:
        if run.run_id not in self._models:
            loaded = load_run(run.folder, run.config.student)
            loaded.model.to(best_device())
            _put(self._models, run.run_id, loaded, _KEPT_MODELS)
        self._models.move_to_end(run.run_id)
        return self._models[run.run_id]

    def scene(
        self, run: ListedRun, clip: Clip, mode: str = "learned", other: ListedRun | None = None
    ) -> Scene:
        """Everything there is to show; what fails becomes a note. Raises nothing of a bad clip."""
        notes: list[str] = []
        samples = _attempt(notes, read_clip, clip)
        if samples is not None and len(samples) > WINDOW * SAMPLE_RATE:
            notes.append(f"the clip is longer than {WINDOW:g} s: its beginning is shown")
            samples = samples[: int(WINDOW * SAMPLE_RATE)]
        if samples is None and run.folder is not None:
            return Scene(clip, None, None, [], None, notes)
        wanted = HARD_MODES if run.has_gates else ("learned",)
        found = [_attempt(notes, self.hear, run, clip, each) for each in wanted]
        modes = [heard for heard in found if heard is not None]
        asked = mode if run.has_gates else "learned"
        heard = next((heard for heard in modes if heard.mode == asked), None)
        second = other and _attempt(notes, self.hear, other, clip, mode)
        if heard and samples is not None and len(samples) > heard.positions * POSITION:
            notes.append(
                f"the model hears the first {heard.positions * POSITION / SAMPLE_RATE:.1f} s of "
                "the clip: transcribe longer recordings with distilwhisper_lib.transcribe()"
            )
        return Scene(clip, samples, heard, modes, second, list(dict.fromkeys(notes)))


def read_clip(clip: Clip) -> np.ndarray:
    """(samples,) float32 at 16 kHz; UserError when there are none, or only silence."""
    if clip["audio"] is None:
        raise UserError(
            f"the recording of {clip['id']} is not here: notebook 01 says how to get its corpus"
        )
    try:
        samples = read_audio(clip["audio"], clip["start"], clip["end"])
    except UserError as error:
        raise UserError(f"{clip['id']}: {error}") from None
    if is_silent(samples):
        raise UserError(f"{clip['id']} holds only silence: choose or record another clip")
    return samples


def _attempt(notes: list[str], work: Any, *arguments: Any) -> Any:
    """What ``work`` returns, or None and a note: one bad clip must not end the session."""
    try:
        return work(*arguments)
    except UserError as error:
        notes.append(str(error))
    except Exception as error:  # a broken clip or model can make any library raise anything
        notes.append(f"{type(error).__name__}: {str(error)[:300] or 'no message'}")
    return None


def _put(kept: OrderedDict, key: Any, value: Any, most: int) -> None:
    kept[key] = value
    while len(kept) > most:
        kept.popitem(last=False)


def _from_example(run: ListedRun, clip: Clip, mode: str) -> Heard:
    if mode != "learned" or not run.example or clip["id"] != run.example["id"]:
        raise UserError(run.missing)
    return _heard(run, mode, run.example)


def _heard(run: ListedRun, mode: str, found: dict[str, Any]) -> Heard:
    arrays: dict[str, np.ndarray] = {}
    asked = mode == "learned" and run.config.gate_mode != "open"
    for side in ("token", "frame"):
        if run.has_gates:
            arrays[f"{side}_gates"] = np.array(found[f"{side}_gates"])
        if run.has_gates and asked and f"{side}_scores" in found:
            arrays[f"{side}_soft"] = 1 / (1 + np.exp(-np.array(found[f"{side}_scores"])))
    texts = {"reference": found["reference"], "text": found["text"], "tokens": found["tokens"]}
    positions = len(found["frame_gates"][0])
    return Heard(run, mode, found["id"], **texts, positions=positions, **arrays)


def layers_of(heard: Iterable[Heard]) -> int:
    """The decoder layers whose gates can be shown, 0 where none has gates."""
    return max((len(h.token_gates) for h in heard if h.token_gates is not None), default=0)
