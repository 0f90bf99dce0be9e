"""Run the notebooks in batch with papermill, strictly.

A wrong notebook, name, value or setting stops the batch before anything starts.

    python -m distilwhisper_lib.batch run --languages ca cs --seeds 77
    python -m distilwhisper_lib.batch run 05_js_distillation --overrides '{"max_steps": 2}'

``expand`` makes the tasks and ``run`` puts them in order and reports; what executes one of them
(here a process per notebook) is an argument, which is where a cluster's executor goes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from .checks import parse_overrides
from .config import NOTEBOOK_OF, resolve
from .errors import UserError
from .execution import Outcome, Processes, Task
from .notebooks import checked_parameters, find_notebook, find_root, one_line

NOTEBOOKS = (
    "00_quickstart",
    "01_data_prep",
    "02_full_finetuning",
    "03_lora_baseline",
    "04_clsr_only",
    "05_js_distillation",
    "06_kl_distillation",
    "07_evaluation_tables",
    "08_gate_activations",
)
# The methods whose run records a notebook leaves; with all of them there, it is finished.
METHODS: dict[str, list[str]] = {}
for _method, _notebook in NOTEBOOK_OF.items():
    METHODS.setdefault(_notebook, []).append(_method)
ONCE = ("00_quickstart", "07_evaluation_tables", "08_gate_activations")
# Stages follow one another; within a stage notebooks may run side by side. Notebooks not named
# here belong to stage 2, with the methods.
STAGES = {
    "00_quickstart": 1,
    "01_data_prep": 1,
    "07_evaluation_tables": 3,
    "08_gate_activations": 3,
}


@dataclass(frozen=True)
class Summary:
    """The outcomes of a batch in the order of its tasks."""

    outcomes: tuple[Outcome, ...] = field(default=())

    @property
    def exit_code(self) -> int:
        """0 when all is well, 1 when a notebook failed, 130 after an interrupt."""
        statuses = {outcome.status for outcome in self.outcomes}
        return 130 if "interrupted" in statuses else int("failed" in statuses)


def expand(
    notebooks: Sequence[str | Path] = (),
    preset: str = "demo",
    languages: Sequence[str] = ("ca",),
    seeds: Sequence[int] = (77,),
    overrides: Mapping[str, Any] | str | None = None,
    parameters: Mapping[str, Any] | None = None,
    root: str | Path | None = None,
) -> list[Task]:
    """The tasks of a batch, in order; everything wrong is a UserError and nothing has started.

    ``notebooks`` defaults to all of ``root``/notebooks. Quick start, tables and gates (00, 07,
    08) become one task with the first language and seed, any other notebook one per language and
    seed. ``parameters`` are for notebooks that declare more than the four; one of the four given
    there stands for every run of the batch.
    """
    root = Path(root).resolve() if root else find_root()
    more = dict(parameters or {})
    preset = more.pop("preset", preset)
    languages = [more.pop("language")] if "language" in more else languages
    seeds = [more.pop("seed")] if "seed" in more else seeds
    overrides = parse_overrides(more.pop("overrides", overrides))
    paths = [find_notebook(name, root) for name in notebooks or _all_notebooks(root)]
    paths = sorted(dict.fromkeys(paths), key=_stage)  # stable: the order given, stage by stage
    for what, values in (("language", languages), ("seed", seeds)):
        if isinstance(values, str) or not values:
            raise UserError(f"{what}s {values!r}: expected a list of at least one {what}")
    languages = list(dict.fromkeys(resolve("js", preset, code).language for code in languages))
    pairs = list(dict.fromkeys(product(languages, seeds)))
    tasks = []
    for path in paths:
        for language, seed in pairs[:1] if path.stem in ONCE else pairs:
            values = {"preset": preset, "language": language, "seed": seed}
            values |= {"overrides": overrides} if overrides else {}
            tasks.append(_task(path, values | more, root))
    _check_outputs(tasks)
    return tasks


def _all_notebooks(root: Path) -> list[Path]:
    found = [root / "notebooks" / f"{name}.ipynb" for name in NOTEBOOKS]
    present = [path for path in found if path.is_file()]
    if not present:
        raise UserError(f"{root / 'notebooks'}: holds none of the kit's notebooks: pass --root")
    return present


def _stage(path: Path) -> int:
    return STAGES.get(path.stem, 2)


def _task(path: Path, parameters: dict[str, Any], root: Path) -> Task:
    values = checked_parameters(path, parameters)
    name = path.stem
    if name not in ONCE:
        name += f"-{values['language']}-s{values['seed']}"
    if values.get("preset", "demo") != "demo":
        name += f"-{values['preset']}"
    if values.get("overrides"):  # another study, whose copy must not replace the plain one
        name += f"-{_short_hash(values['overrides'])}"
    four = {key: values.get(key) for key in ("preset", "language", "seed", "overrides")}
    configs = [resolve(method, **four) for method in METHODS.get(path.stem, ("zero_shot",))]
    finished = [str(root / c.output_dir / "record.json") for c in configs]
    return Task(
        notebook=str(path),
        output=str(root / "outputs" / "notebooks" / f"{name}.ipynb"),
        parameters=values,
        stage=_stage(path),
        records=tuple(finished) if path.stem in METHODS else (),
    )


def _short_hash(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def _check_outputs(tasks: Sequence[Task]) -> None:
    notebooks: dict[str, str] = {}
    for task in tasks:
        other = notebooks.setdefault(task.output, task.notebook)
        if other != task.notebook:
            raise UserError(
                f"{other} and {task.notebook} would both write {Path(task.output).name}: rename "
                "one of the notebooks"
            )


# ----------------------------------------------------------------------------------------- run


def run(
    notebooks: Sequence[str | Path] = (),
    preset: str = "demo",
    languages: Sequence[str] = ("ca",),
    seeds: Sequence[int] = (77,),
    overrides: Mapping[str, Any] | str | None = None,
    parameters: Mapping[str, Any] | None = None,
    *,
    force: bool = False,
    jobs: int = 1,
    root: str | Path | None = None,
    execute: Callable[[Task], Outcome] | None = None,
) -> Summary:
    """Expand and execute a batch, printing one line per run; see ``expand`` for the arguments.

    Runs whose records exist are skipped; ``force`` drops what they worked out and runs them
    again. ``jobs`` notebooks run side by side;
    failures do not stop the others. ``execute`` replaces the default, a process per notebook; it
    is called from ``jobs`` threads, and its ``stop()``, if it has one, on an interrupt.
    """
    if type(jobs) is not int or jobs < 1:
        raise UserError(f"jobs={jobs!r}: expected a whole number from 1")
    tasks = expand(notebooks, preset, languages, seeds, overrides, parameters, root)
    return run_tasks(tasks, force=force, jobs=jobs, execute=execute or Processes(jobs))


def run_tasks(
    tasks: Sequence[Task], *, force: bool, jobs: int, execute: Callable[[Task], Outcome]
) -> Summary:
    """Execute ``tasks`` stage by stage, ``jobs`` at a time. An interrupt ends all of them."""
    report = _Report(len(tasks))
    outcomes: dict[int, Outcome] = {}
    waiting: dict[Future, int] = {}
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        try:
            for stage in sorted({task.stage for task in tasks}):
                for index, task in enumerate(tasks):
                    if task.stage != stage:
                        continue
                    if force:
                        _forget(task)
                    if _is_finished(task):
                        outcomes[index] = report.add(Outcome(task.name, "skipped"))
                    else:
                        waiting[pool.submit(execute, task)] = index
                while waiting:
                    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                        index = waiting.pop(future)
                        outcomes[index] = report.add(_outcome(future, tasks[index]))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            getattr(execute, "stop", lambda: None)()
    # After an interrupt: how the running ones ended, and those that never started.
    running = {index: future for future, index in waiting.items() if not future.cancelled()}
    for index, task in enumerate(tasks):
        if index in running:
            outcomes[index] = report.add(_outcome(running[index], task))
        elif index not in outcomes:
            outcomes[index] = report.add(Outcome(task.name, "interrupted"))
    summary = Summary(tuple(outcomes[index] for index in range(len(tasks))))
    report.close(summary)
    return summary


def _outcome(future: Future, task: Task) -> Outcome:
    try:
        return future.result()
    except Exception as error:  # the executor itself broke down: that run failed, others go on
        return Outcome(task.name, "failed", error=one_line(error))


def _is_finished(task: Task) -> bool:
    return bool(task.records) and all(Path(record).is_file() for record in task.records)


def _forget(task: Task) -> None:
    """Drop what earlier runs worked out, so that none of it is read back."""
    for record in task.records:
        shutil.rmtree(Path(record).parent, ignore_errors=True)


class _Report:
    """The progress lines: "[ 3/12] done    05_js_distillation-ca-s77  34.2 s"."""

    def __init__(self, total: int) -> None:
        self.total, self.count = total, 0

    def add(self, outcome: Outcome) -> Outcome:
        self.count += 1
        width = len(str(self.total))
        line = f"[{self.count:>{width}}/{self.total}] {outcome.status:<8} {outcome.name}"
        line += f"  {outcome.seconds:.1f} s" if outcome.status in ("done", "failed") else ""
        if outcome.status == "skipped":
            line += "  (its record exists; --force runs it again)"
        if outcome.status == "failed":
            where = f"; see {_relative(outcome.output)}" if outcome.output else ""
            line += f"  {outcome.error.rstrip('.')}{where}"
        print(line, flush=True)
        return outcome

    def close(self, summary: Summary) -> None:
        counts: dict[str, int] = {}
        for outcome in summary.outcomes:
            counts[outcome.status] = counts.get(outcome.status, 0) + 1
        print(", ".join(f"{number} {status}" for status, number in counts.items()), flush=True)


def _relative(path: str) -> str:
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path


# --------------------------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0, 1 (a notebook failed), 2 (refused) or 130."""
    given = _parser().parse_args(arguments)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's "time is up"
    try:
        return run(
            given.notebooks,
            given.preset,
            given.languages,
            given.seeds,
            given.overrides,
            dict(given.parameter),
            force=given.force,
            jobs=given.jobs,
            root=given.root,
        ).exit_code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the first notebook started
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m distilwhisper_lib.batch",
        description="Run the notebooks in batch with papermill; wrong parameters stop it first.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="run")
    run_ = commands.add_parser("run", help="run notebooks for languages and seeds")
    run_.add_argument(
        "notebooks", nargs="*", metavar="NOTEBOOK", help='path, name or number ("05"); default all'
    )
    run_.add_argument("--preset", default="demo")
    run_.add_argument("--languages", nargs="+", default=["ca"], metavar="CODE")
    run_.add_argument("--seeds", nargs="+", type=int, default=[77], metavar="SEED")
    run_.add_argument("--overrides", default=None, metavar="JSON", help='{"max_steps": 2}')
    run_.add_argument(
        "-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE")
    )
    run_.add_argument("--force", action="store_true", help="run finished runs again")
    run_.add_argument("--jobs", type=int, default=1, metavar="N", help="notebooks side by side")
    run_.add_argument("--root", default=None, metavar="FOLDER", help="the checkout")
    return parser


if __name__ == "__main__":
    sys.exit(main())
