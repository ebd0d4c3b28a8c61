"""Stages of a run: what they leave is found again by what it was made from.

A stage's key is a hash of its data, its settings, the code that makes it and the versions of
the packages that this code imports. Its files stand in a folder named by the key; a run reads
or adds such folders and removes none, so that going back to an earlier option costs nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from filelock import FileLock, Timeout

from jaxpoison._code import code_of
from jaxpoison._files import read_arrays, write_arrays, write_json
from jaxpoison._progress import Plan, console
from jaxpoison.jobs.artefact import Artefact, Made

SCHEMA = 2
_PACKAGES = ("jaxpoison", "jax", "flax", "optax", "ott-jax", "numpy", "scikit-learn")
_RECORD, _ARRAYS = "stage.json", "arrays.npz"


def hash_of(**depends: Any) -> str:
    """A hash of JSON values, equal for equal values whatever their order."""
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def stage_key(depends: dict[str, Any], code: tuple[Any, ...]) -> str:
    """The key of a stage.

    Args:
        depends: JSON values: data, settings, keys of earlier stages.
        code: The functions and classes that make it.
    """
    return hash_of(schema=SCHEMA, depends=depends, code=code_of(*code))


def versions() -> dict[str, str]:
    """Of Python and packages, and JAX's platform and number of devices."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
        "platform": jax.default_backend(),
        "devices": str(jax.device_count()),
    }


@contextlib.contextmanager
def working(workdir: str | Path | None, job: str) -> Iterator[WorkDirectory]:
    """A work directory, locked for a job; without a path one that is removed when the job ends.

    Args:
        workdir: Its path.
        job: Name of the job.

    Raises:
        ValueError: Another process works there, or the path is none of a directory.
    """
    with contextlib.ExitStack() as stack:
        if workdir is None:
            workdir = stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxpoison-"))
        work = WorkDirectory(Path(workdir))
        stack.enter_context(work.job(job))
        yield work


