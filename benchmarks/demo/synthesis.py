"""Synthetic speech for the embedded demo: espeak-ng voices, noise, and Ogg-Opus containers.

espeak-ng (GPL-3) is a build-time tool: its shared library comes with the package
`espeakng-loader`, is driven through ctypes and is never shipped with the kit.
"""

from __future__ import annotations

import ctypes
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from distilwhisper_lib.errors import UserError

SAMPLE_RATE = 16_000
WINDOW_SECONDS = 3.0
LONGEST_SECONDS = 2.9  # leaves a little silence at the end of the model's window

# Voice variants of espeak-ng. `anika`, `steph` and `Alicia` are unintelligible under noise.
SEEN_SPEAKERS = (
    ("m1", "m2", "m3", "m5", "m7", "f1", "f2", "f5")
    + ("Lee", "Michael", "Annie", "linda")
)  # fmt: skip
UNSEEN_SPEAKERS = ("m4", "m6", "m8", "f3", "f4", "Andrea", "david", "robert")

VOICES = {"en": "en-us", "ca": "ca", "cs": "cs"}
WORDS_PER_MINUTE = (140, 215)
PITCH = (30, 70)
PITCH_RANGE = (35, 65)
NOISE_DB = (10.0, 40.0)
GAP_SECONDS = 0.15  # silence between utterances of one container

# Values of enums in espeak-ng's speak_lib.h.
_SYNCHRONOUS, _UTF8, _RATE, _PITCH, _RANGE = 2, 1, 1, 3, 4


@dataclass(frozen=True)
class Utterance:
    """One spoken sentence: mono float32 samples at 16 kHz with where they come from."""

    text: str
    language: str
    speaker: str
    samples: np.ndarray


class Espeak:
    """espeak-ng in this process: text in, 16 kHz float32 samples out."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise UserError(
                "The package espeakng-loader is missing, and building the demo speech needs it: "
                "run `pip install espeakng-loader` (the built demo itself never needs it)."
            ) from error
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = str(espeakng_loader.get_data_path()).encode()
        self._rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, data, 0)
        if self._rate <= 0:
            raise UserError(
                "espeak-ng could not start, its data folder could not be read: "
                "reinstall espeakng-loader."
            )
        self._chunks: list[np.ndarray] = []
        signature = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )
        # The library keeps only a bare pointer: this attribute keeps the callback alive.
        self._callback = signature(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples, count: int, _events) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def speak(
        self, text: str, language: str, speaker: str, speed: int, pitch: int, spread: int
    ) -> np.ndarray:
        """Samples (N,) of `text`, silence trimmed at both ends, peak at 0.5."""
        voice = f"{VOICES[language]}+{speaker}".encode()
        if self._library.espeak_SetVoiceByName(voice) != 0:
            raise UserError(
                f"espeak-ng has no voice {voice.decode()!r}: choose a variant from its voices/!v."
            )
        for parameter, value in ((_RATE, speed), (_PITCH, pitch), (_RANGE, spread)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._chunks.clear()
        encoded = text.encode() + b"\0"
        self._library.espeak_Synth(encoded, len(encoded), 0, 0, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        if not self._chunks:
            raise UserError(f"espeak-ng returned no sound for {text!r} with {voice.decode()!r}.")
        wave = np.concatenate(self._chunks).astype(np.float32)
        wave = soxr.resample(wave, self._rate, SAMPLE_RATE)
        return _trim(wave / max(1.0, float(np.abs(wave).max())) * 0.5)


def _trim(wave: np.ndarray, floor: float = 0.005, margin: int = 480) -> np.ndarray:
    """Cut leading and trailing silence, keeping `margin` samples on each side."""
    loud = np.flatnonzero(np.abs(wave) > floor)
    return wave[max(0, loud[0] - margin) : loud[-1] + margin].astype(np.float32)


def speak_all(
    espeak: Espeak, texts: list[str], language: str, speakers: tuple[str, ...], seed: int
) -> list[Utterance]:
    """Speak every text once, clean, by speakers in turn with drawn speed, pitch and intonation."""
    rng = random.Random(f"{seed}-{language}-{len(texts)}-{speakers[0]}")
    spoken = []
    for index, text in enumerate(texts):
        speaker = speakers[index % len(speakers)]
        speed, pitch, spread = (rng.randint(*r) for r in (WORDS_PER_MINUTE, PITCH, PITCH_RANGE))
        wave = espeak.speak(text, language, speaker, speed, pitch, spread)
        while len(wave) > LONGEST_SECONDS * SAMPLE_RATE:  # does not fit the window: speak faster
            speed = int(speed * 1.2)
            wave = espeak.speak(text, language, speaker, speed, pitch, spread)
        spoken.append(Utterance(text, language, speaker, wave))
    return spoken


class NoiseBank:
    """A minute each of white, pink and brownish noise, to cut pieces from."""

    def __init__(self, seed: int, seconds: int = 60) -> None:
        rng = np.random.default_rng(seed)
        self._tracks = [self._coloured(rng, seconds, slope) for slope in (0.0, 0.5, 1.0)]

    @staticmethod
    def _coloured(rng: np.random.Generator, seconds: int, slope: float) -> np.ndarray:
        """Noise whose amplitude falls as frequency**-slope, unit power."""
        spectrum = np.fft.rfft(rng.standard_normal(seconds * SAMPLE_RATE))
        frequency = np.fft.rfftfreq(seconds * SAMPLE_RATE, 1 / SAMPLE_RATE)
        spectrum *= np.maximum(frequency, 50.0) ** -slope  # flat below 50 Hz, no rumble
        noise = np.fft.irfft(spectrum)
        return (noise / noise.std()).astype(np.float32)

    def add(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """`wave` (N,) with one kind of noise at a signal-to-noise ratio drawn from NOISE_DB."""
        track = self._tracks[rng.integers(len(self._tracks))]
        start = rng.integers(len(track) - len(wave))
        power = float(np.mean(np.square(wave))) + 1e-9
        level = np.sqrt(power / 10 ** (rng.uniform(*NOISE_DB) / 10))
        return np.clip(wave + level * track[start : start + len(wave)], -1, 1).astype(np.float32)


def write_container(path: Path, waves: list[np.ndarray], compression: float) -> list[list[float]]:
    """Write utterances one after another as one Ogg-Opus file; return [start, end] in seconds.

    One file for many utterances, because a file of its own costs an utterance about 6 kB.
    """
    gap = np.zeros(int(GAP_SECONDS * SAMPLE_RATE), np.float32)
    pieces, spans, position = [gap], [], len(gap)
    for wave in waves:
        end = position + len(wave)
        spans.append([round(position / SAMPLE_RATE, 4), round(end / SAMPLE_RATE, 4)])
        pieces += [wave, gap]
        position = end + len(gap)
    soundfile.write(
        path,
        np.concatenate(pieces),
        SAMPLE_RATE,
        format="OGG",
        subtype="OPUS",
        compression_level=compression,
    )
    return spans
