"""What the kit claims, as commands: races (``python -m benchmarks``), faults, fuzz, growth..."""
