"""Where large arrays are kept: from one gibibyte on in files that are mapped, not in memory."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Int

# Bytes of the smallest array that is kept in a file.
_MAPPED_FROM = 2**30
# Bytes that are copied at once.
_AT_ONCE = 2**26


def cache_directory() -> Path:
    """Where decoded images are kept: ``$JAXPOISON_CACHE``, else the user's cache folder."""
    if path := os.environ.get("JAXPOISON_CACHE"):
        return Path(path)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "jaxpoison"


def is_large(shape: tuple[int, ...], dtype: Any) -> bool:
    """Whether an array of that shape is kept in a file."""
    return math.prod(shape) * np.dtype(dtype).itemsize >= _MAPPED_FROM


def empty_array(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array to be filled; a large one stands in a file that goes when nothing refers to it.

    The file has no name, so that nothing is left of it, however the process ends. It lies in the
    cache directory.

    Raises:
        OSError: There is no room for the file; the message says how much it needs.
    """
    if not is_large(shape, dtype):
        return np.empty(shape, dtype)
    folder = cache_directory()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        reserve(file, folder, math.prod(shape) * np.dtype(dtype).itemsize)
        return np.memmap(file, dtype, "r+", shape=shape)


def reserve(file: IO[bytes], folder: Path, size: int) -> None:
    """Gives a file its length and its room on the disk: what is mapped cannot fail later.

    Args:
        file: Open for writing.
        folder: Where it lies.
        size: In bytes, from where the file stands.

    Raises:
        OSError: There is no room; the message says how much is needed.
    """
    free = shutil.disk_usage(folder).free
    try:
        if size > free:
            raise OSError("too large")
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), file.tell(), size)
        else:
            os.truncate(file.fileno(), file.tell() + size)
    except OSError as error:
        raise OSError(
            f"{size / 2**30:.1f} GiB of arrays need room in {folder}, found {free / 2**30:.1f} "
            "GiB free: set JAXPOISON_CACHE to a folder on a larger disk"
        ) from error


def rows_of(array: np.ndarray, index: Int[np.ndarray, " m"]) -> np.ndarray:
    """Rows of an array; where they are large, in a file, or no copy at all if they are adjacent."""
    shape = (len(index), *array.shape[1:])
    if not is_large(shape, array.dtype):
        return array[index]
    first = int(index[0])
    if first >= 0 and np.array_equal(index, np.arange(first, first + len(index))):
        return array[first : first + len(index)]
    found = empty_array(shape, array.dtype)
    for chunk in chunks_of(found):
        found[chunk] = array[index[chunk]]
    return found


def copy_of(array: np.ndarray) -> np.ndarray:
    """A copy that can be written to; of a large array, in a file."""
    found = empty_array(array.shape, array.dtype)
    for chunk in chunks_of(found):
        found[chunk] = array[chunk]
    return found


def chunks_of(array: np.ndarray) -> Iterator[slice]:
    """Rows of an array, some 64 MiB of them at once."""
    row = math.prod(array.shape[1:]) * array.itemsize
    count = max(1, _AT_ONCE // max(1, row))
    for start in range(0, len(array), count):
        yield slice(start, min(start + count, len(array)))
