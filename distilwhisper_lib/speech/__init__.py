"""Sound in: a recording decoded to 16 kHz (audio.py), files of others in a process of their own
(guarded.py), features, batches. Imports errors and languages only."""

from distilwhisper_lib import hand_on

__all__, __getattr__, __dir__ = hand_on(
    __name__,
    {
        "audio": ("POSITIONS_PER_SECOND", "SAMPLE_RATE", "read_audio"),
        "features": ("Collator", "IGNORE", "SpeechDataset", "extract_features"),
    },
)
