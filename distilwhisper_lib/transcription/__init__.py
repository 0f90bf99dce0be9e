"""Recordings to text and subtitles, with a run, an expert or a stock Whisper. Imports evaluation,
model, speech and data, and no trainer."""

from distilwhisper_lib import hand_on

__all__, __getattr__, __dir__ = hand_on(
    __name__,
    {
        "transcriber": ("Transcriber", "transcribe"),
        "transcripts": ("save_subtitles", "save_transcripts"),
    },
)
