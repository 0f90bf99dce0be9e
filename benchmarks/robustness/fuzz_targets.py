"""What is fuzzed: for each reader of files from outside, sound files and the call that reads them.

A target is one line of `TARGETS`: the files, by name, and what reads them from the folder that they
were written into, which is the working folder of the call.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import tarfile
import tempfile
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch

from benchmarks.robustness.target import Escape, Files, Target
from distilwhisper_lib.batch.grid import read_grid
from distilwhisper_lib.batch.notebooks import checked_parameters
from distilwhisper_lib.batch.tasks import expand
from distilwhisper_lib.config import settings as config
from distilwhisper_lib.data import corpora, subsets
from distilwhisper_lib.data.common_voice import unpack_common_voice
from distilwhisper_lib.data.fleurs import REVISION, TEXTS
from distilwhisper_lib.data.inspection import MEMORY
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.explorer.html import notes_html, tokens_html, transcripts_html
from distilwhisper_lib.explorer.runs import Listener, clips_of, find_runs
from distilwhisper_lib.gates.files import load_gates
from distilwhisper_lib.gates.forced import differences, load_forced
from distilwhisper_lib.gates.routes import gate_shares
from distilwhisper_lib.losses import target_files, targets
from distilwhisper_lib.model import authors, experts
from distilwhisper_lib.model.hub import Source
from distilwhisper_lib.model.rounding import rounded
from distilwhisper_lib.model.tensors import read_pickle
from distilwhisper_lib.report.command import shown_tables
from distilwhisper_lib.report.pages import readme_block
from distilwhisper_lib.report.published import COLUMNS, compared, read_published_values
from distilwhisper_lib.report.report import report_html
from distilwhisper_lib.results.costs import cost_table
from distilwhisper_lib.results.exports import write_tables
from distilwhisper_lib.results.hypotheses import read_published
from distilwhisper_lib.results.records import load_records
from distilwhisper_lib.speech import guarded as decoding

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "results" / "demo"
RUN = "js-ca-s77-e3ebbf23"


# Speech --------------------------------------------------------------------------------------


@cache
def recording(form: str) -> bytes:
    """Half a second of a tone as a file of a format; "joined ..." is two such files end to end."""
    if form.startswith("joined "):
        return 2 * recording(form.removeprefix("joined "))
    tone = 0.3 * np.sin(np.arange(12_000) / 9)
    if form in PHONES:
        return encode(*PHONES[form], tone, 24_000)
    buffer = io.BytesIO()
    name, coding = {"opus": ("OGG", "OPUS"), "vorbis": ("OGG", "VORBIS")}.get(form, (form, None))
    soundfile.write(buffer, tone, 24_000, format=name, subtype=coding)
    return buffer.getvalue()


# What PyAV reads: the container and the codec of each.
PHONES = {"m4a": ("mp4", "aac"), "3gp": ("3gp", "aac"), "webm": ("webm", "libopus")}


def encode(
    container: str,
    codec: str,
    samples: np.ndarray,
    rate: int,
    options: dict[str, str] | None = None,
) -> bytes:
    """Mono (samples,) as a file of FFmpeg's; `options` of its container."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=options or {}) as file:
        stream = file.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = rate, 0
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def read_recording(path: Path) -> None:
    """As an upload, and as a clip of a corpus."""
    decoding.read_audio(path.read_bytes())
    decoding.decoded_seconds(path, 60.0)


def common_voice() -> Files:
    head = "client_id\tpath\tsentence\tup_votes\tdown_votes\tlocale"
    rows = [f"s{i}\tcommon_voice_ca_{i}.mp3\tbon dia {i}\t{i}\t0\tca" for i in range(4)]
    folder = "common_voice/ca"
    lengths = "clip\tduration[ms]\n" + "".join(f"common_voice_ca_{i}.mp3\t500\n" for i in range(4))
    clips = {f"{folder}/clips/common_voice_ca_{i}.mp3": recording("mp3") for i in range(2)}
    tables = {f"{folder}/test.tsv": "\n".join([head, *rows]).encode() + b"\n"}
    return tables | {f"{folder}/clip_durations.tsv": lengths.encode()} | clips


