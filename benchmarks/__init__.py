"""Races that show what the kit's optimisations are worth: ``python -m benchmarks``."""
