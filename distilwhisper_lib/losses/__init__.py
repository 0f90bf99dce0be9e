"""What a student learns from: cross entropy, KL, JS, gate budget (divergences.py), their sum
(objective.py), the teacher and what it said, stored once (targets.py, its files in
target_files.py). Imports model, speech, config and io."""

from distilwhisper_lib import hand_on

__all__, __getattr__, __dir__ = hand_on(
    __name__,
    {
        "divergences": ("combine", "cross_entropy", "divergence", "gate_budget"),
        "chunked": ("token_losses",),
        "objective": ("loss_parts",),
        "teacher": ("Teacher", "compare_on", "load_teacher"),
        "targets": ("stored_targets",),
    },
)