def own_folder(form: str) -> Files:
    rows = [
        {"file_name": f"{i}.wav", "text": f"bon dia {i}", "language": "ca", "split": "test",
         "start": 0.1 * i, "end": 0.4, "speaker": "s", "up_votes": i, "seconds": 0.4 - 0.1 * i}
        for i in range(3)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    text = lines if form == "jsonl" else table.to_csv(index=False, sep=";,"[form == "csv"])
    memory = json.dumps({"0.wav/1/1": [0.5, None, "", []]}).encode()
    if form == "spreadsheet":
        sheet = {"speech/metadata.csv": f"sep=;\r\n{text}".encode("utf-16")}
    else:
        sheet = {f"speech/metadata.{form}": text.encode()}
    files = sheet | {f"speech/{MEMORY}": memory}
    return files | {f"speech/{i}.wav": recording("wav") for i in range(3)}


def fleurs_parquet() -> Files:
    import pyarrow
    from pyarrow import parquet

    rows = [
        {"id": i, "num_samples": 8000, "path": f"{i}.wav", "gender": 0,
         "audio": {"bytes": recording("wav"), "path": f"{i}.wav"},
         **dict.fromkeys(TEXTS, "bon dia")}
        for i in range(2)
    ]  # fmt: skip
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return {"fleurs/ca_es/test-00000.parquet": buffer.getvalue()}


def fleurs_index() -> Files:
    """What unpacking leaves, of a revision of the hub."""
    data, folder = recording("wav"), f"fleurs/ca_es/audio/{REVISION}/test"
    clips = [
        {"file": f"{i}.wav", "sentence_id": str(i), "bytes": len(data), "seconds": 0.5,
         **dict.fromkeys(TEXTS, "bon dia")}
        for i in range(2)
    ]  # fmt: skip
    broken = [{"file": "9.wav", "reason": "empty file", "detail": "9.wav"}]
    index = {"files": [], "clips": clips, "broken": broken}
    clips = {f"{folder}/{i}.wav": data for i in range(2)}
    return {f"{folder}/clips.json": json.dumps(index).encode(), **clips}


def read_corpus(name: str, folder: Path) -> None:
    """As a run does: table, choice, recordings; all of them within the folder."""
    corpus = corpora.open_corpus(name, "ca", "test", folder)
    table, _ = subsets.take_usable(corpus, None, 30.0)
    for audio in table["audio"]:
        if not Path(audio).resolve().is_relative_to(folder.resolve()):
            raise Escape(f"the table names {audio}")
    corpora.corpus_hash(table)


def release() -> Files:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in common_voice().items():
            inside = name.replace("common_voice", "cv-corpus-13.0-2023-03-09")
            member = tarfile.TarInfo(inside)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return {"ca.tar.gz": buffer.getvalue()}


# Results -------------------------------------------------------------------------------------


@cache
def committed(*patterns: str) -> Files:
    """Files of the demo's results, where the notebooks would find them."""
    found = (path for pattern in patterns for path in sorted(DEMO.glob(pattern)))
    return {f"results/demo/{p.relative_to(DEMO)}": p.read_bytes() for p in found}


def read_records(folder: Path) -> None:
    """Every table made of records, as the notebook and the command line do."""
    records = load_records(folder / "results/demo")
    shown_tables(records)
    readme_block(records)
    write_tables(records, folder / "tables")
    cost_table(records)


def read_hypotheses(folder: Path) -> None:
    for record in load_records(folder / "results/demo"):
        for evaluation in record["evaluations"]:
            read_published(folder / "results/demo", restamped(folder, record), evaluation)


def restamped(folder: Path, record: dict) -> dict:
    """The record of a forger, who has adapted it to the hypotheses; every second time."""
    for evaluation in record["evaluations"]:
        name = f"{record['run_id']}-{evaluation['domain']}.jsonl.gz"
        data = (folder / "results/demo/hypotheses" / name).read_bytes()
        if hashlib.sha256(data).digest()[0] % 2:
            try:
                content = gzip.decompress(data)
            except (OSError, EOFError, zlib.error):
                continue
            evaluation["published_sha256"] = hashlib.sha256(content).hexdigest()
    return record


def read_gates(folder: Path) -> None:
    """The figure, and the explorer of a run whose model is not here."""
    load_gates(folder / "results/demo")
    gate_shares(load_gates(folder / "results/demo"))
    here, listener = config.resolve("js", "demo", "ca"), Listener()
    for run in find_runs(here)[0]:
        for clip in clips_of(run, "in_domain", 1):
            scene = listener.scene(run, clip)
            for shown in (tokens_html(scene), transcripts_html(scene), notes_html(scene.notes)):
                if "<script" in shown:
                    raise Escape("a script reached the page")


def published() -> Files:
    row = "js,800,folder/speech,ca,12.3,Table 1\n"
    return {"published.csv": (",".join(COLUMNS) + "\n" + row).encode()}


def read_published_csv(folder: Path) -> None:
    values = read_published_values(folder / "published.csv")
    compared(load_records(DEMO), values)


def read_report(folder: Path) -> None:
    shown = report_html(load_records(folder / "results/demo"), folder / "results/demo")
    if "<script" in shown:
        raise Escape("a script reached the page")


# Tensors -------------------------------------------------------------------------------------


WHOLE = {"fc1.weight": (8, 4), "fc1.bias": (8,), "fc2.weight": (4, 8), "fc2.bias": (4,)}
LOW_RANK = {"fc1.down.weight": (2, 4), "fc1.up.weight": (8, 2), "fc2.down.weight": (2, 8),
            "fc2.up.weight": (4, 2)}  # fmt: skip
GATE = {"gate.inner.weight": (2, 4), "gate.inner.bias": (2,), "gate.outer.weight": (1, 2)}


def tensors(shapes: dict[str, tuple[int, ...]] = WHOLE) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {f"encoder.0.{n}": torch.randn(s, generator=draw) for n, s in (shapes | GATE).items()}


def expert_files(layout: str) -> Files:
    from safetensors.torch import save

    about = {"format": "pt", "version": experts.FORMAT_VERSIONS[0], "language": "ca", "base": "x"}
    if layout == "kit":
        return {"expert.catalan.safetensors": save(tensors(), about)}
    if layout in ("low-rank", "int8"):
        about |= {"version": "2"} | ({"weights": "int8"} if layout == "int8" else {})
        dtype = torch.int8 if layout == "int8" else torch.float32
        return {"expert.catalan.safetensors": save(rounded(tensors(LOW_RANK), dtype), about)}
    theirs = experts.to_model_names(tensors(), "ca")
    buffer = io.BytesIO()
    torch.save({authors.their_name(name): t for name, t in theirs.items()}, buffer)
    return {"expert.catalan.bin": buffer.getvalue()}


def read_expert(folder: Path) -> None:
    path = experts.find_expert("ca", Source(folder))
    experts.read_expert(experts.up_to_date(path, convert=False), "ca")
    if path.suffix == ".bin":
        read_pickle(path)
        experts.convert_expert(path, "ca")


IDENTITY = {"mode": "hidden", "teacher": "x"}
PLACES = target_files.plan({"a": 3, "b": 2}, 2 * 8)


@cache
def cache_files() -> Files:
    with tempfile.TemporaryDirectory() as folder:
        files = target_files._Files(Path(folder), IDENTITY, PLACES)
        files.add(target_files.HEAD, {"head": torch.ones(5, 8).half()})
        files.add(PLACES[0].shard, {"states": torch.ones(5, 8).half()})
        files.finish()
        return {f"cache/{p.name}": p.read_bytes() for p in Path(folder).iterdir()}


def read_cache(folder: Path) -> None:
    """Every second time as a forger left it, with digests that fit."""
    where = folder / "cache"
    shard = where / PLACES[0].shard
    if hashlib.sha256(shard.read_bytes()).digest()[0] % 2:
        try:
            index = json.loads((where / target_files.INDEX).read_bytes())
            for entry in index["files"]:
                data = (where / entry["file"]).read_bytes()
                entry |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            (where / target_files.INDEX).write_text(json.dumps(index))
        except (ValueError, KeyError, TypeError, OSError, RecursionError):
            pass
    found = targets._found(where, IDENTITY, PLACES, rebuild=False)
    if found is None:
        target_files._Files(where, IDENTITY, PLACES)  # what going on from there begins with
        return
    found.teacher()
    for clip in found.places:
        found.read(clip)


# Text ----------------------------------------------------------------------------------------


def subset_files() -> Files:
    body = "a\nb\n"
    stamp = hashlib.sha256(body.encode()).hexdigest()
    old = "client_id\tpath\n" + "".join(f"s\tclips/{name}.mp3\n" for name in "abc")
    return {"subset.txt": f"# sha256 {stamp}\n{body}".encode(), "rows.txt": b"[0, 2]\n1",
            "old.tsv": old.encode()}  # fmt: skip


def read_subsets(folder: Path) -> None:
    columns = dict.fromkeys(corpora.COLUMNS, math.nan)
    table = pd.DataFrame([columns | {"id": name, "text": name} for name in "abc"])
    faults = []
    for read in (
        lambda: subsets.by_id(table, subsets.read_subset(folder / "subset.txt")),
        lambda: subsets.convert_row_numbers(
            folder / "rows.txt", folder / "old.tsv", table, folder / "new.txt"
        ),
    ):
        try:
            read()
        except UserError as error:
            faults.append(error)
    if faults:
        raise faults[0]


def grid_file() -> Files:
    text = """\
languages: [ca, cs]
seeds: [77, 78]
studies:
  - {presets: [demo], methods: [clsr, js], overrides: {budget: 0.3}}
  - {presets: [cv10k], languages: [th], tables: false}
"""
    return {"grid.yaml": text.encode()}


def read_forced_gates(folder: Path) -> None:
    for forced in load_forced(folder / "results/demo"):
        for domain in forced["domains"]:
            differences(forced, domain, resamples=100)


def overrides() -> Files:
    given = {"max_steps": 2, "student": "x/y", "in_domain": "folder/speech", "forgetting": "fr",
             "learning_rate": "1e-4", "train_size": None, "hardware": "cpu"}  # fmt: skip
    return {"overrides.json": json.dumps(given).encode()}


def read_overrides(folder: Path) -> None:
    text = (folder / "overrides.json").read_text(encoding="utf-8", errors="replace")
    found = config.resolve("js", "own", "ca", overrides=text)
    assert found.run_id and found._repr_html_() and found.overrides() is not None


def notebook() -> Files:
    return {"n.ipynb": (ROOT / "notebooks" / "04_clsr_only.ipynb").read_bytes()}


def read_notebook(folder: Path) -> None:
    checked_parameters(folder / "n.ipynb", {"seed": "7", "overrides": "{}"})


TARGETS: dict[str, Target] = {
    **{
        f"audio {form}": Target(
            lambda form=form: {f"a.{form}": recording(form)},
            lambda folder, form=form: read_recording(folder / f"a.{form}"),
        )
        for form in (
            "wav",
            "flac",
            "mp3",
            "vorbis",
            "opus",
            "aiff",
            "w64",
            "rf64",
            "caf",
            "au",
            "nist",
            *PHONES,
            "joined wav",
            "joined mp3",
            "joined opus",
            "joined flac",
            "joined w64",
            "joined webm",
        )
    },
    "common voice": Target(common_voice, lambda folder: read_corpus("common_voice", folder)),
    "folder csv": Target(lambda: own_folder("csv"), lambda f: read_corpus("folder/speech", f)),
    "folder spreadsheet": Target(
        lambda: own_folder("spreadsheet"), lambda f: read_corpus("folder/speech", f)
    ),
    "folder jsonl": Target(lambda: own_folder("jsonl"), lambda f: read_corpus("folder/speech", f)),
    "fleurs parquet": Target(fleurs_parquet, lambda folder: read_corpus("fleurs", folder)),
    "fleurs index": Target(fleurs_index, lambda folder: read_corpus("fleurs", folder)),
    "archive": Target(release, lambda f: unpack_common_voice(f / "ca.tar.gz", f / "data")),
    "records": Target(lambda: committed("runs/js-ca-*", "runs/lora-cs-*"), read_records),
    "report": Target(lambda: committed(f"*/{RUN}*"), read_report),
    "hypotheses": Target(lambda: committed(f"*/{RUN}*"), read_hypotheses),
    "gate files": Target(lambda: committed(f"*/{RUN}.json"), read_gates),
    "published.csv": Target(published, read_published_csv),
    "expert safetensors": Target(lambda: expert_files("kit"), read_expert),
    "expert low-rank": Target(lambda: expert_files("low-rank"), read_expert),
    "expert int8": Target(lambda: expert_files("int8"), read_expert),
    "expert bin": Target(lambda: expert_files("authors"), read_expert),
    "target cache": Target(cache_files, read_cache),
    "subset files": Target(subset_files, read_subsets),
    "overrides": Target(overrides, read_overrides),
    "grid files": Target(grid_file, lambda f: expand(read_grid(f / "grid.yaml"), ROOT)),
    "forced gates": Target(lambda: committed("gates/forced/js-ca-*"), read_forced_gates),
    "notebooks": Target(notebook, read_notebook),
}
