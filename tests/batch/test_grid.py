"""Grids: their files, the order of their tasks, what a batch notes and shows of them."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from kits import finish, leave_record, make_notebook, names

from distilwhisper_lib.batch import command as batch
from distilwhisper_lib.batch import grid, ledger, schedule, tasks
from distilwhisper_lib.batch import task as execution
from distilwhisper_lib.batch.command import plan
from distilwhisper_lib.batch.progress import Progress, results_grid
from distilwhisper_lib.batch.task import Outcome, Task, claim, execute_one
from distilwhisper_lib.config.settings import locate
from distilwhisper_lib.errors import UserError


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "grid.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def expand(root: Path, **keys) -> list[Task]:
    return tasks.expand(grid.studies_of(**keys), root)


def events(root: Path, *kinds: str) -> list[tuple[str, str]]:
    return [(e["event"], e["task"]) for e in ledger.read(root) if not kinds or e["event"] in kinds]


# ------------------------------------------------------------------------------- grid files


def test_a_grid_file_becomes_studies(tmp_path):
    text = """
        methods: [js, zero_shot]
        languages: [ca, cs]
        presets: [cv3k, cv10k]
        seeds: [1, 2]
        overrides: {epochs: 3}
        studies:
          - {}
          - {methods: [lora], presets: [demo], overrides: {budget: 0.3}, tables: false}
    """
    small, large, other = grid.read_grid(write(tmp_path, text))
    books = ("01_data_prep", "05_js_distillation", "07_evaluation_tables", "08_gate_activations")
    assert small == grid.Study(books, "cv3k", ("ca", "cs"), (1, 2), {"epochs": 3})
    assert large == replace(small, preset="cv10k")
    both = {"epochs": 3, "budget": 0.3}
    assert other == grid.Study(("03_lora_baseline",), "demo", ("ca", "cs"), (1, 2), both)
    (least,) = grid.read_grid(write(tmp_path, "languages: [th]"))
    assert least.languages == ("th",) and least.seeds == (77,)
    assert least.notebooks == batch.NOTEBOOKS[1:]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected keys such as languages and methods, found None"),
        ("[ca]", "expected keys such as languages"),
        ("language: [ca]", "the grid: unknown key 'language': expected one of methods, languages"),
        ("languages: ca", "languages: expected a list such as .ca, cs., found 'ca'"),
        ("languages: []", "languages: expected a list"),
        ("languages: [no]", "languages: False is bool, expected str .*in quotes"),
        ("seeds: [one]", "seeds: 'one' is str, expected int such as 77"),
        ("seeds: [-1]", "seeds: -1, expected from 0"),
        (f"seeds: [0x{'f' * 9000}]", "seeds: a very large number, expected from 0"),
        ("methods: [jss]", "unknown method 'jss'"),
        ("tables: maybe", "tables: expected true or false"),
        ("overrides: [1]", "overrides .1.: expected a dict"),
        ("overrides: {1: 2}", "overrides: 1 is no name of a setting"),
        ("seeds: [1]\nstudies: 3", "studies: expected a list"),
        ("seeds: [1]\nstudies: [{seed: 1}]", "study 1: unknown key 'seed'"),
        ("seeds: [1]\nseeds: [2]", "is no YAML .seeds stands there twice"),
        ("studies: [{overrides: {a: 1, a: 2}}]", "a stands there twice"),
        ("a: &a [x]\nb: *a", r"is no YAML .\*a refers to another place"),
        ("x: !!python/object/apply:os.getcwd []", "is no YAML .could not determine a constructor"),
        ("seeds: [2020-99-99]", "is no YAML .month must be in"),
        ("seeds: [1", "is no YAML .*line 1"),
        ("[" * 9000 + "]" * 9000, "is no YAML .nested too deep"),
        (b"\xff\xfe\x00", "is no YAML"),
        ("#" * (grid.MAX_BYTES + 1), "a grid of more than 64 KiB"),
        (f"seeds: {list(range(9000))}", "a grid of 63000 runs, expected at most 10000"),
        (f"seeds: {list(range(1000))}\nstudies: [{{}}, {{}}]", "a grid of 16000 runs"),
    ],
)
def test_what_is_no_grid_is_refused_in_one_sentence(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as refused:
        grid.read_grid(write(tmp_path, text))
    assert str(refused.value).startswith("grid.yaml: ") and "\n" not in str(refused.value)


def test_a_grid_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="none.yaml: the grid cannot be read .*No such file"):
        grid.read_grid(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grid.yaml", "--seeds", "1"], "--seeds does not go with a grid file"),
        (["grid.yaml", "05"], "05 does not go with a grid file"),
        (["05", "--methods", "js"], "05 does not go with --methods"),
        (["--methods", "js", "-p", "seed", "1"], "-p does not go with --methods"),
        (["--preset", "demo", "--presets", "own"], "--preset does not go with --presets"),
        (["--scheduler", "tcp://127.0.0.1:1", "--jobs", "2"], "--jobs does not go with"),
        (["--cluster", "--jobs", "0"], "jobs=0: expected a whole number"),
        (["--methods", "js", "--overrides", '{"budgets": 1}'], "unknown setting 'budgets'"),
        (["--presets", "demo", "huge"], "unknown preset 'huge'"),
    ],
)
def test_command_lines_that_say_two_things_are_refused(kit, capsys, arguments, message):
    assert batch.main(["run", *arguments, "--root", str(kit)]) == 2
    assert message in capsys.readouterr().err
    assert not (kit / "outputs").exists()


# ------------------------------------------------------------------------------------ order


def test_tasks_know_what_they_need(kit):
    found = {
        t.name: t
        for t in expand(kit, languages=["ca"], methods=["zero_shot", "clsr", "kl", "js"], seeds=[1])
    }
    data, targets = "01_data_prep-ca-s1", "teacher_targets-ca"
    assert found[data].needs == ()
    assert found[targets].needs == (data,)
    assert found["04_clsr_only-ca-s1"].needs == (data,)
    assert found["05_js_distillation-ca-s1"].needs == (data, targets)
    tables = found["07_evaluation_tables"]
    assert tables.needs == () and len(tables.after) == len(found) - 2
    assert not tables.gpu and found[targets].gpu and found[data].gpu
    assert found[targets].records == (
        found["05_js_distillation-ca-s1"].records + found["06_kl_distillation-ca-s1"].records
    )


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"methods": ["js"]}, []),  # it builds its own
        ({"methods": ["js"], "seeds": [1, 2]}, ["teacher_targets-ca"]),
        ({"methods": ["js", "kl"], "languages": ["ca", "cs"]}, ["ca", "cs"]),
        ({"methods": ["js", "kl"], "overrides": {"teacher_targets": "online"}}, []),
        ({"methods": ["js", "kl"], "overrides": {"conventions": "authors"}}, []),
        ({"methods": ["js", "kl"], "presets": ["cv3k", "cv10k"]}, ["ca-cv3k", "ca-cv10k"]),
    ],
)
def test_targets_are_a_task_where_runs_share_them(kit, keys, expected):
    found = [name for name in names(expand(kit, **keys)) if name.startswith("teacher_targets")]
    assert found == [
        f"teacher_targets-{name.removeprefix('teacher_targets-')}" for name in expected
    ]


def test_studies_that_differ_in_the_student_alone_share_targets_only_if_its_model_is_the_same(kit):
    text = "methods: [js]\nstudies: [{}, {overrides: {budget: 0.3}}, {overrides: {temperature: 2}}]"
    found = tasks.expand(grid.read_grid(write(kit, text)), kit)
    (targets,) = [task for task in found if not task.notebook]
    assert len(targets.records) == 3  # hidden states serve every temperature
    assert [t.needs for t in found if "05_js" in t.name] == [(targets.name,)] * 3
    text = text.replace("methods: [js]", "methods: [js]\noverrides: {teacher_targets: top_k}")
    found = tasks.expand(grid.read_grid(write(kit, text)), kit)
    (targets,) = [task for task in found if not task.notebook]
    assert len(targets.records) == 2


def test_the_papers_grid_hears_untrained_models_once_and_reports_on_every_training_set(kit):
    text = (
        "languages: [ca, th]\nseeds: [77, 78]\nmethods: [teacher, zero_shot, lora]\nstudies:\n"
        "  - {presets: [cv3k, cv10k]}\n  - {presets: [cv28k], languages: [th], seeds: [79, 77]}"
    )
    found = {t.name: t for t in tasks.expand(grid.read_grid(write(kit, text)), kit)}
    data = {name: task for name, task in found.items() if name.startswith("01")}
    assert {name.removeprefix("01_data_prep-"): task.after for name, task in data.items()} == {
        "ca-s77-cv3k": (),
        "th-s77-cv3k": (),
        "ca-s77-cv10k": ("01_data_prep-ca-s77-cv3k",),
        "th-s77-cv10k": ("01_data_prep-th-s77-cv3k",),
        "th-s79-cv28k": (),  # another seed, another run
    }
    files = {str(Path(file).relative_to(kit)) for task in data.values() for file in task.files}
    assert {file for file in files if file.startswith("outputs/results/data")} == {
        f"outputs/results/data/{name}.json"
        for name in ("cv3k-ca", "cv3k-th", "cv10k-ca", "cv10k-th", "cv28k-th")
    }
    needs = {t.needs for name, t in found.items() if name.startswith("03") and "ca-" in name}
    assert needs == {("01_data_prep-ca-s77-cv3k",), ("01_data_prep-ca-s77-cv10k",)}


def test_the_grid_of_the_guide_can_be_run(kit):
    guide = Path(batch.__file__).parents[2] / "notebooks" / "SCALE.md"
    (text,) = re.findall("```yaml\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)
    assert len(tasks.expand(grid.read_grid(write(kit, text)), kit)) == 328


def test_tables_stand_once_for_each_results_folder(kit):
    found = names(expand(kit, methods=["lora"], presets=["cv3k", "cv10k", "demo"]))
    assert [name for name in found if name.startswith("07")] == [
        "07_evaluation_tables-cv3k",
        "07_evaluation_tables",
    ]


def test_a_run_that_stands_twice_in_a_grid_is_refused(kit):
    text = "methods: [lora]\nstudies: [{}, {overrides: {eval_batch_size: 3}}]"
    with pytest.raises(UserError, match="are both run lora-ca-s77-.* drop one of them"):
        tasks.expand(grid.read_grid(write(kit, text)), kit)


# ------------------------------------------------------------------------------ the schedule


class Fake:
    """An executor that notes what runs, leaves records, and fails or is taken on wish."""

    def __init__(self, fail=(), taken=(), gone="") -> None:
        self.seen, self.fail, self.taken, self.gone = [], set(fail), list(taken), gone
        self.at_once, self.most, self.lock = 0, 0, threading.Lock()

    def __call__(self, task: Task) -> Outcome:
        with self.lock:
            self.seen.append(task.name)
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        try:
            if task.name == self.gone:
                raise schedule.ClusterGone("the scheduler tcp://x is gone: start it again")
            if task.name in self.taken:
                self.taken.remove(task.name)
                return Outcome(task.name, "taken")
            if task.name in self.fail:
                return Outcome(task.name, "failed", 1.0, "ValueError: no")
            for record in task.records if task.notebook else ():
                leave_record(Path(record))
            return Outcome(task.name, "done", 1.0)
        finally:
            with self.lock:
                self.at_once -= 1


@pytest.fixture(autouse=True)
def short_looks(monkeypatch):
    monkeypatch.setattr(schedule, "LOOK", 0.02)


def do(found, execute, jobs=1, force=False):
    return schedule.run_tasks(found, force=force, jobs=jobs, execute=execute)


def test_what_needs_a_failed_task_is_not_run_and_the_table_shows_it(kit, capsys):
    found = expand(kit, methods=["zero_shot", "clsr", "js"], languages=["ca", "cs"], seeds=[1, 2])
    fake = Fake(fail=["01_data_prep-ca-s1", "04_clsr_only-cs-s2"])
    summary = do(found, fake, jobs=3)
    assert summary.exit_code == 1 and fake.most <= 3
    assert "teacher_targets-ca" not in fake.seen and "teacher_targets-cs" in fake.seen
    assert fake.seen[-2:] == ["07_evaluation_tables", "08_gate_activations"]
    out = capsys.readouterr().out
    assert "not run  04_clsr_only-ca-s1  (needs 01_data_prep-ca-s1)" in out
    assert "not run  05_js_distillation-ca-s2  (needs 01_data_prep-ca-s1)" in out
    table = out[out.index("\ndemo") + 1 :].splitlines()[:5]
    assert [line.split("  ") for line in table][0][0] == "demo"
    assert " ".join(table[3].split()) == "clsr 1 NOT RUN, 2 NOT RUN 1, 2 FAILED"
    assert " ".join(table[4].split()) == "js 1 NOT RUN, 2 NOT RUN 1, 2"
    assert set(out.splitlines()[-1].split(", ")) == {"7 done", "2 failed", "5 not run"}
    noted = events(kit, "failed", "not run")
    assert ("failed", "01_data_prep-ca-s1") in noted and len(noted) == 7


def test_a_task_that_another_has_is_taken_up_later_and_once(kit, capsys):
    found = expand(kit, methods=["lora", "clsr"], tables=False)
    fake = Fake(taken=["03_lora_baseline-ca-s77"])
    with claim(found[0]) as mine:
        assert mine
        holder = threading.Timer(0.3, lambda: finish(kit, "lora"))
        holder.start()
        runner = threading.Thread(target=lambda: summaries.append(do(found, fake)))
        summaries: list[schedule.Summary] = []
        runner.start()
        runner.join(10)
    (summary,) = summaries
    assert [o.status for o in summary.outcomes] == ["skipped", "done"]
    assert fake.seen == ["03_lora_baseline-ca-s77", "04_clsr_only-ca-s77"]
    out = capsys.readouterr().out
    assert out.count("waiting for 03_lora_baseline-ca-s77: another process is at it") == 1
    assert "skipped  03_lora_baseline-ca-s77  (another command has done it)" in out


def test_a_pipe_is_no_grid(tmp_path):
    os.mkfifo(tmp_path / "grid.yaml")
    with pytest.raises(UserError, match="grid.yaml: is no file"):
        grid.read_grid(tmp_path / "grid.yaml")


def test_a_task_whose_other_owner_failed_is_run_here(kit):
    found = expand(kit, methods=["lora"], tables=False)
    fake = Fake(taken=["03_lora_baseline-ca-s77"])
    with claim(found[0]):
        runner = threading.Thread(target=do, args=(found, fake))
        runner.start()
        time.sleep(0.3)
        assert len(fake.seen) == 1  # it waits without asking the executor
    runner.join(10)
    assert len(fake.seen) == 2 and found[0].is_finished


def test_force_forgets_once_and_never_what_another_is_at(kit):
    found = expand(kit, methods=["lora", "js", "kl"], tables=False)
    for method in ("lora", "js", "kl"):
        finish(kit, method)
    keep = Path(found[1].records[0]).parent / "checkpoints"
    keep.mkdir()
    do(found, fake := Fake())
    assert fake.seen == [] and keep.is_dir()
    do(found, fake := Fake(), force=True)
    assert len(fake.seen) == 4 and not keep.exists()
    keep.mkdir()
    with claim(found[1]):
        runner = threading.Thread(target=do, args=(found, Fake()), kwargs={"force": True})
        runner.start()
        time.sleep(0.3)
        assert keep.is_dir()
    runner.join(10)
    assert not keep.exists()


def test_a_cluster_that_goes_ends_the_batch_with_one_sentence(kit, capsys):
    found = expand(kit, methods=["lora", "clsr", "js"], tables=True)
    summary = do(found, Fake(gone="04_clsr_only-ca-s77"))
    assert summary.exit_code == 1
    assert summary.trouble == "the scheduler tcp://x is gone: start it again"
    assert [o.status for o in summary.outcomes] == ["done", "lost", *["not run"] * 3]
    assert "lora  77\nclsr  77 LOST\njs    77 NOT RUN" in capsys.readouterr().out


def test_jobs_may_grow_meanwhile(kit):
    found = expand(kit, methods=["lora", "clsr"], seeds=[1, 2, 3], tables=False)
    slots = iter([0, 0, 1])
    do(found, fake := Fake(), jobs=lambda: next(slots, 2))
    assert len(fake.seen) == 6 and fake.most <= 2


# --------------------------------------------------------------------------- claims and ledger

HOLD = """
import sys, time
from distilwhisper_lib.batch.task import Task, claim
with claim(Task.from_json(sys.argv[1])) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


