"""The strict notebook runner, on tiny notebooks."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from kits import finish, make_notebook, names

from distilwhisper_lib.batch import command as batch
from distilwhisper_lib.batch import notebooks
from distilwhisper_lib.batch import task as execution
from distilwhisper_lib.batch.progress import Progress
from distilwhisper_lib.batch.task import Outcome, Task
from distilwhisper_lib.config.settings import resolve
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.results.provenance import usable_cores

REPORT = """
import json, os, pathlib, sys
pathlib.Path(f"{language}-{seed}.json").write_text(json.dumps({
    "preset": preset, "seed": seed, "overrides": overrides, "python": sys.executable,
    "threads": os.environ.get("OMP_NUM_THREADS")}))
"""


class Recorder:
    """Stands in for the executor: remembers the tasks, fails or breaks on wish."""

    def __init__(self, fail: str = "", explode: str = "") -> None:
        self.seen, self.fail, self.explode = [], fail, explode

    def __call__(self, task):
        self.seen.append(task.name)
        if task.name == self.explode:
            raise RuntimeError("worker lost")
        if task.name == self.fail:
            return batch.Outcome(task.name, "failed", 1.0, "ValueError: no", task.output)
        return batch.Outcome(task.name, "done", 1.0)


# ------------------------------------------------------------------------------------ expand


def test_a_study_without_a_teacher_runs_none(kit):
    given = {"languages": ["gn"], "overrides": {"teacher": "", "speaks_as": "ca"}, "root": kit}
    data, lora = batch.expand(["01", "03"], **given)
    assert [run_id[:13] for run_id in (*data.run_ids, *lora.run_ids)] == [
        "zero-shot-gn-", "lora-gn-s77-" + lora.run_ids[0][12]
    ]  # fmt: skip
    with pytest.raises(UserError, match="method 'js' needs a teacher, and the setting teacher na"):
        batch.expand(["05"], **given)


def test_expand_follows_the_order_of_the_kit(kit):
    tasks = batch.expand(languages=["ca", "Czech"], seeds=[1, 2], root=kit)
    per_run = ["-ca-s1", "-ca-s2", "-cs-s1", "-cs-s2"]
    expected = ["00_quickstart", "01_data_prep-ca-s1", "01_data_prep-cs-s1"]  # data know no seed
    expected += ["teacher_targets-ca", "teacher_targets-cs"]  # of both methods and seeds
    expected += [name + run for name in batch.NOTEBOOKS[2:7] for run in per_run]
    expected += ["07_evaluation_tables", "08_gate_activations"]
    assert names(tasks) == expected
    assert tasks[0].parameters == {"preset": "demo", "language": "ca", "seed": 1}
    assert tasks[2].parameters == {"preset": "demo", "language": "cs", "seed": 1}
    assert tasks[2].notebook == str(kit / "notebooks" / "01_data_prep.ipynb")
    assert tasks[2].output == kit / "outputs" / "notebooks" / "01_data_prep-cs-s1.ipynb"


def test_expand_sorts_by_stage_and_drops_repetitions(kit):
    wanted = ["08", "05", "02", "01", "05_js_distillation"]
    tasks = batch.expand(wanted, languages=["ca", "catalan"], root=kit)
    assert names(tasks) == [
        "01_data_prep-ca-s77",
        "05_js_distillation-ca-s77",
        "02_full_finetuning-ca-s77",
        "08_gate_activations",
    ]


@pytest.mark.parametrize("form", ["05", "05_js_distillation", "05_js_distillation.ipynb", "path"])
def test_notebooks_are_found_by_number_name_and_path(kit, form):
    expected = kit / "notebooks" / "05_js_distillation.ipynb"
    assert notebooks.find_notebook(expected if form == "path" else form, kit) == expected


def test_a_notebook_of_ones_own_runs_per_language_and_is_never_skipped(kit):
    own = make_notebook(kit / "mine.ipynb")
    tasks = batch.expand([own], languages=["ca", "cs"], root=kit)
    assert names(tasks) == ["mine-ca-s77", "mine-cs-s77"]
    assert tasks[0].records == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"notebooks": ["09_none"]}, "notebook '09_none' is no notebook: expected a path or one"),
        ({"notebooks": ["0"]}, "notebook '0' fits several notebooks"),
        ({"notebooks": ["x/05"]}, "notebook 'x/05' is no notebook"),
        ({"languages": ["xx"]}, "xx"),
        ({"languages": []}, r"languages \[\]: expected a list of at least one language"),
        ({"languages": "ca"}, "languages 'ca': expected a list"),
        ({"seeds": ["one"]}, "parameter seed='one' is str, expected int"),
        ({"seeds": [True]}, "parameter seed=True is bool, expected int"),
        ({"preset": "none"}, "unknown preset 'none'"),
        ({"preset": 3}, "unknown preset 3"),
        ({"overrides": "{max_steps: 2}"}, "is not JSON"),
        ({"overrides": "[1]"}, r"overrides \[1\]: expected a dict"),
        ({"overrides": {"max_step": 2}}, "unknown setting 'max_step'"),
        ({"overrides": {"max_steps": "two"}}, "setting max_steps='two' has the wrong type"),
        ({"parameters": {"langauge": "ca"}}, r"00_quick.*: unknown parameter 'langauge': expected"),
        ({"parameters": {"x=1;y": 1}}, "unknown parameter 'x=1;y'"),
        ({"root": Path("/nonexistent")}, "holds none of the kit's notebooks"),
    ],
)
def test_everything_wrong_is_refused_before_anything_starts(kit, arguments, message):
    recorder = Recorder()
    with pytest.raises(UserError, match=message):
        batch.run(**{"root": kit, "execute": recorder} | arguments)
    assert recorder.seen == []
    assert not (kit / "outputs").exists()


def test_one_bad_notebook_among_many_stops_all(kit):
    make_notebook(kit / "notebooks" / "06_kl_distillation.ipynb", parameters='language = "ca"')
    recorder = Recorder()
    with pytest.raises(UserError, match="06_kl_distillation.ipynb: unknown parameter 'preset'"):
        batch.run(root=kit, execute=recorder)
    assert recorder.seen == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "has no cell tagged 'parameters'"),
        ("x: int | None = None", "papermill cannot see parameter 'x'"),
        ("a = 1\nb = a + 1", "parameter 'b' has the default a [+] 1, expected a plain literal"),
        ("x = = 1", "the parameters cell is no Python"),
    ],
)
def test_parameter_cells_that_papermill_misreads_are_refused(tmp_path, source, message):
    path = make_notebook(tmp_path / "n.ipynb", parameters=source)
    with pytest.raises(UserError, match=message):
        notebooks.declared_parameters(path)


def test_a_broken_notebook_file_is_named(tmp_path):
    (tmp_path / "n.ipynb").write_text("{")
    with pytest.raises(UserError, match=r"n\.ipynb: cannot be read as a Python notebook"):
        notebooks.declared_parameters(tmp_path / "n.ipynb")


def test_text_values_get_the_declared_type(tmp_path):
    source = 's = "a"\ni = 1\nf = 0.5\nb = True\nd = {"x": 1}\nl = [\n  1,\n  2,\n]\nn = None'
    path = make_notebook(tmp_path / "n{0}.ipynb", parameters=source)
    assert notebooks.declared_parameters(path) == {
        **{"s": "a", "i": 1, "f": 0.5, "b": True, "d": {"x": 1}, "l": [1, 2], "n": None}
    }
    text = {"s": "1e-4", "i": "3", "f": "1e-4", "b": "false", "d": '{"y": 2}', "l": "[3]"}
    assert notebooks.checked_parameters(path, text) == {
        **{"s": "1e-4", "i": 3, "f": 1e-4, "b": False, "d": {"y": 2}, "l": [3]}
    }
    for name, bad in {"s": False, "i": "1.5", "f": "x", "b": "no", "d": "[1]", "l": "1"}.items():
        with pytest.raises(UserError, match=f"parameter {name}="):
            notebooks.checked_parameters(path, {name: bad})


def test_parameters_may_name_the_four(kit):
    given = {"language": "cs", "seed": "5", "overrides": '{"max_steps": 2}'}
    (task,) = batch.expand(["05"], parameters=given, root=kit)
    assert re.fullmatch("05_js_distillation-cs-s5-[0-9a-f]{8}", task.name)
    assert task.parameters == {
        **{"preset": "demo", "language": "cs", "seed": 5, "overrides": {"max_steps": 2}}
    }


def test_notebooks_that_would_overwrite_each_other_are_refused(kit):
    twins = [make_notebook(kit / folder / "mine.ipynb") for folder in "ab"]
    with pytest.raises(UserError, match="would both write mine-ca-s77.ipynb"):
        batch.expand(twins, root=kit)


def test_root_is_found_from_below(kit, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(kit / "notebooks")
    assert notebooks.find_root() == kit
    with pytest.raises(UserError, match="pass --root FOLDER"):
        notebooks.find_root(tmp_path_factory.mktemp("elsewhere"))


# ------------------------------------------------------------------------- order, skips, failures


def test_tables_come_last_and_failures_do_not_stop_what_needs_them_not(kit, capsys):
    recorder = Recorder(fail="05_js_distillation-ca-s77", explode="02_full_finetuning-ca-s77")
    summary = batch.run(root=kit, jobs=3, execute=recorder)
    assert recorder.seen[:2] == ["00_quickstart", "01_data_prep-ca-s77"]
    assert set(recorder.seen[-2:]) == {"07_evaluation_tables", "08_gate_activations"}
    assert recorder.seen.index("teacher_targets-ca") < recorder.seen.index(
        "06_kl_distillation-ca-s77"
    )
    assert len(recorder.seen) == 10
    assert summary.exit_code == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line[:7] for line in lines[:10]] == [f"[{n:>2}/10]" for n in range(1, 11)]
    assert any(
        "failed   05_js_distillation-ca-s77  1.0 s  ValueError: no; see " in line for line in lines
    )
    assert any("RuntimeError: worker lost" in line for line in lines)
    assert lines[-1] == "8 done, 2 failed"


def test_finished_runs_are_skipped_unless_forced(kit, capsys):
    for method in ("js", "teacher"):
        finish(kit, method)
    recorder = Recorder()
    summary = batch.run(["01", "05", "06"], root=kit, execute=recorder)
    # 01 leaves two records, and one of them is missing.
    needed = ["01_data_prep-ca-s77", "teacher_targets-ca", "06_kl_distillation-ca-s77"]
    assert recorder.seen == needed
    assert summary.exit_code == 0
    assert "skipped  05_js_distillation-ca-s77" in capsys.readouterr().out
    finish(kit, "zero_shot")
    recorder = Recorder()
    batch.run(["01"], root=kit, execute=recorder)
    assert recorder.seen == needed[:1]  # it publishes what was read, too
    report = kit / resolve("zero_shot").data_report
    report.parent.mkdir(parents=True)
    report.write_text('{"clips": 1}')
    recorder = Recorder()
    batch.run(["01"], root=kit, execute=recorder)
    assert recorder.seen == []
    batch.run(["05"], root=kit, execute=recorder, overrides={"max_steps": 2})
    batch.run(["05"], root=kit, execute=recorder, force=True)
    # Another study's copy does not replace the plain one.
    assert re.fullmatch("05_js_distillation-ca-s77-[0-9a-f]{8}", recorder.seen[0])
    assert recorder.seen[1] == "05_js_distillation-ca-s77"


@pytest.mark.parametrize("content", [None, "", '{"run_id": "js', "{}"])
@pytest.mark.parametrize("place", ["record.json", "js-ca*.json"])
def test_a_run_is_finished_when_its_record_is_whole_in_its_folder_and_its_results(
    kit, content, place
):
    finish(kit, "js")
    (record,) = (kit / "outputs").rglob(place)
    if content is None:
        record.unlink()
    else:
        record.write_text(content)
    recorder = Recorder()
    batch.run(["05"], root=kit, execute=recorder)
    assert "05_js_distillation-ca-s77" in recorder.seen


@pytest.mark.parametrize("jobs", [0, -1, 1.5, True])
def test_jobs_must_be_a_count(kit, jobs):
    with pytest.raises(UserError, match="jobs=.*expected a whole number from 1"):
        batch.run(root=kit, jobs=jobs, execute=Recorder())


# ------------------------------------------------------------------------------- real kernels


def command(root: Path, *arguments: str, **environment: str) -> list:
    package = str(Path(batch.__file__).parents[2])
    settings = {"PYTHONPATH": package, **environment}
    line = [sys.executable, "-m", "distilwhisper_lib.batch", "run", *arguments, "--root", str(root)]
    return [line, {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | settings]


def test_batch_of_three_with_a_failure_two_at_a_time(kit, tmp_path_factory):
    """Command line, from another folder, with a "python3" kernelspec that must not be used."""
    specs = tmp_path_factory.mktemp("jupyter")
    spec = specs / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = ["/nonexistent/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "trap", "language": "python"}))
    books = kit / "notebooks"
    make_notebook(books / "04_clsr_only.ipynb", REPORT)
    make_notebook(
        books / "06_kl_distillation.ipynb", "x = 1", "raise ValueError('gate\\nwide open')"
    )
    make_notebook(books / "07_evaluation_tables.ipynb", "open('07.txt', 'w').close()")
    line, environment = command(
        kit, "04", "06", "07", "--languages", "cs", "--jobs", "2", JUPYTER_PATH=str(specs)
    )
    overrides = {"max_steps": 2, "learning_rate": 1e-4, "student": "no"}
    line += ["--overrides", json.dumps(overrides)]
    digest = hashlib.sha256(json.dumps(overrides, sort_keys=True).encode()).hexdigest()
    study = f"-{digest[:8]}"
    done = subprocess.run(
        line, env=environment, cwd=specs, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done.stdout + done.stderr
    made = json.loads((books / "cs-77.json").read_text())
    assert made == {
        "preset": "demo",
        "seed": 77,
        "overrides": overrides,
        "python": sys.executable,
        "threads": str(max(1, usable_cores() // 2)),
    }
    assert (books / "07.txt").is_file()  # in the notebook's folder, and after a failure
    assert sorted(os.listdir(kit / "outputs" / "notebooks")) == [
        f"04_clsr_only-cs-s77{study}.ipynb",
        f"06_kl_distillation-cs-s77{study}.failed.ipynb",
        f"07_evaluation_tables{study}.ipynb",
    ]
    failed = kit / "outputs" / "notebooks" / f"06_kl_distillation-cs-s77{study}.failed.ipynb"
    (line,) = [line for line in done.stdout.splitlines() if " failed " in line]
    assert line.endswith(f"ValueError: gate wide open; see {failed}")
    assert done.stdout.splitlines()[-1] == "2 done, 1 failed"
    assert "ValueError" in failed.read_text()


def test_a_mended_notebook_replaces_its_failed_copy(kit):
    outputs = kit / "outputs" / "notebooks"
    outputs.mkdir(parents=True)
    (outputs / "08_gate_activations.failed.ipynb").write_text("{}")
    (task,) = batch.expand(["08"], root=kit)
    outcome = execution.execute_one(task)
    assert (outcome.status, outcome.error) == ("done", "")
    assert os.listdir(outputs) == ["08_gate_activations.ipynb"]
    executed = nbformat.read(outputs / "08_gate_activations.ipynb", as_version=4)
    assert executed.cells[1].metadata.tags == ["injected-parameters"]


def test_a_dying_kernel_and_a_dying_process_are_failures(kit):
    die = "import os, signal; os.kill({}, signal.SIGKILL)"
    first = make_notebook(kit / "a.ipynb", die.format("os.getpid()"))
    second = make_notebook(kit / "b.ipynb", die.format("os.getppid()"))
    summary = batch.run([first, second], root=kit, jobs=2)
    kernel, process = summary.outcomes
    assert summary.exit_code == 1
    assert kernel.error.startswith("DeadKernelError")
    assert "ended (signal 9, often for want of memory)" in process.error
    assert Path(kernel.output).is_file() and Path(process.output).is_file()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(
    ("kind", "where"), [(signal.SIGINT, []), (signal.SIGTERM, ["--cluster", "--jobs", "1"])]
)
def test_an_interrupt_stops_notebooks_and_kernels(kit, kind, where):
    if where:
        pytest.importorskip("distributed")
    wait = "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\n"
    make_notebook(kit / "notebooks" / "04_clsr_only.ipynb", wait + "time.sleep(120)")
    line, environment = command(kit, "04", "06", "07", *where)
    process = subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, text=True, preexec_fn=_hear_interrupts
    )
    mark = kit / "notebooks" / "pid"
    deadline = time.monotonic() + 60
    while not (mark.is_file() and mark.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    kernel = int(mark.read_text())
    process.send_signal(kind)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    lines = [line for line in out.splitlines() if line.startswith("[")]
    assert [line.split()[1:3] for line in lines] == [
        ["interrupted", "04_clsr_only-ca-s77"],
        ["interrupted", "06_kl_distillation-ca-s77"],
        ["interrupted", "07_evaluation_tables"],
    ]
    assert "The same command goes on where it was interrupted." in out
    assert os.listdir(kit / "outputs" / "notebooks") == []
    while _alive(kernel) and time.monotonic() < deadline + 20:
        time.sleep(0.1)
    assert not _alive(kernel)


def test_a_line_ends_with_what_its_task_left(tmp_path, monkeypatch):
    """01 its page of the data, a method its run's folder."""
    monkeypatch.chdir(tmp_path)
    run, page = Path("outputs/clsr-ca-s77-0123"), Path("outputs/results/data/own-ca.html")
    for folder in (run, page.parent):
        folder.mkdir(parents=True)
    page.write_text("x")
    record = (str(tmp_path / run / "record.json"),)
    data = str(tmp_path / page.with_suffix(".json"))
    tasks = [
        Task("01", str(tmp_path), "01.ipynb", {}, record, files=("a.json", data)),
        Task("04", str(tmp_path), "04.ipynb", {}, record, files=("a.json",)),
        Task("07", str(tmp_path), "07.ipynb", {}),
    ]
    progress = Progress(tasks, out=io.StringIO())
    for task in tasks:
        progress.ended(Outcome(task.name, "done", 2.0))
    assert progress.out.getvalue().splitlines() == [
        f"[1/3] done     01  2.0 s  {page}",
        f"[2/3] done     04  2.0 s  {run}",
        "[3/3] done     07  2.0 s",
    ]


def _hear_interrupts() -> None:
    """A suite that a shell runs in the background ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_refusals_exit_with_2_and_one_line(kit, capsys):
    assert batch.main(["run", "05", "-p", "langauge", "ca", "--root", str(kit)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: 05_js_distillation.ipynb: unknown parameter 'langauge'")
    assert error.count("\n") == 1
