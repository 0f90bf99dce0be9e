"""Sound in: recordings decoded to 16 kHz in a guarded process, features, batches. Imports errors
and languages only; data, training and transcription read sound through it."""

from distilwhisper_lib import hand_on

__all__, __getattr__, __dir__ = hand_on(
    __name__,
    {
        "audio": ("POSITIONS_PER_SECOND", "SAMPLE_RATE", "read_audio"),
        "features": ("Collator", "IGNORE", "SpeechDataset", "extract_features"),
    },
)