def test_a_claim_dies_with_its_process(kit):
    (task,) = expand(kit, methods=["lora"], tables=False)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, task.to_json()],
        stdout=subprocess.PIPE, text=True, cwd=Path(batch.__file__).parents[2],
    )  # fmt: skip
    try:
        assert other.stdout.readline() == "True\n"
        assert execute_one(task).status == "taken"
    finally:
        other.kill()
        other.wait()
    finish(kit, "lora")
    assert execute_one(task).status == "skipped"  # it has the claim, and there is nothing to do


def test_the_ledger_tells_what_was_lost_and_survives_a_torn_line(kit):
    first, second = expand(kit, methods=["lora", "clsr"], tables=False)
    ledger.note_start(first, "w1")
    ledger.note("submitted", [first, second])
    path = kit / ledger.LEDGER
    path.write_bytes(path.read_bytes() + b'{"event": "done", "ta')  # cut off by a crash
    ledger.note_start(first, "w2")
    ledger.note("done", [first], seconds=2.0)
    ledger.note_start(first, "w2")
    assert events(kit) == [
        ("started", first.name), ("submitted", first.name), ("submitted", second.name),
        ("lost", first.name), ("started", first.name), ("done", first.name),
        ("started", first.name),
    ]  # fmt: skip
    lost = [e for e in ledger.read(kit) if e["event"] == "lost"]
    assert lost[0]["worker"] == "w1" and lost[0]["run_ids"] == list(first.run_ids)
    assert lost[0]["time"].endswith("+00:00")


