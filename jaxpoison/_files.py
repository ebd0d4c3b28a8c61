"""Files are written to a temporary name and renamed: a reader never sees half of one."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


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
