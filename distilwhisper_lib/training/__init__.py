"""One train() for every method, by one process or several, resumed from whole checkpoints. Imports
evaluation, losses, data, model and gates."""

from distilwhisper_lib import hand_on

__all__, __getattr__, __dir__ = hand_on(
    __name__,
    {
        "loop": ("build_targets", "train", "trained_tensors"),
    },
)
