"""A run's folder in outputs/: one call at a time works in it, and notices when it is gone."""

from __future__ import annotations

import errno
import functools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from distilwhisper_lib import ranks
from distilwhisper_lib.config.settings import RunConfig
from distilwhisper_lib.data.splits import RunData, data_of
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.io.disk import told
from distilwhisper_lib.io.files import alone, write_atomic

CLAIM = "data.json"  # what the run works on; while it is there, the folder is the one that began

Call = TypeVar("Call", bound=Callable[..., Any])


def in_run_folder(doing: str) -> Callable[[Call], Call]:
    """A decorator for calls f(config, ...) that write to a run's folder.

    Of several processes that work on the same run (two tabs, two batches) one goes on and the
    others say that they wait; then they find what it finished. The lock is held for the call,
    not for a notebook's life, and dies with its process. What the disk refuses is one sentence,
    and so is a folder that vanished meanwhile.
    """

    def decorate(call: Call) -> Call:
        @functools.wraps(call)
        def guarded(config: RunConfig, *args: Any, **kwargs: Any) -> Any:
            with told(config.output_dir), _alone(config, doing):
                result = call(config, *args, **kwargs)
                check_claim(config)
                return result

        return guarded

    return decorate


def claim(config: RunConfig, data: RunData) -> None:
    """Note what the run works on; UserError when its folder holds work on other data."""
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
