"""Files: written whole or not at all, JSON checked against what it must hold, no token or home
path let out. Imports errors and languages only."""

from distilwhisper_lib import hand_on

__all__, __getattr__, __dir__ = hand_on(
    __name__,
    {
        "files": ("alone", "parse_json", "sha256_file", "told", "write_atomic"),
        "checked": ("one_of", "read_json"),
        "leaks": ("mask", "write_public"),
    },
)
