"""Make the embedded demo from nothing: speech, tokenizer, teacher, student, experts, manifest.

    python -m benchmarks.demo.build [--stage STAGE] [--work DIR] [--threads N]

Needs espeakng-loader (`pip install -e .[demo-build]`) and about an hour on two cores, with
--stage teacher and --stage student side by side. Everything comes from one seed; what that can and
cannot promise is in REPRODUCIBLE. The stages leave their intermediate files in --work (1.5 GB, not
committed) and their results beside this script.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import platform
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import soundfile
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from benchmarks.demo import lexicon, pair, pretraining, synthesis
from distilwhisper_lib import PACKAGE
from distilwhisper_lib.config.settings import resolve
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.io.files import write_atomic
from distilwhisper_lib.training.loop import train

DEMO = PACKAGE.resolve() / "demo"
STAGES = ("speech", "tokenizer", "teacher", "student", "experts", "pack")
SEED = 77
TARGETS = ("ca", "cs")

# Sentences a language. "pretraining" and "probe" are spoken for the pair and not stored; "ood" is
# the test split of the out-of-domain corpus (other speakers).
STORED = {
    "en": {"test": 200, "ood": 200},
    "ca": {"train": 800, "validation": 100, "test": 200, "ood": 200},
    "cs": {"train": 800, "validation": 100, "test": 200, "ood": 200},
}
UNSTORED = {"probe": 100, "pretraining": 8000}
WORDS_EACH, PAIRS = 15, 2500  # fragments for the curriculum

MERGED_VOCABULARY = 352  # 256 bytes and 96 merges, before the special tokens
OPUS_COMPRESSION = 0.97  # libsndfile's scale 0..1: about 15 kbit/s here
UTTERANCES_PER_FILE = 100
COLUMNS = "id file_name start end text language speaker seconds split".split()
SIZE_LIMIT = 22_000_000  # pair and speech 17.6 MB, two experts 4.3 MB

REPRODUCIBLE = (
    "Sentences, splits, speakers, speeds and tokenizer come out identical. Most audio does; the "
    "voices f2, f5 (seen) and f3 (unseen) differ from process to process (one check: up to 0.14 "
    "in amplitude), and Ogg stream numbers are random, so hashes differ. Weights also depend on "
    "torch, thread count and processor: a second build gives other weights, and how far its word "
    "error rates lie from these has not been measured."
)
CHOSEN = (
    "The student's share of the targets and its number of steps are the third plan tried, chosen "
    "so that both targets are above 40 % WER (the second gave 44.6 ca, 34.4 cs on the test sets): "
    "the student's zero-shot WER is a design of the demo, not a finding."
)


# --- speech ---------------------------------------------------------------------------------------


def sentences_of(language: str) -> dict[str, list[str]]:
    """Disjoint sentences by split. Pretraining comes last, so that its size changes no other."""
    splits = lexicon.split_sentences(language, {**STORED[language], **UNSTORED}, SEED)
    everything = [text for texts in splits.values() for text in texts]
    if len(everything) != len(set(everything)):
        raise RuntimeError(f"{language}: a sentence stands in two splits")
    return splits


def make_speech(work: Path) -> None:
    """The stored corpora, and the pools in `work`; in one go, since espeak-ng keeps state."""
    espeak = synthesis.Espeak()
    noise, rng = synthesis.NoiseBank(SEED), np.random.default_rng(SEED)
    splits = {language: sentences_of(language) for language in STORED}
    corpora: dict[str, list[dict]] = {"speech": [], "speech_ood": []}
    for language, sizes in STORED.items():
        for index, split in enumerate(sizes):
            ood = split == "ood"
            corpus = "speech_ood" if ood else "speech"
            speakers = synthesis.UNSEEN_SPEAKERS if ood else synthesis.SEEN_SPEAKERS
            spoken = synthesis.speak_all(
                espeak, splits[language][split], language, speakers, SEED + index
            )
            noisy = [noise.add(one.samples, rng) for one in spoken]
            # Kept to measure what Opus costs in words.
            np.savez(work / f"uncompressed-{language}-{split}.npz", *noisy)
            corpora[corpus] += store(DEMO / corpus, "test" if ood else split, spoken, noisy)
    for corpus, rows in corpora.items():
        write_metadata(DEMO / corpus / "metadata.csv", rows)
    make_pools(espeak, splits, work)


def store(
    folder: Path, split: str, spoken: list[synthesis.Utterance], noisy: list[np.ndarray]
) -> list[dict]:
    """Write one split as containers of UTTERANCES_PER_FILE; return its metadata rows."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, first in enumerate(range(0, len(spoken), UTTERANCES_PER_FILE)):
        part = slice(first, first + UTTERANCES_PER_FILE)
        name = f"{spoken[0].language}-{split}-{number:02d}.ogg"
        spans = synthesis.write_container(folder / name, noisy[part], OPUS_COMPRESSION)
        for offset, (one, (start, end)) in enumerate(zip(spoken[part], spans, strict=True)):
            rows.append(
                {
                    "id": f"{one.language}-{split}-{first + offset:04d}",
                    "file_name": name,
                    "start": start,
                    "end": end,
                    "text": one.text,
                    "language": one.language,
                    "speaker": one.speaker,
                    "seconds": round(end - start, 4),
                    "split": split,
                }
            )
    return rows


