"""The embedded demo: a small Whisper pair and synthetic speech, with the script that made them."""
