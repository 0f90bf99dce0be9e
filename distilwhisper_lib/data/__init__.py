"""Any corpus as one table of clips, and which of them a run reads; a new corpus is a reader in
corpora.py. Imports speech, scoring, config, io and figures."""

from distilwhisper_lib import hand_on

__all__, __getattr__, __dir__ = hand_on(
    __name__,
    {
        "splits": ("RunData", "label_limit", "load_data", "sample_clips"),
        "corpora": ("load_corpus", "open_corpus"),
        "clips": ("Corpus",),
        "common_voice": ("download_common_voice", "unpack_common_voice"),
        "subsets": ("convert_row_numbers",),
        "checklist": (
            "clips_table",
            "dropped_table",
            "preflight",
            "preflight_table",
            "write_data_report",
        ),
        "plots": ("corpus_overview", "preflight_overview"),
    },
)
