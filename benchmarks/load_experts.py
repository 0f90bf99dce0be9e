"""How long load_experts takes at whisper-small's real dimensions, and how much memory.

A whisper-small with random weights, and random experts in the authors' layout (168 tensors, 458 MB
in float32) and in the kit's, are written to a temporary folder; nothing is downloaded. Each layout
is then loaded again and again in a process of its own. Run on Linux, from the repository's root:

    python benchmarks/load_experts.py

"Anonymous" memory is what the process itself holds; resident memory adds the pages of mapped
files, which the system can drop whenever it needs room.

Measured on two shared vCPUs with warm files (torch 2.13, transformers 5.23): .bin 0.3 to 0.5 s,
safetensors 0.2 to 0.6 s; anonymous memory +458 MB, the expert itself, at the peak and afterwards,
and the same after ten further loads and ten removals; resident peak +0.9 GB with the mapped file.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import GenerationConfig

from distilwhisper_lib.model import DistilWhisperConfig, DistilWhisperForConditionalGeneration

SMALL = dict(
    vocab_size=51865, d_model=768, encoder_layers=12, decoder_layers=12,
    encoder_attention_heads=12, decoder_attention_heads=12, encoder_ffn_dim=3072,
    decoder_ffn_dim=3072,
)  # fmt: skip
LOADS = 10
MB = 10**6


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    if arguments:
        measure(*map(Path, arguments))
        return
    with tempfile.TemporaryDirectory() as folder:
        base, files = write_files(Path(folder))
        for path in files:
            print(f"\n{path.name}: {describe(path)}", flush=True)
            subprocess.run([sys.executable, __file__, str(base), str(path)], check=True)


def write_files(folder: Path) -> tuple[Path, list[Path]]:
    """A random whisper-small and one random expert in both layouts: (base, expert files)."""
    model = DistilWhisperForConditionalGeneration(DistilWhisperConfig(**SMALL))
    model.generation_config = GenerationConfig(lang_to_id={"<|ca|>": 50270})
    model.save_pretrained(folder / "base")
    model.add_expert("catalan")
    layouts = ("authors", "kit")
    return folder / "base", [model.save_experts("ca", folder / x, layout=x) for x in layouts]


def describe(path: Path) -> str:
    """How many tensors and values a file holds."""
    if path.suffix == ".bin":
        shapes = [t.shape for t in torch.load(path, weights_only=True, mmap=True).values()]
    else:
        with safe_open(path, "pt") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]
    values = sum(torch.Size(shape).numel() for shape in shapes)
    return f"{len(shapes)} tensors, {values:,} values, {path.stat().st_size / MB:,.0f} MB"


def measure(base_folder: Path, path: Path) -> None:
    """Load LOADS times, then remove and load again, and print what it took."""
    model = DistilWhisperForConditionalGeneration.from_pretrained(base_folder)
    base = memory()
    print(f"  base model in memory: {base['RssAnon'] / MB:,.0f} MB anonymous")
    rows = [watched(lambda: model.load_experts("catalan", path)) for _ in range(LOADS)]
    for name, row in (("first", rows[0]), ("second", rows[1]), (f"{LOADS}th", rows[-1])):
        print(
            f"  {name} load: {row['seconds']:.2f} s; anonymous memory over the base: "
            f"peak {(row['RssAnon'] - base['RssAnon']) / MB:+,.0f} MB, "
            f"afterwards {(row['after'] - base['RssAnon']) / MB:+,.0f} MB; "
            f"resident peak {(row['VmRSS'] - base['VmRSS']) / MB:+,.0f} MB"
        )
    for _ in range(LOADS):
        model.remove_expert("catalan")
        model.load_experts("catalan", path)
    after = memory()["RssAnon"]
    held = (after - base["RssAnon"]) / MB
    print(f"  after {LOADS} times remove and load: {held:+,.0f} MB anonymous")


def watched(action) -> dict[str, float]:
    """Run an action: its seconds, the memory peaks meanwhile, the anonymous memory afterwards."""
    peaks, done = memory(), threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            for name, value in memory().items():
                peaks[name] = max(peaks[name], value)

    thread = threading.Thread(target=watch)
    thread.start()
    begin = time.perf_counter()
    action()
    seconds = time.perf_counter() - begin
    done.set()
    thread.join()
    return {**peaks, "seconds": seconds, "after": memory()["RssAnon"]}


def memory() -> dict[str, int]:
    """Bytes of this process in memory: all (VmRSS) and its own (RssAnon)."""
    status = Path("/proc/self/status").read_text()
    kilobytes = re.findall(r"^(VmRSS|RssAnon):\s+(\d+) kB$", status, re.MULTILINE)
    return {name: int(value) * 1024 for name, value in kilobytes}


if __name__ == "__main__":
    main(sys.argv[1:])
