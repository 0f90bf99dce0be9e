"""Batches on Dask clusters: a worker is killed, a card is shared, the scheduler goes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from kits import make_notebook

pytest.importorskip("distributed")

from distilwhisper_lib.batch import (
    cluster,
    grid,
    ledger,
    schedule,
    tasks,  # noqa: E402
)
from distilwhisper_lib.batch import command as batch
from distilwhisper_lib.batch.cluster import (  # noqa: E402
    Cluster,  # noqa: E402
    about_worker,
    difference,
)
from distilwhisper_lib.errors import UserError  # noqa: E402

PACKAGE = Path(batch.__file__).parents[2]
RECORD = """
import json, os, pathlib, time
from distilwhisper_lib import resolve
config = resolve(METHOD, preset, language, seed, overrides)
folder = pathlib.Path("..") / config.output_dir
shown = pathlib.Path("..") / config.results_dir / "runs" / f"{config.run_id}.json"
def finish(**more):
    about = {"threads": os.environ["OMP_NUM_THREADS"], "run_id": config.run_id, "demo": True}
    for path in (folder / "record.json", shown):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(about | more))
"""
# The first time it waits, long enough to be killed; then it goes on.
SLOW = """
tried = pathlib.Path(METHOD)
first = not tried.exists()
tried.write_text(str(os.getpid()))
time.sleep(120 * first)
finish()
"""
SPAN = "began = time.time(); time.sleep(1.5); finish(span=[began, time.time()])"


@pytest.fixture(autouse=True)
def found_here(monkeypatch):
    """The workers, too, take the package that is tested."""
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def notebook(root: Path, name: str, method: str, *cells: str) -> None:
    cells = (f"METHOD = {method!r}\n{RECORD}", *cells)
    make_notebook(root / "notebooks" / f"{name}.ipynb", *cells)


def expand(root: Path, *methods: str, **keys) -> list:
    return tasks.expand(grid.studies_of(methods=list(methods), tables=False, **keys), root)


def record(task) -> dict:
    return json.loads(Path(task.records[0]).read_text())


def wait_for(ready, what: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"no {what} after {seconds} s"
        time.sleep(0.1)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


# --------------------------------------------------------------------------------- refusals


def test_a_worker_that_differs_is_told_in_one_sentence():
    mine = about_worker(None)
    assert difference(mine, mine, Path("/kit")) is None
    for theirs, told in (
        (ModuleNotFoundError("No module named 'distilwhisper_lib'"), "cannot import this package"),
        (TimeoutError("gone {x}"), "does not answer (TimeoutError: gone {x})"),
        (None, "does not answer (it is gone)"),
        (mine | {"shares": False}, "does not see /kit: put the checkout into a folder that all"),
        (mine | {"code": "other"}, "runs another version of this package"),
        (mine | {"versions": mine["versions"] | {"torch": "2.0"}}, "has torch 2.0, expected 2."),
    ):
        sentence = difference(theirs, mine, Path("/kit"))
        assert told in sentence and "\n" not in sentence


def test_a_worker_that_cannot_see_the_folder_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert not about_worker(str(tmp_path / "note"))["shares"]
    (tmp_path / "note").touch()
    assert about_worker(str(tmp_path / "note"))["shares"]


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "no address"])
def test_a_scheduler_that_does_not_answer_is_named(kit, monkeypatch, address):
    monkeypatch.setattr(cluster, "CONNECT", 1)
    with pytest.raises(UserError, match=f"no scheduler answers at {address} .*such as tcp://host"):
        Cluster(kit, address)


def test_without_dask_there_is_one_sentence(kit, monkeypatch):
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs dask.distributed.*pip install .*\[cluster\]"):
        Cluster(kit, None)


def test_a_machine_has_a_worker_for_each_card_else_for_cores_and_memory(monkeypatch):
    made: list[dict] = []
    monkeypatch.setattr(
        "distributed.SpecCluster", lambda workers, *rest, **more: made.append(workers)
    )
    monkeypatch.setattr(cluster, "visible_devices", lambda: ["3", "GPU-5"])
    cluster.local_cluster(None, 8)
    options = [worker["options"] for worker in made.pop().values()]
    assert [o["env"]["CUDA_VISIBLE_DEVICES"] for o in options] == ["3", "GPU-5"]
    assert all(o["resources"] == {"GPU": 1} and o["nthreads"] == 1 for o in options)
    with pytest.raises(UserError, match="--jobs 3 on a machine of 2 GPUs"):
        cluster.local_cluster(3, 8)
    monkeypatch.setattr(cluster, "visible_devices", lambda: [])
    monkeypatch.setattr(cluster, "usable_cores", lambda: 16)
    for memory, jobs, most, count in (
        (24, None, 9, 6),
        (64, None, 9, 9),
        (2, None, 9, 1),
        (2, 4, 9, 4),
    ):
        monkeypatch.setattr(cluster, "memory_gib", lambda memory=memory: memory)
        cluster.local_cluster(jobs, most)
        workers = made.pop()
        assert len(workers) == count and "resources" not in workers[0]["options"]
        assert workers[0]["options"]["host"] == "127.0.0.1"


def test_records_are_compared_in_everything_but_times():
    from benchmarks.study.grid import differences

    one = {"a": 1, "seconds": 2.0, "log": [{"step": 1, "loss": 0.5}], "training": {"rtf": 1}}
    same = {"a": 1, "seconds": 3.0, "log": [{"step": 1, "loss": 0.5}], "training": {"rtf": 2}}
    assert differences(one, same) == []
    other = {"log": [{"step": 1, "loss": 0.6}], "training": {"rtf": 1, "steps": 3}}
    assert differences(one, other) == ["a", "log.0.loss", "training.steps"]


# ----------------------------------------------------------------------------- real clusters


def test_a_killed_workers_run_goes_to_another_and_the_rest_goes_on(kit, capsys):
    notebook(kit, "03_lora_baseline", "lora", "finish()")
    notebook(kit, "04_clsr_only", "clsr", SLOW)
    found = expand(kit, "lora", "clsr")
    with Cluster(kit, None, jobs=2, tasks=2) as executor:
        assert executor.slots() == 2

        def kill() -> None:
            mark = kit / "notebooks" / "clsr"
            wait_for(lambda: mark.is_file() and mark.read_text(), "kernel")
            os.kill(parent(parent(int(mark.read_text()))), signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        summary = schedule.run_tasks(found, force=False, jobs=executor.slots, execute=executor)
        killer.join()
    assert [o.status for o in summary.outcomes] == ["done", "done"]
    noted = [e["event"] for e in ledger.read(kit) if e["task"] == "04_clsr_only-ca-s77"]
    # Submitted again where the dying process still held its claim when the other worker came.
    assert [event for event in noted if event != "submitted"] == [
        "started", "lost", "started", "done",
    ]  # fmt: skip
    assert record(found[1])["threads"] == "1"
    assert "is lost, and with it 04_clsr_only-ca-s77: once more" in capsys.readouterr().out


def test_a_card_is_never_shared_and_a_scheduler_that_goes_is_one_sentence(kit):
    """Two batches on one existing cluster, whose one worker has two threads and one GPU."""
    notebook(kit, "02_full_finetuning", "full", SPAN)
    notebook(kit, "03_lora_baseline", "lora", SPAN)
    notebook(kit, "04_clsr_only", "clsr", SLOW)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    dask = [sys.executable, "-m", "distributed.cli.dask_"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": kit}
    host, port = address[6:].split(":")
    scheduler = subprocess.Popen(
        [*dask[:2], dask[2] + "scheduler", "--host", host, "--port", port, "--no-dashboard"],
        **quiet,
    )
    worker = subprocess.Popen(
        [*dask[:2], dask[2] + "worker", address, "--nthreads", "2", "--resources", "GPU=1"], **quiet
    )
    try:
        first, second = expand(kit, "full", "lora")
        with Cluster(kit, address) as one, Cluster(kit, address) as two:
            assert one.slots() == 1  # one task a worker, whatever its threads
            batches = [
                threading.Thread(target=lambda e=e, t=t: schedule.run_tasks(
                    [t], force=False, jobs=e.slots, execute=e))
                for e, t in ((one, first), (two, second))
            ]  # fmt: skip
            for thread in batches:
                thread.start()
            for thread in batches:
                thread.join(120)
            (a, b), (c, d) = sorted((record(first)["span"], record(second)["span"]))
            assert b <= c, "two trainings shared a card"

            (last,) = expand(kit, "clsr")
            mark = kit / "notebooks" / "clsr"

            def kill() -> None:
                wait_for(lambda: mark.is_file() and mark.read_text(), "kernel")
                scheduler.kill()

            killer = threading.Thread(target=kill)
            killer.start()
            summary = schedule.run_tasks([last], force=False, jobs=one.slots, execute=one)
            killer.join()
        assert re.fullmatch(
            f"the scheduler {address} is gone: start it again and give the same command, which "
            "skips what has a record and resumes the rest from its checkpoints",
            summary.trouble,
        )
        assert summary.exit_code == 1 and summary.outcomes[0].status == "lost"
    finally:
        scheduler.kill()
        worker.kill()  # and with it its notebook
        scheduler.wait()
        worker.wait(60)
    pid = int(mark.read_text())
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "end of the notebook", 60)
