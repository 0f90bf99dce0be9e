"""What the gates did: heard while decoding (recorder.py), counted, kept in files, tabulated and
drawn; collect() lays them all open. Imports model, speech, results, scoring and figures."""

from distilwhisper_lib import hand_on

__all__, __getattr__, __dir__ = hand_on(
    __name__,
    {
        "recorder": ("GateRecorder", "inspect_clip"),
        "collection": ("collect",),
        "files": ("gate_path", "gates_of", "load_gates", "read_gates"),
        "statistics": ("agreement", "groups_of_languages", "layer_shares"),
        "routes": ("gate_shares", "token_heatmap"),
        "plots": (
            "entropy_lines",
            "frame_shares",
            "language_agreement",
            "score_histograms",
            "soft_and_hard",
            "token_class_shares",
        ),
        "forced": ("differences", "load_forced"),
        "forced_plots": ("forced_changes",),
    },
)
