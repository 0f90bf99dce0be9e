"""Every package is pinned and checked against a hash, declared where it is used, and audited."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import audit
import lock
import pytest

ROOT = Path(__file__).parents[1]

HASH = "sha256:" + "0" * 64


def test_the_lock_was_made_of_these_pins():
    """After a change of environment.yml: make lock."""
    head = lock.LOCK.read_text(encoding="utf-8").splitlines()[:3]
    assert head[2] == f"# pins {lock.digest()}"
    locked = lock.locked()
    for pin in lock.pins():
        name, version = pin.split("==")
        assert locked[lock.name_of(name)][0] == version
    assert len(locked) > 100
    for name, (version, hashes) in locked.items():
        assert re.fullmatch(r"[\w.]+", version), name
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", h) for h in hashes), name


def test_another_pin_is_another_digest(monkeypatch, tmp_path):
    before, changed = lock.digest(), tmp_path / "environment.yml"
    text = (ROOT / "environment.yml").read_text()
    changed.write_text(text.replace("jiwer==4.0.0", "jiwer==4.0.1"))
    monkeypatch.setattr(lock, "ENVIRONMENT", changed)
    assert lock.digest() != before


def test_pip_gets_torch_by_itself_and_the_rest_with_hashes():
    torch, rest, plain = (lock.part(p).splitlines() for p in ("torch", "rest", "constraints"))
    assert [line.split("==")[0] for line in torch] == ["torch"]
    assert len(rest) == len(plain) - 1 == len(lock.locked()) - 1
    assert all(" --hash=sha256:" in line for line in torch + rest)
    assert not any("--hash" in line for line in plain)


def test_the_lock_says_for_which_machine_it_is(monkeypatch):
    monkeypatch.setattr(lock, "here", lambda: lock.PLATFORM)
    assert lock.main("fits") == 0
    monkeypatch.setattr(lock, "here", lambda: ("Darwin", "arm64", "3.12"))
    assert lock.main("fits") == 1
    with pytest.raises(SystemExit, match="the lock is for Linux x86_64 3.11, this is Darwin"):
        lock.main("write")


def test_the_environment_that_runs_this_is_the_locked_one():
    ready = (ROOT / ".venv" / ".ready").exists() and Path(sys.prefix) == ROOT / ".venv"
    if not ready or lock.here() != lock.PLATFORM:
        pytest.skip("not the .venv of `make env` where the lock holds")
    for name, (version, _) in lock.locked().items():
        assert importlib.metadata.version(name).split("+")[0] == version, name


def test_what_is_declared_is_used_and_what_is_used_is_declared():
    assert audit.misdeclared() == []
    used = audit.imported()
    for name in audit.USED_OTHERWISE:
        assert name in audit.declared() and name not in used, f"{name} needs no exception"


def test_the_audit_sees_what_is_not_used_not_declared_and_not_pinned(monkeypatch):
    known = audit.declared()
    torch = known.pop("torch")
    monkeypatch.setattr(audit, "declared", lambda: known | {"leftpad": torch})
    first, second = audit.misdeclared()
    assert first == "leftpad: declared and not used"
    assert second.startswith("torch: not declared, imported by ")
    locked = lock.locked() | {"numpy": ("0.1", [HASH])}
    locked.pop("certifi")  # which nobody here asks for, but others bring
    monkeypatch.setattr(audit, "locked", lambda: locked)
    found = audit.unpinned()
    assert "certifi: not in requirements.lock" in found
    assert any(line.startswith("numpy: ") and line.endswith("locked is 0.1") for line in found)


def answer(*packages):
    return lambda *given, **also: SimpleNamespace(stdout=json.dumps({"dependencies": packages}))


def test_what_the_advisory_service_says_is_told(monkeypatch):
    faulty = {"name": "x", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["1.1"]}]}
    silent = {"name": "y", "skip_reason": "not found"}
    monkeypatch.setattr(subprocess, "run", answer(faulty, silent))
    assert audit.advisories() == (["x 1: CVE-1, mended in 1.1"], "asked of 1 of 2 packages")
    monkeypatch.setattr(subprocess, "run", answer(silent))
    assert audit.advisories() == (
        None,
        "the advisory service answered for no package here: not audited",
    )
    monkeypatch.setattr(subprocess, "run", lambda *given, **also: SimpleNamespace(stdout=""))
    assert "did not answer (JSONDecodeError): not audited" in audit.advisories()[1]


def test_every_part_has_a_licence():
    rows = audit.licences()
    assert {row[0] for row in rows} == {"code", "weights", "data", "package"}
    assert len([row for row in rows if row[0] == "package"]) == len(lock.locked())
    assert all(licence for _, _, licence, _ in rows)
