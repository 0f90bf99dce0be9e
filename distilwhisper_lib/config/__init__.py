"""Every setting of a run with its default and source (settings.py), what presets, methods and
machines set otherwise (presets.py), the run id. Imports io and languages, never torch."""

from distilwhisper_lib import hand_on

__all__, __getattr__, __dir__ = hand_on(
    __name__,
    {
        "settings": (
            "DISTILLED",
            "DOMAINS",
            "LABELS",
            "METHODS",
            "RunConfig",
            "TRAINED",
            "WITH_EXPERTS",
            "decisive",
            "locate",
            "resolve",
        ),
        "presets": ("PRESETS", "SEED"),
    },
)
