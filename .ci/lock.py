"""The lock: every package of the CPU environment, also those that others bring, with its hash.

    python .ci/lock.py write    resolve environment.yml's pins anew, into .ci/requirements.lock
    python .ci/lock.py fits     exit status 0 where the lock holds: its Python, its platform
    python .ci/lock.py torch|rest|constraints    parts of it, for pip

`write` asks the package index (`make lock`); everything else reads files alone. Only the standard
library is needed, because it runs before anything is installed.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / ".ci" / "requirements.lock"
ENVIRONMENT = ROOT / "environment.yml"
PLATFORM = ("Linux", "x86_64", "3.11")  # for which the hashes are
_HEAD = """\
# Made by `make lock` from environment.yml: do not edit. For {where}, without a GPU.
# torch is the CPU build of this index; `make env` takes another by its version, and says so.
# pins {digest}
"""


def pins() -> list[str]:
    """environment.yml's packages, as "name==version"."""
    text = ENVIRONMENT.read_text(encoding="utf-8")
    return re.findall(r"^ *- ([A-Za-z0-9._-]+==\S+)$", text, re.M)


def digest() -> str:
    """What tells whether a lock was made of these pins."""
    return hashlib.sha256("\n".join(sorted(pins())).encode()).hexdigest()[:16]


def name_of(package: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", package).lower()


def locked(path: Path = LOCK) -> dict[str, tuple[str, list[str]]]:
    """Name -> (version, hashes as "sha256:...")."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement, *hashes = line.split()
            name, version = requirement.split("==")
            found[name_of(name)] = (version, [h.removeprefix("--hash=") for h in hashes])
    return found


def here() -> tuple[str, str, str]:
    return platform.system(), platform.machine(), ".".join(platform.python_version_tuple()[:2])


def write() -> None:
    """Let pip resolve the pins without installing, and keep what it would take."""
    if here() != PLATFORM:
        sys.exit(f"error: the lock is for {' '.join(PLATFORM)}, this is {' '.join(here())}")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--report", "-",
               "--ignore-installed", "--only-binary", ":all:", *pins()]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit("error: pip could not resolve environment.yml's pins: nothing was written")
    lines = []
    for package in json.loads(done.stdout)["install"]:
        about = package["metadata"]
        sha256 = package["download_info"]["archive_info"]["hashes"]["sha256"]
        version = about["version"].split("+")[0]  # torch's build is told by its hash
        lines.append(f"{name_of(about['name'])}=={version} --hash=sha256:{sha256}\n")
    head = _HEAD.format(where=f"{PLATFORM[0]} {PLATFORM[1]}, Python {PLATFORM[2]}", digest=digest())
    LOCK.write_text(head + "".join(sorted(lines)), encoding="utf-8")
    print(f"{LOCK.relative_to(ROOT)}: {len(lines)} packages")


def part(which: str) -> str:
    """ "torch": its line; "rest": all others'; "constraints": all versions, without hashes."""
    lines = []
    for name, (version, hashes) in sorted(locked().items()):
        if which == "constraints":
            lines.append(f"{name}=={version}")
        elif (name == "torch") is (which == "torch"):
            lines.append(" ".join([f"{name}=={version}", *(f"--hash={h}" for h in hashes)]))
    return "\n".join(lines)


def main(what: str) -> int:
    if what == "write":
        write()
    elif what == "fits":
        return int(here() != PLATFORM)
    else:
        print(part(what))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