def write_metadata(path: Path, rows: list[dict]) -> None:
    """metadata.csv of an own-folder corpus: UTF-8, one row an utterance."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def make_pools(
    espeak: synthesis.Espeak, splits: dict[str, dict[str, list[str]]], work: Path
) -> None:
    """Speak what the pair is pretrained on (pool.npz) and watched with (probe.npz)."""
    pool, probe = [], []
    for language, parts in splits.items():
        stored = {text for name in STORED[language] for text in parts[name]}
        pieces = lexicon.fragments(
            language, parts["pretraining"], WORDS_EACH, PAIRS, SEED, stored | set(parts["probe"])
        )
        texts = parts["pretraining"] + pieces
        if stored & set(texts):
            raise RuntimeError(f"{language}: a stored sentence is in the pretraining pool")
        speakers = synthesis.SEEN_SPEAKERS
        pool += synthesis.speak_all(espeak, texts, language, speakers, SEED + 10)
        probe += synthesis.speak_all(espeak, parts["probe"], language, speakers, SEED + 11)
    as_pool(pool).save(work / "pool.npz")
    as_pool(probe).save(work / "probe.npz")


def as_pool(spoken: list[synthesis.Utterance]) -> pretraining.Pool:
    """Pack utterances into the flat arrays of a Pool."""
    return pretraining.Pool(
        np.concatenate([(one.samples * 32767).astype(np.int16) for one in spoken]),
        np.cumsum([0] + [len(one.samples) for one in spoken]),
        [one.text for one in spoken],
        [one.language for one in spoken],
    )


# --- tokenizer ------------------------------------------------------------------------------------


def make_processor() -> WhisperProcessor:
    """A byte-level BPE of the pretraining sentences, with Whisper's special tokens in its order."""
    texts = [text for language in STORED for text in sentences_of(language)["pretraining"]]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=MERGED_VOCABULARY, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(texts, trainer)
    model = json.loads(trained.to_str())["model"]
    vocabulary = {**model["vocab"], "<|endoftext|>": len(model["vocab"])}
    tokenizer = WhisperTokenizer(
        vocab=vocabulary,
        merges=[tuple(merge) for merge in model["merges"]],
        pad_token="<|endoftext|>",
        model_max_length=pair.MAX_TARGET_POSITIONS,
    )
    names = ["startoftranscript", *LANGUAGES, "translate", "transcribe", "startoflm"]
    names += ["startofprev", "nospeech", "notimestamps"]
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{n}|>" for n in names]})
    extractor = WhisperFeatureExtractor(chunk_length=int(synthesis.WINDOW_SECONDS))
    return WhisperProcessor(extractor, tokenizer)


