"""Recordings to text, for people: a file, a folder, samples in memory, of any length.

Corpus tables with references, as experiments use them, go through evaluation.transcribe instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, WhisperProcessor

from distilwhisper_lib.config.settings import TRAINED, WITH_EXPERTS, locate
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.evaluation.run import is_run, load_run
from distilwhisper_lib.hardware import best_device
from distilwhisper_lib.languages import whisper_language
from distilwhisper_lib.model.authors import language_token, language_tokens
from distilwhisper_lib.model.loading import load_model, shorten
from distilwhisper_lib.speech.audio import SAMPLE_RATE, SILENCE, is_silent
from distilwhisper_lib.speech.features import extract_features, fits_window
from distilwhisper_lib.transcription.recordings import (
    cut_at_silence,
    find_recordings,
    is_many,
    read_recording,
)
from distilwhisper_lib.transcription.transcripts import MODEL, WINDOWS, Segment, Transcript

# Longer recordings are cut before transformers' long-form decoding, so that memory stays bounded.
TIMED_WINDOWS = 20


def transcribe(
    source: Any,
    language: str | None = None,
    model: str | Path = "openai/whisper-small",
    experts: str | Path | None = None,
    **options: Any,
) -> Transcript | list[Transcript]:
    """What is said in a recording, a folder of recordings, or an array of samples.

    ``model`` and ``experts`` as Transcriber.load() takes them; the last ones loaded are kept.
    Everything else as Transcriber.transcribe().
    """
    return _load(str(model), experts and str(experts)).transcribe(source, language, **options)


class Transcriber:
    """A Whisper that is ready to listen: stock, fine-tuned, with LoRA, or with experts."""

    def __init__(self, model: PreTrainedModel, processor: WhisperProcessor) -> None:
        self.model = model.eval()
        self.processor = processor
        self.experts: str | None = None
        # In which experts were trained that say nothing of it.
        self._whole = self.window, fits_window(processor.feature_extractor)
        # Language code, or None for all others -> whether what speaks for it learned timestamps.
        # Stock Whisper did.
        self._learned_times = {None: getattr(model.config, "learned_timestamps", 1) > 0}

    @classmethod
    def load(
        cls,
        name: str | Path,
        experts: str | Path | None = None,
        revision: str | None = None,
        device: str | None = None,
    ) -> Transcriber:
        """A Whisper from the hub or a folder, "embedded/...", or the folder of a finished run.

        ``experts``: where expert files are found, see load_experts(); each is loaded when its
        language is first asked for. ``device``: a GPU where there is one.
        """
        run = load_run(name) if is_run(name) else None
        model, processor = (
            load_model(str(name), revision) if run is None else (run.model, run.processor)
        )
        made = cls(model.to(device or best_device()), processor)
        made.experts = experts and locate(str(experts))
        if run is not None and run.config.method in TRAINED:
            of = run.config.language if run.config.method in WITH_EXPERTS else None
            made._learned_times[of] = run.config.timestamps > 0
        return made

    @property
    def window(self) -> float:
        """Seconds that the model hears at once: 30 for every Whisper, 3 in the demo."""
        return self.processor.feature_extractor.n_samples / SAMPLE_RATE

    def _hear_in(self, seconds: float, fit: bool, code: str) -> None:
        """Take the window that an expert was trained in: in another it makes more mistakes."""
        here = self.window, fits_window(self.processor.feature_extractor)
        if (seconds, fit) == here:
            return
        if set(self.model.languages) - {code}:
            self.model.remove_expert(code)
            raise UserError(
                f"the expert for {code!r} was trained in {_window(seconds, fit)}, those that are "
                f"here in {_window(*here)}: load them into a Transcriber each"
            )
        shorten(self.model, self.processor, int(seconds), fit)

    @property
    def has_timestamps(self) -> bool:
        """Whether the vocabulary has timestamps for the whole window; the demo's has none."""
        plain = getattr(self.model.generation_config, "no_timestamps_token_id", None)
        return plain is not None and self.model.config.vocab_size > plain + self.window / 0.02

    def transcribe(
        self, source: Any, language: str | None = None, *, progress: bool = False, **options: Any
    ) -> Transcript | list[Transcript]:
        """What is said in ``source``; arguments as stream().

        One recording gives one Transcript and raises UserError when it cannot be transcribed. A
        folder or a list gives a list, in which the recordings that failed carry their reason.
        """
        heard = self.stream(source, language, **options)
        found = list(tqdm(heard, unit="recording", desc="transcribe", disable=not progress))
        if is_many(source):
            return found
        if found[0].error is not None:
            raise UserError(found[0].error)
        return found[0]

    def stream(
        self,
        source: Any,
        language: str | None = None,
        *,
        rate: int = SAMPLE_RATE,
        task: str = "transcribe",
        timestamps: bool | None = None,
        batch_size: int = 8,
        **generate: Any,
    ) -> Iterator[Transcript]:
        """The transcripts of ``source``, each as soon as it is finished.

        ``source``: a path, the bytes of a file, an array (see arrays.samples_of(); ``rate`` is its
        sample rate), a folder, which is searched with its sub-folders, or a list of these.
        ``language``: name or code; None lets Whisper choose for each recording. ``task``:
        "transcribe" or, into English and through the shared branch, "translate". ``generate``:
        anything for transformers' generate(), such as num_beams=5.

        ``timestamps``: True for segments timed by Whisper, which goes through a recording of any
        length by transformers' long-form decoding; False to decode window by window, cut where
        the recording is quiet, with the windows' times; None for timestamps where a recording is
        longer than the window and what speaks for its language has learned them: stock Whisper, and
        what this kit trained with the setting ``timestamps``. Whatever was fine-tuned without
        predicts them badly, and may lose speech with them.
        """
        self._check(language, task, timestamps)
        code = None if language is None else self._prepare(language)
        options = {"num_beams": 1, "do_sample": False, "task": task} | generate
        waiting: list[_Recording] = []
        for name, given in find_recordings(source):
            waiting.append(self._open(name, given, rate, code, timestamps))
            if sum(len(recording.pieces) for recording in waiting) >= batch_size:
                yield from self._decode(waiting, batch_size, options)
                waiting = []
        yield from self._decode(waiting, batch_size, options)

    def _check(self, language: str | None, task: str, timestamps: bool | None) -> None:
        language_tokens(self.model.generation_config)
        if task not in ("transcribe", "translate"):
            raise UserError(f"task {task!r} is unknown: expected transcribe or translate")
        if language is None and self.experts is not None:
            raise UserError(
                "language is missing: an expert belongs to one language, so name it, such as "
                "language='catalan'"
            )
        if timestamps and not self.has_timestamps:
            raise UserError(
                "this model has no timestamps in its vocabulary: leave timestamps out, and long "
                "recordings are decoded window by window"
            )

    def _prepare(self, language: str) -> str:
        """The language's code, after its expert was loaded where there is one to load."""
        code, _ = whisper_language(language)
        if self.experts is not None and code not in self.model.languages:
            about = self.model.load_experts(code, self.experts)
            seconds, fit = self._whole
            seconds = int(about.get("window_seconds", 0)) or seconds
            self._hear_in(seconds, fit or about.get("window") == "fit", code)
            self._learned_times[code] = float(about.get("timestamps", 0)) > 0
        language_token(self.model.generation_config, code)
        return code

    # One recording after the other ---------------------------------------------------------

    def _open(
        self, name: str, given: Any, rate: int, code: str | None, timestamps: bool | None
    ) -> _Recording:
        try:
            samples = read_recording(given, rate)
            if is_silent(samples):
                raise UserError(
                    f"{name} holds only silence (peak below {SILENCE:g}): check the recording"
                )
        except UserError as error:
            return _Recording(name, np.zeros(0, np.float32), code, False, [], error=str(error))
        window = self.processor.feature_extractor.n_samples
        pieces = _voiced(samples, window)
        code = code or self._detect(samples[slice(*pieces[0])])
        timed = timestamps
        if timed is None:
            learned = self._learned_times.get(code, self._learned_times[None])
            timed = len(samples) > window and self.has_timestamps and learned
        if timed:
            pieces = _voiced(samples, window * TIMED_WINDOWS)
        return _Recording(name, samples, code, timed, pieces)

    def _detect(self, samples: np.ndarray) -> str:
        """The language that Whisper takes the first window for."""
        features = self._features([samples[: self.processor.feature_extractor.n_samples]])
        with torch.no_grad():
            token = self.model.detect_language(features).flatten()[0].item()
        return self.processor.tokenizer.convert_ids_to_tokens(token).strip("<|>")

    def _decode(
        self, recordings: list[_Recording], batch_size: int, options: dict[str, Any]
    ) -> Iterator[Transcript]:
        for timed in (False, True):
            pieces = [(r, piece) for r in recordings if r.timed is timed for piece in r.pieces]
            for first in range(0, len(pieces), batch_size):
                batch = pieces[first : first + batch_size]
                audio = [r.samples[slice(*piece)] for r, piece in batch]
                decode = self._decode_timed if timed else self._decode_windows
                found = decode(audio, [r.code for r, _ in batch], options)
                for (recording, (start, _)), segments in zip(batch, found, strict=True):
                    recording.segments += [
                        Segment(_seconds(start, s.start), _seconds(start, s.end), s.text)
                        for s in segments
                        if s.text
                    ]
        yield from (recording.transcript() for recording in recordings)

    def _decode_windows(
        self, audio: list[np.ndarray], codes: list[str], options: dict[str, Any]
    ) -> list[list[Segment]]:
        ids = self.model.generate(
            input_features=self._features(audio),
            language=codes,
            return_timestamps=False,
            **self._limit() | options,
        )
        texts = self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [
            [Segment(0.0, len(samples) / SAMPLE_RATE, _one_line(text))]
            for samples, text in zip(audio, texts, strict=True)
        ]

    def _decode_timed(
        self, audio: list[np.ndarray], codes: list[str], options: dict[str, Any]
    ) -> list[list[Segment]]:
        extractor, long = self.processor.feature_extractor, {}
        if max(map(len, audio)) > extractor.n_samples:
            inputs = extractor(
                audio, sampling_rate=SAMPLE_RATE, truncation=False, padding="longest",
                return_attention_mask=True, return_tensors="pt",
            )  # fmt: skip
            features = inputs.input_features.to(self.model.device, self.model.dtype)
            long = {"attention_mask": inputs.attention_mask.to(self.model.device)}
        else:
            features = self._features(audio)
        out = self.model.generate(
            input_features=features,
            language=codes,
            return_timestamps=True,
            return_segments=True,
            **long | self._limit() | options,
        )
        return [
            self._timed_segments(segments, len(samples) / SAMPLE_RATE)
            for segments, samples in zip(out["segments"], audio, strict=True)
        ]

    def _timed_segments(self, found: list[dict[str, Any]], seconds: float) -> list[Segment]:
        """transformers' segments, without what it hears in the padding after the end."""
        first = self.model.generation_config.no_timestamps_token_id + 1
        segments = []
        for segment in found:
            start, end = float(segment["start"]), min(float(segment["end"]), seconds)
            ids = [token for token in segment["tokens"].tolist() if token < first]
            text = self.processor.tokenizer.decode(ids, skip_special_tokens=True)
            if start < seconds:
                segments.append(Segment(start, max(start, end), _one_line(text)))
        return segments

    def _limit(self) -> dict[str, int]:
        """Room for tokens, where the model's generation config does not say how much there is."""
        if self.model.generation_config.max_length is not None:
            return {}
        return {"max_new_tokens": self.model.config.max_target_positions // 2}

    def _features(self, audio: Sequence[np.ndarray]) -> torch.Tensor:
        features = extract_features(self.processor.feature_extractor, audio)
        return features.to(self.model.device, self.model.dtype)


@dataclass
class _Recording:
    """A recording on its way: what of it is decoded at once, and what was heard so far."""

    name: str
    samples: np.ndarray  # (samples,) float32
    code: str | None
    timed: bool
    pieces: list[tuple[int, int]]
    segments: list[Segment] = field(default_factory=list)
    error: str | None = None

    def transcript(self) -> Transcript:
        seconds = round(len(self.samples) / SAMPLE_RATE, 3)
        timed_by = MODEL if self.timed else WINDOWS
        spoken = tuple(self.segments)
        return Transcript(self.name, self.code, seconds, spoken, timed_by, self.error)


def _voiced(samples: np.ndarray, limit: int) -> list[tuple[int, int]]:
    """The stretches of at most so many samples in which there is something to hear."""
    cut = cut_at_silence(samples, limit)
    return [piece for piece in cut if not is_silent(samples[slice(*piece)])]


def _window(seconds: float, fit: bool) -> str:
    return f"a window of {'up to ' if fit else ''}{seconds:g} s"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _seconds(offset: int, seconds: float) -> float:
    return round(offset / SAMPLE_RATE + seconds, 3)


@lru_cache(maxsize=1)
def _load(model: str, experts: str | None) -> Transcriber:
    return Transcriber.load(model, experts)
