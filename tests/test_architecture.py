"""Rooms, imports, names: what keeps the house in order."""

import ast
import importlib
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import jaxpoison
from experiments import architecture

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jaxpoison"


def test_imports_point_backwards_along_the_way_of_the_data():
    edges = architecture.between_rooms()
    column = {name: place[0] for name, place in architecture.PLACES.items()}
    assert edges.keys() == {*column, *architecture.SHARED}
    for room, others in edges.items():
        for other in others & column.keys():
            assert room in column, f"{room} serves all rooms, and imports from {other}"
            assert column[other] < column[room], f"{room} imports from {other}"
    assert architecture.circles(architecture.graph()) == []


def test_circles_would_be_seen():
    assert architecture.circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c", "a"]]


def test_only_reports_and_commands_import_jobs():
    for room, others in architecture.between_rooms().items():
        if "jobs" in others:
            assert room in ("report", "cli"), room


@pytest.mark.parametrize("room", ["detectors", "evidence", "gw", "lrp", "models", "training"])
def test_truth_is_read_by_attacks_metrics_and_reports_alone(room):
    for path in (PACKAGE / room).rglob("*.py"):
        names = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute)
        }
        # ExclusiveRetraining.poisoned is a call, not the truth.
        if path.name != "retraining.py":
            assert not names & {"poisoned", "backdoor"}, path


def test_the_page_of_the_architecture_is_drawn_from_the_code():
    page = architecture.PAGE.read_text()
    shown = page.split(architecture.BEGIN)[1].split(architecture.END)[0]
    without_lines = re.compile(r"\| (\d+) \| (\d+) \|")
    expected = without_lines.sub(r"| \1 |", architecture.text())
    assert without_lines.sub(r"| \1 |", shown) == expected, "run python -m experiments.architecture"
    assert architecture.picture().axes


def test_public_names_stand_once_and_are_there():
    stub = (PACKAGE / "__init__.pyi").read_text()
    names = re.findall(r"^from \.\S+ import (\w+) as (\w+)$", stub, re.MULTILINE)
    assert all(name == alias for name, alias in names)
    listed = [name for name, _ in names]
    assert sorted(set(listed)) == sorted(listed) == sorted(jaxpoison.__all__)
    for name in listed:
        assert getattr(jaxpoison, name) is not None
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    assert jaxpoison.__version__ == project["version"], "install the package anew"
    assert (PACKAGE / "py.typed").is_file()
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = jaxpoison.no_such_name


def seconds_of(code):
    """The least of three processes."""
    found = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        found.append(time.perf_counter() - started)
    return min(found)


def test_importing_imports_nothing_heavy():
    code = "import sys, jaxpoison; print(*(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"jax", "flax", "sklearn", "matplotlib", "ott", "orbax", "tensorflow_datasets", "optax"}
    assert not heavy & set(done.stdout.split())
    assert seconds_of("import jaxpoison") < 1.5 * seconds_of("import jax, flax.nnx")
    # What one name needs is not all that others need.
    code = "import jaxpoison, sys; jaxpoison.relevance_function; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"sklearn", "ott", "matplotlib", "tensorflow_datasets"} & set(done.stdout.split())


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").partition(".")[0] == "jaxpoison"
        ):
            yield node.module, [alias.name for alias in node.names]


def test_experiments_use_public_names():
    """From the package's page; benchmarks also measure what lies below, by names without dashes."""
    for path in sorted((ROOT / "experiments").rglob("*.py")):
        for module, names in imports_of(path):
            if "benchmarks" in path.parts or path.name == "zennit_networks.py":
                words = [*module.split("."), *names]
                assert not any(word.startswith("_") for word in words), (path, module, names)
            else:
                assert module == "jaxpoison", (path, module)


def test_tests_mirror_the_package():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name[0] != "_"}
    assert rooms <= {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()}


def test_every_module_can_be_imported_alone():
    for name in architecture.modules():
        importlib.import_module(name)
