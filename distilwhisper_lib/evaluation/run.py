"""A run and its folder: what was trained, read back, and one process at a time in there."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import os
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import WhisperProcessor

from distilwhisper_lib import ranks
from distilwhisper_lib.config.settings import TRAINED, Record, RunConfig
from distilwhisper_lib.data.splits import RunData, data_of
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.io.files import alone, told, write_atomic
from distilwhisper_lib.model.loading import load_model, model_settings, read_trained
from distilwhisper_lib.model.tensors import weights_hash
from distilwhisper_lib.model.whisper import DistilWhisperForConditionalGeneration
from distilwhisper_lib.results.records import read_record

RECORD = "record.json"


@dataclass(frozen=True)
class Run:
    """A run's model, ready to transcribe, and how it came to be: of train() or load_run().

    ``model``: with its expert, its LoRA adapter, fine-tuned, or as it was loaded. ``models`` names
    and hashes what it started from; ``training`` is what training said, None where nothing trains;
    ``base`` is where its base model lies, if not at ``config.student``.
    """

    folder: Path
    config: RunConfig
    model: Any
    processor: WhisperProcessor
    models: dict[str, Any]
    training: dict[str, Any] | None
    base: str | None = None

    @cached_property
    def record(self) -> Record:
        """What the run's folder tells of it; UserError as long as record_run() has not been."""
        return _record_in(self.folder)


def is_run(folder: str | Path) -> bool:
    """Whether a folder holds a finished run."""
    return (Path(folder) / RECORD).is_file()


def read_config(record: Record) -> RunConfig:
    """The configuration that a record tells of; settings this version does not know are left out.

    A path on the machine of the run has lost its folders in the record, see RunConfig.published.
    """
    known = typing.get_type_hints(RunConfig)
    return RunConfig(**{k: v for k, v in record["config"].items() if k in known})


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """A command's arguments ``run``, ``base`` and ``data_dir``: those of load_run()."""
    parser.add_argument("run", help="folder of a finished run in outputs/")
    parser.add_argument("--base", help="the base model, where it lay in a folder of its own")
    parser.add_argument("--data-dir", help="its recordings, where they lay in a folder of its own")


def load_run(folder: str | Path, base: str | None = None, data_dir: str | None = None) -> Run:
    """Load what a run of this kit trained, from its folder in outputs/.

    ``base``: the model it started from, and ``data_dir``: its recordings, each needed only where
    it lay in a folder of its own. Raises UserError when there is no finished run that trained
    something, or when the weights are not those of its record.
    """
    folder = Path(folder)
    record = _record_in(folder)
    config = read_config(record)
    if config.method not in TRAINED:
        raise UserError(
            f"run {record['run_id']} trained nothing (method {config.method!r}): name a run of "
            f"{', '.join(TRAINED)}"
        )
    model, processor = _base(config, base, record)
    model = read_trained(model, config, folder, record["training"])
    config = dataclasses.replace(config, data_dir=data_dir or config.data_dir)
    return Run(folder, config, model, processor, record["models"], record["training"], base)


def _record_in(folder: Path) -> Record:
    if not is_run(folder):
        raise UserError(
            f"{folder} holds no finished run (no {RECORD}): name a folder in outputs/ whose "
            "notebook has run to its end"
        )
    return read_record(folder / RECORD)


def _base(
    config: RunConfig, base: str | None, record: Record
) -> tuple[DistilWhisperForConditionalGeneration, WhisperProcessor]:
    """The model that the run started from, and no other."""
    name = base or config.student
    revision = config.student_revision if name == config.student else None
    try:
        model, processor = load_model(name, revision, **model_settings(config))
    except UserError as error:
        raise UserError(f"{error}; name the model that the run started from with base") from None
    expected = record["models"]["student"]["sha256"]
    if expected and weights_hash(dict(model.named_parameters())) != expected:
        raise UserError(
            f"{name!r} is not the model that the run started from (other "
            "weights): name that with base"
        )
    return model, processor


CLAIM = "data.json"  # what the run works on; while it is there, the folder is the one that began


@contextmanager
def at_work(config: RunConfig, doing: str) -> Iterator[None]:
    """Around what writes to a run's folder.

    Of several processes that work on the same run (two tabs, two batches) one goes on and the
    others say that they wait; then they find what it finished. The lock is held for a call, not
    for a notebook's life, and dies with its process. What the disk refuses is one sentence, and so
    is a folder that vanished meanwhile.
    """
    with told(config.output_dir), _alone(config, doing):
        yield
        check_claim(config)


def claim(config: RunConfig, data: RunData) -> dict[str, str]:
    """Note what the run works on, the hash of each part of its data, which are returned; UserError
    when its folder holds work on other data."""
    digests = {part: a["sha256"] for part, a in data_of(config, data).items() if a is not None}
    note = config.output_dir / CLAIM
    if note.exists() and json.loads(note.read_text()) != digests:
        raise UserError(
            f"the data of run {config.run_id} has changed since the run began: remove "
            f"{config.output_dir}, or use --force, to run it again"
        )
    if ranks.is_first():
        _drop_torn(config)
        write_atomic(note, json.dumps(digests, indent=1))
    ranks.wait()
    return digests


def check_claim(config: RunConfig) -> None:
    """Raise DiskError when the run's folder is not there any more, before more is written to it."""
    note = config.output_dir / CLAIM
    with told(config.output_dir):
        if not note.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(note))


@contextmanager
def _alone(config: RunConfig, doing: str) -> Iterator[None]:
    if not ranks.is_first():  # the first one holds it for all
        yield
        return
    # Not <run id>.lock: a batch may hold that while the notebook it started gets here.
    with alone(config.output_dir, doing, ".call.lock"):
        yield


def _drop_torn(config: RunConfig) -> None:
    """Remove what killed processes left half-written; under the lock nobody else is writing."""
    torn = list(config.output_dir.rglob(".*.tmp"))
    torn += config.results_dir.glob(f"*/.*{config.run_id}*.tmp")
    for path in torn:
        path.unlink(missing_ok=True)
