"""Chunked loss against the plain form on logits: seconds of CPU and peak memory, whisper-small.

    python benchmarks/loss_block.py [positions ...]

JS with a teacher of large-v2's width, forward and backward, one process a measurement, one thread.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import torch

from distilwhisper_lib.loss_block import States, token_losses
from distilwhisper_lib.losses import cross_entropy, divergence

VOCABULARY, STUDENT, TEACHER = 51865, 768, 1280
ROUNDS = 3


def measure(form: str, positions: int) -> None:
    """Print the median seconds, the memory above what the inputs take in MiB, and the losses."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    states = (torch.randn(1, positions, width) for width in (STUDENT, TEACHER))
    heads = (torch.randn(VOCABULARY, width).mul_(0.05) for width in (STUDENT, TEACHER))
    student, teacher = map(States, states, heads)
    labels = torch.randint(0, VOCABULARY, (1, positions))
    student.states.requires_grad_()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        if form == "chunked":
            ce, distil = token_losses(student, labels, teacher, "js")
        else:
            logits, said = (states @ head.T for states, head in (student, teacher))
            ce, distil = cross_entropy(logits, labels), divergence(logits, said, "js")
        (ce + 2 * distil).backward()
        seconds.append(time.process_time() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(
        f"{form:8} {positions:5} positions: {sorted(seconds)[ROUNDS // 2]:7.2f} s "
        f"{peak / 1024:8.0f} MiB   CE {ce:.6f}  JS {distil:.6f}"
    )


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in ("plain", "chunked"):
        measure(sys.argv[1], int(sys.argv[2]))
    else:
        for count in sys.argv[1:] or ("240", "960"):
            for form in ("plain", "chunked"):
                subprocess.run([sys.executable, __file__, form, count], check=True)
