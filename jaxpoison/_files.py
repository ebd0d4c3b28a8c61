"""Files are written to a temporary name and renamed: a reader never sees half of one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[IO[bytes]]:
    """Opens a temporary file beside ``path``; renamed onto it if the block succeeds."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files only their owner can read; a result is for all.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as ``.npz``, and beside it the hash by which :func:`read_arrays` knows them."""
    with replace_file(path) as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    write_text(_beside(path), f"{digest}\n")


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """What :func:`write_arrays` wrote; ``None`` where it is not there, or not as it was written."""
    try:
        digest = _beside(path).read_bytes().strip().decode("ascii", "replace")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                return None
            file.seek(0)
            with np.load(file) as found:
                return {name: found[name] for name in found.files}
    except FileNotFoundError:
        return None


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def write_text(path: Path, text: str) -> None:
    """Writes text as UTF-8; bytes of file names that are none are written as they are."""
    with replace_file(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON; NaN and infinities are refused, being no JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