def test_two_writers_of_the_ledger_tear_nothing(kit):
    (task,) = expand(kit, methods=["lora"], tables=False)
    write_many = """
import sys
from distilwhisper_lib.batch import ledger
from distilwhisper_lib.batch.task import Task
for i in range(60):
    ledger.note("done", [Task.from_json(sys.argv[1])], seconds=float(i + 1))
"""
    line = [sys.executable, "-c", write_many, task.to_json()]
    root = Path(batch.__file__).parents[2]
    writers = [subprocess.Popen(line, cwd=root) for _ in range(2)]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    lines = (kit / ledger.LEDGER).read_text().splitlines()
    assert len(lines) == 120 and all(json.loads(line)["event"] == "done" for line in lines)


def test_a_ledger_that_cannot_be_written_stops_nothing(kit, capsys):
    found = expand(kit, methods=["lora", "clsr"], tables=False)
    (kit / ledger.LEDGER).mkdir(parents=True)
    assert do(found, Fake()).exit_code == 0
    assert capsys.readouterr().out.count("ledger.jsonl cannot be written (") == 1


# ----------------------------------------------------------------------------------- kernels

STUB = """
import pathlib, sys
mark = pathlib.Path(__file__).with_name("tried")
tried = mark.read_text() if mark.exists() else ""
mark.write_text(tried + "x")
if len(tried) < {fails}:
    sys.exit(1)
from ipykernel import kernelapp
kernelapp.launch_new_instance()
"""