def save_processors() -> None:
    """Both models speak the same tokens."""
    processor = make_processor()
    for name in pair.RECIPES:
        pair.save_processor(processor, DEMO / name)


# --- models ---------------------------------------------------------------------------------------


def train_model(name: str, work: Path) -> None:
    """Pretrain the teacher or the student in `work`; only the finished model goes to the demo."""
    pool_path = work / "pool.npz"
    if not pool_path.exists():
        raise UserError(f"{pool_path} is missing: run --stage speech with the same --work first.")
    processor = WhisperProcessor.from_pretrained(DEMO / name)
    log = work / f"{name}.log.jsonl"
    log.unlink(missing_ok=True)
    facts = pretraining.pretrain(
        pair.RECIPES[name],
        pretraining.Pool.load(pool_path),
        load_probe(work / "probe.npz"),
        processor,
        work / name,
        log,
    )
    shutil.copytree(work / name, DEMO / name, dirs_exist_ok=True)
    facts["threads"] = torch.get_num_threads()
    (work / f"{name}.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")


def load_probe(path: Path) -> dict[str, tuple[list[np.ndarray], list[str]]]:
    """Waves (with noise) and texts of unseen sentences, by language."""
    pool = pretraining.Pool.load(path)
    noise, rng = synthesis.NoiseBank(SEED + 1), np.random.default_rng(SEED + 1)
    probe: dict[str, tuple[list[np.ndarray], list[str]]] = {}
    for index, language in enumerate(pool.languages):
        waves, texts = probe.setdefault(language, ([], []))
        waves.append(noise.add(pool.wave(index), rng))
        texts.append(pool.texts[index])
    return probe


# --- manifest -------------------------------------------------------------------------------------


def read_split(corpus: str, language: str, split: str) -> tuple[list[np.ndarray], list[str]]:
    """Waves and texts of one split, decoded from the stored containers."""
    folder = DEMO / corpus
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = [r for r in csv.DictReader(file) if (r["language"], r["split"]) == (language, split)]
    containers = {
        name: soundfile.read(folder / name, dtype="float32")[0]
        for name in {row["file_name"] for row in rows}
    }
    waves = []
    for row in rows:
        first, last = (round(float(row[edge]) * synthesis.SAMPLE_RATE) for edge in ("start", "end"))
        waves.append(containers[row["file_name"]][first:last])
    return waves, [row["text"] for row in rows]


def measure(work: Path) -> dict[str, dict]:
    """Word error rates of both models from the files as stored, and from uncompressed audio."""
    table: dict[str, dict] = {}
    for name in pair.RECIPES:
        model = WhisperForConditionalGeneration.from_pretrained(DEMO / name)
        processor = WhisperProcessor.from_pretrained(DEMO / name)
        for language, sizes in STORED.items():
            for split in (s for s in sizes if s != "train"):
                corpus = "speech_ood" if split == "ood" else "speech"
                waves, texts = read_split(corpus, language, "test" if split == "ood" else split)
                uncompressed = np.load(work / f"uncompressed-{language}-{split}.npz")
                before = [uncompressed[key] for key in uncompressed.files]
                table.setdefault(name, {}).setdefault(language, {})[split] = {
                    kind: round(pair.word_error_rate(model, processor, sound, texts, language), 2)
                    for kind, sound in (("stored", waves), ("uncompressed", before))
                }
    return table


def make_experts() -> None:
    """Ready-made experts for the quickstart: the demo's own JS runs, in half precision."""
    for language in TARGETS:
        config = resolve("js", "demo", language, SEED)
        trained = train(config, load_data(config))
        trained.model.save_experts(
            language, DEMO / "experts", dtype=torch.float16, base=config.student, run=config.run_id
        )


