"""A run is opened (run.py), hears its test clips (decoding.py), also with gates forced (forced.py),
and is written down (record.py, the one place that makes a record). Imports gates, data, model,
results and speech."""

from distilwhisper_lib import hand_on

__all__, __getattr__, __dir__ = hand_on(
    __name__,
    {
        "run": ("Run", "load_run"),
        "decoding": ("transcribe",),
        "record": ("evaluate", "record_run", "scores_table", "written"),
        "forced": ("ensure_forced", "hear_forced"),
        "translation": ("pair_with_english", "score_translation", "translate"),
    },
)
