"""The rooms of the package and who imports whom, drawn from the code's own imports.

    python -m experiments.architecture

writes ``docs/architecture.png`` and the list in ``docs/architecture.md``. It takes seconds.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jaxpoison"
PAGE, PICTURE = ROOT / "docs" / "architecture.md", ROOT / "docs" / "architecture.png"
BEGIN, END = "<!-- imports -->\n", "<!-- end of imports -->"
# Along the way of the data, imports point backwards: each room's column, and its height.
PLACES = {
    "datasets": (0, 0.0),
    "attacks": (1, 1.0),
    "models": (1, -0.5),
    "training": (2, 0.35),
    "lrp": (2, -0.6),
    "gw": (2, -1.3),
    "detectors": (3, -1.1),
    "evidence": (4, 0.9),
    "jobs": (5, 0.0),
    "report": (6, 0.0),
    "cli": (7, 0.0),
}
# What all rooms may use.
SHARED = ("helpers", "parallel", "metrics")


def room(module: str) -> str:
    """The room a module of the package stands in."""
    first = module.split(".")[1] if "." in module else ""
    if first.startswith("_") or not first:
        return "helpers"
    return first


def modules() -> dict[str, Path]:
    """All modules of the package by name, but its pages of names."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] not in ("__init__", "__main__"):
            found[".".join(parts)] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports, wherever in it."""
    known = modules()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if node.module in known:
                yield node.module
            yield from (
                f"{node.module}.{alias.name}"
                for alias in node.names
                if f"{node.module}.{alias.name}" in known
            )


def graph() -> dict[str, set[str]]:
    """Of every module, those that it imports."""
    return {name: set(imported(path)) for name, path in modules().items()}


def between_rooms() -> dict[str, set[str]]:
    """Of every room, the rooms that it imports from."""
    rooms: dict[str, set[str]] = defaultdict(set)
    for module, others in graph().items():
        rooms[room(module)] |= {room(other) for other in others} - {room(module)}
    return dict(rooms)


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Ways that lead back to where they began."""
    found: list[list[str]] = []
    done: set[str] = set()

    def follow(node: str, way: list[str]) -> None:
        if node in way:
            found.append([*way[way.index(node) :], node])
        elif node not in done:
            for other in sorted(edges.get(node, ())):
                follow(other, [*way, node])
            done.add(node)

    for node in sorted(edges):
        follow(node, [])
    return found


def text() -> str:
    """The list of rooms: files, lines, and what each imports from."""
    edges, sizes = between_rooms(), defaultdict(lambda: [0, 0])
    for module, path in modules().items():
        sizes[room(module)][0] += 1
        sizes[room(module)][1] += len(path.read_text(encoding="utf-8").splitlines())
    order = list(PLACES)
    lines = ["| room | files | lines | imports from |", "|---|---:|---:|---|"]
    for name in (*SHARED, *order):
        files, count = sizes[name]
        others = [other for other in (*order, *SHARED) if other in edges.get(name, ())]
        lines.append(f"| `{name}` | {files} | {count} | {', '.join(others) or '–'} |")
    return "\n".join(lines) + "\n"


def needed(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """The edges without those that others imply."""

    def reached(node: str) -> set[str]:
        others = edges.get(node, set())
        return others.union(*(reached(other) for other in others))

    return {
        node: {o for o in others if not any(o in reached(via) for via in others - {o})}
        for node, others in edges.items()
    }


def picture() -> Figure:
    """Rooms from left to right, and whom each imports from; what others imply is left out."""
    edges = needed(between_rooms())
    figure = Figure(figsize=(10, 2.6), layout="constrained")
    axis = figure.subplots()
    box = {"boxstyle": "round,pad=0.45", "facecolor": "#eef3fa", "edgecolor": "#3b6fb6"}
    boxes = {
        name: axis.text(x, y, name, ha="center", va="center", fontsize=10, bbox=box, zorder=3)
        for name, (x, y) in PLACES.items()
    }
    for name in PLACES:
        for other in edges.get(name, set()) & PLACES.keys():
            arrow = {"arrowstyle": "->", "color": "#3b6fb6"}
            axis.annotate(
                "",
                PLACES[other],
                PLACES[name],
                arrowprops={**arrow, "patchA": boxes[name], "patchB": boxes[other]},
            )
    axis.set(xlim=(-0.6, 7.5), ylim=(-1.6, 1.3))
    axis.set_axis_off()
    return figure


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    PAGE.write_text(before + BEGIN + text() + END + rest.split(END)[1], encoding="utf-8")
    picture().savefig(PICTURE, dpi=120)
    for circle in circles(graph()):
        print("circle:", " -> ".join(circle))
    print(f"{PAGE}, {PICTURE}")


if __name__ == "__main__":
    main()
