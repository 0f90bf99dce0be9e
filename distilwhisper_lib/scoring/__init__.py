"""What an error is: the normalisers, WER and CER, who is aligned with whom, intervals and p-values
by speakers. Imports errors and languages only, and never torch."""

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
