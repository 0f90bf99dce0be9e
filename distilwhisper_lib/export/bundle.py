"""A trained run as files that others can use: plain Whisper, or what was trained, with a card.

A *plain* Whisper loads with stock transformers, and converts to ctranslate2 for faster-whisper: a
LoRA adapter is merged into the weights, an expert, or the sum of what a low-rank one changes and
its change, takes the place of the feed-forward networks (as if its gates were always open), a
fine-tuned model is itself. ``python -m distilwhisper_lib.export.bundle outputs/<run> --to
my-whisper`` does it.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peft import PeftModel
from transformers import (
    PreTrainedModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

from distilwhisper_lib.data.splits import sample_clips
from distilwhisper_lib.errors import UserError, command
from distilwhisper_lib.evaluation.decoding import transcribe
from distilwhisper_lib.evaluation.run import Run, add_run_arguments, load_run
from distilwhisper_lib.export.card import model_card
from distilwhisper_lib.hardware import best_device
from distilwhisper_lib.io.checked import Maybe, check, one_of, read_json
from distilwhisper_lib.io.files import flush_to_disk, sha256_file, told, write_atomic
from distilwhisper_lib.languages import whisper_language
from distilwhisper_lib.model.experts import (
    read_expert,
    to_model_names,
    whole_networks,
    write_expert,
)
from distilwhisper_lib.model.loading import padding_all
from distilwhisper_lib.model.rounding import DTYPES, rounded
from distilwhisper_lib.model.whisper import DistilWhisperForConditionalGeneration
from distilwhisper_lib.scoring.rates import score

FORMS = ("whisper", "trained")
MANIFEST = "export.json"
MANIFEST_SCHEMA = 1
_MANIFEST_KINDS = {
    "run_id": str,
    "what": str,
    "demo": bool,
    "comparison": Maybe(dict),
    "files": {str: str},
}

# Plain Whisper -------------------------------------------------------------------------------


def plain_whisper(model: Any, language: str | None = None) -> WhisperForConditionalGeneration:
    """A stock Whisper of the same weights; ``model`` stays as it is.

    A peft model has its adapter merged. Of a model with experts, ``language`` names the one that
    takes the feed-forward networks' place; without it the shared branch stays, which is the base
    model. The result is what gate_mode="open" computes for that language, and it does that for
    every language, because nothing is left to decide by.
    """
    if isinstance(model, PeftModel):
        model = copy.deepcopy(model).merge_and_unload()
    state = {k: v for k, v in model.state_dict().items() if ".clsr." not in k}
    if language is not None:
        state |= _expert_in_place(model, language)
    fields = model.config.to_dict()
    ours = set(fields) - set(WhisperConfig().to_dict())
    fields = {k: v for k, v in fields.items() if k not in ours | {"model_type", "architectures"}}
    with torch.device("meta"):
        plain = WhisperForConditionalGeneration(WhisperConfig.from_dict(fields))
    plain.load_state_dict(state, assign=True)
    plain.tie_weights()
    plain.generation_config = generation = copy.deepcopy(model.generation_config)
    borrowers = {f"<|{code}|>" for code in getattr(model.config, "speaks_as", None) or {}}
    if borrowers:  # stock Whisper is asked for their lenders
        tokens = generation.lang_to_id.items()
        generation.lang_to_id = {name: token for name, token in tokens if name not in borrowers}
    return plain.eval()


def _expert_in_place(
    model: DistilWhisperForConditionalGeneration, language: str
) -> dict[str, torch.Tensor]:
    code, _ = whisper_language(language)
    if code not in getattr(model, "languages", []):
        raise UserError(
            f"the model has no expert for {language!r}: load_experts() it first, or name another"
        )
    places = to_model_names(whole_networks(model, code), code).items()
    return {name.replace(f".clsr.{code}.", "."): tensor for name, tensor in places}


def compare_with_plain(
    run: Run,
    plain: PreTrainedModel,
    table: pd.DataFrame,
) -> pd.DataFrame:
    """Error rates in per cent of the run's model beside those of the plain Whisper made of it.

    ``table``: clips with references, such as the run's in-domain test set. One row a model;
    "same text" is the share of clips on which both say the same.
    """
    models = {
        "as trained": (run.model, run.processor),
        "plain Whisper": (plain, padding_all(run.processor)),
    }
    heard, rows = {}, {}
    for name, (model, processor) in models.items():
        begin = time.perf_counter()
        heard[name] = transcribe(
            model.to(best_device()),
            processor,
            table,
            max_new_tokens=run.config.max_new_tokens,
            batch_size=run.config.eval_batch_size,
            progress=False,
        )
        seconds = time.perf_counter() - begin
        scores = score(heard[name], run.config.language)
        rows[name] = {"clips": len(table)} | {
            f"{metric.upper()} ({rule})": round(100 * scores[rule][metric][metric], 2)
            for rule in scores
            for metric in ("wer", "cer")
        }
        rows[name] |= {"seconds": round(seconds, 1)}
    found = pd.DataFrame.from_dict(rows, orient="index")
    pairs = zip(*heard.values(), strict=True)
    found["same text"] = sum(a["hypothesis"] == b["hypothesis"] for a, b in pairs) / len(table)
    return found


# Folders -------------------------------------------------------------------------------------


def export_run(
    run: Run | str | Path,
    to: str | Path,
    form: str = "whisper",
    *,
    dtype: str = "float32",
    compare: pd.DataFrame | None = None,
    license: str | None = None,
) -> Path:
    """Write a run into a new folder ``to``, with a model card and a list of what is in it.

    ``form`` "whisper": a plain Whisper, for stock transformers and the ctranslate2 converter.
    "trained": what the run trained and no more, an expert file or a LoRA adapter (a fine-tuned
    model is a plain Whisper). ``dtype``: of an expert file, "float32" (as trained), "float16" or
    "int8", see model/rounding.py. ``compare``: clips on which both forms are scored, for the card;
    an expert folded in is another model than the one with gates, so without ``compare`` its card
    shows no scores, unless the run's gates are always open. ``license``: of the weights, as the hub
    writes it; None for the base model's where that is known. Raises UserError when ``to`` is there
    already, and for a ``dtype`` that is unknown or, but for float32, not of an expert file.
    """
    run = run if isinstance(run, Run) else load_run(run)
    if form not in FORMS:
        raise UserError(f"form {form!r} is unknown: expected one of {', '.join(FORMS)}")
    to = Path(to)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"{to} is there already: name a new folder, or move it away")
    method = run.config.method
    whisper = form == "whisper" or method == "full"
    what = (
        {"lora": "merged", "full": "full"}.get(method, "folded")
        if whisper
        else ("adapter" if method == "lora" else "expert")
    )
    one_of("dtype", dtype, tuple(DTYPES))
    if dtype != "float32" and what != "expert":
        raise UserError(
            f"dtype {dtype!r} is for expert files, and this export is none: leave it out, or name "
            "a run with an expert and form 'trained'"
        )
    with _new_folder(to) as folder:
        comparison = size = None
        if whisper:
            plain = plain_whisper(run.model, run.config.language if what == "folded" else None)
            plain.config.learned_timestamps = run.config.timestamps  # Transcriber goes by it
            if compare is not None:
                comparison = compare_with_plain(run, plain, compare)
            write_whisper(plain.cpu(), padding_all(run.processor), folder)
        elif what == "adapter":
            _write_adapter(run, folder)
        else:
            size = _write_expert(run, folder, dtype).stat().st_size
        card = model_card(
            run.record,
            what,
            comparison=comparison,
            license=license,
            size=size,
            dtype=dtype,
            base_folder=Path(run.base or run.config.student).is_dir(),
        )
        write_atomic(folder / "README.md", card)
        _write_manifest(run, what, comparison, folder)
    return to


def write_whisper(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, folder: str | Path
) -> None:
    """A model folder that stock transformers loads and the ctranslate2 converter takes."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    # transformers 5 keeps this in processor_config.json, where older readers do not look.
    processor.feature_extractor.save_pretrained(folder)


