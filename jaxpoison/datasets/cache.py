"""Decoded images kept on disk, so that a data set loads in seconds the second time."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxpoison._files import read_arrays, write_arrays

_VERSION = 2


def cache_directory() -> Path:
    """Where decoded images are kept: ``$JAXPOISON_CACHE``, else the user's cache folder."""
    if path := os.environ.get("JAXPOISON_CACHE"):
        return Path(path)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "jaxpoison"


def cached_arrays(key: object, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays from the cache, or made and put there.

    Where the cache cannot be used, a warning says so, and they are made all the same.

    Args:
        key: Whatever decides the arrays; its ``repr`` is hashed.
        make: Makes them.
    """
    digest = hashlib.sha256(repr((_VERSION, key)).encode()).hexdigest()
    path = cache_directory() / f"images-{digest[:24]}.npz"
    try:
        found = read_arrays(path)
    except OSError as error:
        _warn(error)
        return make()
    if found is not None:
        return found
    # Not there, or damaged: made again and replaced.
    arrays = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(path, arrays)
    except OSError as error:
        _warn(error)
    return arrays


def _warn(error: OSError) -> None:
    warnings.warn(
        f"decoded images are not kept in {cache_directory()} ({error.strerror}), and will be "
        "decoded again: set JAXPOISON_CACHE to a folder that can be written to",
        stacklevel=3,
    )
