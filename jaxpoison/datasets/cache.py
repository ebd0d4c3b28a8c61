"""Decoded images kept on disk, so that a data set loads in seconds the second time."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxpoison._files import replace_file

_VERSION = 1


def cache_directory() -> Path:
    """Where decoded images are kept: ``$JAXPOISON_CACHE``, else the user's cache folder."""
    if path := os.environ.get("JAXPOISON_CACHE"):
        return Path(path)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "jaxpoison"


def cached_arrays(key: object, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays from the cache, or made and put there.

    Args:
        key: Whatever decides the arrays; its ``repr`` is hashed.
        make: Makes them.
    """
    digest = hashlib.sha256(repr((_VERSION, key)).encode()).hexdigest()
    path = cache_directory() / f"images-{digest[:24]}.npz"
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        # Not there, or damaged: made again and replaced.
        arrays = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    return arrays
