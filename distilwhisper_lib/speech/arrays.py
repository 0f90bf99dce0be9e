"""Samples in memory, as a microphone or another library gives them, as those of files are."""

from __future__ import annotations

import numpy as np
import soxr

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.speech.audio import SAMPLE_RATE
from distilwhisper_lib.speech.headers import MAX_CHANNELS, MAX_RATE, MAX_SECONDS, MIN_RATE


def samples_of(array: object, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Samples in memory as read_audio() gives a file's: float32 (samples,), mono, 16 kHz.

    ``array``: what numpy takes for one, of shape (samples,), (samples, channels) or (channels,
    samples); floats from -1 to 1, or integers of 8 (unsigned), 16 or 32 bits at full scale.
    ``rate``: its samples a second. Raises `UserError` for anything else, and above the caps of
    files.
    """
    if (
        isinstance(rate, bool)
        or not isinstance(rate, (int, float))
        or not (MIN_RATE <= rate <= MAX_RATE)
    ):
        raise UserError(
            f"Sample rate {rate!r} is out of range: expected {MIN_RATE} to {MAX_RATE} Hz, "
            "such as rate=16000."
        )
    try:
        samples = np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
    except (TypeError, ValueError) as error:  # a ragged list
        raise UserError(f"The audio is no array of numbers ({error}): give samples.") from None
    samples = _mono(_full_scale(samples))
    seconds = len(samples) / rate
    if seconds > MAX_SECONDS:
        raise UserError(f"The array is {seconds:.0f} s long, more than {MAX_SECONDS}: split it.")
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    return samples if rate == SAMPLE_RATE else soxr.resample(samples, rate, SAMPLE_RATE)


# Integer samples -> what is silence, and what is full scale.
_INTEGERS = {"uint8": (128, 2**7), "int16": (0, 2**15), "int32": (0, 2**31)}
_MAX_FLOAT = 10.0  # floats may clip over 1; a 16-bit recording as floats reaches thousands


def _full_scale(samples: np.ndarray) -> np.ndarray:
    """Samples of any accepted type as floats in about [-1, 1]."""
    if samples.dtype.name in _INTEGERS:
        zero, full = _INTEGERS[samples.dtype.name]
        return (samples.astype(np.float32) - zero) / full
    if not np.issubdtype(samples.dtype, np.floating):
        raise UserError(
            f"The array holds {samples.dtype.name}, expected floats from -1 to 1 or "
            f"{', '.join(_INTEGERS)}: convert it."
        )
    if not np.isfinite(samples).all():
        raise UserError("The array holds NaN or infinite samples: export it again.")
    if samples.size and (peak := float(np.abs(samples).max())) > _MAX_FLOAT:
        raise UserError(
            f"The array holds floats up to {peak:g}, expected -1 to 1: divide 16-bit samples by "
            "32768."
        )
    return samples


def _mono(samples: np.ndarray) -> np.ndarray:
    """(samples,), (samples, channels) or (channels, samples) -> (samples,)."""
    if samples.ndim == 2 and min(samples.shape) <= MAX_CHANNELS < max(samples.shape):
        samples = samples.mean(axis=int(np.argmin(samples.shape)))
    if samples.ndim != 1 or not len(samples):
        raise UserError(
            f"The array has shape {samples.shape}, expected (samples,) or (samples, channels) "
            f"with at most {MAX_CHANNELS} channels."
        )
    return samples
