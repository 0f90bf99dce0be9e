"""The library's shape: who imports whom, counted from the text of its code.

    python .ci/house.py [CHECKOUT]       the figures of a checkout, by default this one
    python .ci/house.py --check          exit 1 where an import goes up, or round in a circle

Imports inside functions count, and those that only a type checker reads.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = "distilwhisper_lib"

# From the ground up: a room imports what stands on an earlier line, nothing of its own or a later.
LAYERS = (
    ("errors", "hardware"),
    ("languages", "ranks", "speech"),
    ("io", "scoring"),
    ("config",),
    ("figures", "model"),
    ("losses", "data", "results"),
    ("gates", "session"),
    ("evaluation", "report"),
    ("training", "transcription", "export"),
    ("explorer", "batch"),
)

Graph = dict[str, set[str]]


def imports(root: Path = ROOT) -> Graph:
    """Of each module of the library, without its own front door, the modules that it imports."""
    paths = {_dotted(path, root): path for path in (root / LIBRARY).rglob("*.py")}
    return {
        name: set(_imported(name, path, set(paths))) - {name, LIBRARY}
        for name, path in paths.items()
        if name not in (LIBRARY, f"{LIBRARY}.__main__")
    }


def _dotted(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(name: str, path: Path, known: set[str]) -> Iterator[str]:
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names if module in known else ():
                full = f"{module}.{alias.name}"
                yield full if full in known else module


def rooms(graph: Graph) -> Graph:
    """The same between rooms: the packages and plain modules at the library's root."""
    found: Graph = {}
    for name, others in graph.items():
        room = name.split(".")[1]
        found.setdefault(room, set()).update(other.split(".")[1] for other in others)
        found[room].discard(room)
    return found


def upward(graph: Graph) -> list[str]:
    """The imports between rooms that LAYERS forbids."""
    floor = {room: number for number, names in enumerate(LAYERS) for room in names}
    return sorted(
        f"{room} imports {other}"
        for room, others in rooms(graph).items()
        for other in others
        if room not in floor or other not in floor or floor[other] >= floor[room]
    )


def circles(graph: Graph) -> list[set[str]]:
    """All groups in which each module imports each other, by whatever way."""
    reach = {name: _reached(name, graph) for name in graph}
    groups = {frozenset(other for other in reach[name] if name in reach[other]) for name in graph}
    return [set(group) for group in groups if group]


def _reached(name: str, graph: Graph) -> set[str]:
    seen: set[str] = set()
    left = [name]
    while left:
        new = graph[left.pop()] - seen
        seen |= new
        left += new
    return seen


def floors(graph: Graph) -> int:
    """The longest way from a module down; a circle is one floor."""
    round_ = {name: min(group) for group in circles(graph) for name in group}
    flat: Graph = {}
    for name, others in graph.items():
        one = round_.get(name, name)
        flat.setdefault(one, set()).update({round_.get(o, o) for o in others} - {one})
    height: dict[str, int] = {}
    for name in TopologicalSorter(flat).static_order():
        height[name] = 1 + max((height[other] for other in flat.get(name, ())), default=0)
    return max(height.values())


def figures(root: Path) -> str:
    """What a newcomer meets, as lines of text."""
    graph, library = imports(root), root / LIBRARY
    files = sorted(library.rglob("*.py"))
    packages = [
        p.parent for p in library.glob("*/__init__.py") if len([*p.parent.glob("*.py")]) > 1
    ]
    lines = {
        "modules at the root": len([p for p in library.glob("*.py") if p.name[:2] != "__"]),
        "packages with modules": len(packages),
        "modules": len(graph),
        "imports among modules": sum(map(len, graph.values())),
        "floors of modules": floors(graph),
        "floors of rooms": floors(rooms(graph)),
        "circles of modules": len(circles(graph)),
        "circles of rooms": len(circles(rooms(graph))),
        "lines": sum(len(p.read_text(encoding="utf-8").splitlines()) for p in files),
        "bytes of README.md": (root / "README.md").stat().st_size,
    }
    return "\n".join(f"{what:<24}{count:>7}" for what, count in lines.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", nargs="?", type=Path, default=ROOT)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    if not given.check:
        print(figures(given.checkout))
        return 0
    graph = imports(given.checkout)
    faults = upward(graph) + [f"a circle: {', '.join(sorted(c))}" for c in circles(graph)]
    print("\n".join(faults) or "imports go one way")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
