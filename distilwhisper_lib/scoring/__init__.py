"""What an error is: the normalisers (text.py), WER and CER (rates.py; metric.py as an evaluate
metric), alignment, intervals and p-values by speakers (resampling.py). Imports errors and
languages only; never torch but through evaluate."""

from distilwhisper_lib import hand_on

__all__, __getattr__, __dir__ = hand_on(
    __name__,
    {
        "rates": ("METRICS", "score", "utterance_errors"),
        "metric": ("AsrErrors",),
        "text": ("NORMALIZERS",),
        "alignment": ("Alignment", "align"),
        "resampling": ("generator", "holm", "interval", "resampled_rates", "swap_p_value"),
    },
)