def to_ctranslate2(folder: str | Path, to: str | Path, quantization: str | None = None) -> Path:
    """Convert a plain Whisper folder for ctranslate2 and faster-whisper; needs ctranslate2.

    ``quantization``: such as "int8" or "float16"; None keeps the weights' type.
    """
    try:
        from ctranslate2.converters import TransformersConverter
    except ImportError:
        raise UserError(
            "ctranslate2 is not installed: pip install 'distilwhisper-lib[faster-whisper]', or "
            "pip install 'ctranslate2>=4.6'"
        ) from None
    if Path(to).exists():
        raise UserError(f"{to} is there already: name a new folder, or move it away")
    # faster-whisper looks for these two beside the weights.
    files = ["tokenizer.json", "preprocessor_config.json"]
    TransformersConverter(str(folder), copy_files=files).convert(str(to), quantization=quantization)
    return Path(to)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """What export_run() wrote into a folder: run, form, and the files with their SHA-256."""
    path = Path(folder) / MANIFEST
    missing = f"{folder} is no export (no {MANIFEST}): make one with export_run()"
    manifest = read_json(path, missing, "export the run again")
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != MANIFEST_SCHEMA:
        raise UserError(
            f"{path} has schema {schema!r}, expected {MANIFEST_SCHEMA}: export the run again"
        )
    check(manifest, _MANIFEST_KINDS, path, "export the run again")
    return manifest


