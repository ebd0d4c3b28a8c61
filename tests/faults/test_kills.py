"""Jobs killed at any moment go on, and end as if nothing had happened.

``JAXPOISON_KILLS=10 pytest tests/faults`` kills ten times each a run, a scan and a repair; by
default a run is killed once.
"""

import contextlib
import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

KILLS = int(os.environ.get("JAXPOISON_KILLS", "1"))
OPTIONS = ["--rate", "0.25", "--epochs", "4", "--quiet"]
JOBS = {
    "run": ["run", "--detectors", "raw_pca,heatmap_density", *OPTIONS],
    "scan": ["scan", *OPTIONS],
    "repair": ["repair", "--rounds", "1", *OPTIONS],
}
if KILLS == 1:
    del JOBS["scan"], JOBS["repair"]
# What differs from one time to the next.
_TIMES = frozenset({"seconds", "images_per_second", "nanoseconds"})


def start(job, work):
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("job.py")), *JOBS[job], "--workdir", work],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def end(job, work):
    process = start(job, work)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return output


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in _TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def results(work):
    """What jobs leave for their users, but times."""
    found = {}
    for path in sorted(Path(work).glob("*")):
        if path.suffix == ".json":
            found[path.name] = without_times(json.loads(path.read_text()))
        elif path.suffix == ".csv":
            rows = csv.DictReader(io.StringIO(path.read_text()))
            found[path.name] = [without_times(row) for row in rows]
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Results of all jobs, one after the other, and how long each took."""
    work = str(tmp_path_factory.mktemp("undisturbed"))
    seconds = {}
    for job in JOBS:
        started = time.perf_counter()
        end(job, work)
        seconds[job] = time.perf_counter() - started
    return results(work), seconds


def wait_until_begun(process, job, work):
    """Until a job has noted its first stage."""
    note = Path(work) / "jobs" / f"{job}.begun.json"
    earlier = note.stat().st_mtime_ns if note.exists() else 0
    for _ in range(1200):
        if process.poll() is not None or (note.exists() and note.stat().st_mtime_ns > earlier):
            return
        time.sleep(0.05)


def test_jobs_that_are_killed_go_on_and_end_the_same(undisturbed, tmp_path):
    expected, seconds = undisturbed
    work, chance = str(tmp_path / "work"), random.Random(0)
    killed = 0
    for job in JOBS:
        for kill in range(KILLS):
            process = start(job, work)
            wait_until_begun(process, job, work)
            # At once, and at moments of what is left.
            time.sleep(chance.uniform(0, 0.6) * seconds[job] if kill else 0)
            killed += process.poll() is None
            process.kill()
            process.communicate()
            assert process.returncode in (0, -signal.SIGKILL)
        end(job, work)
    assert results(work) == expected
    assert killed > 0


def test_interrupted_by_the_keyboard_a_job_says_how_to_go_on(undisturbed, tmp_path):
    work = str(tmp_path / "work")
    process = start("run", work)
    wait_until_begun(process, "run", work)
    # Where a collector of garbage is at work, Python drops the exception: one presses again.
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)
            break
    output = process.communicate(timeout=60)[0]
    # A second press while the interpreter shuts down ends it by the signal itself.
    assert process.returncode in (130, -signal.SIGINT), output
    assert output.strip().splitlines()[-1] == "interrupted; give the same command again to go on"
    end("run", work)
    names = ("result.json", "images.csv", "suspects-class-5.csv")
    assert {k: results(work)[k] for k in names} == {k: undisturbed[0][k] for k in names}


def test_two_jobs_in_one_directory_take_turns(undisturbed, tmp_path):
    work = str(tmp_path / "work")
    first = start("run", work)
    wait_until_begun(first, "run", work)
    second = start("run", work)
    said = second.communicate(timeout=300)[0]
    first.communicate(timeout=300)
    assert first.returncode == 0
    # It may have come when the first had ended.
    if second.returncode:
        assert "another process works in" in said.splitlines()[-1]
        assert second.returncode == 2
    names = ("result.json", "images.csv", "suspects-class-5.csv")
    assert {k: results(work)[k] for k in names} == {k: undisturbed[0][k] for k in names}
