"""A run as a plain Whisper or as expert file, its model card, the hub. Imports evaluation, model,
data and results."""

from distilwhisper_lib import hand_on

__all__, __getattr__, __dir__ = hand_on(
    __name__,
    {
        "bundle": ("export_run",),
        "publish": ("push_to_hub",),
    },
)
