"""Notebook 08's widget: one clip, token by token, and its static twins. Imports evaluation, gates,
results and data."""

from distilwhisper_lib import hand_on

__all__, __getattr__, __dir__ = hand_on(
    __name__,
    {
        "app": ("Explorer",),
    },
)