def _write_manifest(run: Run, what: str, comparison: pd.DataFrame | None, folder: Path) -> None:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    manifest = {
        "schema": MANIFEST_SCHEMA,
        "run_id": run.record["run_id"],
        "what": what,
        "demo": run.record["demo"],
        "comparison": None if comparison is None else comparison.to_dict("index"),
        "files": {path.name: sha256_file(path) for path in files},
    }
    write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def _write_expert(run: Run, folder: Path, dtype: str) -> Path:
    """The run's expert file, its base named as in the record: no path of this machine."""
    (path,) = run.folder.glob("expert.*.safetensors")
    tensors, about = read_expert(path, run.config.language)
    about |= {"base": run.record["models"]["student"]["name"]}
    return write_expert(rounded(tensors, DTYPES[dtype]), run.config.language, folder, about)


def _write_adapter(run: Run, folder: Path) -> None:
    """The run's adapter; peft notes where the base lay on this machine, which nobody needs."""
    source = run.folder / "adapter"
    fields = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    fields["base_model_name_or_path"] = run.record["models"]["student"]["name"]
    # So that peft finds a class on a machine without this kit: the modules are stock Whisper's.
    fields["auto_mapping"] = {
        "base_model_class": "WhisperForConditionalGeneration",
        "parent_library": "transformers.models.whisper.modeling_whisper",
    }
    write_atomic(folder / "adapter_config.json", json.dumps(fields, indent=2) + "\n")
    shutil.copyfile(source / "adapter_model.safetensors", folder / "adapter_model.safetensors")


@contextmanager
def _new_folder(to: Path) -> Iterator[Path]:
    """A folder that takes its name once it is complete and on the disk."""
    with told(to):
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}.") as scratch:
            made = Path(scratch) / to.name
            made.mkdir()
            yield made
            for path in filter(Path.is_file, made.iterdir()):
                flush_to_disk(path)
            if to.exists():  # empty, as export_run() made sure
                to.rmdir()
            made.rename(to)


# The command ----------------------------------------------------------------------------------


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m distilwhisper_lib export")
    add_run_arguments(parser)
    parser.add_argument("--to", required=True, help="a new folder")
    parser.add_argument("--form", default="whisper", choices=FORMS)
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of an expert file")
    parser.add_argument("--compare", action="store_true", help="score both forms in domain")
    parser.add_argument("--license", help="of the weights, as the hub writes it")
    parser.add_argument("--ctranslate2", metavar="FOLDER", help="also convert, into this folder")
    given = parser.parse_args(arguments)
    run = load_run(given.run, given.base, given.data_dir)
    clips = sample_clips(run.config, run.config.test_size) if given.compare else None
    options = {"dtype": given.dtype, "compare": clips, "license": given.license}
    folder = export_run(run, given.to, given.form, **options)
    if given.ctranslate2:
        to_ctranslate2(folder, given.ctranslate2)
    manifest = read_manifest(folder)
    if manifest["comparison"]:
        print(pd.DataFrame.from_dict(manifest["comparison"], orient="index").to_string())
    print(f"{folder}: {', '.join(manifest['files'])}")
    return 0
