"""From one's own results to the published ones: a run's record with what belongs to it."""

from __future__ import annotations

from pathlib import Path

from distilwhisper_lib.config.settings import OWN_RESULTS, WITH_EXPERTS, Record, results_of
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.gates.files import read_gates
from distilwhisper_lib.gates.forced import forced_path, read_forced
from distilwhisper_lib.io.files import write_atomic
from distilwhisper_lib.results.hypotheses import hypotheses_path, part_of, read_published
from distilwhisper_lib.results.places import kit_folder
from distilwhisper_lib.results.records import read_record


def publish_run(name: str, own: str | Path = OWN_RESULTS) -> list[str]:
    """Copy a run's record, hypotheses, gate file and forced gates, those it has, into results/.

    ``name``: its run id, or a path that ends in it: its folder in outputs/, its record. Returns a
    line for each file. Raises UserError, with nothing written, for a run that is not in ``own``
    and for a file that does not fit its record.
    """
    folder, run_id = _find(name, Path(own))
    record = read_record(folder / "runs" / f"{run_id}.json")
    if record["provenance"]["dirty"]:
        raise UserError(
            f"run {run_id} was made by code that no commit holds, so nobody could make it again: "
            "commit the changes and run it anew with --force"
        )
    to = kit_folder(folder)
    stale = _stale(forced_path(to, run_id), record)
    files = [*_hypotheses(folder, record), *_gates(folder, record)]
    files.append(folder / "runs" / f"{run_id}.json")  # last: it says that all of the run is there
    contents = {to / path.relative_to(folder): path.read_bytes() for path in files}
    earlier = to / "runs" / f"{run_id}.json"
    lines = [f"replaces the record of {run_id} that {to} had"] if earlier.exists() else []
    if stale and stale not in contents:
        stale.unlink()
        lines.append(f"removed {stale}, which tells of other weights")
    return lines + [f"copied {write_atomic(path, data)}" for path, data in contents.items()]


def _find(name: str, own: Path) -> tuple[Path, str]:
    """The results folder that has the run, and its id."""
    path = Path(name)
    run_id = path.parent.name if path.name == "record.json" else path.name.removesuffix(".json")
    for demo in (False, True):
        if (results_of(own, demo) / "runs" / f"{run_id}.json").is_file():
            return results_of(own, demo), run_id
    known = sorted(p.stem for p in own.glob("**/runs/*.json"))
    raise UserError(
        f"{name!r} is no run of yours: expected one in {own}, which has "
        f"{', '.join(known[:5]) or 'none'}{', ...' if len(known) > 5 else ''}"
    )


def _hypotheses(folder: Path, record: Record) -> list[Path]:
    """The files of what the run said; UserError unless each is the one that its record names."""
    said = [*record["evaluations"], *(record.get("forgetting") or ())]
    return [
        hypotheses_path(folder, record["run_id"], part_of(evaluation))
        for evaluation in said
        if read_published(folder, record, evaluation) is not None
    ]


def _gates(folder: Path, record: Record) -> list[Path]:
    gates = folder / "gates" / f"{record['run_id']}.json"
    if gates.exists():
        read_gates(gates)
    elif record["config"]["method"] in WITH_EXPERTS:
        raise UserError(f"run {record['run_id']} has no {gates}: run its notebook again")
    forced = forced_path(folder, record["run_id"])
    if _stale(forced, record):
        raise UserError(
            f"{forced}: tells of other weights than record {record['run_id']}: run "
            "`distilwhisper_lib gates` again, or remove it"
        )
    return [path for path in (gates, forced) if path.exists()]


def _stale(forced: Path, record: Record) -> Path | None:
    """The file of forced gates, where there is one and it is not of the record's weights."""
    weights = (record["training"] or {}).get("weights_sha256")
    of_others = forced.exists() and read_forced(forced)["weights_sha256"] != weights
    return forced if of_others else None
