"""Stages of a run that leave what a later run resumes from."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpoison._files import replace_file, write_json

SCHEMA = 1
# Of stages by the first word of their names, 1 where none is given. Raised by every change of
# the code that changes what such a stage makes: older ones run again.
REVISIONS = {"detect": 2, "scan": 2}
_PACKAGES = ("jaxpoison", "jax", "flax", "optax", "ott-jax", "numpy", "scikit-learn")


@dataclass(frozen=True, eq=False)
class Artefact:
    """What a stage left.

    Attributes:
        key: Hash of everything the stage depends on.
        values: JSON values.
        arrays: Arrays.
        seconds: Time the stage took when it ran.
        versions: Of Python and packages when it ran, and JAX's platform.
    """

    key: str
    values: dict[str, Any]
    arrays: dict[str, np.ndarray]
    seconds: float
    versions: dict[str, str]


@dataclass(frozen=True)
class Made:
    """What a stage's function returns: JSON values and arrays."""

    values: dict[str, Any]
    arrays: dict[str, np.ndarray]
    seconds: float | None = None


def hash_of(**depends: Any) -> str:
    """A hash of JSON values, equal for equal values whatever their order."""
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Of Python and packages, and JAX's platform."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
        "platform": jax.default_backend(),
    }


class WorkDirectory:
    """A directory with one folder per stage.

    A stage whose dependencies hash to the same key is read, not run again. A
    stage's folder becomes valid when its last file, the key, is in place.

    Args:
        path: The directory; made if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def folder(self, name: str) -> Path:
        """Where a stage keeps its files."""
        return self.path / "stages" / name

    def stage(self, name: str, key: str, make: Callable[[], Made]) -> Artefact:
        """Reads what a stage left under this key, or runs it.

        Args:
            name: The stage.
            key: Hash of everything it depends on.
            make: Runs the stage. It may put files of its own into the stage's folder.
        """
        folder = self.folder(name)
        valid = {
            "schema": SCHEMA,
            "revision": REVISIONS.get(name.partition("-")[0], 1),
            "key": key,
        }
        found = self._read(folder, valid)
        if found is not None:
            return found
        (folder / "stage.json").unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        made = make()
        seconds = time.perf_counter() - started if made.seconds is None else made.seconds
        with replace_file(folder / "arrays.npz") as file:
            np.savez(file, **made.arrays)  # pyright: ignore[reportArgumentType]
        record = valid | {"seconds": seconds, "versions": versions(), "values": made.values}
        write_json(folder / "stage.json", record)
        return Artefact(key, made.values, made.arrays, seconds, record["versions"])

    def _read(self, folder: Path, valid: dict[str, Any]) -> Artefact | None:
        try:
            record = json.loads((folder / "stage.json").read_text())
            if any(record[name] != value for name, value in valid.items()):
                return None
            ran_with = record["versions"]
            with np.load(folder / "arrays.npz") as file:
                arrays = {name: file[name] for name in file.files}
        except (FileNotFoundError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            # Not there, or damaged: the stage runs again.
            return None
        return Artefact(valid["key"], record["values"], arrays, record["seconds"], ran_with)

    def keep_only(self, parent: Path, name: str) -> None:
        """Removes all folders inside ``parent`` but the one named."""
        if parent.is_dir():
            for folder in parent.iterdir():
                if folder.name != name:
                    shutil.rmtree(folder)
