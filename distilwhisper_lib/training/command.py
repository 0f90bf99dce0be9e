"""One run from the command line, by one process or, under a launcher, by several together.

    python -m distilwhisper_lib train js --preset cv10k --language ca
    torchrun --nproc-per-node 2 -m distilwhisper_lib train js --preset cv10k --language ca
    accelerate launch --multi_gpu --num_processes 2 -m distilwhisper_lib train js --preset cv10k

It is what notebooks 02 to 06 do between their configuration and their record: the same run id, the
same folder in outputs/, the same record. A notebook that runs afterwards reads everything back and
draws its figures. All processes train (see shares.py); what follows is the first one's alone.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Sequence

from distilwhisper_lib import ranks, session
from distilwhisper_lib.config.presets import SEED
from distilwhisper_lib.config.settings import METHODS, TRAINED, RunConfig, resolve
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.evaluation.record import evaluate, record_run, scores_table
from distilwhisper_lib.training.loop import train
from distilwhisper_lib.training.shares import micro_batches_each

# The first process's word on an error that all of them meet is enough: a launcher ends the others
# while they wait.
FIRST_SPEAKS = 5  # seconds


def run(config: RunConfig) -> None:
    """Train, evaluate and record a run; only the first of several processes stays to the end."""
    if config.method in TRAINED:
        micro_batches_each(config)  # refused before any recording is read
    data = load_data(config)
    trained = train(config, data)
    ranks.leave()  # whoever decodes for an hour keeps nobody waiting
    if not ranks.is_first():
        return
    evaluations = evaluate(trained, data)
    record_run(trained, data, evaluations)
    print(scores_table(evaluations).to_string(index=False))
    print(f"record   {config.results_dir / 'runs' / config.run_id}.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0, 2 (refused, or stopped) or 130."""
    given = _parser().parse_args(arguments)
    if given.root:
        os.chdir(given.root)
    else:
        session.enter_checkout()
    session.quieten()
    first = ranks.is_first()
    if not first:
        warnings.simplefilter("ignore")  # the first process says the same
    try:
        config = resolve(given.method, given.preset, given.language, given.seed, given.overrides)
        ranks.join()
        if first:
            print(f"{session.describe()}\nrun      {config.run_id}, {_counted(ranks.count())}")
        run(config)
    except UserError as error:
        if not first:
            time.sleep(FIRST_SPEAKS)
        return _refused(str(error))
    except RuntimeError as error:
        if "by peer" not in str(error):  # as gloo says that a connection is gone
            raise
        return _refused(
            "another process of this run has ended, and says why; the same command goes on from "
            "the last checkpoint"
        )
    except KeyboardInterrupt:
        return 130
    return 0


def _refused(why: str) -> int:
    print(f"error: {why}", file=sys.stderr, flush=True)
    return 2


def _counted(processes: int) -> str:
    return "1 process" if processes == 1 else f"{processes} processes"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m distilwhisper_lib train",
        description="Train, evaluate and record one run; torchrun starts it on several GPUs.",
    )
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--language", default="ca", metavar="CODE")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--overrides", default=None, metavar="JSON", help='{"max_steps": 2}')
    parser.add_argument("--root", default=None, metavar="FOLDER", help="where outputs/ is meant")
    return parser