def asset_files() -> dict[str, dict]:
    """SHA-256 and size of every stored file, by its path inside the demo folder."""
    files = {}
    for folder in (*pair.RECIPES, "experts", "speech", "speech_ood"):
        for path in sorted((DEMO / folder).iterdir()):
            content = path.read_bytes()
            files[f"{folder}/{path.name}"] = {
                "sha256": hashlib.sha256(content).hexdigest(),
                "bytes": len(content),
            }
    return files


def write_manifest(work: Path) -> None:
    """Write manifest.json: what the files are, how they were made and how well they do."""
    files = asset_files()
    total = sum(entry["bytes"] for entry in files.values())
    if total > SIZE_LIMIT:
        raise UserError(
            f"The demo weighs {total} bytes, at most {SIZE_LIMIT} are wanted: "
            "raise OPUS_COMPRESSION in build.py and run --stage speech again."
        )
    packages = ("espeakng-loader", "torch", "transformers", "tokenizers", "soundfile", "soxr")
    manifest = {
        "about": "Synthetic speech and a small Whisper pair for the offline demo.",
        "command": "python -m benchmarks.demo.build --stage all",
        "seed": SEED,
        "reproducible": REPRODUCIBLE,
        "chosen": CHOSEN,
        "versions": {
            "python": platform.python_version(),
            "libsndfile": soundfile.__libsndfile_version__,
            **{name: version(name) for name in (*packages, "numpy")},
        },
        "licence": (
            "Sentences, audio and weights were made for this kit and carry its licence (MIT). "
            "The audio is output of espeak-ng (GPL-3), a build-time tool that is not shipped."
        ),
        "corpora": describe_corpora(),
        "models": {
            name: {
                **json.loads((work / f"{name}.json").read_text(encoding="utf-8")),
                "d_model": recipe.d_model,
                "layers": f"{recipe.layers}+{recipe.layers}",
                "ffn": recipe.ffn,
                "seed": recipe.seed,
                "batch_size": recipe.batch_size,
                "share_of_pretraining_pool": recipe.shares,
            }
            for name, recipe in pair.RECIPES.items()
        },
        "word_error_rate_percent": {
            "note": "greedy, fp16 weights computed in float32; ood is the test split of speech_ood",
            **measure(work),
        },
        "total_bytes": total,
        "files": files,
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    write_atomic(DEMO / "manifest.json", text)


def describe_corpora() -> dict:
    """What is stored and what it shares with what the pair was pretrained on."""
    seconds = {}
    for corpus in ("speech", "speech_ood"):
        with (DEMO / corpus / "metadata.csv").open(encoding="utf-8", newline="") as file:
            seconds[corpus] = round(sum(float(row["seconds"]) for row in csv.DictReader(file)), 1)
    return {
        "audio_seconds": seconds,
        "stored_sentences": STORED,
        "pretraining_sentences_a_language": UNSTORED["pretraining"],
        "seen_speakers": synthesis.SEEN_SPEAKERS,
        "unseen_speakers": synthesis.UNSEEN_SPEAKERS,
        "noise_db": synthesis.NOISE_DB,
        "words_per_minute": synthesis.WORDS_PER_MINUTE,
        "opus_compression_level": OPUS_COMPRESSION,
        "overlap": (
            "No sentence stands in two splits, and no stored sentence (train included) is in the "
            "pretraining pool of either model. The words are shared by all splits, and `speech` "
            "has the same speakers in train, validation, test and pretraining; the speakers of "
            "`speech_ood` are heard nowhere else."
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--work", type=Path, default=Path("outputs/demo_build"))
    # These models are so small that on a busy machine a second thread waits more than it helps;
    # run --stage teacher and --stage student side by side instead.
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    actions = {
        "speech": lambda: make_speech(work),
        "tokenizer": save_processors,
        "teacher": lambda: train_model("teacher", work),
        "student": lambda: train_model("student", work),
        "experts": make_experts,
        "pack": lambda: write_manifest(work),
    }
    for stage in STAGES if arguments.stage == "all" else (arguments.stage,):
        print(f"== {stage}", flush=True)
        actions[stage]()


if __name__ == "__main__":
    main()
