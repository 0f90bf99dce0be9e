"""What the kit stands on: vulnerabilities, pins, what is declared and used, and licences.

    python .ci/audit.py [--no-advisories]

Exit status 1 for a package with a known vulnerability, one that is not in .ci/requirements.lock,
one that is imported and not declared, and one that is declared and not used. Where the advisory
service cannot be asked, it says so, and that is no failure.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata as metadata
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

sys.path.insert(0, str(Path(__file__).parent))
from lock import LOCK, ROOT, locked  # noqa: E402

# Used without an import, and how.
USED_OTHERWISE = {
    "accelerate": "transformers' Trainer",
    "faster-whisper": "reads what export.to_ctranslate2 writes",
    "ipykernel": "the notebooks' kernel",
    "ruff": "make lint",
    "pip-audit": "make audit",
    "pytest-xdist": "make test",
    "datacollective": "imported by name in common_voice.py",
}
# What is no Python package: part, licence, where that is said.
OTHER_LICENCES = [
    ("code", "this kit", "MIT", "LICENSE"),
    ("weights", "embedded/student, embedded/teacher", "MIT", "README, made here with espeak-ng"),
    ("weights", "openai/whisper-*", "Apache-2.0", "its model card on the hub"),
    ("weights", "naver/multilingual-distilwhisper-*", "see there", "its model card on the hub"),
    ("data", "embedded speech", "MIT", "README, made here with espeak-ng"),
    ("data", "Common Voice", "CC0-1.0", "common_voice.py, Mozilla Data Collective"),
    ("data", "FLEURS", "CC-BY-4.0", "fleurs.py, the data set's card"),
]
SECONDS = 120.0  # for the advisory service


def declared() -> dict[str, Requirement]:
    """Every requirement of pyproject.toml, extras too."""
    project = _project()
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return {canonicalize_name(r.name): r for r in map(Requirement, sum(lists, []))}


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


# Pins ----------------------------------------------------------------------------------------


def unpinned() -> list[str]:
    """What the kit needs, at any depth, that is not locked, or installed at another version."""
    lock, found = locked(), []
    optional = {"common-voice", "demo-build", "faster-whisper"}  # by hand, and pinned by nobody
    project = _project()
    extras = project["optional-dependencies"].items()
    asked = project["dependencies"] + sum((r for n, r in extras if n not in optional), [])
    waiting, seen = [Requirement(r) for r in asked], set()
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            package = metadata.distribution(requirement.name)
        except metadata.PackageNotFoundError:
            found.append(f"{requirement.name}: needed and not installed")
            continue
        if key[0] not in lock:
            found.append(f"{key[0]}: not in {LOCK.name}")
        elif package.version.split("+")[0] != lock[key[0]][0]:
            found.append(f"{key[0]}: {package.version}, locked is {lock[key[0]][0]}")
        for text in package.requires or ():
            needed = Requirement(text)
            given = [{"extra": extra} for extra in ("", *requirement.extras)]
            if needed.marker is None or any(needed.marker.evaluate(g) for g in given):
                waiting.append(needed)
    return sorted(set(found))


# Use -----------------------------------------------------------------------------------------


@cache
def imported() -> dict[str, set[str]]:
    """Distribution -> the files that import it, of all that is committed."""
    packages = metadata.packages_distributions()
    own = {path.stem for folder in ("tests", ".ci") for path in (ROOT / folder).rglob("*.py")}
    own |= {"benchmarks", "distilwhisper_lib", *sys.stdlib_module_names}
    found: dict[str, set[str]] = {}
    for name, source in _sources():
        for module in _modules(source) - own:
            for package in packages.get(module, [module]):
                found.setdefault(canonicalize_name(package), set()).add(name)
    return found


def _sources() -> Iterator[tuple[str, str]]:
    for folder in ("distilwhisper_lib", "tests", "benchmarks", ".ci"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        yield str(path.relative_to(ROOT)), "\n".join(code)


def _modules(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").split(".")[0])
    return found


def misdeclared() -> list[str]:
    """What is declared and not used, and what is used and not declared."""
    known, used = declared(), imported()
    # A package that is not installed goes by the name of its module.
    names = set(used) | {name.replace("_", "-") for name in used}
    unused = [n for n in known if n not in names and n not in USED_OTHERWISE]
    missing = [n for n in used if n not in known and n.replace("_", "-") not in known]
    return [f"{name}: declared and not used" for name in sorted(unused)] + [
        f"{name}: not declared, imported by {sorted(used[name])[0]}" for name in sorted(missing)
    ]


# Advisories ----------------------------------------------------------------------------------


def advisories() -> tuple[list[str] | None, str]:
    """(known vulnerabilities, what to say of the asking) of the locked packages; None where nobody
    could be asked."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), "--no-deps"]
    command += ["--disable-pip", "--format", "json", "--progress-spinner", "off", "--timeout", "10"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        packages = json.loads(done.stdout)["dependencies"]
    except (OSError, ValueError, KeyError, subprocess.TimeoutExpired) as error:
        return None, f"the advisory service did not answer ({type(error).__name__}): not audited"
    audited = [package for package in packages if "skip_reason" not in package]
    if not audited:
        return None, "the advisory service answered for no package here: not audited"
    found = [
        f"{package['name']} {package['version']}: {fault['id']}, mended in "
        f"{', '.join(fault['fix_versions']) or 'no version yet'}"
        for package in audited
        for fault in package["vulns"]
    ]
    return found, f"asked of {len(audited)} of {len(packages)} packages"


# Licences ------------------------------------------------------------------------------------


def licences() -> list[tuple[str, str, str, str]]:
    """(kind, name, licence, where it is said) of code, weights, data and locked packages."""
    rows = list(OTHER_LICENCES)
    for name, (version, _) in sorted(locked().items()):
        try:
            rows.append(("package", f"{name} {version}", *_licence(metadata.metadata(name))))
        except metadata.PackageNotFoundError:
            rows.append(("package", f"{name} {version}", "not installed here", ""))
    return rows


def _licence(about: metadata.PackageMetadata) -> tuple[str, str]:
    """What a package's metadata says, the most exact field first."""
    if expression := about.get("License-Expression"):
        return expression, "metadata, expression"
    classifiers = [c for c in about.get_all("Classifier") or () if c.startswith("License :: ")]
    named = [c.rpartition(" :: ")[2] for c in classifiers if c.count(" :: ") > 1]
    if named:
        return " / ".join(named), "metadata, classifier"
    lines = (about.get("License") or "").strip().splitlines()
    return (lines[0][:60], "metadata, free text") if lines else ("not stated", "metadata")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python .ci/audit.py", description=__doc__)
    parser.add_argument("--no-advisories", action="store_true", help="ask no service")
    given = parser.parse_args()
    vulnerable, asked = (None, "not asked") if given.no_advisories else advisories()
    rows = licences()
    widths = [max(len(row[column]) for row in rows) for column in (0, 1, 3)]
    for kind, name, licence, source in rows:
        cells = (kind.ljust(widths[0]), name.ljust(widths[1]), source.ljust(widths[2]), licence)
        print("  ".join(cells))
    print(f"\nadvisories: {asked}")
    findings = {"vulnerable": vulnerable, "unpinned": unpinned(), "dependencies": misdeclared()}
    for kind, found in findings.items():
        print(f"{kind}: not audited" if found is None else f"{kind}: {len(found)} found")
        for line in found or ():
            print(f"  {line}")
    unknown = sum(row[2] == "not stated" for row in rows)
    print(f"licences: {len(rows)} parts, {unknown} not stated")
    return int(any(findings.values()))


if __name__ == "__main__":
    sys.exit(main())
