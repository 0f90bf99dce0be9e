"""Facts from outside that a capacity plan stands on, each with its source, and prices to change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Device:
    """A kind of machine. ``utilisation``: the share of its peak that training reaches: ASSUMED."""

    name: str
    profile: str  # of config/presets.py
    tflops: Mapping[str, float] = field(default_factory=dict)  # precision -> dense peak
    bandwidth: float = 0.0  # bytes a second
    utilisation: float = 0.0

    def is_that_of(self, hardware: Mapping[str, Any]) -> bool:
        """Whether a record's hardware is of this kind."""
        device = str(hardware["device"]).lower()
        return (
            device == "cpu" if self.name == "cpu" else self.name in device.replace("-", " ").split()
        )


# Peaks without sparsity and memory bandwidth. Source: NVIDIA's data sheets of T4, L4, A100 (40 GB),
# H100 and H200 (SXM). A faster card is used less: small batches leave it waiting. float32 is the
# plain one, as torch multiplies unless told otherwise.
DEVICES = {
    device.name: device
    for device in (
        Device("cpu", "none"),
        Device("t4", "t4", {"fp32": 8.1, "fp16": 65.0}, 320e9, 0.30),
        Device("l4", "l4", {"fp32": 30.3, "fp16": 121.0, "bf16": 121.0}, 300e9, 0.30),
        Device("a100", "a100", {"fp32": 19.5, "fp16": 312.0, "bf16": 312.0}, 1.555e12, 0.30),
        Device("h100", "a100", {"fp32": 67.0, "fp16": 989.0, "bf16": 989.0}, 3.35e12, 0.20),
        Device("h200", "a100", {"fp32": 67.0, "fp16": 989.0, "bf16": 989.0}, 4.8e12, 0.20),
    )
}

# Euros an hour, round figures for a card rented by the hour, nobody's offer: put yours here, or
# say --price a100=1.2.
PRICES_OF = "2026-11"
PRICES = {"cpu": 0.05, "t4": 0.40, "l4": 0.80, "a100": 1.60, "h100": 2.80, "h200": 3.50}

# Common Voice 13.0: clips of the test set, and bytes of the archive; the unpacked release is as
# large again. Source: github.com/common-voice/cv-dataset, cv-corpus-13.0-2023-03-09.json.
TEST_CLIPS = {
    "ca": 16_380, "cs": 8_829, "gl": 6_546, "hu": 7_875, "pl": 8_534, "ta": 11_973, "th": 11_002,
    "uk": 8_383, "bg": 2_463, "fi": 1_748, "hi": 2_947, "id": 3_649, "ro": 3_861, "sk": 2_552,
    "sl": 1_240, "vi": 1_225, "ar": 10_445,
}  # fmt: skip
RELEASE_BYTES = {
    "ca": 63_732_227_938, "cs": 5_640_424_340, "gl": 1_222_354_918, "hu": 1_769_841_289,
    "pl": 4_411_276_400, "ta": 8_408_601_882, "th": 8_707_281_050, "uk": 2_137_250_020,
    "bg": 386_104_092, "fi": 397_079_516, "hi": 398_945_100, "id": 1_427_745_911,
    "ro": 944_768_429, "sk": 492_582_779, "sl": 330_113_132, "vi": 381_782_157,
    "ar": 3_160_282_600,
}  # fmt: skip
# FLEURS: clips of a language's test set (cs 723, pl 758, hu 905, th 1,021: their mean), and bytes
# of its parquet files (cs: 561 MB); the recordings are unpacked beside them.
FLEURS_CLIPS = 852
FLEURS_BYTES = 561_000_000

# Of a clip, as the races of benchmarks/ have it: labelled positions of a sentence of Common Voice.
# ASSUMED for all languages; those that Whisper's tokenizer shatters (Tamil, Thai) have more.
LABELLED = 45
FLEURS_LABELLED = 90  # its sentences are about twice as long
