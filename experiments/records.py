"""Recorded rows: read, written, found again."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.benchmarks.reporting import RESULTS, machine
from experiments.benchmarks.reporting import record as record
from jaxpoison import RunConfig

# Of what a run leaves; rows of an earlier one were made by other code.
_SCHEMA = 2


def goes_on(found: Mapping[str, Any], workdir: Path) -> bool:
    """Whether a recorded run lacks a detector, and its trained network is still there."""
    lacking = set(RunConfig().detectors) - set(found["detectors"])
    there = (workdir / "jobs" / "run.json").is_file() and not of_earlier_code(found)
    return bool(lacking) and there


def of_earlier_code(found: Mapping[str, Any]) -> bool:
    """Whether a row was recorded before the code that trains and searches was rebuilt."""
    return found.get("schema", 1) < _SCHEMA


def forget(workdir: Path) -> None:
    """Lets a finished run start anew; one that was interrupted goes on."""
    if (workdir / "result.json").is_file():
        (workdir / "result.json").unlink()
        shutil.rmtree(workdir / "stages")


def read(name: str) -> dict[str, Any]:
    """The recorded rows of a table."""
    path = RESULTS / name / "result.json"
    return json.loads(path.read_text())["rows"] if path.is_file() else {}


def of_schedule(found: Mapping[str, Any], schedule: Mapping[str, Any]) -> bool:
    """Whether a recorded run was trained by a schedule."""
    return all(found["config"][k] == value for k, value in schedule.items())


def elsewhere(row: str, data: str, schedule: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same run, if another of the tables 1 to 5 has recorded it; that of most detectors."""
    records = [
        json.loads(p.read_text())["rows"] for p in sorted(RESULTS.glob("table*/result.json"))
    ]
    same = [
        found[row]
        for found in records
        if row in found
        and found[row]["config"]["data"] == Path(data).name
        and of_schedule(found[row], schedule)
    ]
    return max(same, key=lambda found: len(found["detectors"]), default=None)


def trimmed(result: dict[str, Any]) -> dict[str, Any]:
    """What a table keeps of a run."""
    suspected = {k: v for k, v in result["suspected_class"].items() if k != "conservation"}
    return {**result, "suspected_class": suspected, "machine": machine()}
