"""Whisper's log-mel features without the work of the zero padding.

transformers' extractor pads every clip to the model's window, 30 s, and transforms all of it. A
frame of padding has the value that silence has by definition, so only the frames that touch the
recording are transformed here, and the rest is filled in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor

from distilwhisper_lib.speech.audio import SAMPLE_RATE

_FLOOR = 1e-10  # of the mel power, before the logarithm
_RANGE = 8.0  # decades below a clip's peak that are kept


def log_mel(extractor: WhisperFeatureExtractor, audio: Sequence[np.ndarray]) -> Tensor:
    """Mono waveforms (float32, 16 kHz) -> log-mel (B, mels, frames) float32, on the CPU.

    Equal to ``extractor(audio).input_features`` within 1e-5, whatever autocast is on; clips are
    padded or cut to the extractor's window. An extractor that does more than Whisper's, such as
    dithering, does its work itself.
    """
    if not _is_whispers(extractor):
        out = extractor(list(audio), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        return out.input_features
    with torch.autocast("cpu", enabled=False):
        window = torch.hann_window(extractor.n_fft, dtype=torch.float32)
        filters = torch.from_numpy(extractor.mel_filters).float().T  # (mels, bins)
        shape = (len(audio), len(filters), extractor.n_samples // extractor.hop_length)
        features = torch.empty(shape, dtype=torch.float32)
        for clip, samples in zip(features, audio, strict=True):
            touched = torch.from_numpy(_touched(samples, extractor))
            frames = touched.unfold(0, extractor.n_fft, extractor.hop_length) * window
            spectrum = torch.fft.rfft(frames)  # (frames, bins)
            power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
            heard = (filters @ power.T).clamp_(min=_FLOOR).log10_()  # (mels, frames)
            silence = heard.new_tensor(_FLOOR).log10_()  # what a frame of padding would be
            padding = clip[:, len(frames) :]
            peak = torch.maximum(heard.max(), silence) if padding.numel() else heard.max()
            clip[:, : len(frames)] = heard.clamp_(min=peak - _RANGE).add_(4.0).div_(4.0)
            padding.copy_((torch.maximum(silence, peak - _RANGE) + 4.0) / 4.0)
        return features


def _is_whispers(extractor: WhisperFeatureExtractor) -> bool:
    """Whether the extractor does what log_mel() does, and no more."""
    return (
        type(extractor) is WhisperFeatureExtractor
        and extractor.sampling_rate == SAMPLE_RATE
        and extractor.padding_side == "right"
        and extractor.padding_value == 0.0
        and not getattr(extractor, "dither", 0.0)
        and extractor.n_fft % 2 == 0
        and extractor.n_samples > extractor.n_fft
    )


def _touched(samples: np.ndarray, extractor: WhisperFeatureExtractor) -> np.ndarray:
    """The samples of every frame that the recording reaches into, end to end.

    Frames are centred on multiples of the hop; beyond both ends of the window (not of the clip)
    the signal is mirrored, without its outermost sample, as torch.stft does.
    """
    side, hop, window = extractor.n_fft // 2, extractor.hop_length, extractor.n_samples
    samples = samples[:window]
    frames = min(-(-(len(samples) + side) // hop), window // hop)
    end = (frames - 1) * hop + side  # of the last frame, counted from the clip's first sample
    touched = np.zeros(side + end, np.float32)
    touched[side : side + min(len(samples), end)] = samples[:end]
    touched[:side] = touched[2 * side : side : -1]
    if (beyond := end - window) > 0:
        last = side + window - 1
        touched[last + 1 :] = touched[last - beyond : last][::-1]
    return touched
