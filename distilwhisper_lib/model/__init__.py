"""The paper's network: Whisper whose layers hold an expert and a gate for each language (clsr.py),
its expert files, the authors' layout, loading. Imports config, speech and io."""

from distilwhisper_lib import hand_on

__all__, __getattr__, __dir__ = hand_on(
    __name__,
    {
        "layers": ("DistilWhisperConfig",),
        "whisper": ("DistilWhisperForConditionalGeneration",),
        "clsr": ("CLSR", "Expert", "GateMode"),
        "experts": ("look_for_expert",),
        "loading": ("load_model", "load_student", "prepare"),
    },
)
