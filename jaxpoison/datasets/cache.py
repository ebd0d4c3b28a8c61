"""Decoded images kept on disk, so that a data set loads in seconds the second time."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from jaxpoison._files import read_arrays, write_arrays
from jaxpoison._storage import cache_directory, is_large, reserve

_VERSION = 2
# Ending of the folder of images that are being decoded.
_PARTIAL = ".partial"


def cached_arrays(key: object, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays from the cache, or made and put there.

    Where the cache cannot be used, a warning says so, and they are made all the same.

    Args:
        key: Whatever decides the arrays; its ``repr`` is hashed.
        make: Makes them.
    """
    found = _read(key)
    return _kept(key, make()) if found is None else found


def _read(key: object) -> dict[str, np.ndarray] | None:
    """What is in the cache; ``None`` where it is not there, or damaged."""
    try:
        return read_arrays(_place(key, ".npz"))
    except OSError as error:
        _warn(error)
        return None


def _kept(key: object, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Puts arrays into the cache."""
    path = _place(key, ".npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(path, arrays)
    except OSError as error:
        _warn(error)
    return arrays


def cached_images(
    key: object,
    shapes: Callable[[], Mapping[str, tuple[int, ...]]],
    fill: Callable[[dict[str, np.ndarray]], None],
) -> dict[str, np.ndarray]:
    """Images from the cache, or decoded and put there; large ones stay in files that are mapped.

    From one gibibyte on they are decoded straight into files, and memory holds what is being
    looked at; these are for reading only.

    Args:
        key: Whatever decides the images; its ``repr`` is hashed.
        shapes: Gives that of every array, where they have to be decoded.
        fill: Decodes images into ``uint8`` arrays of these shapes.

    Raises:
        OSError: Of large images: there is no room for the files, or they cannot be written.
    """
    folder = _place(key, "")
    if not folder.is_dir():
        found = _read(key)
        if found is not None:
            return found
        wanted = shapes()
        if not is_large((sum(map(math.prod, wanted.values())),), np.uint8):
            arrays = {name: np.empty(shape, np.uint8) for name, shape in wanted.items()}
            fill(arrays)
            return _kept(key, arrays)
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Two processes that decode the same images would need the room twice.
        with FileLock(_lock_of(folder)):
            if not folder.is_dir():
                _write_mapped(folder, wanted, fill)
    return {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}


def _write_mapped(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    fill: Callable[[dict[str, np.ndarray]], None],
) -> None:
    _remove_partial(folder.parent)
    partial = folder.with_suffix(_PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        arrays = {}
        for name, shape in shapes.items():
            path = partial / f"{name}.npy"
            with path.open("w+b") as file:
                np.lib.format.write_array_header_1_0(
                    file, {"descr": "|u1", "fortran_order": False, "shape": shape}
                )
                file.flush()
                reserve(file, folder.parent, math.prod(shape))
            arrays[name] = np.load(path, mmap_mode="r+")
        fill(arrays)
        for array in arrays.values():
            array.flush()
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _remove_partial(cache: Path) -> None:
    """Removes what processes left that were killed while they decoded."""
    for partial in cache.glob(f"images-*{_PARTIAL}"):
        with contextlib.suppress(Timeout), FileLock(_lock_of(partial), timeout=0):
            shutil.rmtree(partial, ignore_errors=True)


def _lock_of(folder: Path) -> Path:
    return folder.with_suffix(".lock")


def _place(key: object, suffix: str) -> Path:
    digest = hashlib.sha256(repr((_VERSION, key)).encode()).hexdigest()
    return cache_directory() / f"images-{digest[:24]}{suffix}"


def _warn(error: OSError) -> None:
    warnings.warn(
        f"decoded images are not kept in {cache_directory()} ({error.strerror}), and will be "
        "decoded again: set JAXPOISON_CACHE to a folder that can be written to",
        stacklevel=3,
    )
