"""All notebooks, headless and in order, on one machine or many: grid.py reads a study, task.py runs
one notebook. Imports config, io and results; data and training only where targets are built."""

from distilwhisper_lib import hand_on

__all__, __getattr__, __dir__ = hand_on(
    __name__,
    {
        "command": ("run",),
    },
)
