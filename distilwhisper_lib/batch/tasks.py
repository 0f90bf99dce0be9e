"""From studies to tasks, each with what it needs: data, teacher targets, methods, tables.

Every edge is one of two kinds. A task ``needs`` what must have gone well: a method its language's
data notebook, and the teacher targets that it shares with other runs. It comes ``after`` what
must only have ended: the tables show the cells that failed, too.

Data know no seed, and neither does what is heard without training: there is one data notebook for
each language, preset and set of overrides, with the first seed. Several of them may be the same
runs, which know no training size either; they go one after the other, and the first one's runs
are read back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from distilwhisper_lib.batch.grid import GATES, TABLES, Study
from distilwhisper_lib.batch.notebooks import declared_parameters, find_notebook, fitted
from distilwhisper_lib.batch.task import Task
from distilwhisper_lib.config.settings import NOTEBOOK_OF, RunConfig, resolve
from distilwhisper_lib.config.values import check_teacher, parse_overrides
from distilwhisper_lib.errors import UserError

QUICKSTART, DATA = "00_quickstart", "01_data_prep"
NOTEBOOKS = (
    QUICKSTART,
    DATA,
    "02_full_finetuning",
    "03_lora_baseline",
    "04_clsr_only",
    "05_js_distillation",
    "06_kl_distillation",
    TABLES,
    GATES,
)
# The methods whose run records a notebook leaves; with all of them there, it is finished.
METHODS: dict[str, list[str]] = {}
for _method, _notebook in NOTEBOOK_OF.items():
    METHODS.setdefault(_notebook, []).append(_method)
ONCE = (QUICKSTART, TABLES, GATES)  # for each results folder
TARGETS = "teacher_targets"
# The order in which tasks are taken up where their needs leave a choice; methods stand at 3.
RANKS = {QUICKSTART: 1, DATA: 1, TARGETS: 2, TABLES: 4, GATES: 4}
_FOUR = ("preset", "language", "seed", "overrides")
# Runs that agree in these read the same teacher targets. losses/targets.py knows best: a
# setting too many here makes two tasks wait for each other, one too few lets a run build its own.
_TARGET_SETTINGS = (
    "preset", "language", "in_domain", "data_dir", "train_size", "train_subset", "max_seconds",
    "window_seconds", "window", "pack", "timestamps", "conventions", "student", "student_revision",
    "teacher", "teacher_revision", "precision", "teacher_targets",
)  # fmt: skip


def expand(studies: Sequence[Study], root: Path) -> list[Task]:
    """The tasks of a batch, in order; everything wrong is a UserError and nothing has started.

    Quick start, tables and gates (00, 07, 08) become one task for each results folder, with the
    first language and seed; 01 one per language; any other notebook one per language and seed.
    """
    found: dict[str, Task] = {}
    seen: set[tuple] = set()
    for study in studies:
        for task in _tasks_of(study, root):
            if (only := _only(task)) in seen:
                continue
            seen.add(only)
            other = found.setdefault(task.name, task)
            if other.notebook != task.notebook:
                raise UserError(
                    f"{other.notebook} and {task.notebook} would both write {task.output.name}: "
                    "rename one of the notebooks"
                )
    tasks = _in_turn(found.values())
    data = {_data(task): task.name for task in tasks if Path(task.notebook).stem == DATA}
    tasks = [_with_data(task, data) for task in tasks]
    tasks = _with_targets(tasks, root)
    early = tuple(task.name for task in tasks if rank(task) < RANKS[TABLES])
    tasks = [replace(t, after=early) if rank(t) == RANKS[TABLES] else t for t in tasks]
    return sorted(tasks, key=rank)  # stable: the order given, one rank after another


def _only(task: Task) -> tuple:
    """What a batch has one task of."""
    stem = Path(task.notebook).stem
    if stem in ONCE:
        return stem, configs_of(task)[0].results_dir
    return task.notebook, _data(task) if stem == DATA else task.name


def _data(task: Task) -> str:
    """What the data notebook of a task is told, without the seed."""
    return json.dumps(_four(task) | {"seed": None}, sort_keys=True)


def rank(task: Task) -> int:
    return RANKS.get(Path(task.notebook).stem if task.notebook else TARGETS, 3)


def configs_of(task: Task) -> list[RunConfig]:
    """The configurations of a task's runs; of a notebook without runs, one to look things up in."""
    if not task.notebook and task.parameters:
        methods = [task.parameters["method"]]
    else:
        methods = methods_of(task) or ["zero_shot"]
    return [resolve(method, **_four(task)) for method in methods]


def methods_of(task: Task) -> list[str]:
    """What a task's notebook runs: nothing by a teacher where the setting names none."""
    methods = METHODS.get(Path(task.notebook).stem, [])
    if "teacher" in methods and not resolve("zero_shot", **_four(task)).teacher:
        return [method for method in methods if method != "teacher"]
    return methods


