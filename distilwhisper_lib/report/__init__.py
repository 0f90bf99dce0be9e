"""Pages made of records: the HTML report, the READMEs' blocks, reproduce.md, the sentences scored
again. Imports results, gates and figures; its commands read and need no torch."""

from distilwhisper_lib import hand_on

__all__, __getattr__, __dir__ = hand_on(
    __name__,
    {
        "report": ("write_report",),
        "pages": ("notes", "update_readme"),
        "published": ("compared", "read_published_values"),
    },
)
