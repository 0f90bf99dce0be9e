"""Run the notebooks in batch with papermill, strictly.

papermill 2.7 only warns about a parameter that a notebook does not declare, writes parameter
names into the notebook as code, and hands values from a command line over as strings. So every
notebook is inspected first, and a wrong name, value or setting stops the batch before it starts.

    python -m distilwhisper_lib.batch run --languages ca cs --seeds 77
    python -m distilwhisper_lib.batch run 05_js_distillation --overrides '{"max_steps": 2}'

Three steps, which an executor for a cluster can share: ``expand`` makes the tasks, ``execute_one``
runs one of them in this process, ``run`` puts them in order and reports.
"""

from __future__ import annotations

import argparse
import ast
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from .config import NOTEBOOK_OF, parse_overrides, resolve
from .errors import UserError
from .files import write_atomic
from .provenance import usable_cores

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
    "00_quickstart": 0,
    "01_data_prep": 1,
    "07_evaluation_tables": 3,
    "08_gate_activations": 3,
}

START_TIMEOUT = 180  # seconds; importing torch on a busy machine is slow
STOP_TIMEOUT = 15  # seconds that an interrupted notebook has to shut its kernel down


@dataclass(frozen=True)
class Task:
    """One notebook with one set of parameters. Plain values only, so that it travels as JSON."""

    notebook: str
    output: str
    parameters: dict[str, Any]
    stage: int = 2
    records: tuple[str, ...] = ()  # finished when all of these files exist

    @property
    def name(self) -> str:
        return Path(self.output).stem


@dataclass(frozen=True)
class Outcome:
    """How a task ended: status "done", "skipped", "failed" or "interrupted"."""

    name: str
    status: str
    seconds: float = 0.0
    error: str = ""  # one line, "ename: evalue"
    output: str = ""  # the executed copy, the failed one included; empty when there is none


@dataclass(frozen=True)
class Summary:
    """The outcomes of a batch in the order of its tasks."""

    outcomes: tuple[Outcome, ...] = field(default=())

    @property
    def exit_code(self) -> int:
        """0 when all is well, 1 when a notebook failed, 130 after an interrupt."""
        statuses = {outcome.status for outcome in self.outcomes}
        return 130 if "interrupted" in statuses else int("failed" in statuses)


# ---------------------------------------------------------------------------- notebooks and values


def find_root(start: str | Path | None = None) -> Path:
    """The checkout: the nearest folder, from ``start`` upwards, that holds notebooks/."""
    start = Path(start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "notebooks").is_dir() and (folder / "distilwhisper_lib").is_dir():
            return folder
    raise UserError(
        f"{start}: neither it nor a folder above holds notebooks/ and distilwhisper_lib/: change "
        "into the checkout, or pass --root FOLDER"
    )


def find_notebook(name: str | Path, root: Path) -> Path:
    """A notebook by path, by name, or by the start of a name that only one notebook has ("05")."""
    name = str(name)
    for path in (Path(name), root / name):
        if path.suffix == ".ipynb" and path.is_file():
            return path.resolve()
    known = sorted((root / "notebooks").glob("*.ipynb"))
    stem = Path(name).stem if name.endswith(".ipynb") else name
    exact = [path for path in known if path.stem == stem]
    found = exact or [path for path in known if stem and path.stem.startswith(stem)]
    if len(found) == 1 and "/" not in name:
        return found[0].resolve()
    problem = "fits several notebooks" if len(found) > 1 else "is no notebook"
    raise UserError(
        f"notebook {name!r} {problem}: expected a path or one of "
        f"{', '.join(path.stem for path in known) or 'the notebooks (there are none here)'}"
    )


def declared_parameters(notebook: str | Path) -> dict[str, Any]:
    """Name and default of each parameter in the cell tagged ``parameters``.

    UserError where papermill would misbehave: no such cell, a default that is no plain literal
    (it would go stale), or a parameter that papermill cannot see (``x: int | None = None``).
    """
    import nbformat

    notebook = Path(notebook)
    try:
        content = nbformat.read(notebook, as_version=4)
        inspected = _inspect(notebook)
    except Exception as error:  # nbformat and papermill raise many kinds on a malformed file
        raise UserError(
            f"{notebook}: cannot be read as a Python notebook ({_one_line(error)}): save it again "
            "from Jupyter with a Python 3 kernel"
        ) from None
    tagged = [c for c in content.cells if "parameters" in c.metadata.get("tags", [])]
    if not tagged:
        raise UserError(
            f"{notebook}: has no cell tagged 'parameters', expected one: tag the cell that holds "
            "preset, language, seed and overrides"
        )
    assigned = _assigned_names(tagged[0].source, notebook)
    for name in assigned:
        if name not in inspected:
            raise UserError(
                f"{notebook}: papermill cannot see parameter {name!r}: write it as one plain "
                "assignment without an annotation, such as seed = 77"
            )
    return {name: _literal(inspected[name], name, notebook) for name in assigned}