class WorkDirectory:
    """A directory with one folder per stage and key.

    Args:
        path: The directory; made if it does not exist.

    Attributes:
        plan: What the job has before it, by stage.

    Raises:
        ValueError: Its name is not UTF-8, or that of a file.
        OSError: It cannot be made.
    """

    def __init__(self, path: Path) -> None:
        try:
            str(path.absolute()).encode()
        except UnicodeEncodeError as error:
            # What writes checkpoints takes no other.
            raise ValueError(
                f"the name of a work directory must be UTF-8, found {path.absolute()}: give another"
            ) from error
        self.path = path
        self._job = ""
        self.plan = Plan({})
        self._used: list[tuple[str, str]] = []
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file: give another work directory")
        path.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def locked(self, *, wait: bool = False) -> Iterator[None]:
        """Keeps other processes out while the block runs; the system unlocks what is killed.

        Args:
            wait: Wait for another process to end, instead of raising.

        Raises:
            ValueError: Another process works here.
        """
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            if not wait:
                raise ValueError(
                    f"another process works in {self.path}: wait until it ends, or give another "
                    "work directory"
                ) from error
            console.print(f"waiting for another process in {self.path}", soft_wrap=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def job(self, name: str) -> Iterator[None]:
        """Locks the directory, and notes what a job uses: that is not pruned.

        The stages of the last finished job of a name are kept, and those of one that was
        interrupted since.

        Args:
            name: Of the job.

        Raises:
            ValueError: Another process works here.
        """
        with self.locked():
            (self.path / "jobs").mkdir(exist_ok=True)
            self._job, self._used = name, []
            yield

    def folder(self, name: str, key: str) -> Path:
        """Where a stage keeps its files."""
        return self.path / "stages" / name / key[:24]

    def stage(
        self,
        name: str,
        depends: dict[str, Any],
        make: Callable[[Path], Made],
        *,
        code: tuple[Any, ...],
    ) -> Artefact:
        """Reads what a stage left under this key, or runs it.

        Args:
            name: The stage.
            depends: JSON values that decide what it makes: data, settings, keys of stages.
            make: Runs the stage. It may put files of its own into the folder it is given,
                and find some there that an interrupted run left.
            code: The functions and classes that make it.
        """
        key = stage_key(depends, code)
        self._used.append((name, key))
        if self._job:
            self._note(f"{self._job}.begun.json")
        folder = self.folder(name, key)
        found = _read(folder, key)
        if found is not None:
            self.plan.leave_out(name)
            return found
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _RECORD).unlink(missing_ok=True)
        started = time.perf_counter()
        with self.plan.doing(name):
            made = make(folder)
        seconds = time.perf_counter() - started if made.seconds is None else made.seconds
        write_arrays(folder / _ARRAYS, made.arrays)
        record = {
            "schema": SCHEMA,
            "key": key,
            "depends": depends,
            "seconds": seconds,
            "versions": versions(),
            "values": made.values,
        }
        # As it is read again; and so that no changed digit goes unseen.
        record = json.loads(json.dumps(record, allow_nan=False))
        record["sha256"] = hash_of(**record)
        # The last file makes the others valid.
        write_json(folder / _RECORD, record)
        return Artefact(key, folder, made.values, made.arrays, seconds, record["versions"])

    def _note(self, file: str, **more: Any) -> None:
        record = {"schema": SCHEMA, "job": self._job, "stages": self._used, **more}
        write_json(self.path / "jobs" / file, record)

    def finish(self, network: str | None) -> None:
        """Notes that the job has ended.

        Args:
            network: Key of the training that made the network it ends with; ``None`` for one that
                was brought.
        """
        self._note(f"{self._job}.json", network=network, nanoseconds=time.time_ns())
        (self.path / "jobs" / f"{self._job}.begun.json").unlink(missing_ok=True)

    def finished(self) -> list[dict[str, Any]]:
        """What :meth:`finish` noted of every job, the last one last."""
        jobs = [job for job in self._noted() if "network" in job]
        return sorted(jobs, key=lambda job: job["nanoseconds"])

    def _noted(self) -> list[dict[str, Any]]:
        found = []
        for path in sorted((self.path / "jobs").glob("*.json")):
            try:
                job = json.loads(path.read_bytes())
                job["stages"] = [(str(name), str(key)) for name, key in job["stages"]]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path} is damaged: delete it; what that job used is then made again or pruned"
                ) from error
            found.append(job)
        return found

    def prune(self) -> tuple[int, int]:
        """Removes the stages that no last job used, finished or interrupted.

        Returns:
            How many were removed, and how many bytes that freed.

        Raises:
            ValueError: No job has worked here.
        """
        if not (self.path / "jobs").is_dir():
            raise ValueError(f"no job has worked in {self.path}: there is nothing to prune")
        kept = {self.folder(*stage) for job in self._noted() for stage in job["stages"]}
        removed = freed = 0
        for found in sorted((self.path / "stages").glob("*/*")):
            if found in kept:
                continue
            removed += 1
            if not found.is_dir():
                freed += found.stat().st_size
                found.unlink()
            else:
                freed += sum(p.stat().st_size for p in found.rglob("*") if p.is_file())
                # Without its record a stage is not valid, should this be interrupted.
                (found / _RECORD).unlink(missing_ok=True)
                shutil.rmtree(found)
            if not any(found.parent.iterdir()):
                found.parent.rmdir()
        return removed, freed


def _read(folder: Path, key: str) -> Artefact | None:
    """What a stage left; ``None`` where it is not there, or damaged: it runs again."""
    try:
        record = json.loads((folder / _RECORD).read_bytes())
        digest = record.pop("sha256")
        whole = record["key"] == key and digest == hash_of(**record)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
    arrays = read_arrays(folder / _ARRAYS) if whole else None
    if arrays is None:
        return None
    return Artefact(key, folder, record["values"], arrays, record["seconds"], record["versions"])
