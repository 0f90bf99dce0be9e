"""All notebooks, headless: a study (grid.py) becomes tasks in order (tasks.py, schedule.py), and
task.py runs one notebook, here or on a cluster. Imports config, io and results; data and
training only where targets are built."""

from distilwhisper_lib import hand_on

__all__, __getattr__, __dir__ = hand_on(
    __name__,
    {
        "command": ("run",),
    },
)