def _inspect(notebook: Path) -> dict[str, str]:
    """Default, as source text, of every parameter that papermill itself sees."""
    import papermill

    logging.getLogger("papermill").setLevel(logging.ERROR)
    # papermill formats paths with str.format
    found = papermill.inspect_notebook(_no_braces(notebook))
    return {name: parameter["default"] for name, parameter in found.items()}


def _assigned_names(source: str, notebook: Path) -> list[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise UserError(
            f"{notebook}: the parameters cell is no Python ({error.msg}): correct its line "
            f"{error.lineno}"
        ) from None
    targets = []
    for node in tree.body:
        targets += node.targets if isinstance(node, ast.Assign) else []
        targets += [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _literal(source: str, name: str, notebook: Path) -> Any:
    try:
        return ast.literal_eval(source)
    except (ValueError, SyntaxError):
        raise UserError(
            f"{notebook}: parameter {name!r} has the default {source}, expected a plain literal: "
            "compute it in a later cell"
        ) from None


def checked_parameters(notebook: str | Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` with the types that the notebook declares; UserError for a name or type it lacks.

    Text becomes a number, a bool or (as JSON) a dict or list where the default is one, because
    command lines and YAML know text only.
    """
    declared = declared_parameters(notebook)
    for name in given:
        if name not in declared:
            raise UserError(
                f"{Path(notebook).name}: unknown parameter {name!r}: expected one of "
                f"{', '.join(declared)}"
            )
    return {
        name: _as_declared(name, value, declared[name], Path(notebook).name)
        for name, value in given.items()
    }


def _as_declared(name: str, value: Any, default: Any, notebook: str) -> Any:
    kind = type(default)
    if default is None or type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(value, str):
        try:
            return _from_text(value, kind)
        except (ValueError, KeyError):  # JSON's own error is a ValueError
            pass
    raise UserError(
        f"{notebook}: parameter {name}={value!r} is {type(value).__name__}, expected "
        f"{kind.__name__} like the notebook's {default!r}"
    )


def _from_text(text: str, kind: type) -> Any:
    if kind is bool:
        return {"true": True, "false": False}[text.lower()]
    if kind in (int, float):
        return kind(text)
    value = json.loads(text)
    if type(value) is not kind:
        raise ValueError(text)
    return value


# -------------------------------------------------------------------------------------- expand


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


def _check_outputs(tasks: Sequence[Task]) -> None:
    notebooks: dict[str, str] = {}
    for task in tasks:
        other = notebooks.setdefault(task.output, task.notebook)
        if other != task.notebook:
            raise UserError(
                f"{other} and {task.notebook} would both write {Path(task.output).name}: rename "
                "one of the notebooks"
            )


# ------------------------------------------------------------------------------------- execute


def execute_one(task: Task) -> Outcome:
    """Run one notebook in this process, with the kernel of this interpreter, in its own folder.

    The executed copy appears under ``task.output`` when it is complete; a failed one stays beside
    it as ``*.failed.ipynb``. Returns an Outcome whatever the notebook does; only an interrupt is
    raised on, after the kernel is gone.
    """
    import papermill

    logging.getLogger("papermill").setLevel(logging.ERROR)
    output = Path(task.output)
    failed, partial = _failed(output), output.with_name(f".{output.stem}.partial.ipynb")
    output.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    try:
        papermill.execute_notebook(
            _no_braces(task.notebook),
            _no_braces(partial),
            parameters=task.parameters,
            kernel_name="python3",
            kernel_manager_class=_own_kernel_manager(),
            progress_bar=False,
            start_timeout=START_TIMEOUT,
            cwd=str(Path(task.notebook).parent),
        )
    except Exception as error:  # whatever a notebook, its kernel or the disk can raise
        kept = ""
        if partial.is_file():
            os.replace(partial, failed)
            kept = str(failed)
        return Outcome(task.name, "failed", _since(began), _error_line(error), kept)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    os.replace(partial, output)
    failed.unlink(missing_ok=True)  # that failure is mended
    return Outcome(task.name, "done", _since(began), "", str(output))


def _failed(output: Path) -> Path:
    return output.with_name(f"{output.stem}.failed.ipynb")


def _no_braces(path: str | Path) -> str:
    """A path that papermill's str.format leaves as it is."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _own_kernel_manager() -> type:
    """A kernel manager that knows one kernel only: ipykernel under this very interpreter.

    A kernelspec called "python3" in a user's home or in JUPYTER_PATH may start any other Python.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager
    from traitlets import default

    class OwnKernelManager(AsyncKernelManager):
        @default("kernel_spec_manager")
        def _own_interpreter_only(self) -> KernelSpecManager:
            return KernelSpecManager(parent=self, kernel_dirs=[], ensure_native_kernel=True)

    return OwnKernelManager


def _error_line(error: Exception) -> str:
    """ "ename: evalue" of the cell that failed, else the exception itself, on one line."""
    if hasattr(error, "ename"):
        return _one_line(f"{error.ename}: {error.evalue}" if error.evalue else error.ename)
    return _one_line(error)


def _one_line(error: Exception | str) -> str:
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines)[:500]


def _since(began: float) -> float:
    return round(time.monotonic() - began, 1)


class Processes:
    """Runs each task in a Python process of its own, so that no memory or crash is shared.

    Calling it with a Task is ``execute_one`` in such a process; ``stop`` ends all of them, kernels
    first. ``jobs`` processes share the cores: OMP_NUM_THREADS is set unless the caller set it.
    """

    def __init__(self, jobs: int = 1) -> None:
        package = str(Path(__file__).resolve().parents[1])
        search = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join(search)}
        if jobs > 1:
            self.environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // jobs)))
        self.stopped = threading.Event()
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.Lock()

    def __call__(self, task: Task) -> Outcome:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="distilwhisper-batch-") as folder:
            asked, answered, log = (Path(folder) / n for n in ("task.json", "out.json", "log.txt"))
            asked.write_text(json.dumps(asdict(task)), encoding="utf-8")
            status = self._wait(["execute", str(asked), str(answered)], log)
            outcome = _answer(answered) or Outcome(
                task.name, "failed", _since(began), _crash_line(status, log), _keep_partial(task)
            )
        if self.stopped.is_set() and outcome.status == "failed":
            # It failed because it was interrupted; the next start resumes from what it trained.
            if outcome.output:
                Path(outcome.output).unlink(missing_ok=True)
            return Outcome(task.name, "interrupted", outcome.seconds)
        return outcome

    def _wait(self, arguments: list[str], log: Path) -> int:
        with log.open("wb") as file:
            with self._lock:
                if self.stopped.is_set():
                    return 130
                process = subprocess.Popen(
                    [sys.executable, "-m", "distilwhisper_lib.batch", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=self.environment,
                    start_new_session=True,  # a Ctrl-C reaches it once, through stop()
                )
                self._running.add(process)
            try:
                return process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)

    def stop(self) -> None:
        """Interrupt every running notebook; kill what is still there after STOP_TIMEOUT."""
        with self._lock:
            self.stopped.set()
            running = list(self._running)
        for process in running:
            if os.name == "nt":
                process.terminate()
            else:
                process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + STOP_TIMEOUT
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()  # its kernel notices and ends by itself


def _answer(path: Path) -> Outcome | None:
    return Outcome(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _crash_line(status: int, log: Path) -> str:
    """Why a process ended without an answer, from its exit status and the last line it wrote."""
    ended = f"signal {-status}" if status < 0 else f"exit status {status}"
    if status == -9:
        ended += ", often for want of memory"
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    last = [line.strip() for line in text.splitlines() if line.strip()][-1:]
    return _one_line(": ".join([f"the notebook's process ended ({ended})", *last]))


def _keep_partial(task: Task) -> str:
    output = Path(task.output)
    partial = output.with_name(f".{output.stem}.partial.ipynb")
    if not partial.is_file():
        return ""
    os.replace(partial, _failed(output))
    return str(_failed(output))


def _execute_file(asked: str, answered: str) -> int:
    """The inside of one process of Processes: run the task in ``asked``, answer with JSON."""
    task = json.loads(Path(asked).read_text(encoding="utf-8"))
    try:
        outcome = execute_one(Task(**task | {"records": tuple(task["records"])}))
    except KeyboardInterrupt:
        return 130
    write_atomic(answered, json.dumps(asdict(outcome)))
    return 0


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
        return Outcome(task.name, "failed", error=_one_line(error))


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
            line += f"  {outcome.error}{where}"
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
    if given.command == "execute":
        return _execute_file(given.task, given.outcome)
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
    execute = commands.add_parser("execute")  # what Processes starts; not for people
    execute.add_argument("task")
    execute.add_argument("outcome")
    return parser


if __name__ == "__main__":
    sys.exit(main())