def _four(task: Task) -> dict[str, Any]:
    """The parameters that every notebook of the kit has."""
    return {name: task.parameters.get(name) for name in _FOUR}


def _tasks_of(study: Study, root: Path) -> Iterable[Task]:
    more = dict(study.parameters)  # one of the four given there stands for every run
    preset = more.pop("preset", study.preset)
    languages = [more.pop("language")] if "language" in more else study.languages
    seeds = [more.pop("seed")] if "seed" in more else study.seeds
    overrides = parse_overrides(more.pop("overrides", study.overrides))
    paths = [find_notebook(name, root) for name in study.notebooks or _all_notebooks(root)]
    for what, values in (("language", languages), ("seed", seeds)):
        if isinstance(values, str) or not values:
            raise UserError(f"{what}s {values!r}: expected a list of at least one {what}")
    languages = list(
        dict.fromkeys(
            resolve("zero_shot", preset, code, overrides=overrides).language for code in languages
        )
    )
    pairs = list(dict.fromkeys(product(languages, seeds)))
    for path in dict.fromkeys(paths):
        declared = declared_parameters(path)
        for language, seed in pairs[:1] if path.stem in ONCE else pairs:
            values = {"preset": preset, "language": language, "seed": seed}
            values |= {"overrides": overrides} if overrides else {}
            yield _task(path, fitted(path.name, declared, values | more), root)


def _all_notebooks(root: Path) -> list[Path]:
    found = [root / "notebooks" / f"{name}.ipynb" for name in NOTEBOOKS]
    present = [path for path in found if path.is_file()]
    if not present:
        raise UserError(f"{root / 'notebooks'}: holds none of the kit's notebooks: pass --root")
    return present


def _task(path: Path, values: dict[str, Any], root: Path) -> Task:
    task = Task("", str(root), str(path), values, gpu=path.stem != TABLES)
    configs = configs_of(task)
    for config in configs:
        check_teacher(config)
    name = path.stem
    if name not in ONCE:
        name += f"-{values['language']}-s{values['seed']}"
    name += _suffix(values)
    records = [str(root / c.output_dir / "record.json") for c in configs]
    if path.stem not in METHODS:
        return replace(task, name=name)
    files = [str(root / c.record_path) for c in configs]
    files += [str(root / configs[0].data_report)] if path.stem == DATA else []
    return replace(task, name=name, records=tuple(records), files=tuple(files))


def _suffix(values: Mapping[str, Any]) -> str:
    preset = values.get("preset", "demo")
    suffix = f"-{preset}" if preset != "demo" else ""
    # Another study, whose copy must not replace the plain one.
    return suffix + (f"-{_hash(values['overrides'])}" if values.get("overrides") else "")


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def _in_turn(tasks: Iterable[Task]) -> list[Task]:
    """Data notebooks of the same runs one after the other; any other two such are refused."""
    owners: dict[str, Task] = {}
    found = []
    for task in tasks:
        before = [owners[run] for run in task.run_ids if run in owners]
        if before and rank(task) != RANKS[DATA]:
            raise UserError(
                f"{before[0].name} and {task.name} are both run {task.run_ids[0]}: they differ in "
                "overrides that decide no number, such as eval_batch_size; drop one of them"
            )
        owners |= dict.fromkeys(task.run_ids, task)
        found.append(replace(task, after=tuple(dict.fromkeys(other.name for other in before))))
    return found


def _with_data(task: Task, data: Mapping[str, str]) -> Task:
    """The task, after the data notebook of its preset, language and overrides."""
    needed = data.get(_data(task)) if rank(task) == 3 else None
    return replace(task, needs=(needed,)) if needed else task


def _with_targets(tasks: Sequence[Task], root: Path) -> list[Task]:
    """Before runs that share teacher targets, a task of its own that works them out.

    Else all of them would start, one build, and the others wait with a worker each. A run that
    shares its targets with no other builds them itself.
    """
    groups: dict[str, list[Task]] = {}
    for task in tasks:
        for config in configs_of(task):
            if config.targets in ("hidden", "top_k"):
                key = {name: getattr(config, name) for name in _TARGET_SETTINGS}
                key |= {"temperature": config.temperature} if config.targets == "top_k" else {}
                groups.setdefault(json.dumps(key, sort_keys=True), []).append(task)
    found, needs = [], {}
    for key, sharing in groups.items():
        if len(sharing) < 2:
            continue
        first = sharing[0]
        language, values = json.loads(key)["language"], first.parameters
        name = f"{TARGETS}-{language}{_suffix(values)}"
        if any(task.name == name for task in found):
            name += f"-{_hash(key)}"
        records = tuple(record for task in sharing for record in task.records)
        parameters = {"method": METHODS[Path(first.notebook).stem][0], **values}
        found.append(Task(name, str(root), "", parameters, records, needs=first.needs))
        needs |= {task.name: (*task.needs, name) for task in sharing}
    return found + [replace(t, needs=needs.get(t.name, t.needs)) for t in tasks]
