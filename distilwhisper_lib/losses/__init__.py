"""What a student learns from: cross entropy, KL and JS, the gate budget (divergences.py), their sum
(objective.py), and the teacher's stored targets. Imports model, speech, config and io."""

from distilwhisper_lib import hand_on

__all__, __getattr__, __dir__ = hand_on(
    __name__,
    {
        "divergences": ("combine", "cross_entropy", "divergence", "gate_budget"),
        "chunked": ("token_losses",),
        "objective": ("loss_parts",),
        "teacher": ("Teacher", "compare_on"),
        "targets": ("stored_targets",),
    },
)
