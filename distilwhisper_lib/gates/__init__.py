"""What the gates did: heard while decoding (recorder.py), all of them as one DataFrame
(collection.py), counted, kept in files, drawn by layer and token (routes.py) and in the
further figures (plots.py). Imports model, speech, results, scoring and figures."""

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