@pytest.mark.parametrize(("fails", "status"), [(1, "done"), (9, "failed")])
def test_a_kernel_that_does_not_start_is_tried_again(kit, monkeypatch, fails, status):
    (kit / "ipykernel_launcher.py").write_text(STUB.format(fails=fails))
    monkeypatch.setenv("PYTHONPATH", str(kit))
    monkeypatch.setattr(execution, "PAUSES", (0.0,))
    noted = []
    (task,) = expand(kit, methods=["lora"], tables=False)
    assert execute_one(task, noted.append).status == status
    assert noted == ["started", "retried"]


def test_a_notebook_that_fails_is_not_tried_again(kit):
    make_notebook(kit / "notebooks" / "03_lora_baseline.ipynb", "raise RuntimeError('no')")
    noted = []
    (task,) = expand(kit, methods=["lora"], tables=False)
    assert execute_one(task, noted.append).error == "RuntimeError: no"
    assert noted == ["started"]


def test_notebooks_have_jupyter_folders_of_their_own_and_end_with_their_batch(kit):
    cell = "import os, pathlib, time\nfor n in ('JUPYTER_RUNTIME_DIR', 'IPYTHONDIR'):\n"
    cell += "    pathlib.Path(n).write_text(os.environ[n])\n"
    cell += "pathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(120)"
    make_notebook(kit / "notebooks" / "03_lora_baseline.ipynb", cell)
    line = [sys.executable, "-m", "distilwhisper_lib.batch", "run", "03", "--root", str(kit)]
    process = subprocess.Popen(line, cwd=Path(batch.__file__).parents[2], stdout=subprocess.DEVNULL)
    mark, deadline = kit / "notebooks" / "pid", time.monotonic() + 60
    while not (mark.is_file() and mark.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.wait()
    (task,) = expand(kit, methods=["lora"], tables=False)
    folder = Path((mark.parent / "IPYTHONDIR").read_text()).parent
    assert folder == Path((mark.parent / "JUPYTER_RUNTIME_DIR").read_text()).parent
    while folder.exists() or Path(f"/proc/{mark.read_text()}").exists():
        assert time.monotonic() < deadline, "the notebook outlived its batch"
        time.sleep(0.1)
    with claim(task) as free:
        assert free
    assert not list((kit / "outputs" / "notebooks").iterdir())


# ----------------------------------------------------------------------- progress and the plan


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1


def test_a_terminal_shows_what_runs_below_the_lines(kit, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("os.get_terminal_size", lambda number: os.terminal_size((40, 9)))
    first, second = expand(kit, methods=["lora", "clsr"], tables=False)
    progress = Progress([first, second], out := Terminal())
    progress.started(first)
    progress.tick([first], 1)
    assert out.getvalue() == (
        "-- 0.0 min: 1 running, 1 waiting\n      0.0 min  03_lora_baseline-ca-s77\n"
    )
    progress.ended(Outcome(first.name, "done", 3.0))
    drawn = out.getvalue().split("waiting\n")[1]
    assert "\x1b[2F\x1b[J[1/2] done     03_lora_baseline-ca-s77  3.0 s\n" in drawn


def test_a_batch_tells_how_far_its_trainings_are(kit, monkeypatch):
    (task,) = expand(kit, methods=["lora"], tables=False)
    note = Path(task.records[0]).parent / "progress.txt"
    note.parent.mkdir(parents=True)
    progress = Progress([task], out := io.StringIO())
    progress.started(task)
    progress.tick([task], 0)
    note.write_text("epoch 1 of 5: about 9 minutes of training left")
    progress.tick([task], 0)
    assert out.getvalue() == ""  # it began a moment ago
    progress.starts[task.name] -= 100
    for line in ("epoch 1 of 5: about 8", "epoch 2 of 5: about 7", "epoch 2 of 5: about 6"):
        note.write_text(f"{line} minutes of training left")
        progress.tick([task], 0)
    note.rename(note.with_suffix(".txt.gone"))  # it ended
    progress.tick([task], 0)
    note.with_suffix(".txt.gone").rename(note)
    assert out.getvalue().splitlines() == [
        f"{task.name}: epoch {line} minutes of training left"
        for line in ("1 of 5: about 8", "2 of 5: about 7")
    ]
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("os.get_terminal_size", lambda number: os.terminal_size((99, 9)))
    live = Progress([task], out := Terminal())
    live.started(task)
    live.tick([task], 0)
    assert out.getvalue().endswith("-ca-s77  epoch 2 of 5: about 6 minutes of training left\n")


def test_the_table_has_a_block_for_each_study_and_no_cell_without_a_word(kit):
    text = (
        "methods: [lora]\nlanguages: [ca, cs]\nstudies: [{}, {seeds: [1], overrides: {epochs: 1}}]"
    )
    found = tasks.expand(grid.read_grid(write(kit, text)), kit)
    finish(kit, "lora", "ca")
    outcomes = {task.name: Outcome(task.name, "done") for task in found}
    assert results_grid(found, outcomes).splitlines() == [
        "demo  ca  cs",
        "lora  77  77 NO RECORD",
        "",
        "demo (epochs=1)  ca           cs",
        "lora             1 NO RECORD  1 NO RECORD",
    ]


def test_a_study_of_many_settings_is_told_below_the_table(kit):
    text = """
        methods: [lora]
        languages: [ca, cs]
        studies: [{}, {overrides: {epochs: 1, learning_rate: 0.0002}}]
    """
    found = tasks.expand(grid.read_grid(write(kit, text)), kit)
    outcomes = {task.name: Outcome(task.name, "failed") for task in found}
    assert results_grid(found, outcomes).splitlines() == [
        "demo  ca         cs",
        "lora  77 FAILED  77 FAILED",
        "",
        "study 2  ca         cs",
        "lora     77 FAILED  77 FAILED",
        "",
        "study 2: demo (epochs=1, learning_rate=0.0002)",
    ]


def test_the_plan_tells_what_is_left_and_what_it_costs_without_writing(kit, capsys):
    runs = Path(batch.__file__).parents[2] / "results" / "demo" / "runs"
    shutil.copytree(runs, kit / "results" / "demo" / "runs")
    arguments = ["--methods", "zero_shot", "js", "kl", "full", "--seeds", "77", "78"]
    finish(kit, "kl")
    before = sorted(kit.rglob("*"))
    assert batch.main(["plan", *arguments, "--root", str(kit)]) == 0
    assert sorted(kit.rglob("*")) == before
    lines = capsys.readouterr().out.splitlines()
    rows = {line[7:].split()[0]: line for line in lines if "-s7" in line or "targets" in line}
    assert rows["06_kl_distillation-ca-s77"].startswith("done")
    assert rows["06_kl_distillation-ca-s78"].startswith("to do")
    assert "01_data_prep-ca-s77, teacher_targets-ca" in rows["05_js_distillation-ca-s78"]
    assert rows["05_js_distillation-ca-s78"].split()[-1].startswith("js-ca-s77-")
    assert rows["teacher_targets-ca"].endswith("?")
    assert lines[-1].startswith("9 of 10 tasks are left: 0.")
    assert lines[-1].endswith("hours; nothing is known of 3 of them.")


def test_the_plan_tells_which_runs_the_models_that_lie_here_cannot_do(kit):
    shutil.copytree(locate("embedded/teacher"), kit / "odd")
    changed = kit / "odd" / "generation_config.json"
    fields = json.loads(changed.read_text())
    del fields["lang_to_id"]["<|cs|>"]
    changed.write_text(json.dumps(fields))
    grid = dict(methods=["lora", "js"], languages=["ca", "cs"], tables=False)
    lines = plan(expand(kit, overrides={"teacher": "odd"}, **grid)).splitlines()
    told = [line for line in lines if "cannot start" in line]
    refused = [line.split("-s77")[0] for line in told]
    assert refused == ["05_js_distillation-cs"], told
    assert all("'odd' cannot be used: it has no token for the language 'cs'" in x for x in told)
    elsewhere = expand(kit, overrides={"teacher": "openai/whisper-large-v3"}, **grid)
    assert "cannot start" not in plan(elsewhere)


def test_the_plan_sees_runs_that_go_on_and_checkpoints(kit):
    found = expand(kit, methods=["lora", "clsr"], tables=False)
    (Path(found[1].records[0]).parent / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    with claim(found[0]):
        lines = plan(found).splitlines()
    assert lines[1].startswith("running  03_lora") and lines[2].startswith("begun    04_clsr")
