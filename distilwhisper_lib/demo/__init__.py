"""The demo's data: a pair of small Whispers, their experts and speech of espeak-ng. No code:
benchmarks/demo made them, and `config.locate("embedded/...")` finds them."""
